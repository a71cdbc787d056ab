//! Carries a scheduler's effects out and feeds it what happens.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::journal::{Entry, Header};
use super::ledger::Ledger;
use super::logs::{AttemptLog, create_private_directory, log_path};
use super::notice::{Judgement, Notice, NoticeSender};
use super::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};
use crate::event::{AttemptDetails, Outcome, RunEvent, RunSummary, Usage};
use crate::plan::{Admission, Plan, StepIndex, StepSpec};
use crate::schedule::{CancelReason, Effect, Input, ScheduleOptions, Scheduler, StopForce, Verdict};

/// How often unfinished log lines are looked at, while there are any; shown after a whole such time without a byte.
const QUIET_LINE: Duration = Duration::from_millis(200);
/// Effects wait so long for a journal that cannot be written, such as on a full disk; tried again that often.
const JOURNAL_LIMIT: Duration = Duration::from_secs(10);
const JOURNAL_RETRY: Duration = Duration::from_millis(500);
/// Cleanup of attempts whose outcome is known is waited for so long once every step has its final status.
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);
/// The same, for attempts that no kill ended.
const GIVEN_UP_CLEANUP_LIMIT: Duration = Duration::from_secs(10);
/// The executor's closing is waited for so long, and when the run was abandoned.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);
const ABANDONED_CLOSE_LIMIT: Duration = Duration::from_secs(1);

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
    /// First line of the journal that is kept there; none keeps no journal.
    pub journal: Option<Header>,
}

/// What the host of a run may want of it. Where a host only ever cancels, a [`CancelReason`] will do.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Ends the run early.
    Cancel(CancelReason),
    /// Runs a step that the leader asked for, see [`Input::StepRequested`].
    Request(StepSpec),
    /// Stops a step, by name, that the leader asked for.
    Drop(String),
}

impl From<CancelReason> for Order {
    fn from(reason: CancelReason) -> Self {
        Self::Cancel(reason)
    }
}

enum Message {
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

/// Runs a plan to its end with an executor.
///
/// A verdict on every ending other than [`Outcome::Completed`] is asked of the host by [`Notice::Judge`]; the step goes on
/// when it comes, so a host must answer each. When the host is gone, or drops the question, the outcome stands as it is.
///
/// Returns when every attempt is over and cleaned up and the executor is closed; each of these waits is bounded, and
/// whatever is not released by then is named in [`RunSummary::left_running`]. [`CancelReason::Abandon`] ends all waiting:
/// unfinished attempts go on in the background for as long as the runtime lives.
pub async fn drive<E: Executor, O: Into<Order>>(
    run: Run,
    executor: Arc<E>,
    orders: mpsc::UnboundedReceiver<O>,
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
        look_at: None,
        abandoned: false,
        summary: None,
        ledger: None,
        journal_fails_since: None,
        journal_retry_at: None,
        run,
    };
    driver.run(inbox, orders).await
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
    /// When to look at unfinished log lines.
    look_at: Option<Instant>,
    abandoned: bool,
    summary: Option<RunSummary>,
    ledger: Option<Ledger>,
    journal_fails_since: Option<Instant>,
    journal_retry_at: Option<Instant>,
}

struct Live {
    stop: watch::Sender<Option<StopForce>>,
    sink: Arc<Sink>,
    /// The first word on the outcome counts: `settled` or the future's end.
    over: bool,
}

