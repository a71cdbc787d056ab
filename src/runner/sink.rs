//! What an attempt reports, on its way to its log, to the host and to the driver.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::logs::{AttemptLog, log_path};
use super::notice::{Notice, NoticeSender};
use super::space;
use super::{AttemptSink, AttemptSpec, LogStream};
use crate::event::{AttemptDetails, Outcome, RunEvent, Usage};
use crate::plan::StepIndex;
use crate::schedule::Verdict;

/// What attempts and judgements tell the driver.
pub(super) enum Message {
    /// A log line is unfinished, or has no room in its file.
    Unfinished,
    Started {
        step: StepIndex,
        attempt: u32,
        details: AttemptDetails,
    },
    Over {
        step: StepIndex,
        attempt: u32,
        outcome: Outcome,
    },
    Judged {
        step: StepIndex,
        attempt: u32,
        verdict: Verdict,
    },
}

/// Where one attempt reports to: its log, the host, the driver.
pub(super) struct Sink {
    step: StepIndex,
    name: Arc<str>,
    attempt: u32,
    log_path: Option<String>,
    log: Mutex<AttemptLog>,
    /// Whether the driver looks at unfinished lines, and at a file without room, already.
    watched: AtomicBool,
    /// Whether the host was told that logs have no room; one word on it is enough for a run.
    told: Arc<AtomicBool>,
    messages: mpsc::UnboundedSender<Message>,
    notices: NoticeSender,
}

impl Sink {
    /// Opens the attempt's log.
    pub(super) fn open(
        spec: &AttemptSpec,
        directory: Option<&Path>,
        messages: &mpsc::UnboundedSender<Message>,
        notices: &NoticeSender,
        told: &Arc<AtomicBool>,
    ) -> Arc<Self> {
        let path = directory.map(|directory| log_path(directory, &spec.name, spec.attempt));
        let (log, warning) = AttemptLog::open(path.as_deref());
        let sink = Arc::new(Self {
            step: spec.step,
            name: Arc::clone(&spec.name),
            attempt: spec.attempt,
            log_path: path.filter(|_| log.has_file()).map(|path| path.display().to_string()),
            log: Mutex::new(log),
            watched: AtomicBool::new(false),
            told: Arc::clone(told),
            messages: messages.clone(),
            notices: notices.clone(),
        });
        if let Some(message) = warning {
            sink.warning(message);
        }
        sink
    }

    pub(super) fn flush(&self, lines: impl Fn(&mut AttemptLog, LogStream) -> String) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            self.notices.log(&self.name, self.attempt, stream, lines(&mut log, stream));
        }
    }

    /// Shows what has been unfinished for long, and writes what had no room; whether something is unfinished still.
    pub(super) fn show_quiet_lines(&self) -> bool {
        self.flush(AttemptLog::flush_quiet);
        // Under the lock, so that no line begins unnoticed in between.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = log.is_behind() || log.is_unfinished();
        self.watched.store(unfinished, Ordering::Relaxed);
        unfinished
    }

    /// The last lines that a former owner kept.
    pub(super) fn kept_tail(&self) -> Vec<String> {
        self.log_path.as_deref().map(|path| AttemptLog::kept_tail(Path::new(path))).unwrap_or_default()
    }

    /// Writes what had no room for the file, if there is any; whether something has none still.
    pub(super) fn is_behind(&self) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).is_behind()
    }

    /// Keeps nothing of the log in memory any more.
    pub(super) fn shed(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).shed();
    }

    /// Bytes that the log's file lacks as it is now.
    pub(super) fn missing_bytes(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).missing_bytes()
    }

    pub(super) fn tail(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).tail()
    }
}

impl AttemptSink for Sink {
    fn started(&self, mut details: AttemptDetails) {
        details.log_path = self.log_path.clone();
        let _ = self.messages.send(Message::Started { step: self.step, attempt: self.attempt, details });
    }

    fn log(&self, stream: LogStream, bytes: Bytes) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, error) = log.push(stream, &bytes);
        self.notices.log(&self.name, self.attempt, stream, text);
        if (error.is_some() || log.is_unfinished()) && !self.watched.swap(true, Ordering::Relaxed) {
            let _ = self.messages.send(Message::Unfinished);
        }
        if let (Some(error), Some(path)) = (error, &self.log_path)
            && !self.told.swap(true, Ordering::Relaxed)
        {
            let why = space::unwritable(Path::new(path), &error);
            self.warning(format!("{why}; logs are kept in memory until there is room, up to 1 MiB each"));
        }
    }

    fn log_again(&self, bytes: u64) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).restart(bytes)
    }

    fn measured(&self, usage: Usage) {
        let event = RunEvent::AttemptMeasured { step: self.name.to_string(), attempt: self.attempt, usage };
        self.notices.send(Notice::Event(event));
    }

    fn settled(&self, outcome: &Outcome) {
        self.flush(AttemptLog::finish);
        self.notices.flush_omission(&self.name);
        let _ = self.messages.send(Message::Over { step: self.step, attempt: self.attempt, outcome: outcome.clone() });
    }

    fn warning(&self, message: String) {
        self.notices.send(Notice::Warning { step: Arc::clone(&self.name), message });
    }
}
