//! Amazon States Language as types: one per kind of state. JSONPath, which every interpreter executes.
//!
//! Order of fields and states is the order of the code, so equal input gives equal bytes.

use serde::Serialize as Derive;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// A machine or a branch: named states, in order.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Graph {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Name of the first state.
    pub start_at: String,
    /// The execution times out after so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// The states.
    pub states: States,
}

/// Named states in order of emission.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct States(pub Vec<(String, State)>);

impl Serialize for States {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, state)| (name, state)))
    }
}

/// One state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(tag = "Type")]
pub enum State {
    /// Asks a service to do something.
    Task(Box<Task>),
    /// Runs branches side by side and waits for all.
    Parallel(Parallel),
    /// Does the same for every item of a list, side by side.
    Map(Map),
    /// Goes on where the first rule holds.
    Choice(Choice),
    /// Computes a payload.
    Pass(Pass),
    /// Ends the machine or branch.
    Succeed(Succeed),
    /// Ends the execution as failed.
    Fail(Fail),
}

/// Where a state goes: to the next one or to the end of its machine or branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// Name of the next state.
    Next(String),
    /// This is the last one.
    End,
    /// This is the last one, and its output is what stands at a path.
    EndWith(&'static str),
}

impl Serialize for Then {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Next(name) => map.serialize_entry("Next", name)?,
            Self::End => map.serialize_entry("End", &true)?,
            Self::EndWith(path) => {
                map.serialize_entry("OutputPath", path)?;
                map.serialize_entry("End", &true)?;
            }
        }
        map.end()
    }
}

/// Where a result goes in the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultPath {
    /// It is dropped; the payload passes unchanged.
    Discard,
    /// A reference path.
    At(&'static str),
}

impl Serialize for ResultPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Discard => serializer.serialize_none(),
            Self::At(path) => serializer.serialize_str(path),
        }
    }
}

/// A `Task` state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    /// ARN of the service integration.
    pub resource: String,
    /// What is asked.
    pub parameters: Template,
    /// What is kept of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_selector: Option<Template>,
    /// Where it is kept.
    pub result_path: ResultPath,
    /// After what time the task fails with `States.Timeout`.
    #[serde(flatten)]
    pub timeout: Option<Timeout>,
    /// Retriers, the first that matches decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retry: Vec<Retrier>,
    /// Catchers, the first that matches decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub catch: Vec<Catcher>,
    /// What follows.
    #[serde(flatten)]
    pub then: Then,
}

/// How long a `Task` may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Derive)]
pub enum Timeout {
    /// So many seconds.
    #[serde(rename = "TimeoutSeconds")]
    Seconds(u64),
    /// As many seconds as stand at a path.
    #[serde(rename = "TimeoutSecondsPath")]
    At(&'static str),
}

/// Tries again after certain errors.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Retrier {
    /// Names of errors.
    pub error_equals: &'static [&'static str],
    /// Seconds before the first retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u64>,
    /// Number of retries; 0 never retries.
    pub max_attempts: u64,
    /// Factor between waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_rate: Option<f64>,
    /// Longest wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_delay_seconds: Option<u64>,
    /// `FULL` draws each wait between 0 and its length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_strategy: Option<&'static str>,
}

/// Goes on after certain errors.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Catcher {
    /// Names of errors.
    pub error_equals: &'static [&'static str],
    /// Where the error is kept.
    pub result_path: ResultPath,
    /// Where to go on.
    pub next: String,
}

/// A `Parallel` state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Parallel {
    /// Payload of every branch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Template>,
    /// What runs side by side.
    pub branches: Vec<Graph>,
    /// What is kept of the branches' outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_selector: Option<Template>,
    /// Where it is kept.
    pub result_path: ResultPath,
    /// What follows.
    #[serde(flatten)]
    pub then: Then,
}

/// A `Map` state in its inline form: up to 40 items at a time.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Map {
    /// Path of the list in the payload.
    pub items_path: &'static str,
    /// Payload of each item's run; none is the item itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_selector: Option<Template>,
    /// What is done for each.
    pub item_processor: Graph,
    /// Where the result goes.
    pub result_path: ResultPath,
    /// What follows.
    #[serde(flatten)]
    pub then: Then,
}

