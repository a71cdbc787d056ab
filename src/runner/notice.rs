//! What the runner tells its host, and the bounded display of logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::LogStream;
use crate::event::{Outcome, RunEvent};
use crate::schedule::Verdict;

/// Log bytes that may wait for a watcher that lags.
const DISPLAY_BACKLOG_BYTES: usize = 4 * 1024 * 1024;

/// Something for the host of a run.
#[derive(Debug)]
pub enum Notice {
    /// The run went on.
    Event(RunEvent),
    /// Steps wrote whole lines, each with its newline.
    Log {
        /// Step name.
        step: Arc<str>,
        /// Attempt number, from 1.
        attempt: u32,
        /// Where they were written to.
        stream: LogStream,
        /// One or more lines.
        text: String,
    },
    /// Something that changes no outcome and that the user should know.
    Warning {
        /// Step name.
        step: Arc<str>,
        /// One sentence.
        message: String,
    },
    /// An attempt ended otherwise than by completing, and the run waits for a verdict on it.
    Judge(Judgement),
}

/// A request for a verdict.
#[derive(Debug)]
pub struct Judgement {
    /// Step name.
    pub step: Arc<str>,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// How the attempt ended as far as the executor can tell.
    pub outcome: Outcome,
    /// Last lines of its log.
    pub log_tail: Vec<String>,
    /// Where the verdict goes. Dropped, the outcome stands and may be retried.
    pub reply: oneshot::Sender<Verdict>,
}

/// The runner's end of the line to its host.
#[derive(Debug, Clone)]
pub struct NoticeSender {
    sender: mpsc::Sender<Notice>,
    backlog: Arc<AtomicUsize>,
    omitted: Arc<AtomicUsize>,
}

/// The host's end.
#[derive(Debug)]
pub struct NoticeReceiver {
    receiver: mpsc::Receiver<Notice>,
    backlog: Arc<AtomicUsize>,
}

/// A line between a run and its host.
#[must_use]
pub fn notices() -> (NoticeSender, NoticeReceiver) {
    let (sender, receiver) = mpsc::channel();
    let backlog = Arc::new(AtomicUsize::new(0));
    let sender = NoticeSender { sender, backlog: Arc::clone(&backlog), omitted: Arc::default() };
    (sender, NoticeReceiver { receiver, backlog })
}

impl NoticeSender {
    /// Sends; false when the host is gone.
    pub(super) fn send(&self, notice: Notice) -> bool {
        self.sender.send(notice).is_ok()
    }

    /// Sends lines, or counts them as omitted while too much waits to be shown.
    pub(super) fn log(&self, step: &Arc<str>, attempt: u32, stream: LogStream, text: String) {
        if text.is_empty() {
            return;
        }
        if self.backlog.load(Ordering::Relaxed) + text.len() > DISPLAY_BACKLOG_BYTES {
            self.omitted.fetch_add(text.bytes().filter(|&byte| byte == b'\n').count(), Ordering::Relaxed);
            return;
        }
        let omitted = self.omitted.swap(0, Ordering::Relaxed);
        if omitted > 0 {
            self.omission(step, omitted);
        }
        self.backlog.fetch_add(text.len(), Ordering::Relaxed);
        self.send(Notice::Log { step: Arc::clone(step), attempt, stream, text });
    }

    /// Tells of lines that were left out and not told of yet.
    pub(super) fn flush_omission(&self, step: &Arc<str>) {
        let omitted = self.omitted.swap(0, Ordering::Relaxed);
        if omitted > 0 {
            self.omission(step, omitted);
        }
    }

    fn omission(&self, step: &Arc<str>, omitted: usize) {
        let message =
            format!("{omitted} log lines are not shown here because they came too fast; the log files are complete");
        self.send(Notice::Warning { step: Arc::clone(step), message });
    }
}

impl NoticeReceiver {
    /// The next notice; none when the time is up.
    ///
    /// # Errors
    /// The run is over and everything has been received.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Notice>, RunOver> {
        match self.receiver.recv_timeout(timeout) {
            Ok(notice) => Ok(Some(self.received(notice))),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(RunOver),
        }
    }

    /// A notice that is there already.
    #[must_use]
    pub fn try_recv(&self) -> Option<Notice> {
        self.receiver.try_recv().ok().map(|notice| self.received(notice))
    }

    fn received(&self, notice: Notice) -> Notice {
        if let Notice::Log { text, .. } = &notice {
            self.backlog.fetch_sub(text.len(), Ordering::Relaxed);
        }
        notice
    }
}

/// Nothing more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOver;
