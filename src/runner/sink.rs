//! What an attempt reports, on its way to its log, to the host and to the driver.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::logs::{AttemptLog, log_path};
use super::notice::{Notice, NoticeSender};
use super::{AttemptSink, AttemptSpec, LogStream};
use crate::event::{AttemptDetails, Outcome, RunEvent, Usage};
use crate::plan::StepIndex;
use crate::schedule::Verdict;

/// What attempts and judgements tell the driver.
pub(super) enum Message {
    /// A log line is unfinished.
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
    /// Whether the driver looks at unfinished lines already.
    watched: AtomicBool,
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

    /// Shows what has been unfinished for long; whether something is unfinished still.
    pub(super) fn show_quiet_lines(&self) -> bool {
        self.flush(AttemptLog::flush_quiet);
        // Under the lock, so that no line begins unnoticed in between.
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = log.is_unfinished();
        self.watched.store(unfinished, Ordering::Relaxed);
        unfinished
    }

    /// The last lines that a former owner kept.
    pub(super) fn kept_tail(&self) -> Vec<String> {
        self.log_path.as_deref().map(|path| AttemptLog::kept_tail(Path::new(path))).unwrap_or_default()
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
        let (text, warning) = log.push(stream, &bytes);
        self.notices.log(&self.name, self.attempt, stream, text);
        if log.is_unfinished() && !self.watched.swap(true, Ordering::Relaxed) {
            let _ = self.messages.send(Message::Unfinished);
        }
        if let Some(message) = warning {
            self.warning(message);
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
