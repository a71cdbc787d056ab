//! What every [`Executor`] must do, as one suite that each of them is tested with.
//!
//! A test implements [`Workbench`] and awaits [`all`]; a broken rule panics with the rule's name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};
use crate::event::{AttemptDetails, Outcome};
use crate::plan::{Demand, StepIndex};
use crate::schedule::StopForce;

/// What the process of a step does in a conformance test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Prints [`numbered_lines`] to standard output and exits with 0.
    Print {
        /// How many.
        lines: usize,
    },
    /// Exits with this code, which is not 0.
    Exit {
        /// The code.
        code: i64,
    },
    /// Runs until it is asked to stop.
    Wait,
    /// Runs until it is killed.
    Insist,
}

/// Makes executors for scripted behaviours.
pub trait Workbench {
    /// The executor under test.
    type Executor: Executor;

    /// An executor whose only step, [`StepIndex`] 0 with the name `step`, behaves so.
    fn executor(&self, behaviour: Behaviour) -> impl Future<Output = Arc<Self::Executor>>;
}

/// The output of [`Behaviour::Print`].
#[must_use]
pub fn numbered_lines(lines: usize) -> String {
    (0..lines).map(|line| format!("line {line}\n")).collect()
}

/// Checks every rule, one after the other.
///
/// # Panics
/// When a rule is broken.
pub async fn all(bench: &impl Workbench) {
    completes(bench).await;
    exits_with_its_code(bench).await;
    logs_arrive_complete_and_in_order(bench).await;
    stops_gracefully(bench).await;
    is_killed_when_it_ignores_the_graceful_stop(bench).await;
    is_killed_at_once(bench).await;
    starts_nothing_after_a_stop(bench).await;
}

/// Exit code 0 is [`Outcome::Completed`].
pub async fn completes(bench: &impl Workbench) {
    let attempt = Attempt::begin(bench, Behaviour::Print { lines: 1 }, None).await;
    let seen = attempt.end("completes").await;
    assert_eq!(seen.outcome, Outcome::Completed, "completes");
    assert_eq!(seen.started, 1, "completes: the start is reported once");
}

/// Another exit code is [`Outcome::Exited`].
pub async fn exits_with_its_code(bench: &impl Workbench) {
    let seen = Attempt::begin(bench, Behaviour::Exit { code: 7 }, None).await.end("exits with its code").await;
    assert_eq!(seen.outcome, Outcome::Exited { code: 7 }, "exits with its code");
}

/// Every byte arrives before the outcome is reported.
pub async fn logs_arrive_complete_and_in_order(bench: &impl Workbench) {
    let seen = Attempt::begin(bench, Behaviour::Print { lines: 5000 }, None).await.end("logs").await;
    assert_eq!(seen.outcome, Outcome::Completed, "logs");
    assert!(seen.stdout == numbered_lines(5000).as_bytes(), "logs arrive complete and in order");
}

/// A process that ends when asked is [`Outcome::Stopped`].
pub async fn stops_gracefully(bench: &impl Workbench) {
    let mut attempt = Attempt::begin(bench, Behaviour::Wait, None).await;
    attempt.wait_for_start().await;
    attempt.stop.send_replace(Some(StopForce::Graceful));
    assert_eq!(attempt.end("stops gracefully").await.outcome, Outcome::Stopped, "stops gracefully");
}

/// A process that does not end when asked goes on until it is killed.
pub async fn is_killed_when_it_ignores_the_graceful_stop(bench: &impl Workbench) {
    const RULE: &str = "is killed when it ignores the graceful stop";
    let mut attempt = Attempt::begin(bench, Behaviour::Insist, None).await;
    attempt.wait_for_start().await;
    attempt.stop.send_replace(Some(StopForce::Graceful));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!attempt.task.is_finished(), "{RULE}: the executor must not kill on its own");
    attempt.stop.send_replace(Some(StopForce::Kill));
    assert_eq!(attempt.end(RULE).await.outcome, Outcome::Stopped, "{RULE}");
}

