//! What the runner tells its host, and the bounded display of logs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::LogStream;
use crate::event::{Outcome, RunEvent};
use crate::schedule::Verdict;

/// Log bytes that may wait for a watcher that lags. Once they are reached, lines are left out until half of them are read:
/// one long gap instead of many short ones.
const DISPLAY_BACKLOG_BYTES: usize = 4 * 1024 * 1024;
/// What a waiting piece of log weighs beside its text.
const NOTICE_WEIGHT_BYTES: usize = 128;
/// Lines of one stream are joined up to so many bytes while they wait.
const JOINED_BYTES: usize = 64 * 1024;

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
        /// Step name; empty when it concerns the whole run.
        step: Arc<str>,
        /// One sentence.
        message: String,
    },
    /// How something goes on that takes a while, such as the pull of an image.
    Progress {
        /// One line without an end.
        message: String,
    },
    /// What only one kind of executor knows: an object with a `kind`.
    Details(serde_json::Value),
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

/// The runner's end of the line to its host. Cheap to clone; the line closes with the last one.
#[derive(Debug, Clone)]
pub struct NoticeSender(Arc<SenderEnd>);

#[derive(Debug)]
struct SenderEnd(Arc<Line>);

/// The host's end. Dropping it discards what waits, and every request for a verdict with it.
#[derive(Debug)]
pub struct NoticeReceiver(Arc<Line>);

/// A queue of our own, because waiting log lines are joined in place, which no channel can do.
#[derive(Debug, Default)]
struct Line {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Notice>,
    log_bytes: usize,
    lagging: bool,
    /// Lines left out and not told of yet, by step.
    omitted: BTreeMap<Arc<str>, usize>,
    /// Either end is gone.
    closed: bool,
}

/// A line between a run and its host.
#[must_use]
pub fn notices() -> (NoticeSender, NoticeReceiver) {
    let line = Arc::new(Line::default());
    (NoticeSender(Arc::new(SenderEnd(Arc::clone(&line)))), NoticeReceiver(line))
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push_log(&mut self, step: &Arc<str>, attempt: u32, stream: LogStream, text: String) {
        if self.log_bytes + text.len() > DISPLAY_BACKLOG_BYTES {
            self.lagging = true;
        }
        if self.lagging {
            let lines = text.bytes().filter(|&byte| byte == b'\n').count();
            *self.omitted.entry(Arc::clone(step)).or_default() += lines;
            return;
        }
        self.tell_omitted(step);
        self.log_bytes += text.len();
        if let Some(Notice::Log { step: last, attempt: last_attempt, stream: last_stream, text: last_text }) =
            self.waiting.back_mut()
            && Arc::ptr_eq(last, step)
            && (*last_attempt, *last_stream) == (attempt, stream)
            && last_text.len() + text.len() <= JOINED_BYTES
        {
            last_text.push_str(&text);
            return;
        }
        self.log_bytes += NOTICE_WEIGHT_BYTES;
        self.waiting.push_back(Notice::Log { step: Arc::clone(step), attempt, stream, text });
    }

    fn tell_omitted(&mut self, step: &Arc<str>) {
        if let Some(lines) = self.omitted.remove(step) {
            let message = format!(
                "{lines} log lines are not shown here because they came faster than they could be shown; \
                 the step's log has all of them"
            );
            self.waiting.push_back(Notice::Warning { step: Arc::clone(step), message });
        }
    }

    fn pop(&mut self) -> Option<Notice> {
        let notice = self.waiting.pop_front()?;
        if let Notice::Log { text, .. } = &notice {
            self.log_bytes -= text.len() + NOTICE_WEIGHT_BYTES;
            self.lagging &= self.log_bytes > DISPLAY_BACKLOG_BYTES / 2;
        }
        Some(notice)
    }
}

impl NoticeSender {
    /// Tells how something goes on that takes a while: one line without an end.
    pub fn progress(&self, message: String) {
        self.send(Notice::Progress { message });
    }

    /// Sends; without effect when the host is gone.
    pub fn send(&self, notice: Notice) {
        self.with_queue(|queue| queue.waiting.push_back(notice));
    }

    /// Sends lines, or counts them as omitted while too much waits to be shown.
    pub fn log(&self, step: &Arc<str>, attempt: u32, stream: LogStream, text: String) {
        if !text.is_empty() {
            self.with_queue(|queue| queue.push_log(step, attempt, stream, text));
        }
    }

    /// Tells of lines that were left out and not told of yet.
    pub fn flush_omission(&self, step: &Arc<str>) {
        self.with_queue(|queue| queue.tell_omitted(step));
    }

    /// Nothing more is to come, whoever else still holds a sender.
    pub(super) fn close(&self) {
        self.0.0.lock().closed = true;
        self.0.0.filled.notify_all();
    }

    fn with_queue(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.0.0.lock();
        if !queue.closed {
            change(&mut queue);
            drop(queue);
            self.0.0.filled.notify_one();
        }
    }
}

impl Drop for SenderEnd {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.filled.notify_all();
    }
}

impl NoticeReceiver {
    /// The next notice; none when the time is up. Blocks the calling thread, which must not be one of tokio's.
    ///
    /// # Errors
    /// The run is over and everything has been received.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Notice>, RunOver> {
        let queue = self.0.lock();
        let nothing = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        let waited = self.0.filled.wait_timeout_while(queue, timeout, nothing);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        match queue.pop() {
            Some(notice) => Ok(Some(notice)),
            None if queue.closed => Err(RunOver),
            None => Ok(None),
        }
    }

    /// A notice that is there already.
    #[must_use]
    pub fn try_recv(&self) -> Option<Notice> {
        self.0.lock().pop()
    }
}

impl Drop for NoticeReceiver {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        // Outside the lock: dropping a judgement wakes whoever waits for its verdict.
        drop(waiting);
    }
}

/// Nothing more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOver;
