//! Named shapes: their definitions as snapshots, their token edges, retries, names.

use std::collections::HashMap;

use serde_json::{Value, json};
use step_engine::asl::{self, AslOptions, Picture, Synchronization, TaskSettings, compile};
use step_engine::plan::Plan;

use super::interpreter::{End, Interpreter, What, World};
use super::{definitions, options, root_arn};

const N: &str =
    r#"[{"name": "a"}, {"name": "b"}, {"name": "c", "upstream": ["a"]}, {"name": "d", "upstream": ["a", "b"]}]"#;

fn plan(mode: &str, steps: &str) -> Plan {
    Plan::from_json(&format!(r#"{{"pipeline": "training", "execution_mode": "{mode}", "steps": {steps}}}"#))
        .expect("a plan")
}

fn definition(mode: &str, steps: &str, way: Synchronization) -> Value {
    let compiled = compile(&plan(mode, steps), &options(way)).expect("compiles");
    serde_json::from_str(&compiled.root().definition).expect("JSON")
}

#[test]
fn definitions_of_named_shapes() {
    let chain = r#"[{"name": "load"}, {"name": "train", "upstream": ["load"], "timeout_seconds": 90.5,
        "retry": {"max_retries": 2, "delay_seconds": 1.5, "backoff": 0}}]"#;
    let diamond = r#"[{"name": "a"}, {"name": "b", "upstream": ["a"]}, {"name": "c", "upstream": ["a"]}, {"name": "d", "upstream": ["b", "c"]}]"#;
    insta::assert_json_snapshot!("chain_fail_fast", definition("fail_fast", chain, Synchronization::Exact));
    insta::assert_json_snapshot!(
        "diamond_continue",
        definition("continue_on_failure", diamond, Synchronization::Exact)
    );
    insta::assert_json_snapshot!("n_fail_fast", definition("fail_fast", N, Synchronization::Exact));
    insta::assert_json_snapshot!("n_continue", definition("continue_on_failure", N, Synchronization::Exact));
    insta::assert_json_snapshot!("n_stop", definition("stop_on_failure", N, Synchronization::Exact));
    insta::assert_json_snapshot!("n_barrier", definition("continue_on_failure", N, Synchronization::Barrier));
    let lanes = r#"{"execution_mode": "continue_on_failure", "max_parallelism": 2, "steps": [{"name": "a"}, {"name": "b"}, {"name": "c"},
        {"name": "d", "upstream": ["a", "b", "c"]}]}"#;
    let compiled =
        compile(&Plan::from_json(lanes).expect("a plan"), &options(Synchronization::Exact)).expect("compiles");
    let lanes: Value = serde_json::from_str(&compiled.root().definition).expect("JSON");
    insta::assert_json_snapshot!("lanes_continue", lanes);
}

#[test]
fn few_token_edges() {
    let edges = |steps: &str| {
        compile(&plan("fail_fast", steps), &options(Synchronization::Exact)).expect("compiles").report.token_edges.len()
    };
    assert_eq!(edges(N), 1, "the N needs one");
    // Many-to-many is series-parallel.
    let all = r#"[{"name": "a"}, {"name": "b"}, {"name": "c", "upstream": ["a", "b"]}, {"name": "d", "upstream": ["a", "b"]}]"#;
    assert_eq!(edges(all), 0);
    // The W: two Ns that share an end.
    let w = r#"[{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "x", "upstream": ["a", "b"]}, {"name": "y", "upstream": ["b", "c"]}]"#;
    assert_eq!(edges(w), 1);
    // Wheatstone's bridge, and an N whose corners are whole pipelines.
    let bridge = r#"[{"name": "a"}, {"name": "b"}, {"name": "c", "upstream": ["a"]}, {"name": "d", "upstream": ["a"]}, {"name": "e", "upstream": ["b", "c"]}]"#;
    assert_eq!(edges(bridge), 1);
    let thick = r#"[{"name": "a"}, {"name": "a1", "upstream": ["a"]}, {"name": "a2", "upstream": ["a"]}, {"name": "a3", "upstream": ["a1", "a2"]},
        {"name": "b"}, {"name": "b1", "upstream": ["b"]}, {"name": "c", "upstream": ["a3"]}, {"name": "c1", "upstream": ["c"]},
        {"name": "d", "upstream": ["a3", "b1"]}, {"name": "d1", "upstream": ["d"]}, {"name": "d2", "upstream": ["d"]}]"#;
    assert_eq!(edges(thick), 1);
    // Implied dependencies cost nothing.
    let implied = r#"[{"name": "a"}, {"name": "b", "upstream": ["a"]}, {"name": "c", "upstream": ["a", "b"]}]"#;
    assert_eq!(edges(implied), 0);
}

