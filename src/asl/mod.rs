//! PURE. A validated [`Plan`] becomes Amazon States Language: state machines that run every step as an ECS task.
//!
//! ```text
//! Plan -> transitive reduction -> series-parallel tree, token edges or barriers -> split into machines -> states
//! ```
//!
//! Equal plans and options give equal bytes: names come from content, what each run brings is read from the execution. No AWS call is
//! made here, and nothing here knows credentials.

mod barrier;
mod decompose;
mod draw;
mod emit;
mod error;
pub mod fargate;
mod graph;
mod lanes;
pub mod limits;
mod list;
mod names;
mod options;
mod policy;
mod prime;
mod report;
mod schedule;
mod signal;
mod split;
pub mod states;
mod task;
mod tree;
mod width;

use std::collections::HashSet;

use serde::Serialize;

pub use barrier::AddedWait;
pub use draw::Picture;
pub use error::AslError;
use names::{Names, labels};
pub use names::{content_hash, machine_name, possible_labels};
pub use options::{
    Account, AslOptions, CapacityProvider, ExecutionField, LaunchType, MachineLimits, Network, RunValue, SignalStore,
    Synchronization, TaskSettings, Value,
};
pub use report::{Counts, MachineReport, Report, StepSize};
pub use tree::{Kind, Part, TokenEdge};

use crate::plan::{ExecutionMode, Plan, Step};

/// A plan as state machines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compiled {
    /// Machines in the order in which they must exist: those inside others first, the root last.
    pub machines: Vec<Machine>,
    /// What it amounts to.
    pub report: Report,
}

/// One state machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Name. A nested machine's contains its content's hash, so a name never stands for two definitions.
    pub name: String,
    /// Amazon States Language, compact JSON.
    pub definition: String,
    /// Hash of the definition.
    pub hash: String,
    /// Steps inside, those of machines inside included.
    pub steps: usize,
    /// Events of one execution and its transitions, without a retry.
    #[serde(flatten)]
    pub counts: Counts,
}

impl Compiled {
    /// The machine to start.
    #[must_use]
    pub fn root(&self) -> &Machine {
        &self.machines[self.machines.len() - 1]
    }
}

/// Shares of a machine's limits that are tried in turn: weights are estimates, the outcome is measured.
const SHARES: [f64; 4] = [0.85, 0.6, 0.4, 0.2];

/// Compiles a plan.
///
/// # Errors
/// [`AslError`] names the step or setting to change.
pub fn compile(plan: &Plan, options: &AslOptions) -> Result<Compiled, AslError> {
    let analysis = Analysis::new(plan, options)?;
    let shared = analysis.shared(plan, options);
    let mut outcome = Err(AslError::Empty);
    for share in SHARES {
        let tree = split::split(analysis.tree.root.clone(), &shared, share);
        let mut machines = Vec::new();
        let root = emit::machine(&shared, &tree, task::Scope::Root, &mut machines);
        machines.push(root);
        outcome = keeps_limits(&machines, &tree, &shared).map(|()| machines);
        if outcome.is_ok() {
            break;
        }
    }
    let machines = outcome?;
    let report = analysis.report(plan, options, &shared, &machines);
    Ok(Compiled { machines, report })
}

/// Draws a plan's machine: what runs side by side, what is exchanged by tokens.
///
/// # Errors
/// As [`compile`].
pub fn draw(plan: &Plan, options: &AslOptions, picture: Picture) -> Result<String, AslError> {
    let analysis = Analysis::new(plan, options)?;
    Ok(draw::draw(picture, &analysis.tree.root, &analysis.names, &analysis.ends))
}

/// Failed and skipped steps from the cause of an execution that ended with `StepEngine.StepsFailed`; none for another cause.
///
/// Steps are given by label: the step's name, unless that is long or has characters that a state's name should not have. A list that is
/// longer than a cause may be is empty here: the cause has its length, as `failed_count` or `skipped_count`.
#[must_use]
pub fn parse_cause(cause: &str) -> Option<(Vec<String>, Vec<String>)> {
    let cause: serde_json::Value = serde_json::from_str(cause).ok()?;
    let list = |field: &str| match cause.get(field) {
        Some(list) => Some(list.as_str()?.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect()),
        None => cause.get(format!("{field}_count")).map(|_| Vec::new()),
    };
    Some((list("failed")?, list("skipped")?))
}

