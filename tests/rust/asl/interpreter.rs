//! An interpreter of the emitted subset of Amazon States Language in simulated time.
//!
//! It reads the JSON and nothing else: none of the compiler's types, so that a mistake there cannot hide here. Whatever it does not
//! know is a panic.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use serde_json::{Map, Value, json};

/// Simulated milliseconds.
pub type Time = u64;

/// How one attempt of a step ends.
pub type TaskEnd = (Time, Result<(), String>);

/// What happens to a step: when, which, what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub at: Time,
    pub step: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Started,
    Completed,
    Failed(String),
    Stopped,
}

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Succeeded(Value),
    Failed { error: String, cause: String },
}

pub struct World<'a> {
    /// Outcome of an attempt: step, attempt from 0.
    pub task: Box<dyn FnMut(&str, u32) -> TaskEnd + 'a>,
    /// Time between a request and its effect, and again until its answer.
    pub latency: Box<dyn FnMut() -> Time + 'a>,
}

struct Execution {
    name: String,
    /// By the machine's ARN; the root has none.
    machine: Option<String>,
    /// Events of its history, without looking again and without retries.
    events: u64,
    input: Value,
    redrives: u64,
    parent: Option<usize>,
}

struct Frame<'a> {
    execution: usize,
    graph: &'a Value,
    state: String,
    input: Value,
    /// Grows with every state and attempt: what was scheduled for an earlier one is void.
    generation: u64,
    retries: Vec<u64>,
    parent: Option<(usize, usize)>,
    /// The item of a `Map` that this is for.
    item: Option<Value>,
    results: Vec<Option<Value>>,
    children: Vec<usize>,
    running: Option<String>,
    over: bool,
}

enum Event {
    Enter,
    Effect,
    Done(Result<Value, (String, String)>),
}

pub struct Interpreter<'a> {
    machines: HashMap<String, &'a Value>,
    world: World<'a>,
    queue: BinaryHeap<Reverse<(Time, u64, usize, u64)>>,
    events: HashMap<u64, Event>,
    frames: Vec<Frame<'a>>,
    executions: Vec<Execution>,
    attempts: HashMap<String, u32>,
    sequence: u64,
    pub now: Time,
    pub objects: BTreeMap<String, String>,
    /// How often each object was asked for, there or not.
    pub gets: BTreeMap<String, u64>,
    pub trace: Vec<Trace>,
    pub transitions: u64,
    pub end: Option<End>,
    pub largest_payload: usize,
}

impl<'a> Interpreter<'a> {
    /// `machines` by ARN; the root is started with `input`.
    pub fn new(machines: HashMap<String, &'a Value>, root: &'a Value, input: Value, world: World<'a>) -> Self {
        let mut it = Self {
            machines,
            world,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            frames: Vec::new(),
            executions: Vec::new(),
            attempts: HashMap::new(),
            sequence: 0,
            now: 0,
            objects: BTreeMap::new(),
            gets: BTreeMap::new(),
            trace: Vec::new(),
            transitions: 0,
            end: None,
            largest_payload: 0,
        };
        it.start(root, "run-1".into(), input, (None, None));
        it
    }

    fn start(&mut self, machine: &'a Value, name: String, input: Value, of: (Option<String>, Option<usize>)) {
        let (arn, parent) = of;
        // Started, succeeded.
        let events = 2;
        self.executions.push(Execution { name, machine: arn, events, input: input.clone(), redrives: 0, parent });
        let execution = self.executions.len() - 1;
        self.spawn(machine, execution, input, None);
    }

    fn spawn(&mut self, graph: &'a Value, execution: usize, input: Value, parent: Option<(usize, usize)>) -> usize {
        let state = graph["StartAt"].as_str().expect("StartAt").to_owned();
        let frame = Frame {
            execution,
            graph,
            state,
            input,
            generation: 0,
            retries: Vec::new(),
            parent,
            item: None,
            results: Vec::new(),
            children: Vec::new(),
            running: None,
            over: false,
        };
        self.frames.push(frame);
        let id = self.frames.len() - 1;
        self.post(id, 0, Event::Enter);
        id
    }

    fn post(&mut self, frame: usize, delay: Time, event: Event) {
        self.sequence += 1;
        self.events.insert(self.sequence, event);
        self.queue.push(Reverse((self.now + delay, self.sequence, frame, self.frames[frame].generation)));
    }

