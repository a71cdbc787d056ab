//! Tree -> states. Continuations are names, so parts are written from the last to the first.
//!
//! Payload, in modes that go on after a failure: `$.o.s` holds `failed` and `skipped` (labels, each followed by a comma) of the
//! current branch and the `signal` that its last step gives who waits for it; `$.up.bad` the labels that a barrier has passed on, and
//! where there is more than one barrier `$.up.base` those of them that the branch began with, lest each barrier repeats those before it;
//! `$.n` what a part adds to a `$.o.s` that is not empty. A branch and a machine inside put out `$.o` and nothing else, so that payloads
//! stay small where many meet. Under `FAIL_FAST` nothing is read from the payload but `$.t` and `$.w`, the scratch places of signals
//! (`$.t`: whom to tell; `$.w`: how long to wait, then what was told).

mod telling;
mod verdict;

use std::collections::HashSet;

use super::limits;
use super::names::Names;
use super::options::AslOptions;
use super::signal::{self, Ends, Signals, Status};
use super::states::{
    Catcher, Choice, Graph, Parallel, Pass, ResultPath, Rule, State, States, Succeed, Task, Template, Test, Then,
    Timeout, joined, quoted,
};
use super::task::{Ready, Scope, infrastructure, retriers, whole_seconds};
use super::tree::{Kind, Part};
use super::{Counts, Machine, content_hash, machine_name};
use crate::plan::{ExecutionMode, Step};

/// What all machines of a compilation share.
#[derive(Debug)]
pub struct Shared<'a> {
    pub options: &'a AslOptions,
    pub mode: ExecutionMode,
    /// Name of the root machine.
    pub name: &'a str,
    /// By node.
    pub steps: &'a [&'a Step],
    pub labels: &'a [String],
    pub ready: &'a [Ready],
    pub guards: &'a [Vec<u32>],
    /// Whether more than one barrier may pass on what did not complete in the same branch.
    pub keeps_base: bool,
    /// By node: whether a failure elsewhere can precede its start.
    pub asks_for_stop: &'a [bool],
    /// By token edge.
    pub ends: &'a [Ends],
}

impl Shared<'_> {
    fn tracks(&self) -> bool {
        self.mode != ExecutionMode::FailFast
    }
}

/// Writes one machine; machines inside it are appended to `machines` before it.
pub fn machine(shared: &Shared<'_>, part: &Part, scope: Scope, machines: &mut Vec<Machine>) -> Machine {
    let mut emitter = Emitter {
        shared,
        scope,
        names: Names::default(),
        counts: Counts { events: limits::EXECUTION_EVENTS, transitions: 0 },
        machines,
    };
    let graph = emitter.whole(part);
    let first = part.first_step().map_or("", |node| &shared.labels[node as usize]);
    let counts = emitter.counts;
    finished(shared, &graph, scope, (first, part.count_steps()), counts)
}

/// Bytes to begin a definition with, so that those of machines inside need no growing.
const DEFINITION_CAPACITY: usize = 1 << 20;

fn finished(
    shared: &Shared<'_>,
    graph: &Graph,
    scope: Scope,
    (first, steps): (&str, usize),
    counts: Counts,
) -> Machine {
    let mut definition = Vec::with_capacity(DEFINITION_CAPACITY);
    let written = serde_json::to_writer(&mut definition, graph);
    let mut definition = written.ok().and_then(|()| String::from_utf8(definition).ok()).unwrap_or_default();
    definition.shrink_to_fit();
    let hash = content_hash(definition.as_bytes());
    let name = match scope {
        Scope::Root => shared.name.to_owned(),
        Scope::Nested => {
            machine_name(&format!("{}-{}-{}", machine_name(shared.name, 40), machine_name(first, 24), &hash[..12]), 80)
        }
    };
    Machine { name, definition, hash, steps, counts }
}

pub use telling::skipped_of_machine;

struct Emitter<'a, 'm> {
    shared: &'a Shared<'a>,
    scope: Scope,
    names: Names,
    counts: Counts,
    machines: &'m mut Vec<Machine>,
}

