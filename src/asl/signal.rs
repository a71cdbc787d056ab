//! Token edges as states: a rendezvous through two objects in S3 that needs no polling, in whatever order the two sides come.
//!
//! | side | states |
//! |---|---|
//! | upstream, once it is over | put `<upstream>/over` with its status; get the waiter's token; none: done; else `sendTaskSuccess` |
//! | waiter, when its turn comes | note an interval; get `<upstream>/over`; there: go on; else put a task token and wait for it |
//!
//! Several waiters of one part are told by a `Map` over their names, which [`Signals::over`] leaves in `$.t`: its size does not grow
//! with states. Parts that are skipped together tell from one list of pairs.
//!
//! `over` is a fact: it holds across a redrive. A token belongs to one attempt of one waiter: its key ends with the count of redrives,
//! so a redriven upstream never finds an old one. Should both sides pass each other (the waiter looked before `over` was put and put its token
//! after the upstream had looked), the waiter looks again when its wait times out: after `recheck_seconds`, then after four times as long
//! each time, so that a waiter of a week looks nine times. Branches of like duration do pass each other: a look and a put take tenths of a
//! second. So the first interval is short. Nothing is ever lost; a missed signal costs at most three times what was waited before it and
//! `recheck_seconds`.

use super::limits::{ITEM_EVENTS, MAP_EVENTS, PLAIN_EVENTS, REQUEST_EVENTS};
use super::options::{AslOptions, SignalStore};
use super::states::{
    Catcher, Choice, Graph, Map, Parallel, Pass, ResultPath, Rule, State, States, Task, Template, Test, Then, Timeout,
    format_template,
};
use super::task::{Scope, infrastructure};

/// Both ends of a token edge, by label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// Who signals.
    pub from: String,
    /// Who waits.
    pub to: String,
}

