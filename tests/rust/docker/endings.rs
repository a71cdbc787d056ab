//! How attempts end.

use serde_json::json;
use step_engine::event::Outcome;
use step_engine::plan::Demand;
use step_engine::runner::{AttemptControl, AttemptSpec, Executor as _};

use super::fixture::{Fixture, Memory, Running};

const MEBIBYTE: u64 = 1 << 20;

fn memory_limit(bytes: u64) -> Demand {
    Demand { memory_bytes: bytes, ..Demand::default() }
}

#[tokio::test]
async fn exit_codes_are_outcomes() {
    let Some(fixture) = Fixture::new("exit-codes").await else { return };
    for (code, outcome) in [
        ("0", Outcome::Completed),
        ("1", Outcome::Exited { code: 1 }),
        ("42", Outcome::Exited { code: 42 }),
        ("255", Outcome::Exited { code: 255 }),
    ] {
        assert_eq!(fixture.run(&["exit", code], json!({})).await.0, outcome);
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn over_the_memory_limit_is_out_of_memory() {
    let Some(fixture) = Fixture::new("oom").await else { return };
    let bytes = (256 * MEBIBYTE).to_string();
    let (outcome, _) = fixture.start(&["eat", &bytes], json!({}), memory_limit(32 * MEBIBYTE)).end().await;
    assert_eq!(outcome, Outcome::OutOfMemory);
    // The same without the limit.
    let free = json!({"enforce_limits": false});
    let (outcome, memory) = fixture.start(&["eat", &bytes], free, memory_limit(32 * MEBIBYTE)).end().await;
    assert_eq!((outcome, memory.text().trim()), (Outcome::Completed, bytes.as_str()));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_kill_that_nobody_asked_for_is_put_down_to_the_memory_limit() {
    let Some(fixture) = Fixture::new("oom-untold").await else { return };
    // What is seen of a kill whose report got lost: the code.
    let (outcome, memory) = fixture.start(&["exit", "137"], json!({}), memory_limit(32 * MEBIBYTE)).end().await;
    assert_eq!(outcome, Outcome::OutOfMemory);
    assert!(memory.warnings().iter().any(|text| text.contains("memory limit")), "{:?}", memory.warnings());
    let (outcome, memory) = fixture.run(&["exit", "137"], json!({})).await;
    assert_eq!((outcome, memory.warnings()), (Outcome::Exited { code: 137 }, vec![]));
    // Somebody asks the engine.
    let running = fixture.start(&["sleep", "60000"], json!({}), memory_limit(32 * MEBIBYTE));
    running.memory.until_ready().await;
    let found = step_engine::docker::sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    docker.kill_container(&found[0].id, None).await.unwrap();
    let (outcome, _) = running.end().await;
    assert_eq!(outcome, Outcome::Exited { code: 137 });
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_child_over_the_limit_is_a_warning_beside_the_exit_code() {
    let Some(fixture) = Fixture::new("oom-child").await else { return };
    let bytes = (256 * MEBIBYTE).to_string();
    let (outcome, memory) =
        fixture.start(&["eat-in-child", &bytes], json!({}), memory_limit(32 * MEBIBYTE)).end().await;
    assert_eq!(outcome, Outcome::Exited { code: 5 });
    assert!(memory.warnings().iter().any(|text| text.contains("memory limit")), "{:?}", memory.warnings());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_program_that_does_not_exist() {
    let Some(fixture) = Fixture::new("no-program").await else { return };
    let none = json!({"entrypoint": ["/no/such/program"]});
    // Under the init the engine starts the container, and the init says what is missing.
    let (outcome, memory) = fixture.run(&[], none.clone()).await;
    assert_eq!(outcome, Outcome::Exited { code: 127 });
    assert!(memory.stderr().contains("/no/such/program"), "{}", memory.stderr());
    // Without, the engine refuses.
    let mut bare = none;
    bare["run_args"] = json!({"init": false});
    let (outcome, _) = fixture.run(&[], bare).await;
    let Outcome::LaunchFailed { reason } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("failed to start container") && reason.contains("/no/such/program"), "{reason}");
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_container_that_somebody_removes_is_lost() {
    let Some(fixture) = Fixture::new("removed").await else { return };
    let running = fixture.start(&["sleep", "60000"], json!({}), Demand::default());
    running.memory.until_ready().await;
    let left = step_engine::docker::sweep::remove(&fixture.engine, &fixture.run_id).await.unwrap();
    assert!(left.is_empty());
    let (outcome, _) = running.end().await;
    let Outcome::Lost { reason } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, "the container was removed by somebody else");
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn what_cannot_be_launched_says_why_and_leaves_nothing() {
    let Some(fixture) = Fixture::new("launch").await else { return };
    let secret = json!({"TOKEN": "hunter2"});
    for (fields, demand, texts) in [
        (
            json!({"image": "step-engine/none:x"}),
            Demand::default(),
            ["`step-engine/none:x` is not in the engine", "`never`"],
        ),
        (
            json!({"volumes": [{"source": "/no/such/directory", "target": "/x"}]}),
            Demand::default(),
            ["the volume source `/no/such/directory` does not exist", "step `step`"],
        ),
        (
            json!({"run_args": {"volumes": {"/no/such/other": {"bind": "/x"}}}}),
            Demand::default(),
            ["the volume source `/no/such/other` does not exist", "step `step`"],
        ),
        (json!({"network": "no-such-network"}), Demand::default(), ["no-such-network", "not found"]),
        (json!({"user": "nobody-here"}), Demand::default(), ["nobody-here", "start container"]),
        (json!({}), Demand { gpus: 7, ..Demand::default() }, ["asks for 7 GPUs", "the engine offers"]),
        (json!({}), memory_limit(1), ["emory limit", "create the container of step `step`"]),
    ] {
        let mut fields = fields;
        fields["environment"] = secret.clone();
        let (outcome, memory) = fixture.start(&["exit", "0"], fields, demand).end().await;
        let Outcome::LaunchFailed { reason } = &outcome else { panic!("{outcome:?}, expected {texts:?}") };
        assert!(texts.iter().all(|text| reason.contains(text)), "{reason}, expected {texts:?}");
        assert!(!reason.contains("hunter2") && !reason.contains('\n'), "{reason}");
        assert!(memory.started().is_none());
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_step_without_a_specification_is_refused() {
    let Some(fixture) = Fixture::new("unknown-step").await else { return };
    let executor = fixture.executor_of([], None);
    let (_stop, control) = AttemptControl::new();
    let spec = AttemptSpec {
        step: step_engine::plan::StepIndex::new(0),
        name: "other".into(),
        attempt: 1,
        demand: Demand::default(),
    };
    let outcome = executor.run(spec, control, std::sync::Arc::new(Memory::default())).await;
    assert_eq!(outcome, Outcome::LaunchFailed { reason: "step `other` has no container specification".into() });
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn many_containers_at_once() {
    let Some(fixture) = Fixture::new("many").await else { return };
    let containers =
        (0..24).map(|at| (format!("step {at}"), fixture.container(&["say", &format!("I am {at}")], json!({}))));
    let executor = fixture.executor_of(containers, None);
    let running: Vec<_> =
        (0..24).map(|at| Running::launch(executor.clone(), &format!("step {at}"), 1, Demand::default())).collect();
    for (at, running) in running.into_iter().enumerate() {
        let (outcome, memory) = running.end().await;
        assert_eq!((outcome, memory.text()), (Outcome::Completed, format!("I am {at}\n")));
    }
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}