/// States in reverse order.
type Out = Vec<(String, State)>;

/// Where a part is entered.
struct Entry {
    run: Then,
    /// Where to enter when it must not run.
    skip: Then,
}

/// What surrounds a part.
#[derive(Clone)]
struct Around {
    /// After everything completed.
    ok: Then,
    /// After something did not complete.
    bad: Then,
    /// Whether something before it can make it be skipped as a whole.
    skippable: bool,
    /// Whether `$.o.s` can hold failures when it begins.
    dirty: bool,
    /// Whether a step that completes says so in `$.o.s.signal`.
    notes_completion: bool,
}

impl Around {
    fn new(ok: Then, bad: Then, skippable: bool, dirty: bool) -> Self {
        Self { ok, bad, skippable, dirty, notes_completion: false }
    }
}

const S: ResultPath = ResultPath::At("$.o.s");
const N: ResultPath = ResultPath::At("$.n");
/// Where lists of steps stand that did not complete: all of the branch, or those that a part adds.
const OF_BRANCH: [&str; 2] = ["$.o.s.failed", "$.o.s.skipped"];
const OF_PART: [&str; 2] = ["$.n.failed", "$.n.skipped"];

impl Emitter<'_, '_> {
    fn whole(&mut self, part: &Part) -> Graph {
        let comment = (self.scope == Scope::Root).then(|| {
            "Written by step-engine. Snapshot and run come from the input and name of the execution.".to_owned()
        });
        let timeout_seconds = if self.scope == Scope::Root { self.shared.options.timeout_seconds } else { None };
        let mut out = Out::new();
        let around = |then: Then| Around::new(then.clone(), then, false, false);
        if !self.shared.tracks() {
            let entry = self.part(part, around(Then::End), &mut out);
            return Graph { comment, timeout_seconds, ..graph(entry.run, out) };
        }
        let then = if self.scope == Scope::Root { Then::Next(self.verdict(&mut out)) } else { self.end() };
        let entry = self.part(part, around(then), &mut out);
        let up = match self.scope {
            Scope::Root => self.up(&Template::text(",")),
            Scope::Nested => self.up_of_branch(),
        };
        let begin = Template::Object(vec![("o", clean()), ("up", up)]);
        let begin = self.plain("begin", pass(begin, ResultPath::At("$"), entry.run), &mut out);
        Graph { comment, timeout_seconds, ..graph(Then::Next(begin), out) }
    }

    fn push(&mut self, wanted: &str, state: State, cost: (u64, u64), out: &mut Out) -> String {
        let name = self.names.take(wanted);
        self.counts.add(cost.0, cost.1);
        out.push((name.clone(), state));
        name
    }

    /// A state that is on the way of a run without failures and asks no service.
    fn plain(&mut self, wanted: &str, state: State, out: &mut Out) -> String {
        self.push(wanted, state, (limits::PLAIN_EVENTS, 1), out)
    }

    fn choose(&mut self, wanted: &str, test: Test, then: String, default: String, out: &mut Out) -> String {
        self.plain(wanted, State::Choice(Choice { choices: vec![Rule { test, next: then }], default }), out)
    }

    /// A target as a name: a rule and a catcher cannot end a branch themselves.
    fn named(&mut self, then: &Then, label: &str, out: &mut Out) -> String {
        let output_path = match then {
            Then::Next(name) => return name.clone(),
            Then::End => None,
            Then::EndWith(path) => Some(*path),
        };
        self.plain(&format!("{label}: end"), State::Succeed(Succeed { output_path }), out)
    }

    /// The end of a branch or of a machine inside another.
    fn end(&self) -> Then {
        if self.shared.tracks() { Then::EndWith("$.o") } else { Then::End }
    }

