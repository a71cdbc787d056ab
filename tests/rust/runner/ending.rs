//! Stops, stubborn attempts, failing executors: a run always ends, and says what is left.

use std::sync::Arc;
use std::time::Duration;

use step_engine::event::{Outcome, RunEvent, RunStatus, StepStatus};
use step_engine::runner::{AttemptControl, AttemptSink, AttemptSpec, Executor, Script};
use step_engine::schedule::CancelReason;

use super::host::{exiting, lasting, simulated, stage};

const TWO: &str = r#"{"steps": [{"name": "a", "stop_grace_seconds": 10}, {"name": "b", "upstream": ["a"]}]}"#;

fn stubborn() -> Script {
    Script { ignores_graceful_stop: true, ..lasting(100_000) }
}

fn immortal() -> Script {
    Script { ignores_kill: true, ..stubborn() }
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_stops_what_runs() {
    let report =
        stage(TWO).cancelled_at(5.0, CancelReason::Interrupt).play(simulated([("a", vec![lasting(100)])])).await;
    assert_eq!((report.summary.status, report.summary.duration.as_secs()), (RunStatus::Stopped, 5));
    assert_eq!((report.status("a"), report.status("b")), (StepStatus::Stopped, StepStatus::Skipped));
    assert!(report.events().any(|event| matches!(event, RunEvent::StopRequested { stops_running: true, .. })));
}

#[tokio::test(start_paused = true)]
async fn what_ignores_the_stop_is_killed_after_its_grace() {
    let report = stage(TWO).cancelled_at(5.0, CancelReason::Interrupt).play(simulated([("a", vec![stubborn()])])).await;
    assert_eq!((report.status("a"), report.summary.duration.as_secs()), (StepStatus::Stopped, 15));
    assert_eq!(report.summary.left_running, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_kills_at_once() {
    let run = stage(TWO).cancelled_at(5.0, CancelReason::Interrupt).cancelled_at(6.0, CancelReason::Kill);
    let report = run.play(simulated([("a", vec![stubborn()])])).await;
    assert_eq!(report.summary.duration.as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_no_kill_ends_is_given_up_and_named() {
    let report = stage(TWO).cancelled_at(5.0, CancelReason::Interrupt).play(simulated([("a", vec![immortal()])])).await;
    assert_eq!(report.summary.left_running, ["a"]);
    assert_eq!((report.summary.duration.as_secs(), report.took.as_secs()), (75, 85), "grace 10, kill 60, cleanup 10");
}

#[tokio::test(start_paused = true)]
async fn what_ends_after_all_is_not_named() {
    let late = Script { duration: Duration::from_secs(80), ..immortal() };
    let report = stage(TWO).cancelled_at(5.0, CancelReason::Interrupt).play(simulated([("a", vec![late])])).await;
    assert_eq!((report.summary.left_running.len(), report.took.as_secs()), (0, 80));
}

#[tokio::test(start_paused = true)]
async fn a_third_stop_returns_at_once_and_names_what_is_left() {
    let run = stage(TWO)
        .cancelled_at(5.0, CancelReason::Interrupt)
        .cancelled_at(6.0, CancelReason::Kill)
        .cancelled_at(7.0, CancelReason::Abandon);
    let report = run.play(simulated([("a", vec![immortal()])])).await;
    assert_eq!((report.summary.left_running.as_slice(), report.took.as_secs()), (["a".to_owned()].as_slice(), 7));
}

#[tokio::test(start_paused = true)]
async fn abandoning_during_cleanup_returns_too() {
    let untidy = Script { cleanup: Duration::from_secs(50), ..lasting(1) };
    let run = stage(r#"{"steps": [{"name": "a"}]}"#).cancelled_at(5.0, CancelReason::Abandon);
    let report = run.play(simulated([("a", vec![untidy])])).await;
    assert_eq!((report.summary.left_running.as_slice(), report.took.as_secs()), (["a".to_owned()].as_slice(), 5));
    assert_eq!(report.summary.status, RunStatus::Completed, "the step itself was done");
}

#[tokio::test(start_paused = true)]
async fn a_cleanup_that_never_ends_does_not_hold_the_run() {
    let untidy = Script { cleanup: Duration::from_secs(1_000_000), ..lasting(1) };
    let report = stage(TWO).play(simulated([("b", vec![untidy])])).await;
    assert_eq!((report.summary.left_running.as_slice(), report.took.as_secs()), (["b".to_owned()].as_slice(), 62));
}

#[tokio::test(start_paused = true)]
async fn a_panicking_executor_is_a_lost_attempt() {
    let panicking = Script { panics: true, output: b"last words".to_vec(), ..lasting(1) };
    let mut tails = Vec::new();
    let report = stage(r#"{"steps": [{"name": "a", "retry": {"max_retries": 1}}, {"name": "b", "upstream": ["a"]}]}"#)
        .judged(simulated([("a", vec![panicking, lasting(1)])]), |judgement| {
            tails.push(judgement.log_tail.clone());
            step_engine::schedule::Verdict { outcome: judgement.outcome.clone(), may_retry: true }
        })
        .await;
    assert_eq!(report.summary.status, RunStatus::Completed, "it is retried like a failure");
    let outcomes = report.outcomes("a");
    assert!(matches!(&outcomes[0], Outcome::Lost { reason } if reason.contains("scripted to panic")), "{outcomes:?}");
    assert_eq!(tails, [["last words"]]);
    assert_eq!(report.shown("a"), "last words\n");
}

#[tokio::test(start_paused = true)]
async fn fail_fast_stops_the_neighbours() {
    let plan = r#"{"execution_mode": "fail_fast", "steps": [{"name": "bad"}, {"name": "long"}]}"#;
    let report = stage(plan).play(simulated([("bad", vec![exiting(1)]), ("long", vec![lasting(999)])])).await;
    assert_eq!((report.summary.status, report.status("long")), (RunStatus::Failed, StepStatus::Stopped));
    assert_eq!(report.summary.duration.as_secs(), 1);
    assert_eq!(report.summary.first_failure.unwrap().step, "bad");
}

/// Closes slowly and leaves something behind.
struct Untidy(Duration);

impl Executor for Untidy {
    async fn run(self: Arc<Self>, _: AttemptSpec, _: AttemptControl, _: Arc<dyn AttemptSink>) -> Outcome {
        Outcome::Completed
    }

    async fn close(self: Arc<Self>) -> Vec<String> {
        tokio::time::sleep(self.0).await;
        vec!["worker-7".to_owned()]
    }
}

#[tokio::test(start_paused = true)]
async fn what_closing_leaves_is_named() {
    let report = stage(TWO).play(Arc::new(Untidy(Duration::from_secs(3)))).await;
    assert_eq!(
        (report.summary.left_running.as_slice(), report.took.as_secs()),
        (["worker-7".to_owned()].as_slice(), 3)
    );
}

#[tokio::test(start_paused = true)]
async fn a_closing_that_never_ends_is_a_warning() {
    let report = stage(TWO).play(Arc::new(Untidy(Duration::from_secs(1_000_000)))).await;
    assert_eq!((report.warnings().len(), report.took.as_secs()), (1, 30));
}
