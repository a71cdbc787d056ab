//! Driven runs whose leader asks for steps.

use std::sync::Arc;
use std::time::Duration;

use step_engine::event::{RunEvent, RunStatus, StepStatus};
use step_engine::runner::journal::{FILE_NAME, parse};
use step_engine::runner::replay::replay;
use step_engine::runner::{Notice, Order, RunOver, drive, notices};
use step_engine::schedule::{CancelReason, Input, Verdict};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::host::{exiting, lasting, simulated, stage};

const LED: &str = r#"{"leader": "lead", "max_parallelism": 1, "steps": [{"name": "lead"}]}"#;

fn request(step: &str) -> Order {
    recorded_request(step).0
}

/// A request, and what is set once it is on record.
fn recorded_request(step: &str) -> (Order, watch::Receiver<bool>) {
    let (recorded, is_recorded) = watch::channel(false);
    (Order::Request(serde_json::from_str(step).unwrap(), recorded), is_recorded)
}

#[tokio::test(start_paused = true)]
async fn orders_become_steps_and_the_journal_tells_of_them() {
    let directory = std::env::temp_dir().join(format!("step-engine-growing-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let run = stage(LED).with_journal(&directory, LED).run;
    let executor = simulated([
        ("lead", vec![lasting(100)]),
        ("a", vec![exiting(3), lasting(4)]),
        ("b", vec![lasting(5)]),
        ("c", vec![lasting(500)]),
    ]);
    let (sender, receiver) = notices();
    let (orders, inbox) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let asking = tokio::spawn(async move {
        let a = r#"{"name": "a", "retry": {"max_retries": 1}}"#;
        for (second, order) in [
            (1, request(a)),
            (2, request(r#"{"name": "b"}"#)),
            (20, request(a)),
            (40, request(r#"{"name": "c"}"#)),
            (50, Order::Drop("c".into())),
            (51, Order::Drop("nobody".into())),
        ] {
            sleep_until(begun + Duration::from_secs(second)).await;
            orders.send(order).unwrap();
        }
        std::future::pending::<()>().await;
    });
    let driving = tokio::spawn(drive(run, Arc::clone(&executor), inbox, sender));
    let mut told = Vec::new();
    loop {
        match receiver.recv_timeout(Duration::ZERO) {
            Ok(Some(Notice::Judge(judgement))) => {
                let verdict = Verdict { outcome: judgement.outcome.clone(), may_retry: true };
                judgement.reply.send(verdict).unwrap();
            }
            Ok(Some(Notice::Event(event))) => told.push(event),
            Ok(Some(_)) => {}
            Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(RunOver) => break,
        }
    }
    asking.abort();
    let summary = driving.await.unwrap();
    assert_eq!(summary.status, RunStatus::Completed);
    let status = |name: &str| summary.steps.iter().find(|(step, _)| step == name).unwrap().1;
    assert_eq!(
        [status("a"), status("b"), status("c")],
        [StepStatus::Completed, StepStatus::Completed, StepStatus::Stopped]
    );
    assert_eq!((summary.peak_parallelism, summary.attempts), (2, 5));
    let added = told.iter().filter(|event| matches!(event, RunEvent::StepAdded { .. })).count();
    assert_eq!(added, 3);

    let replayed = replay(&parse(&std::fs::read(directory.join(FILE_NAME)).unwrap()).unwrap()).unwrap();
    assert_eq!(replayed.plan.len(), 4);
    assert_eq!(replayed.admission.demands.len(), 4);
    assert_eq!(replayed.summary.unwrap().steps, summary.steps);
    assert_eq!(replayed.events, told[..told.len() - 1]);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_leader_and_what_it_asked_for() {
    let executor = simulated([("lead", vec![lasting(100)]), ("a", vec![lasting(100)])]);
    // Nobody judges: outcomes stand as they are.
    let (sender, receiver) = notices();
    drop(receiver);
    let (orders, inbox) = mpsc::unbounded_channel();
    orders.send(request(r#"{"name": "a"}"#)).unwrap();
    let driving = tokio::spawn(drive(stage(LED).run, executor, inbox, sender));
    tokio::time::sleep(Duration::from_secs(5)).await;
    orders.send(CancelReason::Interrupt.into()).unwrap();
    let summary = driving.await.unwrap();
    assert_eq!(summary.status, RunStatus::Stopped);
    assert!(summary.steps.iter().all(|(_, status)| *status == StepStatus::Stopped), "{summary:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_is_told_to_be_on_record_when_the_journal_has_it_and_not_before() {
    let directory = std::env::temp_dir().join(format!("step-engine-growing-recorded-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let run = stage(LED).with_journal(&directory, LED).run;
    let executor = simulated([("lead", vec![lasting(100)]), ("a", vec![lasting(5)])]);
    let (sender, _receiver) = notices();
    let (orders, inbox) = mpsc::unbounded_channel();
    let driving = tokio::spawn(drive(run, executor, inbox, sender));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (order, mut is_recorded) = recorded_request(r#"{"name": "a", "reference": "the host's own"}"#);
    orders.send(order).unwrap();
    assert!(!*is_recorded.borrow());
    is_recorded.wait_for(|recorded| *recorded).await.unwrap();
    let recorded = parse(&std::fs::read(directory.join(FILE_NAME)).unwrap()).unwrap();
    let of_requests = recorded.entries.into_iter().filter_map(|entry| match entry.input {
        Input::StepRequested { spec } => spec.reference,
        _ => None,
    });
    assert_eq!(of_requests.collect::<Vec<_>>(), ["the host's own"]);
    driving.await.unwrap();
    // The run is over: whoever waits is not left waiting.
    let (order, mut is_recorded) = recorded_request(r#"{"name": "b"}"#);
    assert!(orders.send(order).is_err());
    assert!(is_recorded.wait_for(|recorded| *recorded).await.is_err());
    std::fs::remove_dir_all(directory).unwrap();
}