    /// Runs until the execution ends, nothing is left to do or `until` is reached. Panics after absurdly many transitions.
    pub fn run(&mut self, until: Option<Time>) {
        while self.end.is_none() {
            let Some(&Reverse((at, sequence, frame, generation))) = self.queue.peek() else { break };
            if until.is_some_and(|until| at > until) {
                self.now = until.unwrap_or(at);
                return;
            }
            self.queue.pop();
            let event = self.events.remove(&sequence).expect("an event has a body");
            if self.frames[frame].over || self.frames[frame].generation != generation {
                continue;
            }
            self.now = at;
            assert!(self.transitions < 3_000_000, "the machine does not come to an end");
            match event {
                Event::Enter => self.enter(frame),
                Event::Effect => self.effect(frame),
                Event::Done(result) => self.done(frame, result),
            }
        }
    }

    /// The longest history of the executions of each machine; the root's has no ARN.
    pub fn histories(&self) -> BTreeMap<Option<&str>, u64> {
        let mut longest = BTreeMap::new();
        for execution in &self.executions {
            let events = longest.entry(execution.machine.as_deref()).or_insert(0);
            *events = execution.events.max(*events);
        }
        longest
    }

    /// Events of a state, and of the items of a `Map`, each of which starts and succeeds.
    fn count_events(&mut self, id: usize, state: &Value) {
        let resource = state["Resource"].as_str().unwrap_or_default();
        let waits = resource.contains(".sync") || resource.ends_with(".waitForTaskToken");
        let events = match state["Type"].as_str().expect("Type") {
            "Task" if waits => 6,
            "Task" => 5,
            "Parallel" | "Map" => 4,
            _ => 2,
        };
        self.executions[self.frames[id].execution].events += events;
    }