impl<E: Executor> Driver<E> {
    async fn run<O: Into<Order>>(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut orders: mpsc::UnboundedReceiver<O>,
    ) -> RunSummary {
        if let Some(directory) = &self.run.log_directory
            && let Err(error) = create_private_directory(directory)
        {
            let message = format!("the log directory {} cannot be created: {error}", directory.display());
            self.warn(message);
        } else {
            self.begin_journal();
        }
        self.feed(Input::Start);
        let mut host_gone = false;
        let mut summary = loop {
            if let Some(summary) = self.summary.take() {
                break summary;
            }
            let wake = self.wake_at.map(|at| self.begun + at);
            tokio::select! {
                // What an attempt said before it ended is heard before its end.
                biased;
                order = orders.recv(), if !host_gone => match order {
                    Some(order) => self.on_order(order.into()),
                    None => host_gone = true,
                },
                Some(message) = inbox.recv() => self.on_message(message),
                Some(ended) = self.attempts.join_next_with_id() => self.on_joined(ended),
                () = sleep_until(wake) => self.feed(Input::Tick),
                () = sleep_until(self.look_at) => self.look_at_unfinished_lines(),
                () = sleep_until(self.journal_retry_at) => self.write_journal(),
            }
        };
        let limit = if summary.left_running.is_empty() { CLEANUP_LIMIT } else { GIVEN_UP_CLEANUP_LIMIT };
        if !self.abandoned {
            let cleaned_up = async {
                while let Some(ended) = self.attempts.join_next_with_id().await {
                    self.of_task.remove(&ended.map_or_else(|error| error.id(), |(id, _)| id));
                }
            };
            self.abandoned = bounded(limit, &mut orders, cleaned_up).await == Err(Cut::Abandoned);
        }
        self.attempts.detach_all();
        let mut left: BTreeSet<String> = self.of_task.values().map(|&(step, _)| self.name(step)).collect();
        let closed = Arc::clone(&self.executor).close();
        let limit = if self.abandoned { ABANDONED_CLOSE_LIMIT } else { CLOSE_LIMIT };
        match bounded(limit, &mut orders, closed).await {
            Ok(names) => left.extend(names),
            Err(_) => {
                self.warn("releasing what the run held was not waited for; it may take a while longer".to_owned());
            }
        }
        // Named by the scheduler when it gave up, but an attempt that has ended since is not left running.
        summary.left_running = left.into_iter().collect();
        self.notices.send(Notice::Event(RunEvent::RunFinished { summary: summary.clone() }));
        self.notices.close();
        summary
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Cancel(reason) => {
                self.abandoned |= reason == CancelReason::Abandon;
                self.feed(Input::Cancel { reason });
            }
            Order::Request(spec) => self.feed(Input::StepRequested { spec }),
            Order::Drop(name) => {
                if let Some(step) = self.scheduler.plan().position(&name) {
                    self.feed(Input::StepDropped { step });
                }
            }
        }
    }

    fn feed(&mut self, input: Input) {
        let now = self.begun.elapsed();
        self.wake_at = None;
        let effects = self.scheduler.handle(now, input.clone());
        let Some(ledger) = &mut self.ledger else { return self.carry_out(effects) };
        let launched = effects.iter().filter_map(|effect| match effect {
            Effect::Launch { step, attempt } => Some((*step, *attempt)),
            _ => None,
        });
        // Whoever stops a run does not wait for a disk.
        let is_urgent = ledger.is_behind() && matches!(input, Input::Cancel { .. });
        ledger.hold(Entry::new(now, input, launched.collect()), effects);
        if is_urgent { self.give_journal_up("a stop does not wait for it") } else { self.write_journal() }
    }

    fn begin_journal(&mut self) {
        let (Some(directory), Some(header)) = (&self.run.log_directory, &self.run.journal) else { return };
        match Ledger::begin(directory, header) {
            Ok(ledger) => self.ledger = Some(ledger),
            Err(error) => self.warn(format!(
                "the run's journal in {} cannot be begun: {error}; `step-engine runs` will not know of it",
                directory.display()
            )),
        }
    }

    /// Writes what is to be written, and carries out what may be carried out then.
    fn write_journal(&mut self) {
        self.journal_retry_at = None;
        let Some(ledger) = &mut self.ledger else { return };
        let (effects, error) = ledger.write();
        match error {
            None => self.journal_fails_since = None,
            Some(error) => {
                let now = Instant::now();
                let since = *self.journal_fails_since.get_or_insert(now);
                if now - since >= JOURNAL_LIMIT {
                    self.carry_out(effects);
                    return self.give_journal_up(&error.to_string());
                }
                if since == now {
                    self.warn(format!(
                        "the run's journal cannot be written: {error}; the run waits for it for a while"
                    ));
                }
                self.journal_retry_at = Some(now + JOURNAL_RETRY);
            }
        }
        self.carry_out(effects);
    }

    fn give_journal_up(&mut self, why: &str) {
        self.journal_retry_at = None;
        let Some(ledger) = self.ledger.take() else { return };
        self.warn(format!("the run goes on without a journal: {why}; `step-engine runs` will not know of it"));
        self.carry_out(ledger.give_up());
    }

    fn warn(&self, message: String) {
        self.notices.send(Notice::Warning { step: Arc::from(""), message });
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Launch { step, attempt } => self.launch(step, attempt),
                Effect::Stop { step, attempt, force } => {
                    if let Some(live) = self.live.get(&(step, attempt)) {
                        live.stop.send_replace(Some(force));
                    }
                }
                Effect::Prepare { step } => {
                    Arc::clone(&self.executor).prepare(self.spec(step, self.scheduler.next_attempt(step)))
                }
                Effect::Discard { step } => Arc::clone(&self.executor).discard(step),
                Effect::WakeAt { at } => self.wake_at = Some(at),
                Effect::Emit(event) => self.notices.send(Notice::Event(event)),
                Effect::Finish(summary) => self.summary = Some(summary),
            }
        }
    }

    fn spec(&self, step: StepIndex, attempt: u32) -> AttemptSpec {
        let name = Arc::clone(&self.scheduler.plan().step(step).name);
        AttemptSpec { step, name, attempt, demand: self.scheduler.demand(step) }
    }

    fn launch(&mut self, step: StepIndex, attempt: u32) {
        let spec = self.spec(step, attempt);
        let path = self.run.log_directory.as_deref().map(|directory| log_path(directory, &spec.name, attempt));
        let (log, warning) = AttemptLog::open(path.as_deref());
        let sink = Arc::new(Sink {
            step,
            name: Arc::clone(&spec.name),
            attempt,
            log_path: path.filter(|_| log.has_file()).map(|path| path.display().to_string()),
            log: Mutex::new(log),
            watched: AtomicBool::new(false),
            messages: self.messages.clone(),
            notices: self.notices.clone(),
        });
        if let Some(message) = warning {
            sink.warning(message);
        }
        let (stop, control) = AttemptControl::new();
        self.live.insert((step, attempt), Live { stop, sink: Arc::clone(&sink), over: false });
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
            if let Some(live) = self.live.get(&(step, attempt)) {
                live.sink.flush(AttemptLog::finish);
            }
            self.on_over(step, attempt, outcome);
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Unfinished => {
                self.look_at.get_or_insert_with(|| Instant::now() + QUIET_LINE);
            }
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
        let log_tail = live.sink.tail();
        let outcome = self.scheduler.classify(step, attempt, outcome);
        self.feed(Input::AttemptOver { step, attempt, outcome: outcome.clone() });
        let (reply, answer) = oneshot::channel();
        let name = Arc::clone(&self.scheduler.plan().step(step).name);
        let judgement = Judgement { step: name, attempt, outcome: outcome.clone(), log_tail, reply };
        self.notices.send(Notice::Judge(judgement));
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let verdict = answer.await.unwrap_or(Verdict { outcome, may_retry: true });
            // Fails only when the run is over.
            let _ = messages.send(Message::Judged { step, attempt, verdict });
        });
    }

    fn look_at_unfinished_lines(&mut self) {
        let unfinished = self.live.values().filter(|live| live.sink.show_quiet_lines()).count();
        self.look_at = (unfinished > 0).then(|| Instant::now() + QUIET_LINE);
    }

    fn name(&self, step: StepIndex) -> String {
        self.scheduler.plan().step(step).name.to_string()
    }
}

