//! The contract between the runner and whatever runs an attempt.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::event::{AttemptDetails, Outcome, Usage};
use crate::plan::{Demand, StepIndex};
use crate::schedule::StopForce;

/// What to run.
#[derive(Debug, Clone)]
pub struct AttemptSpec {
    /// Step.
    pub step: StepIndex,
    /// Step name.
    pub name: Arc<str>,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// What it may take, already fitted to the host.
    pub demand: Demand,
}

/// The runner's hand on a running attempt.
#[derive(Debug, Clone)]
pub struct AttemptControl {
    stop: watch::Receiver<Option<StopForce>>,
    /// None where nobody records.
    recorded: Option<watch::Receiver<bool>>,
}

impl AttemptControl {
    /// A control and the sender that operates it.
    #[must_use]
    pub fn new() -> (watch::Sender<Option<StopForce>>, Self) {
        let (sender, stop) = watch::channel(None);
        (sender, Self { stop, recorded: None })
    }

    /// The same for a runner that records how attempts end. The second sender says that it has.
    pub(super) fn recording() -> (watch::Sender<Option<StopForce>>, watch::Sender<bool>, Self) {
        let (sender, stop) = watch::channel(None);
        let (record, recorded) = watch::channel(false);
        (sender, record, Self { stop, recorded: Some(recorded) })
    }

    /// Resolves once the settled outcome is on record, or will never be. What tells of the end of an attempt, such as its
    /// container, must stay until then: it is all that the next owner of the run has if this one dies.
    ///
    /// Cancel safe.
    pub async fn recorded(&self) {
        if let Some(recorded) = &self.recorded
            && recorded.clone().wait_for(|recorded| *recorded).await.is_err()
        {
            // A runner that dies says nothing.
            std::future::pending::<()>().await;
        }
    }

    /// The force asked for by now.
    #[must_use]
    pub fn stop_force(&self) -> Option<StopForce> {
        *self.stop.borrow()
    }

    /// Resolves once a stop of at least this force is asked for; never, when the runner is gone without asking.
    ///
    /// Cancel safe.
    pub async fn stop_requested(&mut self, at_least: StopForce) {
        if self.stop.wait_for(|force| *force >= Some(at_least)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// An attempt that a former owner of the run launched and whose end is not known.
#[derive(Debug, Clone)]
pub struct LeftAttempt {
    /// Step name.
    pub step: Arc<str>,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Set when its process was seen to run.
    pub started: Option<AttemptDetails>,
}

/// What a run that is gone on with has behind it.
#[derive(Debug, Clone, Default)]
pub struct TakeOver {
    /// Attempts to be adopted.
    pub attempts: Vec<LeftAttempt>,
    /// Steps that were launched at least once or will not be any more.
    pub launched: Vec<Arc<str>>,
}

/// Which of the process's streams a piece of log came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where an attempt reports to while it runs. Cheap calls that never block.
pub trait AttemptSink: Send + Sync + 'static {
    /// The process runs.
    fn started(&self, details: AttemptDetails);
    /// The process wrote something: raw bytes, cut anywhere.
    fn log(&self, stream: LogStream, bytes: Bytes);
    /// Whether the output may come again from its beginning, of which there are so many bytes: what a former owner kept is
    /// then kept anew, and what it showed is not shown again. Otherwise only what is still to come is wanted.
    fn log_again(&self, _bytes: u64) -> bool {
        true
    }
    /// What the attempt took, if the executor knows; before [`AttemptSink::settled`].
    fn measured(&self, _usage: Usage) {}
    /// The outcome is certain although cleaning up goes on; `Executor::run` must return the same outcome.
    fn settled(&self, outcome: &Outcome);
    /// Something the user should know that changes no outcome: one sentence.
    fn warning(&self, message: String);
}

/// Runs attempts. One future owns one attempt and its cleanup, and is driven to its end.
pub trait Executor: Send + Sync + 'static {
    /// Runs an attempt to its end, including cleanup; what tells of its end stays until it is [`AttemptControl::recorded`].
    ///
    /// A stop that was asked for before anything started starts nothing and is [`Outcome::Stopped`]. An attempt that was
    /// asked to stop and ended otherwise than by completing is [`Outcome::Stopped`] too; timeouts are the scheduler's.
    fn run(
        self: Arc<Self>,
        spec: AttemptSpec,
        control: AttemptControl,
        sink: Arc<dyn AttemptSink>,
    ) -> impl Future<Output = Outcome> + Send;

    /// The run had an owner that is dead: finds what is left of it, before anything else is asked for.
    fn take_over(self: Arc<Self>, _left: TakeOver) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Goes on with an attempt of a former owner, to its end, as [`Executor::run`] does. None when nothing of it is there and
    /// nothing will begin any more.
    fn adopt(
        self: Arc<Self>,
        _spec: AttemptSpec,
        _control: AttemptControl,
        _sink: Arc<dyn AttemptSink>,
    ) -> impl Future<Output = Option<Outcome>> + Send {
        std::future::ready(None)
    }

    /// Gets ready for a step that is likely to start next. Returns at once.
    fn prepare(self: Arc<Self>, _spec: AttemptSpec) {}

    /// Gives back what [`Executor::prepare`] got ready. Returns at once.
    fn discard(self: Arc<Self>, _step: StepIndex) {}

    /// The run is over: releases everything idle. Returns the names of what could not be released.
    fn close(self: Arc<Self>) -> impl Future<Output = Vec<String>> + Send {
        std::future::ready(Vec::new())
    }
}