    fn state(&self, frame: usize) -> &'a Value {
        let frame = &self.frames[frame];
        let state = &frame.graph["States"][&frame.state];
        assert!(state.is_object(), "there is no state `{}`", frame.state);
        state
    }

    fn evaluate(&self, frame: usize, template: &Value, input: &Value) -> Result<Value, (String, String)> {
        let execution = &self.executions[self.frames[frame].execution];
        let context = json!({
            "Execution": {
                "Name": execution.name, "Id": format!("arn:{}", execution.name), "Input": execution.input,
                "RedriveCount": execution.redrives
            },
            "Task": {"Token": format!("{frame}/{}", self.frames[frame].generation)},
            "Map": {"Item": {"Value": self.frames[frame].item}}
        });
        payload(template, input, &context).map_err(|why| ("States.ParameterPathFailure".into(), why))
    }

    fn enter(&mut self, id: usize) {
        self.transitions += 1;
        let size = self.frames[id].input.to_string().len();
        self.largest_payload = self.largest_payload.max(size);
        let state = self.state(id);
        self.count_events(id, state);
        let input = self.frames[id].input.clone();
        match state["Type"].as_str().expect("Type") {
            "Pass" => {
                let result = self.evaluate(id, &state["Parameters"], &input);
                self.done(id, result);
            }
            "Choice" => {
                let rules = state["Choices"].as_array().expect("Choices");
                let rule = rules.iter().find(|rule| holds(rule, &input));
                let next = rule.map_or(&state["Default"], |rule| &rule["Next"]);
                let next = next.as_str().expect("a rule or a default matches").to_owned();
                self.go(id, next, input);
            }
            "Succeed" => self.finish(id, input),
            "Fail" => {
                let cause =
                    lookup(state["CausePath"].as_str().expect("CausePath"), &input, &Value::Null).expect("cause");
                let error = state["Error"].as_str().expect("Error").to_owned();
                self.fail(id, error, cause.as_str().expect("a string").to_owned());
            }
            "Parallel" => {
                let parameters = state.get("Parameters").map(|template| self.evaluate(id, template, &input));
                let branch_input = parameters.unwrap_or(Ok(input)).expect("parameters of a Parallel");
                let branches = state["Branches"].as_array().expect("Branches");
                assert!(!branches.is_empty(), "a Parallel has branches");
                self.frames[id].results = vec![None; branches.len()];
                self.frames[id].children.clear();
                let execution = self.frames[id].execution;
                for (at, branch) in branches.iter().enumerate() {
                    let child = self.spawn(branch, execution, branch_input.clone(), Some((id, at)));
                    self.frames[id].children.push(child);
                }
            }
            "Map" => {
                let items = lookup(state["ItemsPath"].as_str().expect("ItemsPath"), &input, &Value::Null);
                let items = items.expect("items").as_array().expect("an array").clone();
                assert!(!items.is_empty(), "nothing emitted goes through an empty list");
                self.frames[id].results = vec![None; items.len()];
                self.frames[id].children.clear();
                let execution = self.frames[id].execution;
                self.executions[execution].events += 2 * items.len() as u64;
                for (at, item) in items.into_iter().enumerate() {
                    // A selector sees the state's input and the item.
                    self.frames[id].item = Some(item.clone());
                    let selected = state.get("ItemSelector").map(|selector| self.evaluate(id, selector, &input));
                    self.frames[id].item = None;
                    let input = selected.unwrap_or(Ok(item)).expect("an item's payload");
                    let child = self.spawn(&state["ItemProcessor"], execution, input, Some((id, at)));
                    self.frames[id].children.push(child);
                }
            }
            "Task" => self.attempt(id),
            other => panic!("unknown type of state {other}"),
        }
    }

    fn attempt(&mut self, id: usize) {
        let state = self.state(id);
        let path = state.get("TimeoutSecondsPath").map(|path| path.as_str().expect("TimeoutSecondsPath"));
        let computed = path.map(|path| lookup(path, &self.frames[id].input, &Value::Null).expect("a timeout"));
        if let Some(seconds) = computed.as_ref().or(state.get("TimeoutSeconds")) {
            let seconds = seconds.as_u64().expect("a whole number");
            assert!((1..=99_999_999).contains(&seconds), "a timeout of {seconds} seconds");
            self.post(id, seconds * 1000, Event::Done(Err(("States.Timeout".into(), String::new()))));
        }
        let resource = state["Resource"].as_str().expect("Resource");
        if resource == "arn:aws:states:::ecs:runTask.sync" {
            let input = self.frames[id].input.clone();
            let parameters = self.evaluate(id, &state["Parameters"], &input).expect("parameters of runTask");
            let (run, step) = parameters["Group"].as_str().expect("Group").split_once(':').expect("run:step");
            assert_eq!(run, "run-1", "a nested machine names the root execution");
            let attempt = self.attempts.entry(step.to_owned()).or_default();
            let (duration, result) = (self.world.task)(step, *attempt);
            *attempt += 1;
            self.note(step, What::Started);
            self.frames[id].running = Some(step.to_owned());
            let result = result.map(|()| json!({"huge": "task description"})).map_err(|error| (error, "cause".into()));
            self.post(id, duration, Event::Done(result));
        } else {
            let latency = (self.world.latency)();
            self.post(id, latency, Event::Effect);
        }
    }

    fn note(&mut self, step: &str, what: What) {
        self.trace.push(Trace { at: self.now, step: step.to_owned(), what });
    }

    /// A request reaches its service.
    fn effect(&mut self, id: usize) {
        let state = self.state(id);
        let input = self.frames[id].input.clone();
        let parameters = match self.evaluate(id, &state["Parameters"], &input) {
            Ok(parameters) => parameters,
            Err(error) => return self.done(id, Err(error)),
        };
        let text = |field: &str| parameters[field].as_str().unwrap_or_else(|| panic!("{field} is a string")).to_owned();
        let answer = match state["Resource"].as_str().expect("Resource") {
            "arn:aws:states:::aws-sdk:s3:putObject" => {
                self.objects.insert(text("Key"), parameters["Body"].to_string());
                Ok(json!({"ETag": "x"}))
            }
            "arn:aws:states:::aws-sdk:s3:putObject.waitForTaskToken" => {
                self.objects.insert(text("Key"), parameters["Body"].to_string());
                return;
            }
            "arn:aws:states:::aws-sdk:s3:getObject" => {
                *self.gets.entry(text("Key")).or_default() += 1;
                match self.objects.get(&text("Key")) {
                    Some(body) => Ok(json!({"Body": body})),
                    None => Err(("S3.NoSuchKeyException".to_owned(), String::new())),
                }
            }
            "arn:aws:states:::aws-sdk:sfn:sendTaskSuccess" => self.release(&text("TaskToken"), &text("Output")),
            "arn:aws:states:::states:startExecution.sync:2" => {
                let arn = text("StateMachineArn");
                let machine = self.machines[&arn];
                let name = format!("child-{}", self.executions.len());
                self.start(machine, name, parameters["Input"].clone(), (Some(arn), Some(id)));
                return;
            }
            other => panic!("unknown resource {other}"),
        };
        let latency = (self.world.latency)();
        self.post(id, latency, Event::Done(answer));
    }

    fn release(&mut self, token: &str, output: &str) -> Result<Value, (String, String)> {
        let (frame, generation) = token.split_once('/').expect("a token");
        let (frame, generation): (usize, u64) = (frame.parse().expect("id"), generation.parse().expect("number"));
        if self.frames[frame].over || self.frames[frame].generation != generation {
            return Err(("Sfn.TaskTimedOutException".into(), String::new()));
        }
        let output = serde_json::from_str(output).expect("the output is JSON");
        self.post(frame, 0, Event::Done(Ok(output)));
        Ok(json!({}))
    }

    /// The state of a frame has its result.
    fn done(&mut self, id: usize, result: Result<Value, (String, String)>) {
        let state = self.state(id);
        if let Some(step) = self.frames[id].running.take() {
            let what = match &result {
                Ok(_) => What::Completed,
                Err((error, _)) => What::Failed(error.clone()),
            };
            self.note(&step, what);
        }
        let result = result.and_then(|result| match state.get("ResultSelector") {
            Some(selector) => self.evaluate(id, selector, &result),
            None => Ok(result),
        });
        match result {
            Ok(result) => {
                let output = place(state, self.frames[id].input.clone(), result);
                match state.get("Next").and_then(Value::as_str) {
                    Some(next) => self.go(id, next.to_owned(), output),
                    None => {
                        assert_eq!(state["End"], true, "a state has Next or End");
                        self.finish(id, output);
                    }
                }
            }
            Err((error, cause)) => self.error(id, error, cause),
        }
    }

    fn error(&mut self, id: usize, error: String, cause: String) {
        let state = self.state(id);
        if error == "States.Timeout" && state["Resource"].as_str().is_some_and(|at| at.ends_with(".waitForTaskToken")) {
            // The waiter looks again, which no report counts: it waited, notes a longer interval, looks.
            self.executions[self.frames[id].execution].events -= 13;
        }
        for child in std::mem::take(&mut self.frames[id].children) {
            self.stop(child);
        }
        let listed = |clause: &Value| {
            clause["ErrorEquals"].as_array().expect("ErrorEquals").iter().any(|name| {
                name == &Value::from(error.as_str())
                    || name == "States.ALL"
                    || (name == "States.TaskFailed" && error != "States.Timeout")
            })
        };
        let retriers = state.get("Retry").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if let Some((at, retrier)) = retriers.iter().enumerate().find(|(_, retrier)| listed(retrier)) {
            self.frames[id].retries.resize(retriers.len(), 0);
            let count = self.frames[id].retries[at];
            if count < retrier["MaxAttempts"].as_u64().expect("MaxAttempts") {
                self.frames[id].retries[at] += 1;
                let interval = retrier["IntervalSeconds"].as_u64().expect("IntervalSeconds") as f64;
                let rate = retrier["BackoffRate"].as_f64().expect("BackoffRate");
                let longest = retrier.get("MaxDelaySeconds").and_then(Value::as_f64).unwrap_or(f64::MAX);
                let delay = (interval * rate.powi(count as i32)).min(longest);
                self.frames[id].generation += 1;
                // The next attempt is not a new state.
                self.post(id, (delay * 1000.0) as Time, Event::Enter);
                return;
            }
        }
        let catchers = state.get("Catch").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if let Some(catcher) = catchers.iter().find(|catcher| listed(catcher)) {
            let input = self.frames[id].input.clone();
            let input = place(catcher, input, json!({"Error": error, "Cause": cause}));
            let next = catcher["Next"].as_str().expect("Next").to_owned();
            return self.go(id, next, input);
        }
        self.fail(id, error, cause);
    }

    fn go(&mut self, id: usize, next: String, input: Value) {
        let frame = &mut self.frames[id];
        (frame.state, frame.input) = (next, input);
        frame.children.clear();
        frame.generation += 1;
        frame.retries.clear();
        self.post(id, 0, Event::Enter);
    }

    fn finish(&mut self, id: usize, output: Value) {
        let path = self.state(id).get("OutputPath").and_then(Value::as_str);
        let output = path.map_or(Ok(output.clone()), |path| lookup(path, &output, &Value::Null)).expect("an output");
        self.frames[id].over = true;
        match self.frames[id].parent {
            Some((parent, at)) => {
                self.frames[parent].results[at] = Some(output);
                if self.frames[parent].results.iter().all(Option::is_some) {
                    let results = Value::Array(self.frames[parent].results.iter().flatten().cloned().collect());
                    self.largest_payload = self.largest_payload.max(results.to_string().len());
                    self.done(parent, Ok(results));
                }
            }
            None => match self.executions[self.frames[id].execution].parent {
                Some(caller) => self.done(caller, Ok(json!({"Output": output, "Status": "SUCCEEDED"}))),
                None => self.end = Some(End::Succeeded(output)),
            },
        }
    }

    fn fail(&mut self, id: usize, error: String, cause: String) {
        match self.frames[id].parent {
            Some((parent, _)) => self.error(parent, error, cause),
            None => match self.executions[self.frames[id].execution].parent {
                Some(caller) => {
                    self.frames[id].over = true;
                    self.error(caller, "States.TaskFailed".into(), cause);
                }
                None => {
                    self.end = Some(End::Failed { error, cause });
                }
            },
        }
    }

    /// Stops whatever runs in a frame and below it. The frame keeps its state, for a redrive.
    fn stop(&mut self, id: usize) {
        if self.frames[id].over {
            return;
        }
        self.frames[id].generation += 1;
        if let Some(step) = self.frames[id].running.take() {
            self.note(&step, What::Stopped);
        }
        for child in self.frames[id].children.clone() {
            self.stop(child);
        }
        for frame in 0..self.frames.len() {
            if self.frames[frame].parent.is_none() && self.executions[self.frames[frame].execution].parent == Some(id) {
                self.stop(frame);
                self.frames[frame].over = true;
            }
        }
    }

    /// Stops the execution from outside.
    pub fn abort(&mut self) {
        self.stop(0);
        self.end = Some(End::Failed { error: "Aborted".into(), cause: String::new() });
    }

    /// Goes on where a failed or aborted execution was: every state that had not succeeded is entered again with its input.
    pub fn redrive(&mut self) {
        self.end = None;
        self.executions[0].redrives += 1;
        for id in 0..self.frames.len() {
            let frame = &self.frames[id];
            let kind = &self.state(id)["Type"];
            let is_parallel = (kind == "Parallel" || kind == "Map") && !frame.children.is_empty();
            if frame.over || is_parallel || frame.execution != 0 {
                continue;
            }
            self.frames[id].generation += 1;
            self.frames[id].retries.clear();
            self.post(id, 0, Event::Enter);
        }
    }
}

