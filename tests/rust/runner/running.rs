//! Order, verdicts, retries, early release, preparing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use step_engine::event::{AttemptDetails, Outcome, RunEvent, RunStatus, StepStatus};
use step_engine::runner::conformance::{self, Behaviour, Workbench, numbered_lines};
use step_engine::runner::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream, Notice};
use step_engine::runner::{Script, SimulatedExecutor, SimulatedStart, drive, notices};
use step_engine::schedule::Verdict;
use tokio::sync::mpsc;

use super::host::{exiting, lasting, simulated, stage};

const DIAMOND: &str = r#"{"steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}, {"name": "c", "upstream": ["a"]},
    {"name": "d", "upstream": ["b", "c"]}]}"#;
const CHAIN: &str = r#"{"steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}]}"#;
const RETRIED: &str = r#"{"steps": [{"name": "a", "retry": {"max_retries": 2, "delay_seconds": 10, "backoff": 2}},
    {"name": "b", "upstream": ["a"]}]}"#;

struct Simulation;

impl Workbench for Simulation {
    type Executor = SimulatedExecutor;

    async fn executor(&self, behaviour: Behaviour) -> Arc<SimulatedExecutor> {
        let script = match behaviour {
            Behaviour::Print { lines } => Script { output: numbered_lines(lines).into_bytes(), ..Script::default() },
            Behaviour::Exit { code } => exiting(code),
            Behaviour::Wait => lasting(1_000_000),
            Behaviour::Insist => Script { ignores_graceful_stop: true, ..lasting(1_000_000) },
        };
        simulated([("step", vec![script])])
    }
}

#[tokio::test(start_paused = true)]
async fn the_simulated_executor_conforms() {
    conformance::all(&Simulation).await;
}

