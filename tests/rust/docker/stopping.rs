//! Stops at every point of an attempt.

use std::time::{Duration, Instant};

use serde_json::json;
use step_engine::event::Outcome;
use step_engine::plan::Demand;
use step_engine::runner::StopForce;

use super::fixture::{Fixture, Running};

#[tokio::test]
async fn a_stop_before_the_start_starts_nothing() {
    let Some(fixture) = Fixture::new("before").await else { return };
    for force in [StopForce::Graceful, StopForce::Kill] {
        let executor = fixture.executor(fixture.container(&["sleep", "60000"], json!({})));
        let running = Running::launch_stopped(executor, "step", 1, Demand::default(), Some(force));
        let (outcome, memory) = running.end().await;
        assert_eq!((outcome, memory.started()), (Outcome::Stopped, None));
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn sigterm_lets_the_step_say_its_last_word() {
    let Some(fixture) = Fixture::new("graceful").await else { return };
    let running = fixture.start(&["graceful"], json!({}), Demand::default());
    running.memory.until_ready().await;
    running.stop(StopForce::Graceful);
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Stopped, "ready\nbye\n"));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_step_that_completes_when_asked_to_stop_has_completed() {
    let Some(fixture) = Fixture::new("completes").await else { return };
    let running = fixture.start(&["finish-on-term"], json!({}), Demand::default());
    running.memory.until_ready().await;
    running.stop(StopForce::Graceful);
    assert_eq!(running.end().await.0, Outcome::Completed);
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn sigkill_ends_a_step_that_ignores_sigterm() {
    let Some(fixture) = Fixture::new("stubborn").await else { return };
    let running = fixture.start(&["stubborn"], json!({}), Demand::default());
    running.memory.until_ready().await;
    running.stop(StopForce::Graceful);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.stop.is_closed(), "SIGTERM ended it");
    running.stop(StopForce::Kill);
    assert_eq!(running.end().await.0, Outcome::Stopped);
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_grace_of_its_own_ends_in_sigkill() {
    let Some(fixture) = Fixture::new("grace").await else { return };
    let running = fixture.start(&["stubborn"], json!({"stop_grace_seconds": 0.5}), Demand::default());
    running.memory.until_ready().await;
    let begin = Instant::now();
    running.stop(StopForce::Graceful);
    assert_eq!(running.end().await.0, Outcome::Stopped);
    assert!(begin.elapsed() >= Duration::from_millis(500));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn another_stop_signal() {
    let Some(fixture) = Fixture::new("signal").await else { return };
    // The handler is for SIGTERM; SIGINT ends the probe without a word.
    let running = fixture.start(&["graceful"], json!({"run_args": {"stop_signal": "SIGINT"}}), Demand::default());
    running.memory.until_ready().await;
    running.stop(StopForce::Graceful);
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Stopped, "ready\n"));
    fixture.leaves_nothing().await;
}

/// The create/terminate race: whenever the stop comes, the outcome is one, and nothing is left.
#[tokio::test]
async fn a_stop_at_any_moment_leaves_nothing() {
    let Some(fixture) = Fixture::new("race").await else { return };
    let executor = fixture.executor(fixture.container(&["sleep", "60000"], json!({})));
    for at in 0..24_u32 {
        let running = Running::launch(executor.clone(), "step", at + 1, Demand::default());
        tokio::time::sleep(Duration::from_millis(u64::from(at) * 20)).await;
        running.stop(if at % 2 == 0 { StopForce::Graceful } else { StopForce::Kill });
        assert_eq!(running.end().await.0, Outcome::Stopped, "stop after {} ms", at * 20);
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_stop_while_the_image_is_pulled() {
    let Some(fixture) = Fixture::new("pull").await else { return };
    // An address that never answers: TEST-NET-1 of RFC 5737.
    let fields = json!({"image": "192.0.2.1:5000/step-engine/none:x", "pull_policy": "missing"});
    let running = fixture.start(&["exit", "0"], fields, Demand::default());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    running.stop(StopForce::Graceful);
    let (outcome, memory) = running.end().await;
    // A host without a network refuses the pull at once; then the attempt was over before the stop.
    match outcome {
        Outcome::Stopped => assert!(begin.elapsed() < Duration::from_secs(10)),
        Outcome::LaunchFailed { reason } => assert!(reason.contains("failed to pull image"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(memory.started(), None);
    fixture.leaves_nothing().await;
}
