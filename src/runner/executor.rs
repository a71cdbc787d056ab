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
}

impl AttemptControl {
    /// A control and the sender that operates it.
    #[must_use]
    pub fn new() -> (watch::Sender<Option<StopForce>>, Self) {
        let (sender, stop) = watch::channel(None);
        (sender, Self { stop })
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
    /// What the attempt took, if the executor knows; before [`AttemptSink::settled`].
    fn measured(&self, _usage: Usage) {}
    /// The outcome is certain although cleaning up goes on; `Executor::run` must return the same outcome.
    fn settled(&self, outcome: &Outcome);
    /// Something the user should know that changes no outcome: one sentence.
    fn warning(&self, message: String);
}

/// Runs attempts. One future owns one attempt and its cleanup, and is driven to its end.
pub trait Executor: Send + Sync + 'static {
    /// Runs an attempt to its end, including cleanup.
    ///
    /// A stop that was asked for before anything started starts nothing and is [`Outcome::Stopped`]. An attempt that was
    /// asked to stop and ended otherwise than by completing is [`Outcome::Stopped`] too; timeouts are the scheduler's.
    fn run(
        self: Arc<Self>,
        spec: AttemptSpec,
        control: AttemptControl,
        sink: Arc<dyn AttemptSink>,
    ) -> impl Future<Output = Outcome> + Send;

    /// Gets ready for a step that is likely to start next. Returns at once.
    fn prepare(self: Arc<Self>, _spec: AttemptSpec) {}

    /// Gives back what [`Executor::prepare`] got ready. Returns at once.
    fn discard(self: Arc<Self>, _step: StepIndex) {}

    /// The run is over: releases everything idle. Returns the names of what could not be released.
    fn close(self: Arc<Self>) -> impl Future<Output = Vec<String>> + Send {
        std::future::ready(Vec::new())
    }
}