/// Labels that fit into a payload even when no step completes: one list, or two where barriers pass on what did not complete.
fn fitting_labels(names: &[&str], mode: ExecutionMode, passes_on: bool) -> Result<Vec<String>, AslError> {
    if mode == ExecutionMode::FailFast {
        return Ok(labels(names, usize::MAX));
    }
    let lists = if passes_on { 2 } else { 1 };
    let room = (limits::PAYLOAD_BYTES - limits::PAYLOAD_BESIDE_NAMES) / lists;
    let labels = labels(names, usize::try_from(room).unwrap_or(usize::MAX));
    let actual = labels.iter().map(|label| label.len() as u64 + 1).sum();
    if actual > room {
        return Err(AslError::Limit {
            step: None,
            what: "the names of all steps in a payload; use shorter names, fewer steps, or fail_fast",
            unit: "bytes",
            limit: room,
            actual,
        });
    }
    Ok(labels)
}

struct Analysis<'a> {
    steps: Vec<&'a Step>,
    /// Labels by node.
    labels: Vec<String>,
    /// Names by node.
    names: Vec<&'a str>,
    edges: usize,
    ready: Vec<task::Ready>,
    tree: decompose::Decomposition,
    asks_for_stop: Vec<bool>,
    ends: Vec<signal::Ends>,
    seconds: Vec<f64>,
    durations_known: bool,
    critical_path: f64,
    sizes: Vec<StepSize>,
    name: String,
    limit: Option<Limit>,
    keeps_base: bool,
}

/// How many steps may run at once, and how many could.
#[derive(Debug, Clone, Copy)]
struct Limit {
    places: usize,
    width: usize,
}

impl<'a> Analysis<'a> {
    fn new(plan: &'a Plan, options: &AslOptions) -> Result<Self, AslError> {
        if plan.is_empty() {
            return Err(AslError::Empty);
        }
        options.check(&plan.steps.iter().map(|step| step.name.as_ref()).collect::<HashSet<_>>())?;
        let graph = graph::Reduced::new(plan);
        let steps: Vec<&Step> = graph.steps.iter().map(|&index| plan.step(index)).collect();
        let ready = steps.iter().map(|step| task::Ready::new(step, options)).collect::<Result<Vec<_>, _>>()?;
        let sizes = sizes(&steps, &ready)?;
        let (seconds, durations_known) = expected_seconds(&steps);
        let mut finishes = vec![0.0_f64; steps.len()];
        for node in 0..steps.len() {
            let start = graph.preds[node].iter().map(|&pred| finishes[pred as usize]).fold(0.0, f64::max);
            finishes[node] = start + seconds[node];
        }
        let critical_path = finishes.iter().copied().fold(0.0, f64::max);
        let budget = critical_path * options.auto_threshold;
        let limit = plan.max_parallelism.map(|limit| Limit {
            places: usize::try_from(limit).unwrap_or(usize::MAX),
            width: width::Inside::whole(&graph).width(),
        });
        let ways = decompose::Ways {
            synchronization: options.synchronization,
            budget,
            places: limit.map_or(usize::MAX, |limit| limit.places),
            signals: options.signals.is_some(),
            edges_of_step: split::edges_of_step(options.limits),
        };
        let tree = decompose::decompose(&graph, &seconds, ways);
        if tree.depth > limits::TREE_DEPTH {
            let (limit, actual) = (limits::TREE_DEPTH.into(), tree.depth.into());
            return Err(AslError::Limit {
                step: Some(steps[tree.deepest as usize].name.to_string()),
                what: "rows and branches inside each other",
                unit: "levels",
                limit,
                actual,
            });
        }
        let names: Vec<&str> = steps.iter().map(|step| step.name.as_ref()).collect();
        let passes_on = tree.guards.iter().any(|guards| !guards.is_empty());
        let labels = fitting_labels(&names, plan.execution_mode, passes_on)?;
        // A step without upstreams starts with the run, unless a barrier holds it back.
        let delayed = |node: usize| !graph.preds[node].is_empty() || !tree.waits.is_empty();
        let asks_for_stop: Vec<bool> =
            (0..steps.len()).map(|node| graph.has_concurrent[node] && delayed(node)).collect();
        let ends = ends(&tree.root, &labels, tree.token_edges);
        let stops = plan.execution_mode == ExecutionMode::StopOnFailure && asks_for_stop.contains(&true);
        if options.signals.is_none() && (tree.token_edges > 0 || stops) {
            let why = if tree.token_edges > 0 {
                format!("{} dependencies need token edges", tree.token_edges)
            } else {
                "stop_on_failure tells running branches through S3 that they must not start anything new".into()
            };
            let else_do = if tree.token_edges > 0 { ", or synchronization to `barrier`" } else { "" };
            let message = format!("{why}: set signals.bucket to a bucket that the machine may write{else_do}");
            return Err(AslError::option(None, "signals.bucket", message));
        }
        let name = options.name.clone().unwrap_or_else(|| machine_name(&plan.pipeline, limits::NAME_CHARACTERS));
        let edges = graph.preds.iter().map(Vec::len).sum();
        let keeps_base = passes_on && tree.waits.len() > 1;
        Ok(Self {
            steps,
            labels,
            names,
            edges,
            ready,
            tree,
            asks_for_stop,
            ends,
            seconds,
            durations_known,
            critical_path,
            sizes,
            name,
            limit,
            keeps_base,
        })
    }