fn place(clause: &Value, input: Value, result: Value) -> Value {
    match clause.get("ResultPath") {
        Some(Value::Null) => input,
        None => result,
        Some(path) => {
            let path = path.as_str().expect("ResultPath");
            if path == "$" {
                return result;
            }
            let path = path.strip_prefix("$.").expect("a reference path");
            let mut input = input;
            let mut at = &mut input;
            for key in path.split('.') {
                let object = at.as_object_mut().expect("what a path goes through is an object");
                at = object.entry(key).or_insert_with(|| json!({}));
            }
            *at = result;
            input
        }
    }
}

fn holds(rule: &Value, input: &Value) -> bool {
    if let Some(rules) = rule.get("And").and_then(Value::as_array) {
        return rules.iter().all(|rule| holds(rule, input));
    }
    if let Some(rules) = rule.get("Or").and_then(Value::as_array) {
        return rules.iter().any(|rule| holds(rule, input));
    }
    let value = lookup(rule["Variable"].as_str().expect("Variable"), input, &Value::Null).expect("the variable exists");
    if let Some(most) = rule.get("NumericLessThanEquals").and_then(Value::as_u64) {
        return value.as_u64().expect("a number") <= most;
    }
    let value = value.as_str().expect("a string");
    if let Some(other) = rule.get("StringEquals").and_then(Value::as_str) {
        return value == other;
    }
    let pattern = rule["StringMatches"].as_str().expect("StringMatches");
    let inner = pattern.strip_prefix('*').and_then(|rest| rest.strip_suffix('*')).expect("*text*");
    assert!(!inner.contains(['*', '\\']), "nothing to escape");
    value.contains(inner)
}

