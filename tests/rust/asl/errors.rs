//! What cannot be compiled is refused by name; Fargate's sizes are as documented.

use step_engine::asl::{AslError, AslOptions, Synchronization, compile, fargate};
use step_engine::plan::{Plan, ResourceSpec};

use super::options;

fn plan(steps: &str) -> Plan {
    Plan::from_json(&format!(r#"{{"pipeline": "p", "steps": {steps}}}"#)).expect("a plan")
}

#[test]
fn missing_and_wrong_settings_say_what_to_set() {
    let one = plan(r#"[{"name": "a"}]"#);
    let error = compile(&one, &AslOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "step `a`: has no cluster; set task.cluster or steps.a.cluster");
    assert_eq!(compile(&plan("[]"), &AslOptions::default()), Err(AslError::Empty));
    let n = plan(
        r#"[{"name": "a"}, {"name": "b"}, {"name": "c", "upstream": ["a"]}, {"name": "d", "upstream": ["a", "b"]}]"#,
    );
    let mut without = options(Synchronization::Exact);
    without.signals = None;
    let error = compile(&n, &without).unwrap_err().to_string();
    assert!(error.starts_with("1 dependencies need token edges: set signals.bucket"), "{error}");
    without.synchronization = Synchronization::Barrier;
    assert!(compile(&n, &without).is_ok(), "barriers need no bucket");
    let mut unknown = options(Synchronization::Exact);
    unknown.steps.insert("z".into(), Default::default());
    assert_eq!(compile(&one, &unknown).unwrap_err().to_string(), "steps: there is no step `z`");
    let wrong = AslOptions::from_json(r#"{"task": {"network": {"subnets": "subnet-1"}}}"#).unwrap_err();
    assert!(matches!(wrong, AslError::Option { ref field, .. } if field == "task.network.subnets"), "{wrong}");
    let unknown = AslOptions::from_json(r#"{"clutser": "x"}"#).unwrap_err();
    assert!(unknown.to_string().contains("unknown field `clutser`"), "{unknown}");
    let mut bad = options(Synchronization::Exact);
    bad.name = Some("my machine".into());
    assert!(compile(&one, &bad).unwrap_err().to_string().contains("`my machine`"));
}

#[test]
fn limits_name_the_step() {
    let mut long = options(Synchronization::Exact);
    long.task.command = serde_json::from_value(serde_json::json!(["x".repeat(9_000)])).expect("a command");
    let error = compile(&plan(r#"[{"name": "a"}]"#), &long).unwrap_err();
    assert!(
        matches!(error, AslError::Limit { ref step, limit: 8192, actual, .. } if step.as_deref() == Some("a") && actual > 9_000),
        "{error}"
    );
    // 3,000 upstreams that nothing else connects: one step's waits alone exceed a history.
    let mut steps: Vec<String> = (0..3_000)
        .flat_map(|at| [format!(r#"{{"name": "u{at}"}}"#), format!(r#"{{"name": "o{at}", "upstream": ["u{at}"]}}"#)])
        .collect();
    let upstream: Vec<String> = (0..3_000).map(|at| format!(r#""u{at}""#)).collect();
    steps.push(format!(r#"{{"name": "hub", "upstream": [{}]}}"#, upstream.join(", ")));
    let hub = plan(&format!("[{}]", steps.join(",")));
    match compile(&hub, &options(Synchronization::Exact)) {
        Err(AslError::Limit { step, .. }) => assert_eq!(step.as_deref(), Some("hub")),
        Err(other) => panic!("{other}"),
        Ok(compiled) => {
            for machine in &compiled.machines {
                assert!(machine.definition.len() <= 1_048_576 && machine.counts.events <= 25_000, "{}", machine.name);
            }
        }
    }
}

/// A row of two with a branch beside it, inside each other: two levels for each.
fn onion(layers: usize) -> Plan {
    let steps: Vec<String> = (0..layers)
        .flat_map(|at| {
            let before = if at == 0 { String::new() } else { format!(r#""a{}""#, at - 1) };
            let inner = if at + 1 == layers { String::new() } else { format!(r#", "e{}""#, at + 1) };
            [
                format!(r#"{{"name": "a{at}", "upstream": [{before}]}}"#),
                format!(r#"{{"name": "x{at}", "upstream": ["a{at}"]}}"#),
                format!(r#"{{"name": "e{at}", "upstream": ["x{at}"{inner}]}}"#),
            ]
        })
        .collect();
    plan(&format!("[{}]", steps.join(",")))
}

#[test]
fn deep_pipelines_become_machines_inside_machines_and_too_deep_ones_name_a_step() {
    let compiled = compile(&onion(60), &options(Synchronization::Exact)).expect("compiles");
    assert!(compiled.machines.len() > 1);
    for definition in super::definitions(&compiled).values() {
        super::structure::check(definition);
    }
    let error = compile(&onion(70), &options(Synchronization::Exact)).unwrap_err();
    let AslError::Limit { step: Some(step), limit: 128, actual, .. } = error else { panic!("{error}") };
    assert!(actual > 128 && step.starts_with('a'), "{step}: {actual}");
}

#[test]
fn fargate_sizes_are_the_nearest_that_hold_the_request() {
    let fit = |cpu_millis: u64, mib: u64, gpus: u32| {
        fargate::fit(ResourceSpec { cpu_millis, memory_bytes: mib * 1024 * 1024, gpus })
    };
    let size = |cpu, mib| fit(cpu, mib, 0).map(|size| (size.cpu_units, size.memory_mib));
    assert_eq!(size(0, 0), Ok((256, 512)));
    assert_eq!(size(250, 512), Ok((256, 512)), "250 thousandths are 256 units");
    assert_eq!(size(256, 512), Ok((512, 1_024)), "263 units are more than 256");
    assert_eq!(size(250, 1_500), Ok((256, 2_048)));
    assert_eq!(size(250, 3_000), Ok((512, 3_072)), "memory can need more CPU");
    assert_eq!(size(4_000, 4_096), Ok((4_096, 8_192)), "CPU can need more memory");
    assert_eq!(size(8_000, 17_000), Ok((8_192, 20_480)));
    assert_eq!(size(16_000, 122_880), Ok((16_384, 122_880)));
    for cpu in [0, 100, 300, 900, 2_000, 3_500, 7_000, 16_000] {
        for mib in [0, 512, 513, 5_000, 30_721, 61_441, 122_880] {
            let (units, memory) = size(cpu, mib).expect("fits");
            assert!(u64::from(units) * 1_000 >= cpu * 1_024 && u64::from(memory) >= mib);
            assert!(
                fargate::TABLE
                    .iter()
                    .any(|row| row.cpu_units == units && (row.memory_from..=row.memory_to).contains(&memory))
            );
        }
    }
    let rounded = fit(1_000, 2_000, 0).expect("fits");
    assert!(!rounded.cpu_rounded && rounded.memory_rounded);
    assert!(fit(17_000, 0, 0).unwrap_err().contains("the largest Fargate task has 16000"));
    assert!(fit(0, 122_881, 0).unwrap_err().contains("122880"));
    assert!(fit(0, 0, 1).unwrap_err().contains("Fargate has none"));
    let gpu = plan(r#"[{"name": "train", "resources": {"gpus": 2}}]"#);
    let error = compile(&gpu, &options(Synchronization::Exact)).unwrap_err();
    assert!(error.to_string().starts_with("step `train` asks for 2 GPUs"), "{error}");
}