/// What status a signal carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It stands in the machine.
    Fixed(&'static str),
    /// The failed or skipped step left it in the payload.
    FromPayload,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter<'a> {
    /// It stands in the machine.
    One(&'a Ends),
    /// The item at hand of those that wait for `from`.
    Item { from: &'a str },
    /// The item at hand is a pair of upstream and waiter.
    Pair,
}

/// What a catcher for a missing object matches. The first is the service's rule for names, the second is in use too.
const NO_SUCH_KEY: [&str; 2] = ["S3.NoSuchKeyException", "S3.NoSuchKey"];
/// What `sendTaskSuccess` answers to a token whose waiter is gone: it was told already, or it belongs to an earlier drive.
const TOKEN_IS_OVER: [&str; 3] =
    ["Sfn.InvalidTokenException", "Sfn.TaskDoesNotExistException", "Sfn.TaskTimedOutException"];
const S3_HICCUPS: [&str; 2] = ["S3.S3Exception", "S3.SdkClientException"];
const SFN_HICCUPS: [&str; 2] = ["Sfn.SdkClientException", "Sfn.SfnException"];

/// Writes the states of signals for one machine.
#[derive(Debug)]
pub struct Signals<'a> {
    /// Where objects are.
    pub store: &'a SignalStore,
    /// The compilation's options.
    pub options: &'a AslOptions,
    /// How the machine knows its root execution.
    pub scope: Scope,
}

impl Signals<'_> {
    fn resource(&self, action: &str) -> String {
        format!("arn:{}:states:::aws-sdk:{action}", self.options.account.partition)
    }

    /// Key of an object of this execution: `{}` in `rest` stand for `arguments`. The prefix and labels hold no braces, see `names::label`.
    fn key(&self, rest: &str, arguments: &[&str]) -> Template {
        let prefix = &self.store.prefix;
        let template = if prefix.is_empty() { format!("{{}}/{rest}") } else { format!("{prefix}/{{}}/{rest}") };
        let mut expression = format!("States.Format({}, {}", format_template(&template), self.scope.execution_name());
        for argument in arguments {
            expression.push_str(", ");
            expression.push_str(argument);
        }
        expression.push(')');
        Template::Expression(expression)
    }

    fn token_key(&self, waiter: Waiter<'_>) -> Template {
        let redrive = self.scope.redrive_count();
        match waiter {
            Waiter::One(Ends { from, to }) => self.key(&format!("{from}/token/{to}/{{}}"), &[redrive]),
            Waiter::Item { from } => self.key(&format!("{from}/token/{{}}/{{}}"), &["$.to", redrive]),
            Waiter::Pair => self.key("{}/token/{}/{}", &["$.from", "$.to", redrive]),
        }
    }

    fn request(&self, action: &str, mut fields: Vec<(&'static str, Template)>, then: Then) -> Task {
        let s3 = action.starts_with("s3:");
        if s3 {
            fields.insert(0, ("Bucket", Template::text(&self.store.bucket)));
        }
        let hiccups = if s3 { &S3_HICCUPS } else { &SFN_HICCUPS };
        Task {
            resource: self.resource(action),
            parameters: Template::Object(fields),
            result_selector: None,
            result_path: ResultPath::Discard,
            timeout: None,
            retry: vec![infrastructure(hiccups, self.options.infrastructure_retries, 30)],
            catch: Vec::new(),
            then,
        }
    }

    /// Puts an object.
    pub fn put(&self, rest: &str, body: Template, then: Then) -> State {
        State::Task(Box::new(self.put_at(self.key(rest, &[]), body, then)))
    }

    fn put_at(&self, key: Template, body: Template, then: Then) -> Task {
        self.request("s3:putObject", vec![("Key", key), ("Body", body)], then)
    }

    /// Goes one way when an object is there, another when it is not.
    pub fn look(&self, rest: &str, there: Then, missing: String) -> Task {
        let mut task = self.request("s3:getObject", vec![("Key", self.key(rest, &[]))], there);
        task.catch.push(Catcher { error_equals: &NO_SUCH_KEY, result_path: ResultPath::Discard, next: missing });
        task
    }

    /// Waits until the other end has signalled. Returns the states in order; the first is where to enter.
    ///
    /// With `otherwise`, the status decides: `then` after `completed`, `otherwise` after anything else.
    pub fn wait(&self, ends: &Ends, names: [String; 5], then: &str, otherwise: Option<&str>) -> Vec<(String, State)> {
        let [first_name, look_name, wait_name, longer_name, decide_name] = names;
        let after = if otherwise.is_some() { decide_name.clone() } else { then.to_owned() };
        let mut look = self.look(&over_key(&ends.from), Then::Next(after.clone()), wait_name.clone());
        let token = Template::Object(vec![("token", Template::expression("$$.Task.Token"))]);
        let fields = vec![("Key", self.token_key(Waiter::One(ends))), ("Body", token)];
        let mut wait = self.request("s3:putObject.waitForTaskToken", fields, Then::Next(after));
        wait.timeout = Some(Timeout::At("$.w.seconds"));
        wait.catch.push(Catcher {
            error_equals: &["States.Timeout"],
            result_path: ResultPath::Discard,
            next: longer_name.clone(),
        });
        let interval = |seconds| {
            let parameters = Template::Object(vec![("seconds", seconds)]);
            State::Pass(Pass { parameters, result_path: ResultPath::At("$.w"), then: Then::Next(look_name.clone()) })
        };
        let first = interval(Template::Number(self.options.recheck_seconds.cast_signed()));
        let twice = "States.MathAdd($.w.seconds, $.w.seconds)";
        let longer = interval(Template::expression(format!("States.MathAdd({twice}, {twice})")));
        let mut states = Vec::new();
        if let Some(otherwise) = otherwise {
            let signal = |expression: &str| Template::Object(vec![("signal", Template::expression(expression))]);
            look.result_selector = Some(signal("States.StringToJson($.Body)"));
            look.result_path = ResultPath::At("$.w");
            wait.result_selector = Some(signal("$"));
            wait.result_path = ResultPath::At("$.w");
            let test = Test::Equals { variable: "$.w.signal.status", string_equals: "completed" };
            let choices = vec![Rule { test, next: then.to_owned() }];
            states.push((decide_name, State::Choice(Choice { choices, default: otherwise.to_owned() })));
        }
        let waiting = [
            (first_name, first),
            (look_name, State::Task(Box::new(look))),
            (wait_name, State::Task(Box::new(wait))),
            (longer_name, longer),
        ];
        states.splice(0..0, waiting);
        states
    }

    /// Tells one waiter. `done` is entered when no one waits. Returns two states in order.
    pub fn tell(
        &self,
        waiter: Waiter<'_>,
        names: [String; 2],
        status: Status,
        done: String,
        then: Then,
    ) -> [(String, State); 2] {
        let [get_name, send_name] = names;
        let key = self.token_key(waiter);
        let mut get = self.request("s3:getObject", vec![("Key", key)], Then::Next(send_name.clone()));
        get.catch.push(Catcher { error_equals: &NO_SUCH_KEY, result_path: ResultPath::Discard, next: done.clone() });
        let told = Template::expression("States.StringToJson($.Body)");
        get.result_selector = Some(Template::Object(vec![("waiter", told)]));
        get.result_path = TOLD;
        let output = match (status, waiter) {
            (Status::Fixed(status), _) => Template::text(format!("{{\"status\":\"{status}\"}}")),
            (Status::FromPayload, Waiter::One(_)) => Template::expression("States.JsonToString($.o.s.signal)"),
            (Status::FromPayload, _) => Template::expression("States.JsonToString($.signal)"),
        };
        let token = ("TaskToken", Template::expression("$.t.waiter.token"));
        let mut send = self.request("sfn:sendTaskSuccess", vec![token, ("Output", output)], then);
        send.catch.push(Catcher { error_equals: &TOKEN_IS_OVER, result_path: ResultPath::Discard, next: done });
        [(get_name, State::Task(Box::new(get))), (send_name, State::Task(Box::new(send)))]
    }

    /// The object that says that a part is over; `tells` are those that [`tell_each`] goes through next.
    pub fn over(&self, from: &str, status: Status, tells: Option<Vec<Template>>, then: Then) -> State {
        let body = match status {
            Status::Fixed(status) => Template::Object(vec![("status", Template::text(status))]),
            Status::FromPayload => Template::expression("$.o.s.signal"),
        };
        let mut put = self.put_at(self.key(&over_key(from), &[]), body, then);
        if let Some(tells) = tells {
            put.result_selector = Some(Template::Object(vec![("to", Template::List(tells))]));
            put.result_path = TOLD;
        }
        State::Task(Box::new(put))
    }

    /// The same for the upstream of the pair at hand, which was skipped.
    pub fn pair_over(&self, then: Then) -> State {
        let body = Template::Object(vec![("status", Template::text("skipped"))]);
        State::Task(Box::new(self.put_at(self.key("{}/over", &["$.from"]), body, then)))
    }
}

/// Where what is told stands in the payload.
const TOLD: ResultPath = ResultPath::At("$.t");

/// Goes through the waiters that [`Signals::over`] left in the payload.
pub fn tell_each(status: Status, each: Graph, then: Then) -> State {
    let mut fields = vec![("to", Template::expression("$$.Map.Item.Value"))];
    if let Status::FromPayload = status {
        fields.push(("signal", Template::expression("$.o.s.signal")));
    }
    State::Map(Map {
        items_path: "$.t.to",
        item_selector: Some(Template::Object(fields)),
        item_processor: each,
        result_path: ResultPath::Discard,
        then,
    })
}

/// Lists token edges, and goes through them. Returns two states in order.
pub fn tell_pairs(pairs: &[&Ends], names: [String; 2], each: Graph, then: Then) -> [(String, State); 2] {
    let [list_name, map_name] = names;
    let pair =
        |ends: &&Ends| Template::Object(vec![("from", Template::text(&ends.from)), ("to", Template::text(&ends.to))]);
    let parameters = Template::Object(vec![("to", Template::List(pairs.iter().map(pair).collect()))]);
    let list = Pass { parameters, result_path: TOLD, then: Then::Next(map_name.clone()) };
    let map =
        Map { items_path: "$.t.to", item_selector: None, item_processor: each, result_path: ResultPath::Discard, then };
    [(list_name, State::Pass(list)), (map_name, State::Map(map))]
}

/// Machines that are started side by side.
pub fn side_by_side(branches: Vec<Graph>, then: Then) -> State {
    State::Parallel(Parallel {
        parameters: None,
        branches,
        result_selector: None,
        result_path: ResultPath::Discard,
        then,
    })
}

/// A branch from states in order.
pub fn branch(states: Vec<(String, State)>) -> Graph {
    let start_at = states.first().map(|(name, _)| name.clone()).unwrap_or_default();
    Graph { comment: None, start_at, timeout_seconds: None, states: States(states) }
}

fn over_key(from: &str) -> String {
    format!("{from}/over")
}

/// Key of the signal that stops the rest of a run.
pub const STOP_KEY: &str = "stopped";

/// Events and transitions of one token edge in the machine of its waiter, when that comes first.
pub const fn wait_cost(tracked: bool) -> (u64, u64) {
    // first interval, look, wait
    let (events, transitions) = (PLAIN_EVENTS + REQUEST_EVENTS + super::limits::SYNC_EVENTS, 3);
    if tracked { (events + PLAIN_EVENTS, transitions + 1) } else { (events, transitions) }
}

/// Events and transitions of a part that signals, in its own machine: each token is got and sent.
pub const fn tell_cost(edges: usize) -> (u64, u64) {
    let (events, transitions) = (REQUEST_EVENTS + 2 * REQUEST_EVENTS * edges as u64, 1 + 2 * edges as u64);
    if edges > 1 { (events + MAP_EVENTS + ITEM_EVENTS * edges as u64, transitions + 1) } else { (events, transitions) }
}

/// Events of a machine that tells of so many token edges: each put, got and sent.
pub const fn pairs_cost(pairs: usize) -> u64 {
    PLAIN_EVENTS + MAP_EVENTS + (3 * REQUEST_EVENTS + ITEM_EVENTS) * pairs as u64
}