fn payload(template: &Value, input: &Value, context: &Value) -> Result<Value, String> {
    Ok(match template {
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                match key.strip_suffix(".$") {
                    Some(key) => {
                        let expression = value.as_str().ok_or("an expression is a string")?;
                        let mut parser = Parser { text: expression, at: 0, input, context };
                        let value = parser.value()?;
                        if parser.at != expression.len() {
                            return Err(format!("`{expression}` goes on"));
                        }
                        out.insert(key.to_owned(), value);
                    }
                    None => {
                        out.insert(key.clone(), payload(value, input, context)?);
                    }
                }
            }
            Value::Object(out)
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| payload(item, input, context)).collect::<Result<_, _>>()?)
        }
        other => other.clone(),
    })
}

fn lookup(path: &str, input: &Value, context: &Value) -> Result<Value, String> {
    let (mut at, mut rest) = match path.strip_prefix("$$") {
        Some(rest) => (context, rest),
        None => (input, path.strip_prefix('$').ok_or("a path begins with $")?),
    };
    while !rest.is_empty() {
        let missing = || format!("`{path}` finds nothing");
        if let Some(tail) = rest.strip_prefix('.') {
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            at = at.get(&tail[..end]).ok_or_else(missing)?;
            rest = &tail[end..];
        } else {
            let tail = rest.strip_prefix('[').ok_or("a path goes on with . or [")?;
            let (index, tail) = tail.split_once(']').ok_or("an index ends with ]")?;
            at = at.get(index.parse::<usize>().map_err(|e| e.to_string())?).ok_or_else(missing)?;
            rest = tail;
        }
    }
    Ok(at.clone())
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    input: &'t Value,
    context: &'t Value,
}

