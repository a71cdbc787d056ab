//! An executor without an engine: attempts that last and end as scripted, in tokio's time.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};
use crate::event::{AttemptDetails, Outcome};
use crate::plan::StepIndex;
use crate::schedule::StopForce;

/// What one attempt does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// How long it runs.
    pub duration: Duration,
    /// How it ends when nobody stops it.
    pub outcome: Outcome,
    /// What it writes to standard output when it starts.
    pub output: Vec<u8>,
    /// Whether it goes on after a graceful stop.
    pub ignores_graceful_stop: bool,
    /// Whether it goes on after a kill, too.
    pub ignores_kill: bool,
    /// Time between the launch and the start of the process; no stop can hurry it.
    pub launch: Duration,
    /// How long cleaning up takes once the outcome is settled.
    pub cleanup: Duration,
    /// Whether the executor itself fails after the duration, by a panic.
    pub panics: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(1),
            outcome: Outcome::Completed,
            output: Vec::new(),
            ignores_graceful_stop: false,
            ignores_kill: false,
            launch: Duration::ZERO,
            cleanup: Duration::ZERO,
            panics: false,
        }
    }
}

/// Plays scripts by step name: the n-th attempt the n-th script, later ones the last. Unknown steps play the default.
#[derive(Debug, Default)]
pub struct SimulatedExecutor {
    scripts: HashMap<String, Vec<Script>>,
    prepared: Mutex<BTreeSet<StepIndex>>,
    starts: Mutex<Vec<SimulatedStart>>,
}

/// A process that a [`SimulatedExecutor`] has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedStart {
    /// Step name.
    pub step: String,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// Whether the step had been prepared.
    pub prepared: bool,
}

impl SimulatedExecutor {
    /// An executor that knows these scripts.
    #[must_use]
    pub fn new(scripts: HashMap<String, Vec<Script>>) -> Self {
        Self { scripts, ..Self::default() }
    }

    /// What was started, in order.
    #[must_use]
    pub fn starts(&self) -> Vec<SimulatedStart> {
        lock(&self.starts).clone()
    }

    fn script(&self, spec: &AttemptSpec) -> Script {
        let scripts = self.scripts.get(&*spec.name).map(Vec::as_slice).unwrap_or_default();
        let at = (spec.attempt as usize).saturating_sub(1).min(scripts.len().saturating_sub(1));
        scripts.get(at).cloned().unwrap_or_default()
    }
}

impl Executor for SimulatedExecutor {
    async fn run(
        self: Arc<Self>,
        spec: AttemptSpec,
        mut control: AttemptControl,
        sink: Arc<dyn AttemptSink>,
    ) -> Outcome {
        let prepared = lock(&self.prepared).remove(&spec.step);
        let script = self.script(&spec);
        tokio::time::sleep(script.launch).await;
        if control.stop_force().is_some() {
            return Outcome::Stopped;
        }
        lock(&self.starts).push(SimulatedStart { step: spec.name.to_string(), attempt: spec.attempt, prepared });
        sink.started(AttemptDetails::default());
        if !script.output.is_empty() {
            sink.log(LogStream::Stdout, Bytes::from(script.output));
        }
        let force = if script.ignores_graceful_stop { StopForce::Kill } else { StopForce::Graceful };
        let outcome = tokio::select! {
            () = tokio::time::sleep(script.duration) => script.outcome,
            () = control.stop_requested(force), if !script.ignores_kill => Outcome::Stopped,
        };
        assert!(!script.panics, "scripted to panic");
        sink.settled(&outcome);
        tokio::time::sleep(script.cleanup).await;
        outcome
    }

    fn prepare(self: Arc<Self>, spec: AttemptSpec) {
        lock(&self.prepared).insert(spec.step);
    }

    fn discard(self: Arc<Self>, step: StepIndex) {
        lock(&self.prepared).remove(&step);
    }

    /// A preparation that was neither used nor given back would be left.
    async fn close(self: Arc<Self>) -> Vec<String> {
        lock(&self.prepared).iter().map(|step| format!("preparation of step {}", step.get())).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
