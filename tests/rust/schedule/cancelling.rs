//! Execution modes and the ways a run is stopped.

use step_engine::event::{Outcome, RunStatus};
use step_engine::schedule::{CancelReason, Input};

use super::transcript::Transcript;

const STEPS: &str = r#"{"name": "bad"}, {"name": "below", "upstream": ["bad"]}, {"name": "lower", "upstream": ["below"]},
    {"name": "good", "stop_grace_seconds": 5}, {"name": "after", "upstream": ["good"]}"#;

#[test]
fn continue_on_failure_skips_only_the_descendants() {
    let mut run = Transcript::new("", STEPS);
    assert_eq!(run.start(), ["launch bad 1", "launch good 1"]);
    assert_eq!(
        run.failed("bad", 1),
        ["ended bad 1: exit code 1 after 0", "bad failed", "below skipped", "lower skipped"]
    );
    assert!(run.completed("good").contains(&"launch after 1".to_owned()));
    assert_eq!(run.completed("after").last().unwrap(), "run failed");
}

#[test]
fn stop_on_failure_lets_finish_what_runs() {
    let mut run = Transcript::new(r#""execution_mode": "stop_on_failure","#, STEPS);
    run.start();
    assert_eq!(
        run.failed("bad", 1)[1..],
        ["bad failed", "below skipped", "lower skipped", "stopping", "after skipped"]
    );
    assert_eq!(run.completed("good"), ["ended good 1: completed after 0", "good completed", "run failed"]);
}

#[test]
fn fail_fast_stops_what_runs() {
    let mut run = Transcript::new(r#""execution_mode": "fail_fast","#, STEPS);
    run.start();
    assert_eq!(
        run.failed("bad", 1)[1..],
        ["bad failed", "below skipped", "lower skipped", "stopping", "stop good 1", "after skipped", "wake at 5"]
    );
    assert_eq!(run.ended("good", 1, Outcome::Stopped), ["ended good 1: stopped after 0", "good stopped", "run failed"]);
}

#[test]
fn a_failure_is_final_only_after_its_retries() {
    let steps = r#"{"name": "bad", "retry": {"max_retries": 1, "delay_seconds": 9}}, {"name": "good"}"#;
    let mut run = Transcript::new(r#""execution_mode": "fail_fast","#, steps);
    run.start();
    assert_eq!(run.failed("bad", 1)[1..], ["retry bad 2 in 9", "wake at 9"]);
    run.at(9);
    assert_eq!(run.failed("bad", 2)[1..], ["bad failed", "stopping", "stop good 1", "wake at 19"]);
}

#[test]
fn a_failure_drops_the_retries_of_others() {
    let steps = r#"{"name": "flaky", "retry": {"max_retries": 1, "delay_seconds": 9}}, {"name": "bad"}"#;
    let mut run = Transcript::new(r#""execution_mode": "stop_on_failure","#, steps);
    run.start();
    run.failed("flaky", 1);
    assert_eq!(run.failed("bad", 1)[1..], ["bad failed", "stopping", "flaky failed", "run failed"]);
    assert_eq!(run.summary.unwrap().first_failure.unwrap().step, "bad");
}

#[test]
fn an_interrupt_is_graceful_then_kills_then_gives_up() {
    let mut run = Transcript::new("", STEPS);
    run.start();
    assert_eq!(
        run.cancel(CancelReason::Interrupt),
        ["stopping", "stop bad 1", "below skipped", "lower skipped", "stop good 1", "after skipped", "wake at 5"]
    );
    assert!(run.cancel(CancelReason::Interrupt).iter().all(|line| line == "wake at 5"), "only a worse reason acts");
    assert!(run.cancel(CancelReason::FailFast).iter().all(|line| line == "wake at 5"));
    assert_eq!(run.at(5), ["kill good 1", "wake at 10"], "good's grace is 5, bad's 10");
    assert_eq!(run.completed("bad")[..2], ["ended bad 1: completed after 5", "bad completed"], "it made it");
    assert_eq!(run.at(65)[1..], ["good stopped", "run stopped"]);
    assert_eq!(run.summary.unwrap().left_running, ["good"]);
}

#[test]
fn a_second_interrupt_kills_and_a_third_returns() {
    let mut run = Transcript::new("", STEPS);
    run.start();
    run.cancel(CancelReason::Interrupt);
    assert_eq!(run.cancel(CancelReason::Kill), ["stopping", "kill bad 1", "kill good 1", "wake at 60"]);
    assert_eq!(run.ended("bad", 1, Outcome::Stopped)[1], "bad stopped");
    assert_eq!(run.cancel(CancelReason::Abandon)[2..], ["good stopped", "run stopped"]);
    assert_eq!(run.summary.unwrap().left_running, ["good"]);
}

#[test]
fn the_users_stop_outweighs_an_earlier_failure() {
    let mut run = Transcript::new("", STEPS);
    run.start();
    run.failed("bad", 1);
    run.cancel(CancelReason::Interrupt);
    assert_eq!(run.ended("good", 1, Outcome::Stopped).last().unwrap(), "run stopped");
    let summary = run.summary.unwrap();
    assert_eq!((summary.status, summary.first_failure.unwrap().step.as_str()), (RunStatus::Stopped, "bad"));
}

#[test]
fn a_stop_that_comes_too_late_leaves_a_completed_run() {
    let mut run = Transcript::new("", r#"{"name": "a"}"#);
    run.start();
    run.cancel(CancelReason::Interrupt);
    assert_eq!(run.completed("a"), ["ended a 1: completed after 0", "a completed", "run completed"]);
}

#[test]
fn a_retry_that_waits_is_dropped_by_a_stop() {
    let mut run = Transcript::new("", r#"{"name": "a", "retry": {"max_retries": 1, "delay_seconds": 9}}"#);
    run.start();
    run.failed("a", 1);
    assert_eq!(run.cancel(CancelReason::Interrupt), ["stopping", "a stopped", "run stopped"]);
}

#[test]
fn a_timed_out_attempt_stays_timed_out_when_the_run_is_stopped() {
    let mut run = Transcript::new("", r#"{"name": "a", "timeout_seconds": 1, "retry": {"max_retries": 1}}"#);
    run.start();
    run.started("a", 1);
    run.at(1);
    run.cancel(CancelReason::Interrupt);
    assert_eq!(run.ended("a", 1, Outcome::Stopped), ["ended a 1: timed out after 1", "a failed", "run stopped"]);
}

#[test]
fn a_step_stopped_from_outside_is_stopped_and_acts_like_a_failure() {
    let mut run = Transcript::new(r#""execution_mode": "fail_fast","#, STEPS);
    run.start();
    assert_eq!(
        run.ended("bad", 1, Outcome::Stopped)[1..],
        ["bad stopped", "below skipped", "lower skipped", "stopping", "stop good 1", "after skipped", "wake at 5"]
    );
    assert_eq!(run.ended("good", 1, Outcome::Stopped).last().unwrap(), "run stopped");
}

#[test]
fn an_attempt_that_only_lacks_its_verdict_is_neither_stopped_nor_left_running() {
    let mut run = Transcript::new("", r#"{"name": "a"}"#);
    run.start();
    let step = run.step("a");
    run.input(Input::AttemptOver { step, attempt: 1, outcome: Outcome::Exited { code: 3 } });
    assert_eq!(run.cancel(CancelReason::Kill), ["stopping"]);
    assert_eq!(
        run.cancel(CancelReason::Abandon),
        ["stopping", "ended a 1: exit code 3 after 0", "a failed", "run stopped"]
    );
    assert!(run.summary.unwrap().left_running.is_empty());
}