#[test]
fn declaration_order_run_and_snapshot_change_no_byte() {
    let shuffled =
        r#"[{"name": "d", "upstream": ["b", "a"]}, {"name": "c", "upstream": ["a"]}, {"name": "b"}, {"name": "a"}]"#;
    let mut other = plan("continue_on_failure", shuffled);
    other.run_id = "another run".into();
    let first = compile(&plan("continue_on_failure", N), &options(Synchronization::Exact)).expect("compiles");
    let second = compile(&other, &options(Synchronization::Exact)).expect("compiles");
    assert_eq!(first, second);
}

#[test]
fn names_are_readable_unique_and_short() {
    let long = "x".repeat(120);
    let steps = format!(
        r#"[{{"name": "{long}1"}}, {{"name": "{long}2"}}, {{"name": "größe*'{{}}|"}}, {{"name": "plain step"}},
            {{"name": "a", "upstream": ["{long}1"]}}, {{"name": "a: failed", "upstream": ["{long}1", "{long}2", "größe*'{{}}|"]}}]"#
    );
    let value = definition("continue_on_failure", &steps, Synchronization::Exact);
    super::structure::check(&value);
    assert!(value.to_string().contains(r#""plain step":{"#));
    assert!(value.to_string().is_ascii());
}

#[test]
fn a_waiter_of_a_week_looks_nine_times_and_goes_on_at_once() {
    const WEEK_SECONDS: u64 = 7 * 24 * 3_600;
    for mode in ["fail_fast", "stop_on_failure", "continue_on_failure"] {
        let ways = [(10, WEEK_SECONDS, 9), (10, 9, 1), (10, 11, 2), (10, 51, 3), (1, WEEK_SECONDS, 11)];
        for (recheck_seconds, seconds, looks) in ways {
            let mut with = options(Synchronization::Exact);
            with.recheck_seconds = recheck_seconds;
            let compiled = compile(&plan(mode, N), &with).expect("compiles");
            let definitions = definitions(&compiled);
            let machines = definitions.iter().map(|(arn, value)| (arn.clone(), value)).collect();
            let root = &definitions[&root_arn(&compiled)];
            let world = World {
                task: Box::new(|step, _| (if step == "a" { seconds * 1_000 } else { 0 }, Ok(()))),
                latency: Box::new(|| 0),
            };
            let mut interpreter = Interpreter::new(machines, root, json!({"snapshot_id": "s"}), world);
            interpreter.run(None);
            assert!(matches!(interpreter.end, Some(End::Succeeded(_))), "{mode}: {:?}", interpreter.end);
            assert_eq!(interpreter.now, seconds * 1_000, "{mode}: `d` starts when `a` ends");
            assert_eq!(interpreter.gets["step-engine/signals/run-1/a/over"], looks, "{mode}: {seconds} s");
        }
    }
}

/// Runs a plan whose steps take a second and end as told: by step, a list of errors before it completes.
fn run(compiled: &asl::Compiled, errors: &HashMap<&str, Vec<&str>>) -> (End, Vec<(u64, String, What)>) {
    let definitions = definitions(compiled);
    let machines: HashMap<String, &Value> = definitions.iter().map(|(arn, value)| (arn.clone(), value)).collect();
    let root = machines[&root_arn(compiled)];
    let world = World {
        task: Box::new(|step, attempt| {
            let error = errors.get(step).and_then(|list| list.get(attempt as usize));
            match error {
                Some(&"hang") => (1_000_000_000, Ok(())),
                Some(error) => (1_000, Err((*error).to_owned())),
                None => (1_000, Ok(())),
            }
        }),
        latency: Box::new(|| 0),
    };
    let mut interpreter = Interpreter::new(machines, root, json!({"snapshot_id": "s"}), world);
    interpreter.run(None);
    let trace = interpreter.trace.iter().map(|t| (t.at, t.step.clone(), t.what.clone())).collect();
    (interpreter.end.expect("it ends"), trace)
}

fn starts(trace: &[(u64, String, What)]) -> Vec<u64> {
    trace.iter().filter(|(_, _, what)| *what == What::Started).map(|(at, ..)| *at).collect()
}

#[test]
fn retries_follow_the_step_and_spare_what_is_hopeless() {
    let step = |retry: &str, timeout: &str| {
        let steps = format!(r#"[{{"name": "a", "retry": {retry}{timeout}}}]"#);
        compile(&plan("fail_fast", &steps), &options(Synchronization::Exact)).expect("compiles")
    };
    let failing = HashMap::from([("a", vec!["States.TaskFailed"; 9])]);
    let growing = step(r#"{"max_retries": 3, "delay_seconds": 2, "backoff": 3}"#, "");
    let (end, trace) = run(&growing, &failing);
    assert!(matches!(end, End::Failed { error, .. } if error == "States.TaskFailed"));
    assert_eq!(starts(&trace), [0, 3_000, 10_000, 29_000], "waits of 2, 6 and 18 seconds");
    let (_, trace) = run(&step(r#"{"max_retries": 2, "delay_seconds": 2, "backoff": 0}"#, ""), &failing);
    assert_eq!(starts(&trace), [0, 3_000, 6_000], "a backoff of 0 is 1");
    let (_, trace) =
        run(&step(r#"{"max_retries": 3}"#, ""), &HashMap::from([("a", vec!["ECS.AccessDeniedException"; 9])]));
    assert_eq!(starts(&trace).len(), 1, "no right, no retry");
    let (end, trace) = run(&step("{}", ""), &HashMap::from([("a", vec!["ECS.AmazonECSException"; 5])]));
    assert!(matches!(end, End::Succeeded(_)), "throttling is retried without retries of the step's own");
    assert_eq!(starts(&trace).len(), 6);
    let (end, trace) = run(
        &step(r#"{"max_retries": 1}"#, ""),
        &HashMap::from([("a", vec!["ECS.ServerException", "States.TaskFailed", "AmazonECS.Unknown"])]),
    );
    assert!(
        matches!(end, End::Succeeded(_)),
        "infrastructure errors take nothing from the step's own retries: {end:?}"
    );
    assert_eq!(starts(&trace).len(), 4);
    let (end, trace) = run(
        &step(r#"{"max_retries": 1, "delay_seconds": 5}"#, r#", "timeout_seconds": 10"#),
        &HashMap::from([("a", vec!["hang"])]),
    );
    assert!(matches!(end, End::Succeeded(_)), "{end:?}");
    assert_eq!(starts(&trace), [0, 15_000], "a timeout is an attempt");
}

#[test]
fn identity_comes_from_the_execution_and_settings_from_the_options() {
    let mut options = options(Synchronization::Exact);
    let own = r#"{"task_definition": "gpu:3", "capacity_providers": [{"name": "GPU", "weight": 1}],
        "environment": {"RUN": {"execution": "name"}, "MODE": "it's"}, "tags": {"step": "b"}}"#;
    options.steps.insert("b".into(), serde_json::from_str::<TaskSettings>(own).expect("settings"));
    let plan = plan("fail_fast", r#"[{"name": "a"}, {"name": "b", "upstream": ["a"], "resources": {"gpus": 1}}]"#);
    let compiled = compile(&plan, &options).expect("compiles");
    let definition: Value = serde_json::from_str(&compiled.root().definition).expect("JSON");
    let task = |step: &str| definition["States"][step]["Parameters"].clone();
    assert_eq!(task("a")["LaunchType"], "FARGATE");
    let container = &task("a")["Overrides"]["ContainerOverrides"][0];
    assert_eq!(
        container["Command.$"],
        "States.Array('python', '-m', 'step', $$.Execution.Input.snapshot_id, $$.Execution.Name)"
    );
    assert_eq!(task("b").get("LaunchType"), None, "a strategy takes the launch type's place");
    assert_eq!(task("b")["CapacityProviderStrategy"][0]["CapacityProvider"], "GPU");
    assert_eq!(task("b")["TaskDefinition"], "gpu:3");
    assert_eq!(task("b")["Tags"][0]["Value"], "b");
    assert_eq!(
        task("b")["Overrides"]["ContainerOverrides"][0]["Environment"],
        json!([{"Name": "MODE", "Value": "it's"}, {"Name": "RUN", "Value.$": "$$.Execution.Name"}])
    );
    assert_eq!(compiled.report.sizes.len(), 1, "only `a` runs on Fargate");
}

#[test]
fn the_policy_names_what_is_called_and_no_more() {
    let mut with = options(Synchronization::Exact);
    with.pass_roles = vec!["arn:aws:iam::000000000000:role/task".into()];
    let sids = |plan: &Plan, options: &AslOptions| {
        let policy = compile(plan, options).expect("compiles").report.policy;
        let statements = policy["Statement"].as_array().expect("statements").clone();
        statements.iter().map(|s| s["Sid"].as_str().expect("Sid").to_owned()).collect::<Vec<_>>()
    };
    let chain = plan("continue_on_failure", r#"[{"name": "a"}, {"name": "b", "upstream": ["a"]}]"#);
    assert_eq!(sids(&chain, &with), ["RunTasks", "WatchAndStopTasks", "PassTaskRoles", "ManagedRules"]);
    let n = plan("continue_on_failure", N);
    let all = [
        "RunTasks",
        "WatchAndStopTasks",
        "PassTaskRoles",
        "ExchangeSignals",
        "SeeMissingSignals",
        "ReleaseWaiters",
        "ManagedRules",
    ];
    assert_eq!(sids(&n, &with), all);
    let mut barrier = with.clone();
    barrier.synchronization = Synchronization::Barrier;
    assert_eq!(sids(&n, &barrier), sids(&chain, &with), "barriers need no permission more");
    let machines = |steps: usize| {
        let row: Vec<String> = (0..steps)
            .map(|at| match at {
                0 => r#"{"name": "s0"}"#.to_owned(),
                _ => format!(r#"{{"name": "s{at}", "upstream": ["s{}"]}}"#, at - 1),
            })
            .collect();
        let mut small = with.clone();
        small.limits.events = 60;
        let compiled =
            compile(&plan("continue_on_failure", &format!("[{}]", row.join(","))), &small).expect("compiles");
        let statements = compiled.report.policy["Statement"].as_array().expect("statements").clone();
        let start = statements.into_iter().find(|s| s["Sid"] == "StartMachines").expect("a statement");
        (compiled.machines.len() - 1, start["Resource"].as_array().expect("a list").clone())
    };
    let (count, named) = machines(40);
    assert_eq!(count, named.len(), "few are named one by one");
    let (count, named) = machines(400);
    assert!(count > 16, "{count}");
    assert_eq!(named, ["arn:aws:states:us-east-1:000000000000:stateMachine:training-s*"]);
}

#[test]
fn pictures_show_every_step_and_token() {
    let n = plan("fail_fast", N);
    let mermaid = asl::draw(&n, &options(Synchronization::Exact), Picture::Mermaid).expect("drawn");
    assert!(mermaid.starts_with("flowchart LR\n") && mermaid.contains("-. token .->"), "{mermaid}");
    let svg = asl::draw(&n, &options(Synchronization::Barrier), Picture::Svg).expect("drawn");
    assert!(["a", "b", "c", "d"].iter().all(|step| svg.contains(&format!(">{step}</text>"))));
    assert!(svg.contains(r#"class="barrier""#) && !svg.contains(r#"class="token""#));
}

#[test]
fn five_thousand_steps_become_machines_that_keep_every_limit() {
    // 500 groups of ten in a row, with a bridge between neighbours: an N in every group.
    let steps: Vec<String> = (0..500)
        .flat_map(|group| {
            let before = if group == 0 { String::new() } else { format!(r#""g{}_end""#, group - 1) };
            let mut steps = vec![
                format!(r#"{{"name": "g{group}_a", "upstream": [{before}]}}"#),
                format!(r#"{{"name": "g{group}_b", "upstream": [{before}]}}"#),
                format!(r#"{{"name": "g{group}_c", "upstream": ["g{group}_a"]}}"#),
                format!(r#"{{"name": "g{group}_d", "upstream": ["g{group}_a", "g{group}_b"]}}"#),
            ];
            steps.extend(
                (0..5).map(|at| format!(r#"{{"name": "g{group}_{at}", "upstream": ["g{group}_c", "g{group}_d"]}}"#)),
            );
            let all = (0..5).map(|at| format!(r#""g{group}_{at}""#)).collect::<Vec<_>>().join(", ");
            steps.push(format!(r#"{{"name": "g{group}_end", "upstream": [{all}]}}"#));
            steps
        })
        .collect();
    let plan = plan("continue_on_failure", &format!("[{}]", steps.join(",")));
    let compiled = compile(&plan, &options(Synchronization::Exact)).expect("compiles");
    assert_eq!((plan.len(), compiled.root().steps), (5_000, 5_000));
    assert!(compiled.machines.len() > 2, "one machine cannot hold it");
    assert_eq!(compiled.report.token_edges.len(), 500);
    let policy = compiled.report.policy.to_string();
    assert!(policy.len() < 10_240, "a role holds no more than that: {}", policy.len());
    let mut names = std::collections::HashSet::new();
    for machine in &compiled.machines {
        assert!(machine.definition.len() <= 1_048_576 && machine.counts.events <= 25_000, "{}", machine.name);
        assert!(machine.name.len() <= 80 && names.insert(&machine.name));
    }
    for machine in definitions(&compiled).values() {
        super::structure::check(machine);
    }
    let (end, trace) = run(&compiled, &HashMap::new());
    assert!(matches!(end, End::Succeeded(_)), "{end:?}");
    assert_eq!(starts(&trace).len(), 5_000);
    assert_eq!(trace.iter().map(|(at, ..)| *at).max(), Some(4 * 500 * 1_000), "exact across machines");
}
