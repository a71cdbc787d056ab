//! An executor without an engine: attempts that last and end as scripted, in tokio's time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};
use crate::event::{AttemptDetails, Outcome};
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
}

impl Default for Script {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(1),
            outcome: Outcome::Completed,
            output: Vec::new(),
            ignores_graceful_stop: false,
        }
    }
}

/// Plays scripts by step name: the n-th attempt the n-th script, later ones the last. Unknown steps play the default.
#[derive(Debug, Default)]
pub struct SimulatedExecutor {
    scripts: HashMap<String, Vec<Script>>,
}

impl SimulatedExecutor {
    /// An executor that knows these scripts.
    #[must_use]
    pub fn new(scripts: HashMap<String, Vec<Script>>) -> Self {
        Self { scripts }
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
        if control.stop_force().is_some() {
            return Outcome::Stopped;
        }
        let script = self.script(&spec);
        sink.started(AttemptDetails::default());
        if !script.output.is_empty() {
            sink.log(LogStream::Stdout, Bytes::from(script.output));
        }
        let force = if script.ignores_graceful_stop { StopForce::Kill } else { StopForce::Graceful };
        tokio::select! {
            () = tokio::time::sleep(script.duration) => script.outcome,
            () = control.stop_requested(force) => Outcome::Stopped,
        }
    }
}
