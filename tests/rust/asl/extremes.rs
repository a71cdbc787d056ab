//! Shapes, names and settings at the edges of what a plan may hold.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use step_engine::asl::{AslError, Compiled, Synchronization, compile, parse_cause};
use step_engine::plan::{ExecutionMode, Plan, PlanSpec, StepSpec};

use super::interpreter::{End, Interpreter, What, World};
use super::{definitions, options, root_arn, structure};

const WAYS: [Synchronization; 3] = [Synchronization::Exact, Synchronization::Barrier, Synchronization::Auto];
const MODES: [ExecutionMode; 3] =
    [ExecutionMode::FailFast, ExecutionMode::StopOnFailure, ExecutionMode::ContinueOnFailure];

type Shape = Vec<(String, Vec<String>)>;

fn plan(shape: &Shape, mode: ExecutionMode, seconds: impl Fn(usize) -> Option<f64>) -> Plan {
    let steps = shape.iter().enumerate().map(|(at, (name, upstream))| StepSpec {
        name: name.clone(),
        upstream: upstream.clone(),
        expected_seconds: seconds(at),
        ..StepSpec::default()
    });
    let spec = PlanSpec {
        run_id: String::new(),
        pipeline: "extremes".into(),
        execution_mode: mode,
        max_parallelism: None,
        steps: steps.collect(),
        ..PlanSpec::default()
    };
    Plan::new(spec).expect("a DAG")
}

fn numbered(preds: &[Vec<usize>]) -> Shape {
    let name = |at: usize| format!("s{at}");
    preds.iter().enumerate().map(|(at, preds)| (name(at), preds.iter().copied().map(name).collect())).collect()
}

/// Runs a machine whose steps take a second; those in `fails` fail. Group names are labels.
fn run(compiled: &Compiled, fails: &dyn Fn(&str) -> bool) -> (End, BTreeSet<String>, usize) {
    let definitions = definitions(compiled);
    for definition in definitions.values() {
        structure::check(definition);
    }
    let machines: HashMap<String, &Value> = definitions.iter().map(|(arn, value)| (arn.clone(), value)).collect();
    let root = machines[&root_arn(compiled)];
    let world = World {
        task: Box::new(|step, _| (1_000, if fails(step) { Err("States.TaskFailed".to_owned()) } else { Ok(()) })),
        latency: Box::new(|| 0),
    };
    let mut interpreter = Interpreter::new(machines, root, json!({"snapshot_id": "s"}), world);
    interpreter.run(None);
    let started = interpreter.trace.iter().filter(|t| t.what == What::Started).map(|t| t.step.clone()).collect();
    (interpreter.end.expect("it ends"), started, interpreter.largest_payload)
}

fn shapes() -> Vec<(&'static str, Vec<Vec<usize>>)> {
    let fan = |width: usize| {
        let mut preds = vec![vec![]];
        preds.extend((0..width).map(|_| vec![0]));
        preds.push((1..=width).collect());
        preds
    };
    let bipartite = |n: usize| {
        let mut preds = vec![vec![]; n];
        preds.extend((0..n).map(|_| (0..n).collect()));
        preds
    };
    // Every one waits for all of the left but one: as far from series-parallel as it gets.
    let crown = |n: usize| {
        let mut preds = vec![vec![]; n];
        preds.extend((0..n).map(|skip| (0..n).filter(|&at| at != skip).collect()));
        preds
    };
    // A ladder: two chains with a rung from each step of the first to the next of the second.
    let ladder = |n: usize| {
        let mut preds: Vec<Vec<usize>> = vec![vec![], vec![]];
        for at in 1..n {
            preds.extend([vec![2 * at - 2], vec![2 * at - 1, 2 * at - 2]]);
        }
        preds
    };
    // One step with 500 upstreams, each of which has another downstream.
    let hub = |n: usize| {
        let mut preds: Vec<Vec<usize>> = Vec::new();
        for at in 0..n {
            preds.extend([vec![], vec![2 * at]]);
        }
        preds.push((0..n).map(|at| 2 * at).collect());
        preds
    };
    vec![
        ("one", vec![vec![]]),
        ("41 alone", vec![vec![]; 41]),
        ("fan of 45", fan(45)),
        ("fan of 210", fan(210)),
        ("K 12 12", bipartite(12)),
        ("K 40 40", bipartite(40)),
        ("crown of 10", crown(10)),
        ("crown of 25", crown(25)),
        ("ladder of 100", ladder(100)),
        ("hub of 500", hub(500)),
    ]
}

