//! What a definition must be like whatever it means: the checks that public validators miss and those they make.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Checks one machine; panics with what is wrong.
pub fn check(machine: &Value) {
    let text = machine.to_string();
    assert!(text.len() <= 1_048_576, "definition of {} bytes", text.len());
    let mut names = HashSet::new();
    graph(machine, &mut names, 0);
}

fn graph<'a>(graph: &'a Value, names: &mut HashSet<&'a str>, depth: usize) {
    assert!(depth <= 20, "too deeply nested");
    for field in graph.as_object().expect("a graph").keys() {
        let known = ["Comment", "StartAt", "TimeoutSeconds", "States"];
        assert!(known.contains(&field.as_str()), "a graph has `{field}`");
    }
    let states = graph["States"].as_object().expect("States");
    let start = graph["StartAt"].as_str().expect("StartAt");
    assert!(states.contains_key(start), "StartAt names no state: {start}");
    let mut targets: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut ends = 0;
    for (name, state) in states {
        assert!(name.chars().count() <= 80 && !name.is_empty(), "name of {} characters", name.len());
        assert!(names.insert(name), "two states are named `{name}`");
        let kind = state["Type"].as_str().expect("Type");
        fields(name, kind, state);
        let mut out = Vec::new();
        let next = state.get("Next").and_then(Value::as_str);
        let end = state.get("End").and_then(Value::as_bool).unwrap_or(false);
        match kind {
            "Task" | "Parallel" | "Map" | "Pass" => assert!(next.is_some() != end, "`{name}` needs either Next or End"),
            "Choice" | "Succeed" | "Fail" => assert!(next.is_none() && !end, "`{name}` takes neither Next nor End"),
            other => panic!("type {other}"),
        }
        ends += usize::from(end || matches!(kind, "Succeed" | "Fail"));
        out.extend(next);
        out.extend(state.get("Default").and_then(Value::as_str));
        for list in ["Choices", "Catch"] {
            for rule in state.get(list).and_then(Value::as_array).into_iter().flatten() {
                out.push(rule["Next"].as_str().expect("a rule has Next"));
            }
        }
        for list in ["Catch", "Retry"] {
            let clauses = state.get(list).and_then(Value::as_array);
            for (rest, clause) in clauses.into_iter().flatten().rev().enumerate() {
                errors(clause, rest == 0);
            }
        }
        for clause in state.get("Retry").and_then(Value::as_array).into_iter().flatten() {
            let jitter = clause.get("JitterStrategy");
            assert!(jitter.is_none_or(|jitter| jitter == "FULL" || jitter == "NONE"), "jitter {jitter:?}");
            let within = |field: &str, low: f64, high: f64| {
                let value = clause.get(field).map(|value| value.as_f64().expect("a number"));
                assert!(value.is_none_or(|value| (low..=high).contains(&value)), "{field} is {value:?}");
            };
            within("IntervalSeconds", 1.0, 99_999_999.0);
            within("MaxAttempts", 0.0, 99_999_999.0);
            within("BackoffRate", 1.0, f64::MAX);
            within(
                "MaxDelaySeconds",
                clause.get("IntervalSeconds").and_then(Value::as_f64).unwrap_or(0.0) + 1.0,
                31_622_400.0,
            );
        }
        if let Some(seconds) = state.get("TimeoutSeconds") {
            assert!((1..=99_999_999).contains(&seconds.as_u64().expect("a whole number")), "TimeoutSeconds {seconds}");
        }
        if let Some(path) = state.get("TimeoutSecondsPath") {
            assert!(path.as_str().is_some_and(|path| path.starts_with("$.")), "TimeoutSecondsPath {path}");
            assert!(state.get("TimeoutSeconds").is_none(), "`{name}` has two timeouts");
        }
        expressions(state.get("Parameters"));
        expressions(state.get("ResultSelector"));
        expressions(state.get("ItemSelector"));
        let branches = state.get("Branches").and_then(Value::as_array).into_iter().flatten();
        for branch in branches.chain(state.get("ItemProcessor")) {
            self::graph(branch, names, depth + 1);
        }
        for target in &out {
            assert!(states.contains_key(*target), "`{name}` goes to `{target}`, which is not there");
        }
        targets.insert(name, out);
    }
    assert!(ends > 0, "nothing ends");
    let mut seen = HashSet::from([start]);
    let mut stack = vec![start];
    while let Some(state) = stack.pop() {
        stack.extend(targets[state].iter().copied().filter(|target| seen.insert(target)));
    }
    let unreachable: Vec<_> = states.keys().filter(|name| !seen.contains(name.as_str())).collect();
    assert!(unreachable.is_empty(), "unreachable: {unreachable:?}");
}

fn errors(clause: &Value, last: bool) {
    let names = clause["ErrorEquals"].as_array().expect("ErrorEquals");
    assert!(!names.is_empty() && names.iter().all(Value::is_string), "{names:?}");
    let all = names.iter().any(|name| name == "States.ALL");
    assert!(!all || names.len() == 1 && last, "States.ALL stands alone and last");
}