impl Parser<'_> {
    fn value(&mut self) -> Result<Value, String> {
        let rest = &self.text[self.at..];
        if rest.starts_with('\'') {
            return self.literal().map(Value::String);
        }
        if rest.starts_with('$') {
            let end = rest.find([',', ')', ' ']).unwrap_or(rest.len());
            self.at += end;
            return lookup(&rest[..end], self.input, self.context);
        }
        let open = rest.find('(').ok_or_else(|| format!("`{rest}` is no expression"))?;
        let function = rest[..open].to_owned();
        self.at += open + 1;
        let mut arguments = Vec::new();
        loop {
            arguments.push(self.value()?);
            let rest = &self.text[self.at..];
            if rest.starts_with(", ") {
                self.at += 2;
            } else if rest.starts_with(')') {
                self.at += 1;
                break;
            } else {
                return Err(format!("`{rest}` does not go on"));
            }
        }
        apply(&function, arguments)
    }

    fn literal(&mut self) -> Result<String, String> {
        let mut out = String::new();
        let mut characters = self.text[self.at + 1..].char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => out.push(characters.next().ok_or("an escape ends early")?.1),
                '\'' => {
                    self.at += at + 2;
                    return Ok(out);
                }
                other => out.push(other),
            }
        }
        Err("a literal does not end".into())
    }
}

fn apply(function: &str, arguments: Vec<Value>) -> Result<Value, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("{function} takes strings, got {other}")),
    };
    match function {
        "States.Format" => {
            let template = text(&arguments[0])?;
            let pieces: Vec<&str> = template.split("{}").collect();
            if pieces.len() != arguments.len() {
                return Err(format!("{} arguments for {} places", arguments.len() - 1, pieces.len() - 1));
            }
            let mut out = pieces[0].to_owned();
            for (piece, argument) in pieces[1..].iter().zip(&arguments[1..]) {
                out.push_str(&text(argument)?);
                out.push_str(piece);
            }
            Ok(Value::String(out))
        }
        "States.Array" => Ok(Value::Array(arguments)),
        "States.StringToJson" => serde_json::from_str(&text(&arguments[0])?).map_err(|e| e.to_string()),
        "States.JsonToString" => Ok(Value::String(arguments[0].to_string())),
        "States.StringSplit" => {
            let (whole, separator) = (text(&arguments[0])?, text(&arguments[1])?);
            Ok(whole.split(&*separator).filter(|piece| !piece.is_empty()).collect())
        }
        "States.ArrayLength" => Ok(arguments[0].as_array().ok_or("an array")?.len().into()),
        "States.MathAdd" => match (arguments[0].as_i64(), arguments[1].as_i64()) {
            (Some(a), Some(b)) => Ok((a + b).into()),
            _ => Err("MathAdd takes whole numbers".into()),
        },
        other => Err(format!("unknown function {other}")),
    }
}