/// A `Choice` state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Choice {
    /// Rules in order.
    pub choices: Vec<Rule>,
    /// Where to go when no rule holds.
    pub default: String,
}

/// A rule of a `Choice`.
#[derive(Debug, Clone, PartialEq, Derive)]
pub struct Rule {
    /// What must hold.
    #[serde(flatten)]
    pub test: Test,
    /// Where to go.
    #[serde(rename = "Next")]
    pub next: String,
}

/// A test of a `Choice`.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(untagged)]
pub enum Test {
    /// The string at a path equals another.
    #[serde(rename_all = "PascalCase")]
    Equals {
        /// Path.
        variable: &'static str,
        /// The other string.
        string_equals: &'static str,
    },
    /// The string at a path matches a pattern in which `*` stands for anything.
    #[serde(rename_all = "PascalCase")]
    Matches {
        /// Path.
        variable: &'static str,
        /// Pattern.
        string_matches: String,
    },
    /// The number at a path is not above another.
    #[serde(rename_all = "PascalCase")]
    AtMost {
        /// Path.
        variable: &'static str,
        /// The other number.
        numeric_less_than_equals: usize,
    },
    /// All hold.
    #[serde(rename_all = "PascalCase")]
    All {
        /// The tests.
        and: Vec<Test>,
    },
    /// One holds.
    #[serde(rename_all = "PascalCase")]
    Any {
        /// The tests.
        or: Vec<Test>,
    },
}

/// A `Pass` state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Pass {
    /// The payload that it computes.
    pub parameters: Template,
    /// Where it is kept.
    pub result_path: ResultPath,
    /// What follows.
    #[serde(flatten)]
    pub then: Then,
}

/// A `Succeed` state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Succeed {
    /// Path of the output; none is the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_path: Option<&'static str>,
}

/// A `Fail` state.
#[derive(Debug, Clone, PartialEq, Derive)]
#[serde(rename_all = "PascalCase")]
pub struct Fail {
    /// Name of the error.
    pub error: &'static str,
    /// Where the cause stands in the payload.
    pub cause_path: &'static str,
}

/// A payload template: JSON in which values may be computed.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// A string as it is.
    Text(String),
    /// A number.
    Number(i64),
    /// A truth value.
    Bool(bool),
    /// A path or an intrinsic function; its key gets the suffix `.$`.
    Expression(String),
    /// An array without computed elements.
    List(Vec<Template>),
    /// An object.
    Object(Vec<(&'static str, Template)>),
}

impl Template {
    /// A literal string.
    pub fn text(value: impl Into<String>) -> Self {
        Self::Text(value.into())
    }

    /// A path or an intrinsic function.
    pub fn expression(value: impl Into<String>) -> Self {
        Self::Expression(value.into())
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) | Self::Expression(text) => serializer.serialize_str(text),
            Self::Number(number) => serializer.serialize_i64(*number),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    match value {
                        Self::Expression(_) => map.serialize_entry(&format_args!("{key}.$"), value)?,
                        _ => map.serialize_entry(key, value)?,
                    }
                }
                map.end()
            }
        }
    }
}

/// A string literal inside an intrinsic function. Braces are reserved in all of them.
pub fn quoted(text: &str) -> String {
    escaped(text, &['\'', '\\', '{', '}'])
}

/// The first argument of `States.Format`: `{}` stands for the arguments that follow.
pub fn format_template(text: &str) -> String {
    escaped(text, &['\'', '\\'])
}

fn escaped(text: &str, reserved: &[char]) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for character in text.chars() {
        if reserved.contains(&character) {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('\'');
    out
}

/// `States.Format` that joins its arguments.
pub fn joined<'a>(arguments: impl IntoIterator<Item = &'a str>) -> String {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    format!("States.Format('{}', {})", "{}".repeat(arguments.len()), arguments.join(", "))
}