    fn shared<'b>(&'b self, plan: &Plan, options: &'b AslOptions) -> emit::Shared<'b> {
        emit::Shared {
            options,
            mode: plan.execution_mode,
            name: &self.name,
            steps: &self.steps,
            labels: &self.labels,
            ready: &self.ready,
            guards: &self.tree.guards,
            keeps_base: self.keeps_base,
            asks_for_stop: &self.asks_for_stop,
            ends: &self.ends,
        }
    }

    fn report(&self, plan: &Plan, options: &AslOptions, shared: &emit::Shared<'_>, machines: &[Machine]) -> Report {
        let stops = plan.execution_mode == ExecutionMode::StopOnFailure && self.asks_for_stop.contains(&true);
        let nested: Vec<String> = machines[..machines.len() - 1].iter().map(|machine| machine.name.clone()).collect();
        let uses = policy::Uses { signals: stops || !self.ends.is_empty(), nested: !nested.is_empty() };
        let makespan = if self.tree.waits.is_empty() {
            self.critical_path
        } else {
            schedule::makespan(&self.tree.root, &self.seconds, self.tree.token_edges)
        };
        let transitions = machines.iter().map(|machine| machine.counts.transitions).sum();
        let pairs = wait_pairs(&self.tree);
        let names = |nodes: &[u32]| nodes.iter().map(|&node| self.names[node as usize].to_owned()).collect();
        Report {
            steps: self.steps.len(),
            edges: self.edges,
            synchronization: options.synchronization,
            max_parallelism: plan.max_parallelism,
            width: self.limit.map(|limit| limit.width),
            token_edges: self.ends.iter().map(|ends| (ends.from.clone(), ends.to.clone())).collect(),
            added_waits: self
                .tree
                .waits
                .iter()
                .zip(pairs)
                .map(|(wait, pairs)| AddedWait { first: names(&wait.first), then: names(&wait.then), pairs })
                .collect(),
            critical_path_seconds: self.critical_path,
            makespan_seconds: makespan,
            makespan_ratio: if self.critical_path > 0.0 { makespan / self.critical_path } else { 1.0 },
            durations_known: self.durations_known,
            events: machines.last().map_or(0, |machine| machine.counts.events),
            transitions,
            dollars_per_run: report::dollars(transitions),
            machines: machines
                .iter()
                .map(|machine| MachineReport {
                    name: machine.name.clone(),
                    steps: machine.steps,
                    definition_bytes: machine.definition.len(),
                    events: machine.counts.events,
                })
                .collect(),
            sizes: self.sizes.clone(),
            policy: policy::document(options, shared.ready, &nested, uses),
        }
    }
}

