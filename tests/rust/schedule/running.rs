//! Order, admission, retries, timeouts.

use step_engine::event::{Outcome, RunStatus};
use step_engine::schedule::{Input, Verdict};

use super::transcript::Transcript;

const ONE_AT_A_TIME: &str = r#""max_parallelism": 1,"#;

#[test]
fn a_diamond_runs_in_parallel_and_ends_once() {
    let mut run = Transcript::new(
        "",
        r#"{"name": "a"}, {"name": "b", "upstream": ["a"]}, {"name": "c", "upstream": ["a"]},
           {"name": "d", "upstream": ["b", "c"]}"#,
    );
    assert_eq!(run.start(), ["launch a 1"]);
    assert_eq!(run.started("a", 1), ["started a 1"]);
    run.silently_at(3);
    assert_eq!(run.completed("a"), ["ended a 1: completed after 3", "a completed", "launch b 1", "launch c 1"]);
    assert_eq!(run.completed("c"), ["ended c 1: completed after 0", "c completed"]);
    assert_eq!(run.completed("b"), ["ended b 1: completed after 0", "b completed", "launch d 1"]);
    run.silently_at(5);
    assert_eq!(run.completed("d"), ["ended d 1: completed after 2", "d completed", "run completed"]);
    let summary = run.summary.clone().unwrap();
    assert_eq!((summary.attempts, summary.peak_parallelism, summary.duration.as_secs()), (4, 2, 5));
    assert!(run.completed("d").is_empty() && run.start().is_empty() && run.at(99).is_empty(), "nothing after the end");
}

#[test]
fn an_empty_plan_ends_at_once() {
    let mut run = Transcript::new("", "");
    assert!(run.at(1).is_empty(), "not before its start");
    assert_eq!(run.start(), ["run completed"]);
}

#[test]
fn the_longest_remaining_path_starts_first_and_ties_keep_the_plans_order() {
    let steps = r#"{"name": "short"}, {"name": "other"}, {"name": "long", "expected_seconds": 9},
                   {"name": "head"}, {"name": "tail", "upstream": ["head"], "expected_seconds": 30}"#;
    let mut run = Transcript::new(ONE_AT_A_TIME, steps);
    assert_eq!(run.start(), ["launch head 1"]);
    assert!(run.completed("head").contains(&"launch tail 1".to_owned()));
    assert!(
        run.completed("tail").contains(&"launch short 1".to_owned()),
        "the mean of the known counts for the unknown"
    );
    assert!(run.completed("short").contains(&"launch other 1".to_owned()));
    assert!(run.completed("other").contains(&"launch long 1".to_owned()));
}

