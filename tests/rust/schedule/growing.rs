//! Runs whose leader asks for steps.

use step_engine::event::{Outcome, RunStatus, StepStatus};
use step_engine::plan::{Admission, Plan};
use step_engine::schedule::{CancelReason, Input, Verdict};

use super::transcript::{HOST, Transcript};

const LED: &str = r#""leader": "lead", "max_parallelism": 1,"#;
const LEADER: &str = r#"{"name": "lead", "retry": {"max_retries": 1, "delay_seconds": 2}, "stop_grace_seconds": 5}"#;
const RETRIED: &str = r#"{"name": "a", "retry": {"max_retries": 1, "delay_seconds": 10}}"#;

fn led() -> Transcript {
    let mut run = Transcript::new(LED, LEADER);
    assert_eq!(run.start(), ["launch lead 1"]);
    run
}

#[test]
fn steps_start_beside_their_leader_within_the_limits() {
    let mut run = led();
    assert_eq!(run.requested(r#"{"name": "a"}"#), ["added a", "launch a 1"]);
    assert_eq!(run.requested(r#"{"name": "b"}"#), ["added b"]);
    assert_eq!(run.completed("a"), ["ended a 1: completed after 0", "a completed", "launch b 1"]);
    run.completed("b");
    assert_eq!(run.completed("lead"), ["ended lead 1: completed after 0", "lead completed", "run completed"]);
    assert_eq!(run.summary.unwrap().peak_parallelism, 2);
}

#[test]
fn nothing_is_asked_for_or_dropped_without_a_leader() {
    let mut run = Transcript::new(
        r#""max_parallelism": 1,"#,
        r#"{"name": "a"}, {"name": "b"}, {"name": "c", "upstream": ["b"]}"#,
    );
    assert_eq!(run.start(), ["launch b 1"]);
    assert!(run.requested(r#"{"name": "d"}"#).is_empty());
    assert!(run.dropped("a").is_empty() && run.dropped("b").is_empty(), "c would wait for ever");
    assert_eq!(run.completed("b").last().unwrap(), "launch a 1");
    assert_eq!(run.completed("a").last().unwrap(), "launch c 1");
    assert_eq!(run.completed("c").last().unwrap(), "run completed");
}

#[test]
fn a_leader_cannot_be_dropped() {
    let mut run = led();
    assert!(run.dropped("lead").is_empty());
    assert_eq!(run.completed("lead").last().unwrap(), "run completed");
}

#[test]
fn requests_wait_for_memory_in_the_order_they_came() {
    let mut run = Transcript::new(r#""leader": "lead", "max_parallelism": 9,"#, LEADER);
    run.start();
    let big = |name: &str| format!(r#"{{"name": "{name}", "resources": {{"memory_bytes": 5000000000}}}}"#);
    assert_eq!(run.requested(&big("a")), ["added a", "launch a 1"]);
    assert_eq!(run.requested(&big("b")), ["added b"]);
    assert_eq!(run.requested(&big("c")), ["added c"]);
    assert_eq!(run.completed("a")[2..], ["launch b 1"]);
    assert_eq!(run.completed("b")[2..], ["launch c 1"]);
}

#[test]
fn a_failed_step_rests_until_it_is_asked_for_again_and_for_its_delay() {
    let mut run = led();
    run.requested(RETRIED);
    assert_eq!(run.failed("a", 1), ["ended a 1: exit code 1 after 0", "retry a 2 in 10"]);
    run.at(4);
    assert_eq!(run.requested(RETRIED), ["wake at 10"]);
    assert_eq!(run.requested(RETRIED), ["wake at 10"]);
    assert_eq!(run.at(10), ["launch a 2"]);
    assert_eq!(run.failed("a", 2), ["ended a 2: exit code 1 after 0", "a failed"]);
    assert!(run.requested(RETRIED).is_empty(), "it has failed for good");
    assert_eq!(run.completed("lead").last().unwrap(), "run completed");
    let summary = run.summary.unwrap();
    assert_eq!((summary.first_failure, summary.steps[1].1), (None, StepStatus::Failed));
}

#[test]
fn a_late_request_does_not_wait_for_its_delay_again() {
    let mut run = led();
    run.requested(RETRIED);
    run.failed("a", 1);
    run.silently_at(60);
    assert_eq!(run.requested(RETRIED), ["launch a 2"]);
}

#[test]
fn the_run_ends_with_its_leader() {
    let mut run = led();
    run.requested(RETRIED);
    run.requested(r#"{"name": "b"}"#);
    assert_eq!(
        run.ended("lead", 1, Outcome::Exited { code: 45 }),
        ["ended lead 1: exit code 45 after 0", "retry lead 2 in 2", "wake at 2"]
    );
    assert_eq!(run.at(2), ["launch lead 2"]);
    assert_eq!(
        run.failed("lead", 2),
        ["ended lead 2: exit code 1 after 0", "lead failed", "stopping", "stop a 1", "b skipped", "wake at 12"]
    );
    assert_eq!(run.requested(r#"{"name": "c"}"#), ["added c", "c skipped", "wake at 12"]);
    assert_eq!(run.ended("a", 1, Outcome::Stopped), ["ended a 1: stopped after 2", "a stopped", "run failed"]);
    let summary = run.summary.unwrap();
    assert_eq!(summary.first_failure.unwrap().step, "lead");
    assert_eq!(summary.status, RunStatus::Failed);
}

#[test]
fn a_resting_step_has_failed_when_its_leader_goes() {
    let mut run = led();
    run.requested(RETRIED);
    run.failed("a", 1);
    assert_eq!(run.completed("lead")[1..], ["lead completed", "stopping", "a failed", "run completed"]);
}

#[test]
fn steps_are_dropped_wherever_they_stand() {
    let mut run = led();
    run.requested(RETRIED);
    run.requested(r#"{"name": "b"}"#);
    assert_eq!(run.dropped("b"), ["b stopped"]);
    assert_eq!(run.dropped("a"), ["stop a 1", "wake at 10"]);
    assert_eq!(run.ended("a", 1, Outcome::Stopped), ["ended a 1: stopped after 0", "a stopped"]);
    assert!(run.dropped("a").is_empty());
    run.requested(r#"{"name": "c", "retry": {"max_retries": 1}}"#);
    run.failed("c", 1);
    assert_eq!(run.dropped("c"), ["c stopped"]);
    assert_eq!(run.completed("lead").last().unwrap(), "run completed");
}

#[test]
fn a_stop_of_the_run_stops_the_leader_and_its_steps() {
    let mut run = led();
    run.requested(RETRIED);
    assert_eq!(run.cancel(CancelReason::Interrupt), ["stopping", "stop lead 1", "stop a 1", "wake at 5"]);
    run.ended("lead", 1, Outcome::Stopped);
    assert_eq!(run.ended("a", 1, Outcome::Stopped).last().unwrap(), "run stopped");
}

#[test]
fn a_leader_that_waits_for_its_restart_finds_its_place() {
    let mut run = led();
    run.requested(RETRIED);
    run.requested(r#"{"name": "b"}"#);
    run.failed("lead", 1);
    // The only slot is taken, and the next one in line is there already.
    assert_eq!(run.at(2), ["launch lead 2"]);
    let step = run.step("a");
    let verdict = Verdict { outcome: Outcome::Completed, may_retry: false };
    assert_eq!(run.input(Input::AttemptEnded { step, attempt: 1, verdict })[2..], ["launch b 1"]);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut run = led();
    for wrong in [
        r#"{"name": ""}"#,
        r#"{"name": "x", "upstream": ["lead"]}"#,
        r#"{"name": "x", "timeout_seconds": -1}"#,
        r#"{"name": "x", "resources": {"gpus": 9}}"#,
    ] {
        assert!(run.requested(wrong).is_empty(), "{wrong}");
    }
    assert!(run.requested(LEADER).is_empty(), "the leader does not ask for itself");
    let mut unled = Transcript::new("", r#"{"name": "a"}"#);
    unled.start();
    assert!(unled.requested(r#"{"name": "b"}"#).is_empty());
}

#[test]
fn plans_say_what_is_wrong_with_their_leader() {
    for (plan, why) in [
        (r#"{"leader": "x", "steps": [{"name": "a"}]}"#, "there is no step `x`"),
        (r#"{"leader": "a", "steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}]}"#, "others"),
    ] {
        let error = Plan::from_json(plan).unwrap_err();
        assert!(error.field == "leader" && error.message.contains(why), "{error}");
    }
    let mut plan = Plan::from_json(r#"{"leader": "a", "steps": [{"name": "a"}]}"#).unwrap();
    let mut admission = Admission::new(&plan, HOST).unwrap();
    let spec = serde_json::from_str(r#"{"name": "b", "resources": {"cpu_millis": 9000}}"#).unwrap();
    let step = plan.add(spec, &mut admission).unwrap();
    assert_eq!((admission.demands[step.get()].cpu_millis, admission.warnings.len()), (4000, 1));
    assert_eq!(plan.dag().topological_order().len(), 2);
    assert!(plan.dag().upstream(step).is_empty() && plan.dag().downstream(step).is_empty());
}
