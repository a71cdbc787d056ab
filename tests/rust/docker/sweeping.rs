//! Containers of a run as another process sees them.

use std::time::{Duration, Instant};

use serde_json::json;
use step_engine::docker::sweep;
use step_engine::event::Outcome;
use step_engine::plan::Demand;
use step_engine::runner::{Executor as _, StopForce};

use super::fixture::{Fixture, Running};
use super::outage::{Line, socket};

#[tokio::test]
async fn a_run_is_stopped_gracefully_or_at_once_from_outside() {
    let Some(fixture) = Fixture::new("sweep").await else { return };
    let containers = [("a", "graceful"), ("b", "stubborn")]
        .map(|(step, command)| (step.to_owned(), fixture.container(&[command], json!({}))));
    let executor = fixture.executor_of(containers, None);
    for (force, grace) in [(StopForce::Graceful, Duration::from_secs(1)), (StopForce::Kill, Duration::from_secs(60))] {
        let running = ["a", "b"].map(|step| Running::launch(executor.clone(), step, 1, Demand::default()));
        for running in &running {
            running.memory.until_ready().await;
        }
        let begin = Instant::now();
        assert!(sweep::stop(&fixture.engine, &fixture.run_id, force, Some(grace)).await.unwrap().is_empty());
        assert!(begin.elapsed() < Duration::from_secs(30));
        let [a, b] = running;
        // The owner was not told: for it, its steps ended as the signals end them.
        let graceful = force == StopForce::Graceful;
        assert_eq!(a.end().await.0, Outcome::Exited { code: if graceful { 3 } else { 137 } });
        assert_eq!(b.end().await.0, Outcome::Exited { code: 137 });
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn every_container_has_the_grace_of_its_own_step() {
    let Some(fixture) = Fixture::new("own-grace").await else { return };
    // The patient one would need longer than any other has.
    let patient = fixture.start(&["slow"], json!({"stop_grace_seconds": 600}), Demand::default());
    patient.memory.until_ready().await;
    assert!(sweep::stop(&fixture.engine, &fixture.run_id, StopForce::Graceful, None).await.unwrap().is_empty());
    assert_eq!(patient.end().await.0, Outcome::Exited { code: 3 });
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn what_a_dead_owner_left_is_removed_except_what_is_to_be_kept() {
    let Some(fixture) = Fixture::new("orphans").await else { return };
    let abandon = async |more| {
        let running = fixture.start(&["stubborn"], more, Demand::default());
        running.memory.until_ready().await;
        let name = running.memory.started().unwrap().container_name.unwrap();
        running.abandon();
        name
    };
    let names = [abandon(json!({})).await, abandon(json!({"keep_containers": "failed"})).await];
    let listed = async || sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
    assert!(sweep::clear(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    assert_eq!(listed().await.len(), 2, "both run");
    assert!(sweep::stop(&fixture.engine, &fixture.run_id, StopForce::Kill, None).await.unwrap().is_empty());
    assert!(sweep::clear(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    let left: Vec<_> = listed().await.into_iter().map(|container| container.name).collect();
    assert_eq!(left, names[1..]);
    assert!(sweep::remove(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn an_abandoned_attempt_is_named_and_can_be_removed() {
    let Some(fixture) = Fixture::new("abandoned").await else { return };
    let executor = fixture.executor(fixture.container(&["stubborn"], json!({})));
    let running = Running::launch(executor.clone(), "step", 1, Demand::default());
    running.memory.until_ready().await;
    let name = running.memory.started().unwrap().container_name.unwrap();
    running.abandon();
    assert_eq!(executor.close().await, [name]);
    assert!(sweep::remove(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    fixture.leaves_nothing().await;
}

/// An attempt that counts as lost may run on: the next one does not begin beside it.
#[tokio::test]
async fn an_attempt_waits_until_earlier_ones_of_its_step_are_over() {
    let Some(fixture) = Fixture::new("alone").await else { return };
    for (round, keep) in ["never", "failed"].into_iter().enumerate() {
        let executor = fixture.executor(fixture.container(&["stubborn"], json!({"keep_containers": keep})));
        let first = 10 * u32::try_from(round).unwrap() + 1;
        let lost = Running::launch(executor.clone(), "step", first, Demand::default());
        lost.memory.until_ready().await;
        lost.abandon();
        let next = Running::launch(executor, "step", first + 1, Demand::default());
        next.memory.until_ready().await;
        let listed = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
        let left: Vec<_> = listed.iter().map(|one| (one.attempt, one.running, one.exit_code)).collect();
        let killed = (keep == "failed").then_some((first, false, Some(137)));
        assert_eq!(left, killed.into_iter().chain([(first + 1, true, None)]).collect::<Vec<_>>());
        next.stop(StopForce::Kill);
        assert_eq!(next.end().await.0, Outcome::Stopped);
    }
    assert!(sweep::clear(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    assert!(sweep::remove(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn an_attempt_does_not_begin_while_nobody_knows_whether_earlier_ones_run() {
    let Some(fixture) = Fixture::new("unknown-earlier").await else { return };
    let Some(path) = socket(&fixture) else { return };
    let (line, engine) = Line::refusing(&path, "unknown-earlier", Some("/containers/json")).await;
    let executor =
        fixture.executor_on(engine, [("step".to_owned(), fixture.container(&["graceful"], json!({})))], None);
    let running = Running::launch(executor, "step", 2, Demand::default());
    tokio::time::sleep(Duration::from_secs(3)).await;
    running.stop(StopForce::Graceful);
    assert_eq!(running.end().await.0, Outcome::Stopped);
    assert_eq!(line.asked("/containers/create"), 0);
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn other_runs_are_left_alone() {
    let (Some(mine), Some(other)) = (Fixture::new("mine").await, Fixture::new("other").await) else { return };
    let running = other.start(&["sleep", "60000"], json!({}), Demand::default());
    running.memory.until_ready().await;
    assert!(sweep::stop(&mine.engine, &mine.run_id, StopForce::Kill, Some(Duration::ZERO)).await.unwrap().is_empty());
    assert!(sweep::remove(&mine.engine, &mine.run_id).await.unwrap().is_empty());
    assert_eq!(sweep::list(&other.engine, &other.run_id).await.unwrap().len(), 1);
    running.stop(StopForce::Kill);
    assert_eq!(running.end().await.0, Outcome::Stopped);
    mine.leaves_nothing().await;
    other.leaves_nothing().await;
}