#[test]
fn odd_shapes_run_in_every_mode_and_way() {
    for (name, preds) in shapes() {
        let shape = numbered(&preds);
        // The large ones in one mode: it is the one with most states.
        for mode in MODES.into_iter().filter(|mode| preds.len() < 200 || *mode == ExecutionMode::ContinueOnFailure) {
            for way in WAYS {
                let compiled = compile(&plan(&shape, mode, |_| None), &options(way));
                let compiled = compiled.unwrap_or_else(|error| panic!("{name}, {way:?}: {error}"));
                let (end, started, payload) = run(&compiled, &|_| false);
                assert!(matches!(end, End::Succeeded(_)), "{name}, {mode:?}, {way:?}: {end:?}");
                assert_eq!(started.len(), preds.len(), "{name}");
                assert!(payload <= 262_144, "{name}, {mode:?}, {way:?}: a payload of {payload}");
            }
        }
    }
}

#[test]
fn a_chain_of_ten_thousand_and_extreme_durations() {
    let chain: Vec<Vec<usize>> = (0..10_000).map(|at| if at == 0 { vec![] } else { vec![at - 1] }).collect();
    let compiled =
        compile(&plan(&numbered(&chain), ExecutionMode::ContinueOnFailure, |_| None), &options(Synchronization::Exact))
            .expect("compiles");
    let (end, started, payload) = run(&compiled, &|step| step == "s3");
    assert_eq!((started.len(), matches!(end, End::Failed { .. })), (4, true));
    assert!(payload <= 262_144, "{payload}");

    for seconds in [0.0, 1e-9, 1e9] {
        for way in WAYS {
            let (_, preds) = shapes().remove(7);
            let plan = plan(&numbered(&preds), ExecutionMode::FailFast, |at| (at % 3 != 0).then_some(seconds));
            let report = compile(&plan, &options(way)).expect("compiles").report;
            assert!(report.makespan_ratio.is_finite() && report.makespan_ratio >= 1.0 - 1e-9, "{report:?}");
        }
    }
}

/// One root fails and takes a wide front with it; another feeds a wide back, every part of which also waits for two of the front.
fn front_and_back(front: usize, back: usize) -> Vec<Vec<usize>> {
    let mut preds = vec![vec![], vec![]];
    preds.extend((0..front).map(|_| vec![0]));
    preds.extend((0..back).map(|_| vec![1]));
    preds.extend((0..back).map(|at| vec![2 + at, 3 + at, 2 + front + at]));
    preds
}