/// A kill needs no graceful stop before it.
pub async fn is_killed_at_once(bench: &impl Workbench) {
    let mut attempt = Attempt::begin(bench, Behaviour::Insist, None).await;
    attempt.wait_for_start().await;
    attempt.stop.send_replace(Some(StopForce::Kill));
    assert_eq!(attempt.end("is killed at once").await.outcome, Outcome::Stopped, "is killed at once");
}

/// What was stopped before it started does not start.
pub async fn starts_nothing_after_a_stop(bench: &impl Workbench) {
    const RULE: &str = "starts nothing after a stop";
    let seen = Attempt::begin(bench, Behaviour::Wait, Some(StopForce::Graceful)).await.end(RULE).await;
    assert_eq!((seen.outcome, seen.started), (Outcome::Stopped, 0), "{RULE}");
}

/// Longer than any rule takes on a slow engine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Attempt<E> {
    executor: Arc<E>,
    task: tokio::task::JoinHandle<Outcome>,
    stop: watch::Sender<Option<StopForce>>,
    sink: Arc<Recorder>,
    starts: watch::Receiver<usize>,
}

struct Seen {
    outcome: Outcome,
    started: usize,
    stdout: Vec<u8>,
}

impl<E: Executor> Attempt<E> {
    async fn begin(
        bench: &impl Workbench<Executor = E>,
        behaviour: Behaviour,
        stopped_before: Option<StopForce>,
    ) -> Self {
        let executor = bench.executor(behaviour).await;
        let (stop, control) = AttemptControl::new();
        stop.send_replace(stopped_before);
        let (started, starts) = watch::channel(0);
        let sink = Arc::new(Recorder { started, seen: Mutex::default() });
        let spec =
            AttemptSpec { step: StepIndex::new(0), name: Arc::from("step"), attempt: 1, demand: Demand::default() };
        let task = tokio::spawn(Arc::clone(&executor).run(spec, control, Arc::clone(&sink) as Arc<dyn AttemptSink>));
        Self { executor, task, stop, sink, starts }
    }

    async fn wait_for_start(&mut self) {
        let started = tokio::time::timeout(PATIENCE, self.starts.wait_for(|starts| *starts > 0)).await;
        assert!(matches!(started, Ok(Ok(_))), "the start is reported");
    }

    /// The end, with what must hold for every attempt.
    async fn end(self, rule: &str) -> Seen {
        let Ok(Ok(outcome)) = tokio::time::timeout(PATIENCE, self.task).await else {
            panic!("{rule}: the attempt's future fails or does not end");
        };
        let left = self.executor.close().await;
        assert!(left.is_empty(), "{rule}: closing leaves {left:?}");
        let mut recorded = self.sink.seen();
        for settled in &recorded.settled {
            assert_eq!(*settled, outcome, "{rule}: settled and returned outcome differ");
        }
        assert!(!recorded.late_output, "{rule}: output came after the outcome was settled");
        let started = *self.starts.borrow();
        Seen { outcome, started, stdout: std::mem::take(&mut recorded.stdout) }
    }
}

#[derive(Default)]
struct Recorded {
    stdout: Vec<u8>,
    settled: Vec<Outcome>,
    late_output: bool,
}

struct Recorder {
    started: watch::Sender<usize>,
    seen: Mutex<Recorded>,
}

impl Recorder {
    fn seen(&self) -> MutexGuard<'_, Recorded> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AttemptSink for Recorder {
    fn started(&self, _: AttemptDetails) {
        self.started.send_modify(|starts| *starts += 1);
    }

    fn log(&self, stream: LogStream, bytes: Bytes) {
        let mut seen = self.seen();
        seen.late_output |= !seen.settled.is_empty();
        if stream == LogStream::Stdout {
            seen.stdout.extend_from_slice(&bytes);
        }
    }

    fn settled(&self, outcome: &Outcome) {
        self.seen().settled.push(outcome.clone());
    }

    fn warning(&self, _: String) {}
}