    fn signals(&self) -> Option<Signals<'_>> {
        let store = self.shared.options.signals.as_ref()?;
        Some(Signals { store, options: self.shared.options, scope: self.scope })
    }

    fn label(&self, part: &Part) -> String {
        match &part.kind {
            Kind::Step(node) => self.shared.labels[*node as usize].clone(),
            _ => match (part.first_step(), part.awaits.first(), part.signals.first()) {
                (Some(node), ..) => format!("{} +{}", self.shared.labels[node as usize], part.count_steps().max(1) - 1),
                (None, Some(&edge), _) => self.shared.ends[edge].to.clone(),
                (None, None, Some(&edge)) => self.shared.ends[edge].from.clone(),
                (None, None, None) => "(junction)".into(),
            },
        }
    }

    fn part(&mut self, part: &Part, around: Around, out: &mut Out) -> Entry {
        let label = self.label(part);
        let (mut ok, mut bad) = (around.ok.clone(), around.bad.clone());
        // A step after which all goes on alike has one way to tell, whatever it has to tell.
        let one_way = matches!(part.kind, Kind::Step(_)) && self.shared.tracks() && !around.dirty && ok == bad;
        if let Some(&edge) = part.signals.first() {
            let source = self.shared.ends[edge].from.clone();
            if one_way {
                ok = Then::Next(self.tell(&source, &part.signals, Status::FromPayload, "tell", &ok, out));
                bad = ok.clone();
            } else {
                if self.shared.tracks() {
                    let (counts, status) = (self.counts, Status::FromPayload);
                    let verb = "tell that it did not complete";
                    bad = Then::Next(self.tell(&source, &part.signals, status, verb, &bad, out));
                    self.counts = counts;
                }
                ok = Then::Next(self.tell(&source, &part.signals, Status::Fixed("completed"), "tell", &ok, out));
            }
        }
        let skippable = self.shared.tracks() && (around.skippable || !part.awaits.is_empty());
        let notes_completion = one_way && !part.signals.is_empty();
        let inner = Around { notes_completion, ..Around::new(ok, bad, skippable, around.dirty) };
        let mut entry = match &part.kind {
            Kind::Step(node) => self.step(*node, &label, inner, out),
            Kind::Junction => {
                let skip = if skippable { self.skipped(part, &label, &inner.bad, out) } else { inner.bad.clone() };
                Entry { run: inner.ok, skip }
            }
            Kind::Series(parts) => self.series(parts, inner, out),
            Kind::Parallel(parts) => self.parallel(part, parts, &label, inner, out),
            Kind::Barrier(rows) => self.barrier(part, rows, &label, inner, out),
            Kind::Nested(child) => self.nested(part, child, &label, inner, out),
        };
        for &edge in part.awaits.iter().rev() {
            entry.run = Then::Next(self.wait(edge, &entry, out));
        }
        entry
    }

    fn series(&mut self, parts: &[Part], around: Around, out: &mut Out) -> Entry {
        let (mut ok, mut bad) = (around.ok, around.bad);
        for (at, part) in parts.iter().enumerate().rev() {
            let skippable = self.shared.tracks() && (around.skippable || at > 0);
            let entry = self.part(part, Around::new(ok, bad, skippable, around.dirty), out);
            (ok, bad) = (entry.run, entry.skip);
        }
        Entry { run: ok, skip: bad }
    }

    fn step(&mut self, node: u32, label: &str, around: Around, out: &mut Out) -> Entry {
        let (shared, tracks) = (self.shared, self.shared.tracks());
        let at = node as usize;
        let guards: Vec<&String> = shared.guards[at].iter().map(|&pred| &shared.labels[pred as usize]).collect();
        let asks = shared.mode == ExecutionMode::StopOnFailure && shared.asks_for_stop[at];
        let skip = if around.skippable || (tracks && !guards.is_empty()) || asks {
            let state = not_completed(("skipped", label), around.bad.clone());
            Then::Next(self.push(&format!("{label}: skipped"), state, (0, 0), out))
        } else {
            around.bad.clone()
        };
        let mut catch = Vec::new();
        if tracks {
            let mut then = around.bad.clone();
            let stop = match self.signals() {
                Some(signals) if shared.mode == ExecutionMode::StopOnFailure => {
                    let body = Template::Object(vec![("step", Template::text(label))]);
                    Some(signals.put(signal::STOP_KEY, body, then.clone()))
                }
                _ => None,
            };
            if let Some(stop) = stop {
                then = Then::Next(self.push(&format!("{label}: stop the run"), stop, (0, 0), out));
            }
            let state = not_completed(("failed", label), then);
            let next = self.push(&format!("{label}: failed"), state, (0, 0), out);
            catch.push(Catcher { error_equals: &["States.ALL"], result_path: ResultPath::Discard, next });
        }
        let step = shared.steps[at];
        let keep = around.notes_completion.then(|| status("completed"));
        let task = State::Task(Box::new(Task {
            resource: self.integration("ecs:runTask.sync"),
            parameters: shared.ready[at].parameters(label, self.scope),
            result_path: if keep.is_some() { ResultPath::At("$.o.s.signal") } else { ResultPath::Discard },
            result_selector: keep,
            timeout: step.timeout.map(|timeout| Timeout::Seconds(whole_seconds(timeout))),
            retry: retriers(&step.retry, shared.options.infrastructure_retries),
            catch,
            then: around.ok,
        }));
        let mut run = self.push(label, task, (limits::SYNC_EVENTS, 1), out);
        if !tracks {
            return Entry { run: Then::Next(run), skip };
        }
        let skip_name = self.target(&skip, &run);
        if !guards.is_empty() {
            let matches =
                |label: &String| Test::Matches { variable: "$.up.bad", string_matches: format!("*,{label},*") };
            let test = Test::Any { or: guards.into_iter().map(matches).collect() };
            run = self.choose(&format!("{label}: may it start"), test, skip_name.clone(), run, out);
        }
        if asks {
            let look = self.signals().map(|signals| signals.look(signal::STOP_KEY, Then::Next(skip_name), run.clone()));
            if let Some(look) = look {
                let cost = (limits::REQUEST_EVENTS, 1);
                run = self.push(&format!("{label}: is the run stopped"), State::Task(Box::new(look)), cost, out);
            }
        }
        Entry { run: Then::Next(run), skip }
    }

    fn target(&self, then: &Then, fallback: &str) -> String {
        match then {
            Then::Next(name) => name.clone(),
            Then::End | Then::EndWith(_) => fallback.to_owned(),
        }
    }

    fn integration(&self, action: &str) -> String {
        format!("arn:{}:states:::{action}", self.shared.options.account.partition)
    }

    /// A choice after a part whose result stands in the payload; none where both ways are one.
    fn judge(&mut self, label: &str, paths: &[&'static str], around: &Around, out: &mut Out) -> Then {
        if !self.shared.tracks() || around.ok == around.bad {
            return around.ok.clone();
        }
        let ok = self.named(&around.ok, label, out);
        let bad = self.named(&around.bad, label, out);
        Then::Next(self.choose(&format!("{label}: did all complete"), all_empty(paths), ok, bad, out))
    }

    /// What follows a part that collects steps of its own, and where it puts them.
    fn collect(&mut self, label: &str, around: &Around, out: &mut Out) -> (ResultPath, Then) {
        if !self.shared.tracks() {
            return (ResultPath::Discard, around.ok.clone());
        }
        if !around.dirty {
            return (S, self.judge(label, &OF_BRANCH, around, out));
        }
        let then = self.judge(label, &OF_PART, around, out);
        let [failed, skipped] = [0, 1].map(|at| Template::expression(joined([OF_BRANCH[at], OF_PART[at]])));
        let add = pass(
            Template::Object(vec![("failed", failed), ("skipped", skipped), ("signal", status("skipped"))]),
            S,
            then,
        );
        (N, Then::Next(self.plain(&format!("{label}: add to what was before"), add, out)))
    }

    fn parallel(&mut self, whole: &Part, parts: &[Part], label: &str, around: Around, out: &mut Out) -> Entry {
        let skip = if around.skippable { self.skipped(whole, label, &around.bad, out) } else { around.bad.clone() };
        let (result_path, then) = self.collect(label, &around, out);
        let mut branches = Vec::with_capacity(parts.len());
        for part in parts {
            let mut states = Out::new();
            let inner = Around::new(self.end(), self.end(), false, false);
            let entry = self.part(part, inner, &mut states);
            branches.push(graph(entry.run, states));
        }
        let (mut parameters, mut result_selector) = (None, None);
        if self.shared.tracks() {
            let of_branches = |field: &str| {
                let paths: Vec<String> = (0..parts.len()).map(|at| format!("$[{at}].s.{field}")).collect();
                Template::expression(joined(paths.iter().map(String::as_str)))
            };
            parameters = Some(Template::Object(vec![("o", clean()), ("up", self.up_of_branch())]));
            result_selector = Some(collected(of_branches));
        }
        let state = State::Parallel(Parallel { parameters, branches, result_selector, result_path, then });
        let run = self.push(&format!("{label}: side by side"), state, (limits::PARALLEL_EVENTS, 1), out);
        Entry { run: Then::Next(run), skip }
    }

    /// What did not complete elsewhere, as a branch begins with it.
    fn up(&self, bad: &Template) -> Template {
        let mut fields = vec![("bad", bad.clone())];
        fields.extend(self.shared.keeps_base.then(|| ("base", bad.clone())));
        Template::Object(fields)
    }

    fn up_of_branch(&self) -> Template {
        if self.shared.keeps_base { self.up(&Template::expression("$.up.bad")) } else { Template::expression("$.up") }
    }

    fn barrier(&mut self, whole: &Part, rows: &[Part], label: &str, around: Around, out: &mut Out) -> Entry {
        let tracks = self.shared.tracks();
        if tracks && around.dirty && around.ok != around.bad {
            // What its own steps come to cannot be told from what failed before, so it gets a branch of its own.
            let alone = Part::new(Kind::Barrier(rows.to_vec()));
            return self.parallel(whole, std::slice::from_ref(&alone), label, around, out);
        }
        let skip = if around.skippable { self.skipped(whole, label, &around.bad, out) } else { around.bad.clone() };
        let reads = if tracks { self.rows_that_read(rows) } else { vec![false; rows.len()] };
        let mut then = if tracks { self.judge(label, &OF_BRANCH, &around, out) } else { around.ok };
        for (at, row) in rows.iter().enumerate().rev() {
            let inner = Around::new(then.clone(), then, false, tracks && (around.dirty || at > 0));
            then = self.part(row, inner, out).run;
            if reads[at] {
                let known = if self.shared.keeps_base { "$.up.base" } else { "$.up.bad" };
                let bad = Template::expression(joined([known, OF_BRANCH[0], OF_BRANCH[1]]));
                let mut up = vec![("bad", bad)];
                up.extend(self.shared.keeps_base.then(|| ("base", Template::expression(known))));
                // Whatever else stands in the payload has had its use.
                let payload = Template::Object(vec![("o", Template::expression("$.o")), ("up", Template::Object(up))]);
                let state = pass(payload, ResultPath::At("$"), then);
                then = Then::Next(self.plain(&format!("barrier before {}", self.label(row)), state, out));
            }
        }
        Entry { run: then, skip }
    }

    /// For each row whether a step in it is skipped when one of the rows before did not complete.
    fn rows_that_read(&self, rows: &[Part]) -> Vec<bool> {
        let mut before = HashSet::new();
        let mut reads = Vec::with_capacity(rows.len());
        for row in rows {
            let mut own = Vec::new();
            row.for_each_step(&mut |node| own.push(node));
            let guards = own.iter().flat_map(|&node| &self.shared.guards[node as usize]);
            reads.push(!before.is_empty() && guards.into_iter().any(|pred| before.contains(pred)));
            before.extend(own);
        }
        reads
    }

    fn nested(&mut self, whole: &Part, child: &Part, label: &str, around: Around, out: &mut Out) -> Entry {
        let skip = if around.skippable { self.skipped(whole, label, &around.bad, out) } else { around.bad.clone() };
        let (result_path, then) = self.collect(label, &around, out);
        let child = machine(self.shared, child, Scope::Nested, self.machines);
        let of_machine = |field: &str| Template::expression(format!("$.Output.s.{field}"));
        let keep = self.shared.tracks().then(|| collected(of_machine));
        let state = self.start_machine(child, (keep, result_path), then);
        let run = self.push(&format!("{label}: machine"), state, (limits::SYNC_EVENTS, 1), out);
        Entry { run: Then::Next(run), skip }
    }

    /// A state that starts a machine and waits for its end.
    fn start_machine(&mut self, child: Machine, keep: (Option<Template>, ResultPath), then: Then) -> State {
        let account = &self.shared.options.account;
        let arn =
            format!("arn:{}:states:{}:{}:stateMachine:{}", account.partition, account.region, account.id, child.name);
        // Parts of equal content are one machine.
        if self.machines.iter().all(|machine| machine.name != child.name) {
            self.machines.push(child);
        }
        let scope = self.scope;
        let mut input = vec![
            ("execution", Template::expression(scope.execution_name())),
            ("execution_id", Template::expression(scope.execution_id())),
            ("redrive", Template::expression(scope.redrive_count())),
            ("input", Template::expression(scope.input())),
            ("AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID", Template::expression("$$.Execution.Id")),
        ];
        if self.shared.tracks() {
            input.push(("up", Template::expression("$.up")));
        }
        let retry = infrastructure(
            &[
                "StepFunctions.ExecutionLimitExceededException",
                "StepFunctions.SdkClientException",
                "StepFunctions.SfnException",
            ],
            self.shared.options.infrastructure_retries,
            60,
        );
        State::Task(Box::new(Task {
            resource: self.integration("states:startExecution.sync:2"),
            parameters: Template::Object(vec![
                ("StateMachineArn", Template::text(arn)),
                ("Input", Template::Object(input)),
            ]),
            result_selector: keep.0,
            result_path: keep.1,
            timeout: None,
            retry: vec![retry],
            catch: Vec::new(),
            then,
        }))
    }
}

