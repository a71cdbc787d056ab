//! Bad plans are refused by name; good ones give edges, order and demands.

use std::time::Duration;

use step_engine::plan::{Admission, Capacity, Plan, PlanError, Retry, StepIndex};

fn error(json: &str) -> PlanError {
    Plan::from_json(json).expect_err("the plan should be refused")
}

#[test]
fn a_wrong_field_fails_with_its_path() {
    let wrong_type = error(r#"{"steps": [{"name": "a"}, {"name": "b", "retry": {"delay_seconds": "soon"}}]}"#);
    assert_eq!(wrong_type.field, "steps[1].retry.delay_seconds");
    let unknown = error(r#"{"steps": [{"name": "a", "cpus": 3}]}"#);
    assert!(unknown.message.contains("unknown field `cpus`"), "{unknown}");
    assert!(unknown.to_string().starts_with("steps[0]"), "{unknown}");
    let negative = error(r#"{"steps": [{"name": "a", "timeout_seconds": -1}]}"#);
    assert_eq!((negative.step.as_deref(), negative.field.as_str()), (Some("a"), "steps[0].timeout_seconds"));
    let trailing = error(r#"{"steps": []} x"#);
    assert!(trailing.message.contains("trailing"), "{trailing}");
}

#[test]
fn duplicate_unknown_and_circular_steps_are_named() {
    let twice = error(r#"{"steps": [{"name": "a"}, {"name": "a"}]}"#);
    assert_eq!(twice.to_string(), "step `a` (steps[1].name): the name is taken by steps[0] already");
    let unknown = error(r#"{"steps": [{"name": "a", "upstream": ["z"]}]}"#);
    assert_eq!(unknown.to_string(), "step `a` (steps[0].upstream[0]): there is no step `z`");
    let circle = error(
        r#"{"steps": [{"name": "start"}, {"name": "a", "upstream": ["start", "c"]},
            {"name": "b", "upstream": ["a"]}, {"name": "c", "upstream": ["b"]}, {"name": "d", "upstream": ["c"]}]}"#,
    );
    assert!(circle.message.starts_with("the steps wait for each other: "), "{circle}");
    let path = circle.message.split_once(": ").unwrap().1;
    assert!(
        ["`a` -> `b` -> `c` -> `a`", "`b` -> `c` -> `a` -> `b`", "`c` -> `a` -> `b` -> `c`"].contains(&path),
        "{path}"
    );
    let own = error(r#"{"steps": [{"name": "a", "upstream": ["a"]}]}"#);
    assert!(own.message.ends_with("`a` -> `a`"), "{own}");
}

#[test]
fn edges_are_deduplicated_and_ordered() {
    let plan = Plan::from_json(
        r#"{"steps": [{"name": "c", "upstream": ["a", "a", "b"]}, {"name": "a"}, {"name": "b", "upstream": ["a"]}]}"#,
    )
    .unwrap();
    let order: Vec<_> = plan.dag().topological_order().iter().map(|&i| plan.step(i).name.to_string()).collect();
    assert_eq!(order, ["a", "b", "c"]);
    assert_eq!(plan.dag().edge_count(), 3);
    assert_eq!(plan.dag().downstream(StepIndex::new(1)).len(), 2);
    assert_eq!(plan.remaining_path_seconds(), [1.0, 3.0, 2.0]);
}

#[test]
fn requests_above_the_host_are_capped_or_refused() {
    let host = Capacity { cpu_millis: 2000, memory_bytes: 8_000_000_000, gpus: 0 };
    let plan = |resources: &str| {
        Plan::from_json(&format!(r#"{{"steps": [{{"name": "train", "resources": {resources}}}]}}"#)).unwrap()
    };
    let capped = Admission::new(&plan(r#"{"cpu_millis": 4000, "memory_bytes": 4000000000}"#), host).unwrap();
    assert_eq!(capped.demands[0].cpu_millis, 2000);
    assert_eq!(capped.warnings[0].message, "asks for 4 CPUs and the host has 2; it runs with 2");
    assert_eq!(capped.max_parallelism, 2);
    let memory = Admission::new(&plan(r#"{"memory_bytes": 9000000000}"#), host).unwrap_err();
    assert!(memory.message.contains("9.0 GB") && memory.message.contains("8.0 GB"), "{memory}");
    let gpus = Admission::new(&plan(r#"{"gpus": 1}"#), host).unwrap_err();
    assert_eq!(gpus.message, "asks for 1 GPUs and the host offers 0");
}

#[test]
fn backoff_zero_counts_as_one_and_delays_are_bounded() {
    let plan = Plan::from_json(
        r#"{"steps": [{"name": "a", "retry": {"max_retries": 3, "delay_seconds": 2, "backoff": 0}},
                      {"name": "b", "retry": {"max_retries": 9, "delay_seconds": 2, "backoff": 3}}]}"#,
    )
    .unwrap();
    let delays = |at: usize| (1..=3).map(|n| plan.steps[at].retry.delay_before(n).as_secs()).collect::<Vec<_>>();
    assert_eq!(delays(0), [2, 2, 2]);
    assert_eq!(delays(1), [2, 6, 18]);
    let endless = Retry { max_retries: u32::MAX, delay: Duration::from_secs(1), backoff: 10.0 };
    assert_eq!(endless.delay_before(u32::MAX), Retry::MAX_DELAY);
}
