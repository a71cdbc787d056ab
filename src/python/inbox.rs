//! What a run tells its host, as dicts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythonize::pythonize;

use super::host::SLICE;
use crate::event::{RunEvent, RunSummary};
use crate::runner::{Judgement, Notice, NoticeReceiver, RunOver};

/// Events delivered in one batch at most.
const BATCH: usize = 4096;

/// The host's end of a run.
pub(super) struct Inbox {
    notices: Mutex<NoticeReceiver>,
    finished: AtomicBool,
    summary: Mutex<Option<RunSummary>>,
}

impl Inbox {
    pub(super) fn new(notices: NoticeReceiver) -> Self {
        Self { notices: Mutex::new(notices), finished: AtomicBool::new(false), summary: Mutex::default() }
    }

    /// Whether the run is over and every event was delivered.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    pub(super) fn has_summary(&self) -> bool {
        lock(&self.summary).is_some()
    }

    pub(super) fn summary<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let summary = lock(&self.summary).clone();
        summary.map(|summary| Ok(pythonize(py, &summary)?)).transpose()
    }

    /// Waits for events, attending to Python's signals; none when nothing more is to come.
    #[expect(clippy::disallowed_methods, reason = "the host's waiting time is in real time")]
    pub(super) fn next<'py>(
        &self,
        py: Python<'py>,
        timeout_seconds: f64,
        mut on_judgement: impl FnMut(Judgement),
    ) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
        let begun = Instant::now();
        let timeout = Duration::try_from_secs_f64(timeout_seconds).unwrap_or(Duration::MAX);
        loop {
            let slice = SLICE.min(timeout.saturating_sub(begun.elapsed()));
            let first = py.detach(|| lock(&self.notices).recv_timeout(slice));
            py.check_signals()?;
            match first {
                Ok(Some(first)) => return self.batch(py, first, &mut on_judgement).map(Some),
                Ok(None) if begun.elapsed() >= timeout => return Ok(Some(Vec::new())),
                Ok(None) => {}
                Err(RunOver) => {
                    self.finished.store(true, Ordering::Release);
                    return Ok(None);
                }
            }
        }
    }

    fn batch<'py>(
        &self,
        py: Python<'py>,
        first: Notice,
        on_judgement: &mut impl FnMut(Judgement),
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut batch = vec![self.deliver(py, first, on_judgement)?];
        while batch.len() < BATCH
            && let Some(next) = lock(&self.notices).try_recv()
        {
            batch.push(self.deliver(py, next, on_judgement)?);
        }
        Ok(batch)
    }

    fn deliver<'py>(
        &self,
        py: Python<'py>,
        notice: Notice,
        on_judgement: &mut impl FnMut(Judgement),
    ) -> PyResult<Bound<'py, PyAny>> {
        let dict = PyDict::new(py);
        match notice {
            Notice::Event(event) => {
                let value = pythonize(py, &event)?;
                if let RunEvent::RunFinished { summary } = event {
                    *lock(&self.summary) = Some(summary);
                    self.finished.store(true, Ordering::Release);
                }
                return Ok(value);
            }
            Notice::Details(value) => return Ok(pythonize(py, &value)?),
            Notice::Log { step, attempt, stream, text } => {
                dict.set_item("kind", "log")?;
                dict.set_item("step", &*step)?;
                dict.set_item("attempt", attempt)?;
                dict.set_item("stream", pythonize(py, &stream)?)?;
                dict.set_item("text", text)?;
            }
            Notice::Warning { step, message } => {
                dict.set_item("kind", "warning")?;
                dict.set_item("step", &*step)?;
                dict.set_item("message", message)?;
            }
            Notice::Progress { message } => {
                dict.set_item("kind", "progress")?;
                dict.set_item("message", message)?;
            }
            Notice::Judge(judgement) => {
                dict.set_item("kind", "judge")?;
                dict.set_item("step", &*judgement.step)?;
                dict.set_item("attempt", judgement.attempt)?;
                dict.set_item("outcome", pythonize(py, &judgement.outcome)?)?;
                dict.set_item("log_tail", &judgement.log_tail)?;
                on_judgement(judgement);
            }
        }
        Ok(dict.into_any())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