/// What a request may hold, by action; for `RunTask` as the integration takes it.
const REQUESTS: &[(&str, &[&str])] = &[
    (
        "ecs:runTask.sync",
        &[
            "Cluster",
            "TaskDefinition",
            "CapacityProviderStrategy",
            "LaunchType",
            "PlatformVersion",
            "NetworkConfiguration",
            "Group",
            "EnableExecuteCommand",
            "Tags",
            "PropagateTags",
            "Overrides",
        ],
    ),
    ("states:startExecution.sync:2", &["StateMachineArn", "Input"]),
    ("aws-sdk:s3:putObject", &["Bucket", "Key", "Body"]),
    ("aws-sdk:s3:putObject.waitForTaskToken", &["Bucket", "Key", "Body"]),
    ("aws-sdk:s3:getObject", &["Bucket", "Key"]),
    ("aws-sdk:sfn:sendTaskSuccess", &["TaskToken", "Output"]),
];

/// The emitted subset: no field, action or parameter beside these. So there is no JSONata either.
fn fields(name: &str, kind: &str, state: &Value) {
    let takes: &[&str] = match kind {
        "Task" => &[
            "Resource",
            "Parameters",
            "ResultSelector",
            "ResultPath",
            "OutputPath",
            "TimeoutSeconds",
            "TimeoutSecondsPath",
            "Retry",
            "Catch",
            "Next",
            "End",
        ],
        "Parallel" => &["Parameters", "Branches", "ResultSelector", "ResultPath", "OutputPath", "Next", "End"],
        "Map" => &["ItemsPath", "ItemSelector", "ItemProcessor", "ResultPath", "OutputPath", "Next", "End"],
        "Choice" => &["Choices", "Default"],
        "Pass" => &["Parameters", "ResultPath", "OutputPath", "Next", "End"],
        "Fail" => &["Error", "CausePath"],
        "Succeed" => &["OutputPath"],
        _ => &[],
    };
    for field in state.as_object().expect("a state").keys() {
        assert!(field == "Type" || takes.contains(&field.as_str()), "`{name}`, a {kind}, has `{field}`");
    }
    assert!(state.get("Error").is_none_or(Value::is_string), "the error of `{name}`");
    if kind == "Parallel" {
        assert!(state["Branches"].as_array().is_some_and(|branches| !branches.is_empty()), "`{name}` has no branches");
    }
    if kind == "Map" {
        let path = state["ItemsPath"].as_str();
        assert!(path.is_some_and(|path| path.starts_with("$.")), "`{name}` has no list");
        assert!(state["ItemProcessor"].is_object(), "`{name}` does nothing");
    }
    if kind == "Task" {
        let resource = state["Resource"].as_str().expect("Resource");
        let action = resource.strip_prefix("arn:aws:states:::").expect("an integration");
        let request = REQUESTS.iter().find(|(known, _)| *known == action);
        let (_, takes) = request.unwrap_or_else(|| panic!("`{name}` asks for {action}"));
        for key in state["Parameters"].as_object().expect("Parameters").keys() {
            assert!(takes.contains(&key.strip_suffix(".$").unwrap_or(key)), "{action} takes no `{key}`");
        }
    }
}

/// A computed field is a string that begins like an expression; a plain one does not look like one.
fn expressions(template: Option<&Value>) {
    match template {
        Some(Value::Object(fields)) => {
            for (key, value) in fields {
                let Some(_) = key.strip_suffix(".$") else {
                    assert!(
                        value.as_str().is_none_or(|text| !text.starts_with("$.") && !text.starts_with("$$")),
                        "{key}: {value}"
                    );
                    expressions(Some(value));
                    continue;
                };
                let text = value.as_str().expect("an expression is a string");
                assert!(text.starts_with('$') || text.starts_with("States."), "{key}: {text}");
                assert!(text.len() <= 10_000, "an intrinsic of {} characters", text.len());
            }
        }
        Some(Value::Array(items)) => items.iter().for_each(|item| expressions(Some(item))),
        _ => {}
    }
}

/// Of 41 definitions with one mistake each, statelint (see `tests/python/asl`) finds 29. These checks find the other twelve,
/// and most of those that it finds.
#[test]
fn bad_definitions_are_found() {
    let all: Value = serde_json::from_str(include_str!("../../python/asl/definitions.json")).expect("JSON");
    let passes = |definition: &Value| std::panic::catch_unwind(|| check(definition)).is_ok();
    let accepted: Vec<&str> = all
        .as_object()
        .expect("definitions by name")
        .iter()
        .filter_map(|(name, definition)| passes(definition).then_some(name.as_str()))
        .collect();
    assert_eq!(accepted, ACCEPTED);
}

/// The two bad ones are statelint's: it parses paths and intrinsic functions. Of the good ones the others use what is not emitted.
const ACCEPTED: &[&str] = &["bad_bad_intrinsic", "bad_bad_jsonpath", "good_nested"];
