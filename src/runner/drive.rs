//! Carries a scheduler's effects out and feeds it what happens.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::logs::{AttemptLog, create_private_directory, log_path};
use super::notice::{Judgement, Notice, NoticeSender};
use super::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};
use crate::event::{AttemptDetails, Outcome, RunEvent, RunSummary};
use crate::plan::{Admission, Plan, StepIndex};
use crate::schedule::{CancelReason, Effect, Input, ScheduleOptions, Scheduler, StopForce, Verdict};

/// An unfinished log line is shown after so long a silence at the latest twice over.
const QUIET_LINE: Duration = Duration::from_millis(200);
/// Cleanup of attempts that were given up is waited for so long.
const LAST_CLEANUP: Duration = Duration::from_secs(10);

/// What to run and where.
#[derive(Debug, Clone)]
pub struct Run {
    /// The pipeline.
    pub plan: Arc<Plan>,
    /// The plan measured against the host.
    pub admission: Admission,
    /// Whether the executor is asked to prepare steps ahead of need.
    pub prepare: bool,
    /// Where `<step>.<attempt>.log` files go; none keeps no files.
    pub log_directory: Option<PathBuf>,
}

enum Message {
    Started { step: StepIndex, attempt: u32, details: AttemptDetails },
    Over { step: StepIndex, attempt: u32, outcome: Outcome },
    Judged { step: StepIndex, attempt: u32, verdict: Verdict },
}

/// Runs a plan to its end with an executor.
///
/// Returns when every attempt is over and cleaned up, or at once after [`CancelReason::Abandon`]. A verdict on every ending
/// other than [`Outcome::Completed`] is asked of the host by [`Notice::Judge`].
pub async fn drive<E: Executor>(
    run: Run,
    executor: Arc<E>,
    cancels: mpsc::UnboundedReceiver<CancelReason>,
    notices: NoticeSender,
) -> RunSummary {
    let (messages, inbox) = mpsc::unbounded_channel();
    let scheduler = Scheduler::new(Arc::clone(&run.plan), &run.admission, ScheduleOptions { prepare: run.prepare });
    let driver = Driver {
        begun: Instant::now(),
        scheduler,
        executor,
        notices,
        messages,
        attempts: JoinSet::new(),
        of_task: HashMap::new(),
        live: HashMap::new(),
        wake_at: None,
        summary: None,
        run,
    };
    driver.run(inbox, cancels).await
}

struct Driver<E> {
    run: Run,
    scheduler: Scheduler,
    executor: Arc<E>,
    notices: NoticeSender,
    messages: mpsc::UnboundedSender<Message>,
    attempts: JoinSet<Outcome>,
    of_task: HashMap<Id, (StepIndex, u32)>,
    live: HashMap<(StepIndex, u32), Live>,
    begun: Instant,
    wake_at: Option<Duration>,
    summary: Option<RunSummary>,
}

struct Live {
    stop: watch::Sender<Option<StopForce>>,
    sink: Weak<Sink>,
    /// The first word on the outcome counts: `settled` or the future's end.
    over: bool,
}