fn graph(start: Then, mut states: Out) -> Graph {
    states.reverse();
    let start_at = match start {
        Then::Next(name) => name,
        Then::End | Then::EndWith(_) => states.first().map(|(name, _)| name.clone()).unwrap_or_default(),
    };
    Graph { comment: None, start_at, timeout_seconds: None, states: States(states) }
}

fn pass(parameters: Template, result_path: ResultPath, then: Then) -> State {
    State::Pass(Pass { parameters, result_path, then })
}

fn status(status: &str) -> Template {
    Template::Object(vec![("status", Template::text(status))])
}

fn clean() -> Template {
    let lists = vec![("failed", Template::text("")), ("skipped", Template::text("")), ("signal", status("completed"))];
    Template::Object(vec![("s", Template::Object(lists))])
}

/// What is kept of the steps inside a part, from where their lists stand.
fn collected(list: impl Fn(&str) -> Template) -> Template {
    Template::Object(vec![("failed", list("failed")), ("skipped", list("skipped")), ("signal", status("skipped"))])
}

/// Adds labels to one of the lists.
fn not_completed((list, labels): (&str, &str), then: Then) -> State {
    let field = |name: &'static str| {
        let path = format!("$.o.s.{name}");
        let value = if name == list { format!("States.Format('{{}}{{}},', {path}, {})", quoted(labels)) } else { path };
        (name, Template::Expression(value))
    };
    let lists = vec![field("failed"), field("skipped"), ("signal", status(list))];
    pass(Template::Object(lists), S, then)
}

fn all_empty(paths: &[&'static str]) -> Test {
    let mut tests: Vec<Test> = paths.iter().map(|variable| Test::Equals { variable, string_equals: "" }).collect();
    if tests.len() == 1 { tests.remove(0) } else { Test::All { and: tests } }
}
