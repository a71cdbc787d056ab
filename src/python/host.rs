//! The threads behind an object of Python, and how Python waits for them.

use std::future::Future;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::Runtime;

use super::errors::engine_error;

/// Between two looks at Python's signals.
pub(super) const SLICE: Duration = Duration::from_millis(100);

/// A tokio runtime that is never waited for when its last owner goes.
pub(super) struct Host {
    runtime: Option<Runtime>,
    process: u32,
}

impl Host {
    pub(super) fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("step-engine")
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime), process: std::process::id() })
    }

    /// The runtime, unless this process is a fork of the one that made it: its threads do not exist here.
    pub(super) fn runtime(&self, py: Python<'_>) -> PyResult<&Runtime> {
        match &self.runtime {
            Some(runtime) if self.process == std::process::id() => Ok(runtime),
            _ => Err(engine_error(py, "This object was made in another process; make a new one after a fork.")),
        }
    }

    /// Runs a future to its end, attending to Python's signals meanwhile.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        py: Python<'_>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> PyResult<T> {
        self.wait_calling(py, future, || Ok(()))
    }

    /// The same, calling `between` after each slice of the waiting and once at the end. An error of its ends the waiting.
    pub(super) fn wait_calling<T: Send + 'static>(
        &self,
        py: Python<'_>,
        future: impl Future<Output = T> + Send + 'static,
        mut between: impl FnMut() -> PyResult<()>,
    ) -> PyResult<T> {
        let (sender, receiver) = mpsc::channel();
        let task = self.runtime(py)?.spawn(async move {
            // Fails only when the caller was interrupted.
            let _ = sender.send(future.await);
        });
        let receiver = Mutex::new(receiver);
        loop {
            let answer = py.detach(|| receiver.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(SLICE));
            between().inspect_err(|_| task.abort())?;
            match answer {
                Ok(value) => return Ok(value),
                Err(mpsc::RecvTimeoutError::Timeout) => py.check_signals().inspect_err(|_| task.abort())?,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(engine_error(
                        py,
                        "An operation of the step engine ended without an answer; this is a bug.",
                    ));
                }
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.process == std::process::id() {
            runtime.shutdown_background();
        } else {
            std::mem::forget(runtime);
        }
    }
}