/// For each wait the pairs of a waiting step and a step that it does not directly depend on.
fn wait_pairs(tree: &decompose::Decomposition) -> Vec<usize> {
    // What was first is in ascending order.
    let direct = |then: u32, first: &[u32]| {
        tree.guards[then as usize].iter().filter(|&pred| first.binary_search(pred).is_ok()).count()
    };
    let pairs = |wait: &barrier::Wait| {
        let all = wait.first.len() * wait.then.len();
        all - wait.then.iter().map(|&then| direct(then, &wait.first)).sum::<usize>()
    };
    tree.waits.iter().map(pairs).collect()
}

fn sizes(steps: &[&Step], ready: &[task::Ready]) -> Result<Vec<StepSize>, AslError> {
    let mut sizes = Vec::new();
    for (step, ready) in steps.iter().zip(ready) {
        let settings = ready.settings();
        let on_fargate = match settings.strategy() {
            Some(providers) => providers.iter().any(|provider| provider.name.starts_with("FARGATE")),
            None => settings.launch_type == Some(LaunchType::Fargate),
        };
        if on_fargate {
            let size = fargate::fit(step.resources)
                .map_err(|message| AslError::Resources { step: step.name.to_string(), message })?;
            sizes.push(StepSize { step: step.name.to_string(), size });
        }
    }
    Ok(sizes)
}

/// Durations from earlier runs; what is not known counts as the mean of the others, or as 1. Also whether all are known.
fn expected_seconds(steps: &[&Step]) -> (Vec<f64>, bool) {
    let known: Vec<f64> = steps.iter().filter_map(|step| step.expected).map(|d| d.as_secs_f64()).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of steps is far below 2^52")]
    let unknown = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    (steps.iter().map(|step| step.expected.map_or(unknown, |d| d.as_secs_f64())).collect(), known.len() == steps.len())
}

/// Labels of both ends of every token edge. A part of several steps is named after its first one.
fn ends(root: &Part, labels: &[String], token_edges: usize) -> Vec<signal::Ends> {
    fn visit(part: &Part, labels: &[String], names: &mut Names, ends: &mut [signal::Ends]) {
        if !part.awaits.is_empty() || !part.signals.is_empty() {
            let own = match (&part.kind, part.first_step()) {
                (Kind::Step(node), _) => labels[*node as usize].clone(),
                (_, Some(node)) => names.take(&format!("{} +{}", labels[node as usize], part.count_steps() - 1)),
                // Brackets stand in no step's label.
                (_, None) => names.take("(junction)"),
            };
            for &edge in &part.awaits {
                ends[edge].to.clone_from(&own);
            }
            for &edge in &part.signals {
                ends[edge].from.clone_from(&own);
            }
        }
        for child in part.children() {
            visit(child, labels, names, ends);
        }
    }
    let mut ends = vec![signal::Ends { from: String::new(), to: String::new() }; token_edges];
    visit(root, labels, &mut Names::default(), &mut ends);
    ends
}

/// Checks what was written against the limits.
fn keeps_limits(machines: &[Machine], tree: &Part, shared: &emit::Shared<'_>) -> Result<(), AslError> {
    let limits = shared.options.limits;
    for machine in machines {
        let bytes = machine.definition.len() as u64;
        let (what, unit, limit, actual) = if bytes > limits.definition_bytes {
            ("the definition of a state machine", "bytes", limits.definition_bytes, bytes)
        } else if machine.counts.events > limits.events {
            ("the history of an execution", "events", limits.events, machine.counts.events)
        } else {
            continue;
        };
        return Err(AslError::Limit { step: largest_step(tree, shared), what, unit, limit, actual });
    }
    Ok(())
}

/// Whom to blame when even a machine for a single step is too large.
fn largest_step(tree: &Part, shared: &emit::Shared<'_>) -> Option<String> {
    fn visit(part: &Part, shared: &emit::Shared<'_>, worst: &mut (usize, Option<u32>)) {
        if let Kind::Step(node) = part.kind {
            let parameters = shared.ready[node as usize].parameters("", task::Scope::Nested);
            let size = serde_json::to_string(&parameters).map_or(0, |json| json.len())
                + 2_000 * (part.awaits.len() + part.signals.len());
            if size > worst.0 {
                *worst = (size, Some(node));
            }
        }
        for child in part.children() {
            visit(child, shared, worst);
        }
    }
    let mut worst = (0, None);
    visit(tree, shared, &mut worst);
    worst.1.map(|node| shared.steps[node as usize].name.to_string())
}
