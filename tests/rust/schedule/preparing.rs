//! What is got ready ahead of need, and what is given back.

use step_engine::schedule::CancelReason;

use super::transcript::Transcript;

const TWO: &str = r#""max_parallelism": 2,"#;

fn chain(length: usize) -> String {
    let step = |at: usize| match at {
        0 => r#"{"name": "s0"}"#.to_owned(),
        _ => format!(r#"{{"name": "s{at}", "upstream": ["s{}"]}}"#, at - 1),
    };
    (0..length).map(step).collect::<Vec<_>>().join(", ")
}

#[test]
fn nothing_is_prepared_unless_asked_for() {
    let mut run = Transcript::new(TWO, &chain(4));
    assert_eq!(run.start(), ["launch s0 1"]);
}

#[test]
fn a_chain_is_prepared_two_ahead_and_launching_uses_it_up() {
    let mut run = Transcript::preparing(r#""max_parallelism": 4,"#, &chain(5));
    assert_eq!(run.start(), ["launch s0 1", "prepare s1", "prepare s2"]);
    assert_eq!(run.completed("s0")[2..], ["launch s1 1", "prepare s3"], "no discard: the launch uses it");
    assert_eq!(run.completed("s1")[2..], ["launch s2 1", "prepare s4"]);
}

#[test]
fn no_more_than_max_parallelism_are_prepared() {
    let children: Vec<String> = (0..9).map(|at| format!(r#"{{"name": "c{at}", "upstream": ["s"]}}"#)).collect();
    let mut run = Transcript::preparing(TWO, &format!(r#"{{"name": "s"}}, {}"#, children.join(", ")));
    assert_eq!(run.start(), ["launch s 1", "prepare c0", "prepare c1"]);
    assert_eq!(run.completed("s")[2..], ["launch c0 1", "launch c1 1", "prepare c2", "prepare c3"]);
    assert_eq!(run.completed("c0")[2..], ["launch c2 1", "prepare c4"]);
}

#[test]
fn what_waits_for_capacity_is_prepared_before_what_waits_for_others() {
    let mut run = Transcript::preparing(
        TWO,
        r#"{"name": "a", "expected_seconds": 90}, {"name": "b", "expected_seconds": 80},
           {"name": "below", "upstream": ["a"], "expected_seconds": 10}, {"name": "small", "expected_seconds": 1},
           {"name": "tiny", "expected_seconds": 1}"#,
    );
    assert_eq!(run.start(), ["launch a 1", "launch b 1", "prepare small", "prepare tiny"]);
}

#[test]
fn running_and_prepared_steps_fit_the_memory_together() {
    let steps = r#"{"name": "a", "resources": {"memory_bytes": 3000000000}},
        {"name": "b", "upstream": ["a"], "resources": {"memory_bytes": 6000000000}},
        {"name": "c", "upstream": ["a"], "resources": {"memory_bytes": 5000000000}},
        {"name": "d", "upstream": ["a"]}"#;
    let mut run = Transcript::preparing(r#""max_parallelism": 4,"#, steps);
    assert_eq!(run.start(), ["launch a 1", "prepare c"], "not b, and then nothing is left for d");
    assert_eq!(
        run.completed("a")[2..],
        ["discard c", "launch b 1", "launch d 1"],
        "a launch takes the memory that it needs"
    );
}

#[test]
fn a_retry_is_prepared_while_it_waits() {
    let steps = r#"{"name": "a", "retry": {"max_retries": 1, "delay_seconds": 9}}"#;
    let mut run = Transcript::preparing(TWO, steps);
    assert_eq!(run.start(), ["launch a 1"]);
    assert_eq!(run.failed("a", 1)[1..], ["retry a 2 in 9", "prepare a", "wake at 9"]);
    assert_eq!(run.at(9), ["launch a 2"]);
}

#[test]
fn what_a_failure_rules_out_is_given_back() {
    let steps = r#"{"name": "bad"}, {"name": "below", "upstream": ["bad"]}, {"name": "good"},
                   {"name": "after", "upstream": ["good"]}"#;
    let mut run = Transcript::preparing(TWO, steps);
    assert_eq!(run.start(), ["launch bad 1", "launch good 1", "prepare below", "prepare after"]);
    assert_eq!(run.failed("bad", 1)[1..], ["bad failed", "discard below", "below skipped"]);
    assert_eq!(run.completed("good")[2..], ["launch after 1"]);
}

#[test]
fn a_stop_gives_everything_back() {
    let mut run = Transcript::preparing(TWO, &chain(5));
    run.start();
    let effects = run.cancel(CancelReason::StopOnFailure);
    assert_eq!(effects.iter().filter(|line| line.starts_with("discard")).count(), 2, "{effects:?}");
    assert_eq!(run.completed("s0")[1..], ["s0 completed", "run stopped"], "and prepares nothing any more");
}