#[tokio::test(start_paused = true)]
async fn a_diamond_takes_as_long_as_its_longest_path() {
    let executor = simulated([("b", vec![lasting(10)]), ("c", vec![lasting(20)])]);
    let report = stage(DIAMOND).play(executor).await;
    assert_eq!(report.summary.status, RunStatus::Completed);
    assert_eq!((report.summary.duration.as_secs(), report.summary.peak_parallelism), (22, 2));
    let kinds: Vec<_> = report.events().collect();
    assert!(matches!(kinds[0], RunEvent::RunStarted { steps: 4, .. }), "{kinds:?}");
    assert!(matches!(kinds[kinds.len() - 1], RunEvent::RunFinished { .. }), "the last word");
    assert_eq!(kinds.iter().filter(|event| matches!(event, RunEvent::AttemptStarted { .. })).count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_plan_without_steps_is_over_at_once() {
    let report = stage(r#"{"steps": []}"#).play(simulated([])).await;
    assert_eq!((report.summary.status, report.took), (RunStatus::Completed, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn retries_wait_and_back_off() {
    let report = stage(RETRIED).play(simulated([("a", vec![exiting(3), exiting(3), lasting(1)])])).await;
    assert_eq!(report.summary.status, RunStatus::Completed);
    let took = report.summary.duration.as_secs_f64();
    assert!((34.0..35.0).contains(&took), "1 + 10 + 1 + 20 + 1 + 1 s, got {took}");
    assert_eq!(report.summary.attempts, 4);
}

#[tokio::test(start_paused = true)]
async fn the_hosts_verdict_counts() {
    let executor = simulated([("a", vec![exiting(137)])]);
    let mut asked = Vec::new();
    let report = stage(RETRIED)
        .judged(executor, |judgement| {
            asked.push((judgement.step.to_string(), judgement.attempt, judgement.outcome.clone()));
            Verdict { outcome: Outcome::Completed, may_retry: false }
        })
        .await;
    assert_eq!(asked, [("a".to_owned(), 1, Outcome::Exited { code: 137 })], "what completes is not judged");
    assert_eq!(report.outcomes("a"), [Outcome::Completed]);
    assert_eq!(report.status("b"), StepStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_against_retrying_is_obeyed() {
    let report = stage(RETRIED)
        .judged(simulated([("a", vec![exiting(3)])]), |judgement| Verdict {
            outcome: judgement.outcome.clone(),
            may_retry: false,
        })
        .await;
    assert_eq!((report.summary.status, report.summary.attempts), (RunStatus::Failed, 1));
    assert_eq!(report.status("b"), StepStatus::Skipped);
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_host_is_gone_goes_on_by_itself() {
    let (sender, receiver) = notices();
    drop(receiver);
    let (cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
    drop(cancel);
    let executor = simulated([("a", vec![exiting(3), lasting(1)])]);
    let summary = drive(stage(RETRIED).run, executor, cancels, sender).await;
    assert_eq!((summary.status, summary.attempts), (RunStatus::Completed, 3), "the outcome stands and is retried");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_dropped_leaves_the_outcome() {
    let (sender, receiver) = notices();
    let (_cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
    let executor = simulated([("a", vec![exiting(3), lasting(1)])]);
    let driving = tokio::spawn(drive(stage(RETRIED).run, executor, cancels, sender));
    while !driving.is_finished() {
        while receiver.try_recv().is_some() {}
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(driving.await.unwrap().attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn the_next_step_does_not_wait_for_cleanup_but_the_run_does() {
    let slow_cleanup = Script { cleanup: Duration::from_secs(30), ..lasting(1) };
    let report = stage(CHAIN).play(simulated([("a", vec![slow_cleanup])])).await;
    assert_eq!(report.summary.duration.as_secs(), 2);
    assert_eq!(report.took.as_secs(), 31);
    assert_eq!(report.summary.left_running, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_judged_as_a_timeout() {
    let plan = r#"{"steps": [{"name": "a", "timeout_seconds": 5}]}"#;
    let slow_launch = Script { launch: Duration::from_secs(100), ..lasting(60) };
    let mut asked = Vec::new();
    let report = stage(plan)
        .judged(simulated([("a", vec![slow_launch])]), |judgement| {
            asked.push(judgement.outcome.clone());
            // A host that only knows that the process was stopped does not hide the timeout.
            Verdict { outcome: Outcome::Stopped, may_retry: false }
        })
        .await;
    assert_eq!(asked, [Outcome::TimedOut]);
    assert_eq!(report.outcomes("a"), [Outcome::TimedOut]);
    assert_eq!(report.summary.duration.as_secs(), 105, "the launch is not the step's time");
}

#[tokio::test(start_paused = true)]
async fn prepared_steps_start_prepared() {
    let executor = simulated([]);
    let report = stage(DIAMOND).preparing().play(Arc::clone(&executor)).await;
    assert_eq!((report.summary.status, report.summary.left_running.len()), (RunStatus::Completed, 0));
    let start = |step: &str, prepared| SimulatedStart { step: step.to_owned(), attempt: 1, prepared };
    assert_eq!(executor.starts(), [start("a", false), start("b", true), start("c", true), start("d", true)]);
}

/// Starts, talks and ends without ever waiting.
struct Hasty;

impl Executor for Hasty {
    async fn run(self: Arc<Self>, spec: AttemptSpec, _: AttemptControl, sink: Arc<dyn AttemptSink>) -> Outcome {
        let details = AttemptDetails { container_id: Some(spec.name.to_string()), ..AttemptDetails::default() };
        sink.started(details);
        sink.log(LogStream::Stdout, Bytes::from_static(b"done\n"));
        Outcome::Completed
    }
}

#[tokio::test(start_paused = true)]
async fn however_short_an_attempt_is_its_start_is_told_before_its_end() {
    let steps: Vec<String> = (0..100).map(|at| format!(r#"{{"name": "s{at}"}}"#)).collect();
    let plan = format!(r#"{{"max_parallelism": 8, "steps": [{}]}}"#, steps.join(", "));
    let report = stage(&plan).play(Arc::new(Hasty)).await;
    for step in (0..100).map(|at| format!("s{at}")) {
        let kinds: Vec<&str> = report
            .events()
            .filter_map(|event| match event {
                RunEvent::AttemptLaunched { step: of, .. } if *of == step => Some("launched"),
                RunEvent::AttemptStarted { step: of, details, .. } if *of == step => {
                    assert_eq!(details.container_id.as_ref(), Some(&step));
                    Some("started")
                }
                RunEvent::AttemptEnded { step: of, .. } if *of == step => Some("ended"),
                RunEvent::StepFinished { step: of, .. } if *of == step => Some("finished"),
                _ => None,
            })
            .collect();
        assert_eq!(kinds, ["launched", "started", "ended", "finished"]);
        assert_eq!(report.shown(&step), "done\n");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_verdict_uses_up_no_timeout() {
    let (sender, receiver) = notices();
    let (_cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
    let run = stage(r#"{"steps": [{"name": "a", "timeout_seconds": 5}]}"#).run;
    let driving = tokio::spawn(drive(run, simulated([("a", vec![exiting(3)])]), cancels, sender));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut judgement = None;
    while let Some(notice) = receiver.try_recv() {
        if let Notice::Judge(asked) = notice {
            judgement = Some(asked);
        }
    }
    let judgement = judgement.unwrap();
    let verdict = Verdict { outcome: judgement.outcome.clone(), may_retry: false };
    judgement.reply.send(verdict).unwrap();
    let failure = driving.await.unwrap().first_failure.unwrap();
    assert_eq!(failure.outcome, Outcome::Exited { code: 3 }, "it ended after one second");
}