impl<E: Executor> Driver<E> {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut cancels: mpsc::UnboundedReceiver<CancelReason>,
    ) -> RunSummary {
        if let Some(directory) = &self.run.log_directory
            && let Err(error) = create_private_directory(directory)
        {
            let message = format!("the log directory {} cannot be created: {error}", directory.display());
            self.notices.send(Notice::Warning { step: Arc::from(""), message });
        }
        let mut quiet = tokio::time::interval(QUIET_LINE);
        quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.feed(Input::Start);
        let mut abandoned = false;
        let mut host_gone = false;
        while self.summary.is_none() {
            let wake = self.wake_at.map(|at| self.begun + at);
            tokio::select! {
                Some(message) = inbox.recv() => self.on_message(message),
                Some(ended) = self.attempts.join_next_with_id() => self.on_joined(ended),
                cancel = cancels.recv(), if !host_gone => match cancel {
                    Some(reason) => {
                        abandoned |= reason == CancelReason::Abandon;
                        self.feed(Input::Cancel { reason });
                    }
                    None => host_gone = true,
                },
                () = sleep_until(wake) => self.feed(Input::Tick),
                _ = quiet.tick() => self.flush_quiet_lines(),
            }
        }
        let mut left = Vec::new();
        if !abandoned {
            abandoned = self.wait_for_cleanup(&mut cancels).await;
        }
        if abandoned {
            self.attempts.detach_all();
        } else {
            left = Arc::clone(&self.executor).close().await;
        }
        self.finish(left)
    }

    fn finish(self, left: Vec<String>) -> RunSummary {
        let Some(mut summary) = self.summary else { unreachable!("the loop ends with a summary") };
        for name in left {
            if !summary.left_running.contains(&name) {
                summary.left_running.push(name);
            }
        }
        self.notices.send(Notice::Event(RunEvent::RunFinished { summary: summary.clone() }));
        summary
    }

    /// Waits until no attempt's future is left; true when the user would not wait.
    async fn wait_for_cleanup(&mut self, cancels: &mut mpsc::UnboundedReceiver<CancelReason>) -> bool {
        let gave_up = self.summary.as_ref().is_some_and(|summary| !summary.left_running.is_empty());
        let limit = gave_up.then(|| Instant::now() + LAST_CLEANUP);
        let mut host_gone = false;
        while !self.attempts.is_empty() {
            tokio::select! {
                _ = self.attempts.join_next() => {}
                cancel = cancels.recv(), if !host_gone => match cancel {
                    Some(CancelReason::Abandon) => return true,
                    Some(_) => {}
                    None => host_gone = true,
                },
                () = sleep_until(limit) => return true,
            }
        }
        false
    }

    fn feed(&mut self, input: Input) {
        let now = self.begun.elapsed();
        self.wake_at = None;
        for effect in self.scheduler.handle(now, input) {
            match effect {
                Effect::Launch { step, attempt } => self.launch(step, attempt),
                Effect::Stop { step, attempt, force } => {
                    if let Some(live) = self.live.get(&(step, attempt)) {
                        live.stop.send_replace(Some(force));
                    }
                }
                Effect::Prepare { step } => Arc::clone(&self.executor).prepare(self.spec(step, 1)),
                Effect::Discard { step } => Arc::clone(&self.executor).discard(step),
                Effect::WakeAt { at } => self.wake_at = Some(at),
                Effect::Emit(event) => {
                    self.notices.send(Notice::Event(event));
                }
                Effect::Finish(summary) => self.summary = Some(summary),
            }
        }
    }

    fn spec(&self, step: StepIndex, attempt: u32) -> AttemptSpec {
        let name = Arc::clone(&self.run.plan.step(step).name);
        AttemptSpec { step, name, attempt, demand: self.run.admission.demands[step.get()] }
    }

    fn launch(&mut self, step: StepIndex, attempt: u32) {
        let spec = self.spec(step, attempt);
        let path = self.run.log_directory.as_deref().map(|directory| log_path(directory, &spec.name, attempt));
        let (log, warning) = AttemptLog::open(path.as_deref());
        let sink = Arc::new(Sink {
            step,
            name: Arc::clone(&spec.name),
            attempt,
            log_path: path.map(|path| path.display().to_string()),
            log: Mutex::new(log),
            messages: self.messages.clone(),
            notices: self.notices.clone(),
        });
        if let Some(message) = warning {
            sink.warning(message);
        }
        let (stop, control) = AttemptControl::new();
        self.live.insert((step, attempt), Live { stop, sink: Arc::downgrade(&sink), over: false });
        let executor = Arc::clone(&self.executor);
        let task = self.attempts.spawn(async move {
            let outcome = executor.run(spec, control, Arc::clone(&sink) as Arc<dyn AttemptSink>).await;
            sink.settled(&outcome);
            outcome
        });
        self.of_task.insert(task.id(), (step, attempt));
    }

    fn on_joined(&mut self, ended: Result<(Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Outcome::Lost { reason: format!("its supervision failed: {error}") }),
        };
        if let Some((step, attempt)) = self.of_task.remove(&id) {
            self.on_over(step, attempt, outcome);
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Started { step, attempt, details } => self.feed(Input::AttemptStarted { step, attempt, details }),
            Message::Over { step, attempt, outcome } => self.on_over(step, attempt, outcome),
            Message::Judged { step, attempt, verdict } => {
                self.live.remove(&(step, attempt));
                self.feed(Input::AttemptEnded { step, attempt, verdict });
            }
        }
    }

    fn on_over(&mut self, step: StepIndex, attempt: u32, outcome: Outcome) {
        let Some(live) = self.live.get_mut(&(step, attempt)) else { return };
        if std::mem::replace(&mut live.over, true) {
            return;
        }
        if outcome.is_completed() {
            self.live.remove(&(step, attempt));
            let verdict = Verdict { outcome, may_retry: false };
            self.feed(Input::AttemptEnded { step, attempt, verdict });
            return;
        }
        let log_tail = live.sink.upgrade().map(|sink| sink.tail()).unwrap_or_default();
        let (reply, answer) = oneshot::channel();
        let name = Arc::clone(&self.run.plan.step(step).name);
        let judgement = Judgement { step: name, attempt, outcome: outcome.clone(), log_tail, reply };
        self.notices.send(Notice::Judge(judgement));
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let verdict = answer.await.unwrap_or(Verdict { outcome, may_retry: true });
            // Fails only when the run is over.
            let _ = messages.send(Message::Judged { step, attempt, verdict });
        });
    }

    fn flush_quiet_lines(&self) {
        for sink in self.live.values().filter_map(|live| live.sink.upgrade()) {
            sink.flush(AttemptLog::flush_quiet);
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

struct Sink {
    step: StepIndex,
    name: Arc<str>,
    attempt: u32,
    log_path: Option<String>,
    log: Mutex<AttemptLog>,
    messages: mpsc::UnboundedSender<Message>,
    notices: NoticeSender,
}

impl Sink {
    fn flush(&self, lines: impl Fn(&mut AttemptLog, LogStream) -> String) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            self.notices.log(&self.name, self.attempt, stream, lines(&mut log, stream));
        }
    }

    fn tail(&self) -> Vec<String> {
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
        if let Some(message) = warning {
            self.warning(message);
        }
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