#[test]
fn inputs_that_make_no_sense_change_nothing() {
    let mut run = Transcript::new(ONE_AT_A_TIME, r#"{"name": "a"}, {"name": "b"}"#);
    assert!(run.completed("a").is_empty(), "before the start");
    assert_eq!(run.start(), ["launch a 1"]);
    assert!(run.start().is_empty());
    assert!(run.ended("a", 2, Outcome::Completed).is_empty(), "no such attempt");
    assert!(run.completed("b").is_empty(), "not running");
    assert_eq!(run.started("a", 1).len(), 1);
    assert!(run.started("a", 1).is_empty(), "started already");
    let nowhere = step_engine::plan::StepIndex::new(7);
    let verdict = Verdict { outcome: Outcome::Completed, may_retry: false };
    assert!(run.input(Input::AttemptEnded { step: nowhere, attempt: 1, verdict }).is_empty());
    assert_eq!(run.completed("a"), ["ended a 1: completed after 0", "a completed", "launch b 1"]);
}

#[test]
fn small_steps_overtake_a_big_one_but_not_for_ever() {
    // A step that takes all memory waits while small ones of half the memory keep coming.
    let small: Vec<String> = (0..40)
        .map(|at| format!(r#"{{"name": "s{at}", "resources": {{"memory_bytes": 4000000000}}, "expected_seconds": 1}}"#))
        .collect();
    let steps = format!(
        r#"{{"name": "first", "resources": {{"memory_bytes": 4000000000}}, "expected_seconds": 100}},
           {{"name": "big", "resources": {{"memory_bytes": 8000000000}}, "expected_seconds": 50}}, {}"#,
        small.join(", ")
    );
    let mut run = Transcript::new("", &steps);
    assert_eq!(run.start(), ["launch first 1", "launch s0 1"]);
    for at in 0..15 {
        let effects = run.completed(&format!("s{at}"));
        assert!(effects.contains(&format!("launch s{} 1", at + 1)), "{effects:?}");
    }
    let effects = run.completed("s15");
    assert!(!effects.iter().any(|line| line.starts_with("launch")), "16 have overtaken: {effects:?}");
    assert!(run.completed("first").contains(&"launch big 1".to_owned()));
}

#[test]
fn what_cannot_delay_the_waiting_step_always_starts() {
    let cpu_only: Vec<String> =
        (0..30).map(|at| format!(r#"{{"name": "c{at}", "resources": {{"cpu_millis": 1000}}}}"#)).collect();
    let steps = format!(
        r#"{{"name": "g1", "resources": {{"gpus": 1}}, "expected_seconds": 1000}},
           {{"name": "g2", "resources": {{"gpus": 1}}, "expected_seconds": 900}}, {}"#,
        cpu_only.join(", ")
    );
    let mut run = Transcript::new(r#""max_parallelism": 3,"#, &steps);
    assert_eq!(run.start(), ["launch g1 1", "launch c0 1", "launch c1 1"]);
    // One slot is always given away while two are taken: that can delay g2 and is counted.
    for at in 0..15 {
        let effects = run.completed(&format!("c{at}"));
        assert!(effects.contains(&format!("launch c{} 1", at + 2)), "{effects:?}");
    }
    let mut wide =
        Transcript::new(r#""max_parallelism": 64,"#, &steps.replace(r#""cpu_millis": 1000"#, r#""cpu_millis": 1"#));
    assert_eq!(wide.start().len(), 31, "everything but the second GPU step");
}

#[test]
fn a_retry_waits_without_holding_capacity_and_backs_off() {
    let steps = r#"{"name": "a", "retry": {"max_retries": 2, "delay_seconds": 10, "backoff": 3}, "expected_seconds": 9},
                   {"name": "b", "expected_seconds": 1}"#;
    let mut run = Transcript::new(ONE_AT_A_TIME, steps);
    assert_eq!(run.start(), ["launch a 1"]);
    assert_eq!(
        run.failed("a", 1),
        ["ended a 1: exit code 1 after 0", "retry a 2 in 10", "launch b 1", "wake at 10"],
        "the host is not idle meanwhile"
    );
    assert_eq!(run.at(10), [""; 0], "b has the only slot");
    assert_eq!(run.completed("b"), ["ended b 1: completed after 10", "b completed", "launch a 2"]);
    assert_eq!(run.failed("a", 2), ["ended a 2: exit code 1 after 0", "retry a 3 in 30", "wake at 40"]);
    assert_eq!(run.at(40), ["launch a 3"]);
    assert_eq!(run.failed("a", 3), ["ended a 3: exit code 1 after 0", "a failed", "run failed"]);
    let failure = run.summary.unwrap().first_failure.unwrap();
    assert_eq!((failure.step.as_str(), failure.attempt), ("a", 3));
}

#[test]
fn a_verdict_can_forbid_the_retry() {
    let mut run = Transcript::new("", r#"{"name": "a", "retry": {"max_retries": 2}}"#);
    run.start();
    let verdict = Verdict { outcome: Outcome::Exited { code: 2 }, may_retry: false };
    let step = run.step("a");
    let effects = run.input(Input::AttemptEnded { step, attempt: 1, verdict });
    assert_eq!(effects, ["ended a 1: exit code 2 after 0", "a failed", "run failed"]);
}

#[test]
fn a_timeout_counts_from_the_start_then_stops_kills_and_retries() {
    let steps = r#"{"name": "a", "timeout_seconds": 20, "stop_grace_seconds": 5, "retry": {"max_retries": 1}}"#;
    let mut run = Transcript::new("", steps);
    assert_eq!(run.start(), ["launch a 1"]);
    assert_eq!(run.at(1000), [""; 0], "a pull that takes long is not the step's time");
    assert_eq!(run.started("a", 1), ["started a 1", "wake at 1020"]);
    assert_eq!(run.at(1020), ["stop a 1", "wake at 1025"]);
    assert_eq!(run.at(1025), ["kill a 1", "wake at 1085"]);
    run.silently_at(1026);
    assert_eq!(
        run.ended("a", 1, Outcome::Stopped),
        ["ended a 1: timed out after 1026", "retry a 2 in 0", "launch a 2"],
        "a timeout is retried like a failure"
    );
    run.started("a", 2);
    assert_eq!(run.at(1046), ["stop a 2", "wake at 1051"]);
    assert_eq!(
        run.ended("a", 2, Outcome::Completed),
        ["ended a 2: completed after 20", "a completed", "run completed"]
    );
}

#[test]
fn an_attempt_that_no_kill_ends_is_given_up_and_the_run_goes_on() {
    let steps = r#"{"name": "a", "timeout_seconds": 1, "stop_grace_seconds": 1, "retry": {"max_retries": 3}},
                   {"name": "b"}"#;
    let mut run = Transcript::new(ONE_AT_A_TIME, steps);
    run.start();
    run.started("a", 1);
    run.at(1);
    assert_eq!(run.at(2), ["kill a 1", "wake at 62"]);
    assert_eq!(run.at(62), ["ended a 1: timed out after 62", "a failed", "launch b 1"], "never two attempts at once");
    run.completed("b");
    let summary = run.summary.unwrap();
    assert_eq!((summary.status, summary.left_running), (RunStatus::Failed, vec!["a".to_owned()]));
}

#[test]
fn what_ends_after_it_was_given_up_is_not_left_running() {
    let steps = r#"{"name": "a", "timeout_seconds": 1, "stop_grace_seconds": 1}, {"name": "b"}"#;
    let mut run = Transcript::new("", steps);
    run.start();
    run.started("a", 1);
    run.at(1);
    run.at(2);
    run.at(62);
    assert!(run.ended("a", 1, Outcome::Stopped).is_empty());
    run.completed("b");
    assert!(run.summary.unwrap().left_running.is_empty());
}

#[test]
fn time_spent_on_the_verdict_is_not_the_steps_time() {
    let mut run = Transcript::new("", r#"{"name": "a", "timeout_seconds": 10}"#);
    run.start();
    run.started("a", 1);
    run.silently_at(9);
    let step = run.step("a");
    assert!(run.input(Input::AttemptOver { step, attempt: 1, outcome: Outcome::Exited { code: 3 } }).is_empty());
    assert!(run.at(11).is_empty(), "it ended in time");
    assert_eq!(
        run.ended("a", 1, Outcome::Exited { code: 3 }),
        ["ended a 1: exit code 3 after 9", "a failed", "run failed"]
    );
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let steps = r#"{"name": "a", "timeout_seconds": 1.8e19, "stop_grace_seconds": 1.8e19,
                    "retry": {"max_retries": 4294967295, "delay_seconds": 1.8e19, "backoff": 1e300}}"#;
    let mut run = Transcript::new("", steps);
    run.start();
    run.silently_at(u64::MAX / 2);
    assert_eq!(run.started("a", 1), ["started a 1"]);
    assert_eq!(run.failed("a", 1)[1], "retry a 2 in 86400");
}