/// Why something was not waited for to its end.
#[derive(Debug, PartialEq, Eq)]
enum Cut {
    Late,
    Abandoned,
}

/// Waits for at most so long, and not at all any more when the user abandons the run.
async fn bounded<T, O: Into<Order>>(
    limit: Duration,
    orders: &mut mpsc::UnboundedReceiver<O>,
    work: impl Future<Output = T>,
) -> Result<T, Cut> {
    let abandoned = async {
        loop {
            match orders.recv().await.map(Into::into) {
                Some(Order::Cancel(CancelReason::Abandon)) => return,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = abandoned => Err(Cut::Abandoned),
        () = tokio::time::sleep(limit) => Err(Cut::Late),
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
    /// Whether the driver looks at unfinished lines already.
    watched: AtomicBool,
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

    /// Shows what has been unfinished for long; whether something is unfinished still.
    fn show_quiet_lines(&self) -> bool {
        self.flush(AttemptLog::flush_quiet);
        // Under the lock, so that no line begins unnoticed in between.
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = log.is_unfinished();
        self.watched.store(unfinished, Ordering::Relaxed);
        unfinished
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
        if log.is_unfinished() && !self.watched.swap(true, Ordering::Relaxed) {
            let _ = self.messages.send(Message::Unfinished);
        }
        if let Some(message) = warning {
            self.warning(message);
        }
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