#[test]
fn payloads_and_causes_keep_their_limits_when_thousands_are_skipped() {
    let preds = front_and_back(1_500, 100);
    let name = |at: usize| format!("a_step_with_a_longer_name_{at:04}");
    let shape: Shape =
        preds.iter().enumerate().map(|(at, up)| (name(at), up.iter().map(|&up| name(up)).collect())).collect();
    let plan = plan(&shape, ExecutionMode::ContinueOnFailure, |_| None);
    for way in [Synchronization::Exact, Synchronization::Barrier] {
        let compiled = compile(&plan, &options(way)).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        let cause = |fails: &dyn Fn(&str) -> bool| {
            let (end, _, payload) = run(&compiled, fails);
            assert!(payload <= 262_144, "{way:?}: a payload of {payload}");
            let End::Failed { cause, .. } = end else { panic!("{way:?}: {end:?}") };
            assert!(cause.len() <= 32_768, "{way:?}: a cause of {}", cause.len());
            (parse_cause(&cause).expect("lists"), cause)
        };
        let ((failed, skipped), text) = cause(&|step| step == name(0));
        assert_eq!((failed, skipped.len()), (vec![name(0)], 0), "{text}");
        assert!(text.contains(r#""skipped_count":1600"#), "{text}");
        let (lists, text) = cause(&|step| step != name(0) && step != name(1));
        assert_eq!(lists, (vec![], vec![]));
        assert_eq!(text, r#"{"failed_count":1600,"skipped_count":100}"#);
        let ((failed, skipped), _) = cause(&|step| step == name(7));
        assert_eq!((failed, skipped.len()), (vec![name(7)], 2));
    }
}

#[test]
fn names_are_shortened_where_a_payload_cannot_hold_them_and_refused_where_that_is_not_enough() {
    let alone = |count: usize, length: usize| -> Shape {
        (0..count).map(|at| (format!("{at:05}{}", "x".repeat(length)), vec![])).collect()
    };
    let compiled = |shape: &Shape, mode| {
        compile(&plan(shape, mode, |_| None), &options(Synchronization::Exact)).map(|compiled| compiled.machines.len())
    };
    assert!(compiled(&alone(9_000, 50), ExecutionMode::ContinueOnFailure).is_ok());
    let error = compiled(&alone(20_000, 50), ExecutionMode::ContinueOnFailure).unwrap_err();
    assert!(matches!(error, AslError::Limit { unit: "bytes", limit: 229_376, actual: 300_000, .. }), "{error}");
    assert!(compiled(&alone(20_000, 50), ExecutionMode::FailFast).is_ok(), "nothing is listed");
}

#[test]
fn names_that_meet_are_kept_apart() {
    // What `label` makes of the first name is the second name.
    let odd = "größe";
    let taken = step_engine::asl::content_hash(odd.as_bytes());
    let twin = format!("gr__e-{}", &taken[..8]);
    let shape: Shape = vec![(odd.into(), vec![]), (twin.clone(), vec![]), ("z".into(), vec![odd.into()])];
    let compiled = compile(&plan(&shape, ExecutionMode::ContinueOnFailure, |_| None), &options(Synchronization::Exact))
        .expect("compiles");
    let (end, started, _) = run(&compiled, &|_| false);
    assert!(matches!(end, End::Succeeded(_)));
    assert_eq!(started.len(), 3, "{started:?}");
}

/// A crown in which a junction signals and waits, beside a step of the name that it could be given.
#[test]
fn a_step_may_be_called_junction() {
    let mut shape: Shape = vec![];
    for name in ["a", "b", "c", "junction", "(junction)"] {
        shape.push((name.into(), vec![]));
    }
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for at in 0..3 {
        shape.push((format!("x{at}"), all(&["a", "b", "c"])));
        shape.push((format!("y{at}"), all(&["b", "c", "junction"])));
        shape.push((format!("z{at}"), all(&["c", "junction", "(junction)"])));
        shape.push((
            format!("w{at}"),
            vec![format!("x{at}"), format!("y{}", (at + 1) % 3), format!("z{}", (at + 2) % 3)],
        ));
    }
    let compiled = compile(&plan(&shape, ExecutionMode::ContinueOnFailure, |_| None), &options(Synchronization::Exact))
        .expect("compiles");
    let ends: Vec<&String> = compiled.report.token_edges.iter().flat_map(|(from, to)| [from, to]).collect();
    assert!(ends.iter().any(|end| end.starts_with("(junction)")), "{ends:?}");
    let (end, started, _) = run(&compiled, &|_| false);
    assert!(matches!(end, End::Succeeded(_)), "{end:?}");
    assert_eq!(started.len(), shape.len());
}

/// A zigzag whose every next step takes a little less: the cheapest barrier cuts one off, again and again.
#[test]
fn barriers_do_not_make_the_tree_as_deep_as_the_pipeline_is_long() {
    let half = 300_usize;
    let preds: Vec<Vec<usize>> = (0..2 * half)
        .map(|at| match at.checked_sub(half) {
            None => vec![],
            Some(left) if left + 1 < half => vec![left, left + 1],
            Some(left) => vec![left],
        })
        .collect();
    let plan = plan(&numbered(&preds), ExecutionMode::FailFast, |at| Some(0.95_f64.powi(at as i32)));
    for way in [Synchronization::Barrier, Synchronization::Auto] {
        let compiled = compile(&plan, &options(way)).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        let (end, started, _) = run(&compiled, &|_| false);
        assert_eq!((matches!(end, End::Succeeded(_)), started.len()), (true, 2 * half));
    }
}

#[test]
fn retries_and_timeouts_at_their_edges() {
    let json = |retry: &str, timeout: &str| {
        let plan = format!(r#"{{"pipeline": "p", "steps": [{{"name": "a", "retry": {retry}{timeout}}}]}}"#);
        let compiled = compile(&Plan::from_json(&plan).expect("a plan"), &options(Synchronization::Exact));
        let definition: Value = serde_json::from_str(&compiled.expect("compiles").root().definition).expect("JSON");
        structure::check(&definition);
        definition["States"]["a"].clone()
    };
    let own = |state: &Value| state["Retry"].as_array().and_then(|retry| retry.last()).cloned().expect("a retrier");
    assert_eq!(json(r#"{"max_retries": 0}"#, "")["Retry"].as_array().map(Vec::len), Some(1), "only infrastructure");
    let huge = own(&json(r#"{"max_retries": 4294967295, "delay_seconds": 0, "backoff": 1e300}"#, ""));
    assert_eq!(huge["MaxAttempts"], 99_999_999);
    assert_eq!((&huge["IntervalSeconds"], &huge["BackoffRate"]), (&json!(1), &json!(86_400.0)));
    let capped = own(&json(r#"{"max_retries": 3, "delay_seconds": 1e7, "backoff": 4}"#, ""));
    assert_eq!((&capped["IntervalSeconds"], &capped["BackoffRate"]), (&json!(86_400), &json!(1.0)));
    assert_eq!(json("{}", r#", "timeout_seconds": 0.001"#)["TimeoutSeconds"], 1);
    assert_eq!(json("{}", r#", "timeout_seconds": 1e12"#)["TimeoutSeconds"], 99_999_999);
}

#[test]
fn what_ecs_would_refuse_is_refused_here() {
    let one: Shape = vec![("a".into(), vec![])];
    let refused = |task: Value| {
        let mut options = options(Synchronization::Exact);
        options.task = serde_json::from_value(task).expect("settings");
        compile(&plan(&one, ExecutionMode::FailFast, |_| None), &options).map(|_| ()).unwrap_err().to_string()
    };
    let task = |more: Value| {
        let mut task = json!({"cluster": "c", "task_definition": "t", "container": "main"});
        task.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        task
    };
    let subnets = vec!["subnet"; 17];
    assert_eq!(refused(task(json!({"network": {"subnets": subnets}}))), "step `a`: has 17 subnets; give 1 to 16");
    assert_eq!(refused(task(json!({"network": {}}))), "step `a`: has 0 subnets; give 1 to 16");
    let groups = vec!["sg"; 6];
    let error = refused(task(json!({"network": {"subnets": ["s"], "security_groups": groups}})));
    assert_eq!(error, "step `a`: has 6 security groups; give at most 5");
    let error = refused(task(json!({"capacity_providers": [{"name": "FARGATE"}]})));
    assert_eq!(error, "step `a`: has no capacity provider with a weight above 0");
    let two = json!([{"name": "A", "weight": 1, "base": 1}, {"name": "B", "base": 1}]);
    let error = refused(task(json!({"capacity_providers": two})));
    assert_eq!(error, "step `a`: has more than one capacity provider with a base; one may");
}

#[test]
fn braces_in_a_command_are_no_places() {
    let mut options = options(Synchronization::Exact);
    options.task.command =
        serde_json::from_value(json!([r#"{"a": "it's \\ {}"}"#, {"input": "snapshot_id"}])).expect("ok");
    let one: Shape = vec![("a".into(), vec![])];
    let compiled = compile(&plan(&one, ExecutionMode::FailFast, |_| None), &options).expect("compiles");
    let definition: Value = serde_json::from_str(&compiled.root().definition).expect("JSON");
    let command = &definition["States"]["a"]["Parameters"]["Overrides"]["ContainerOverrides"][0]["Command.$"];
    let expected = r#"States.Array('\{"a": "it\'s \\\\ \{\}"\}', $$.Execution.Input.snapshot_id)"#;
    assert_eq!(command, expected);
}
