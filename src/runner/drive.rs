//! Carries a scheduler's effects out and feeds it what happens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::journal::{Entry, Header, Journal};
use super::ledger::Ledger;
use super::logs::{AttemptLog, create_private_directory};
use super::notice::{Judgement, Notice, NoticeSender};
use super::replay::{InFlight, Replayed};
use super::sink::{Message, Sink};
use super::space;
use super::{AttemptControl, AttemptSink, AttemptSpec, Executor, LeftAttempt, TakeOver};
use crate::event::{Outcome, RunEvent, RunSummary};
use crate::plan::{Admission, Plan, StepIndex, StepSpec};
use crate::schedule::{CancelReason, Effect, Input, ScheduleOptions, Scheduler, StopForce, Verdict};

/// How often unfinished log lines are looked at, while there are any; shown after a whole such time without a byte.
const QUIET_LINE: Duration = Duration::from_millis(200);
/// Effects wait so long for a journal that cannot be written, such as on a full disk; tried again that often.
const JOURNAL_LIMIT: Duration = Duration::from_secs(60);
const JOURNAL_RETRY: Duration = Duration::from_millis(500);
/// Logs of attempts that are over and for which there was no room wait in memory for it, the newest so many of them.
const LOGS_WITHOUT_ROOM: usize = 16;
/// Cleanup of attempts whose outcome is known is waited for so long once every step has its final status.
pub const CLEANUP_LIMIT: Duration = Duration::from_secs(60);
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
#[derive(Debug)]
pub enum Order {
    /// Ends the run early.
    Cancel(CancelReason),
    /// Runs a step that the leader asked for, see [`Input::StepRequested`]. Set once the request is on record, or will never be.
    Request(StepSpec, watch::Sender<bool>),
    /// Stops a step, by name, that the leader asked for.
    Drop(String),
}

impl From<CancelReason> for Order {
    fn from(reason: CancelReason) -> Self {
        Self::Cancel(reason)
    }
}

/// A run as its last owner left it, and what is known of it beside its journal.
#[derive(Debug)]
pub struct Resumption {
    /// Goes on to be written.
    pub journal: Journal,
    /// Of the same journal.
    pub left: Replayed,
    /// Time of the run at which it goes on: its clock stands still while nobody drives it.
    pub now: Duration,
    /// Steps that are known to have done their work, should nothing else be left of their attempts.
    pub completed: BTreeSet<String>,
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
    let scheduler = Scheduler::new(Arc::clone(&run.plan), &run.admission, ScheduleOptions { prepare: run.prepare });
    let (mut driver, inbox) = Driver::new(run, scheduler, executor, notices);
    driver.begin();
    driver.run(inbox, orders).await
}

/// Goes on with a run whose owner died, to its end: adopts what still runs, takes what ended meanwhile as it ended, launches
/// nothing a second time that may have begun. `run` is as it was at the beginning, without its journal's first line.
///
/// Everything else is as with [`drive`]. What the last owner told its host is not told again.
pub async fn resume<E: Executor, O: Into<Order>>(
    run: Run,
    resumption: Resumption,
    executor: Arc<E>,
    orders: mpsc::UnboundedReceiver<O>,
    notices: NoticeSender,
) -> RunSummary {
    let Resumption { journal, left, now, completed } = resumption;
    let Replayed { scheduler, at, in_flight, prepared, events, summary, .. } = left;
    let (mut driver, inbox) = Driver::new(run, scheduler, executor, notices);
    driver.behind = now.max(at);
    driver.summary = summary;
    driver.ledger = driver.run.log_directory.as_ref().map(|directory| Ledger::go_on(directory, journal));
    driver.take_over(in_flight, &events, &completed).await;
    if driver.summary.is_none() {
        driver.carry_out(prepared.into_iter().map(|step| Effect::Prepare { step }).collect());
        // The beginning, should the last owner have died before it; otherwise it changes nothing.
        driver.feed(Input::Start);
    }
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
    /// Time of the run at that moment: what a former owner has behind it.
    behind: Duration,
    wake_at: Option<Duration>,
    /// When to look at unfinished log lines, and at logs without room.
    look_at: Option<Instant>,
    /// Logs of attempts that are over, oldest first, for which there was no room.
    without_room: Vec<Arc<Sink>>,
    /// Whether the host was told that there is none.
    told_of_logs: Arc<AtomicBool>,
    abandoned: bool,
    summary: Option<RunSummary>,
    ledger: Option<Ledger>,
    journal_fails_since: Option<Instant>,
    journal_retry_at: Option<Instant>,
    /// Who waits for something that is not in the journal yet: the end of an attempt, a request.
    unrecorded: Vec<watch::Sender<bool>>,
}

struct Live {
    stop: watch::Sender<Option<StopForce>>,
    /// Until its end is known.
    record: Option<watch::Sender<bool>>,
    sink: Arc<Sink>,
    /// The first word on the outcome counts: `settled` or the future's end.
    over: bool,
}

impl<E: Executor> Driver<E> {
    fn new(
        run: Run,
        scheduler: Scheduler,
        executor: Arc<E>,
        notices: NoticeSender,
    ) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let driver = Self {
            begun: Instant::now(),
            behind: Duration::ZERO,
            scheduler,
            executor,
            notices,
            messages,
            attempts: JoinSet::new(),
            of_task: HashMap::new(),
            live: HashMap::new(),
            wake_at: None,
            look_at: None,
            without_room: Vec::new(),
            told_of_logs: Arc::default(),
            abandoned: false,
            summary: None,
            ledger: None,
            journal_fails_since: None,
            journal_retry_at: None,
            unrecorded: Vec::new(),
            run,
        };
        (driver, inbox)
    }

    async fn run<O: Into<Order>>(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut orders: mpsc::UnboundedReceiver<O>,
    ) -> RunSummary {
        let mut host_gone = false;
        let mut summary = loop {
            if let Some(summary) = self.summary.take() {
                break summary;
            }
            let wake = self.wake_at.map(|at| self.begun + at.saturating_sub(self.behind));
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
        // Nothing is recorded any more, and nobody waits for it.
        self.unrecorded.extend(self.live.values_mut().filter_map(|live| live.record.take()));
        self.tell_recorded();
        self.warn_of_missing_logs();
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

    fn begin(&mut self) {
        if let Some(directory) = &self.run.log_directory
            && let Err(error) = create_private_directory(directory)
            && !space::is_full(&error)
        {
            let message = format!("the log directory {} cannot be created: {error}", directory.display());
            self.warn(message);
        } else {
            self.begin_journal();
        }
        self.feed(Input::Start);
    }

    /// Takes up what a former owner left.
    async fn take_over(
        &mut self,
        in_flight: BTreeMap<(StepIndex, u32), InFlight>,
        events: &[RunEvent],
        completed: &BTreeSet<String>,
    ) {
        let open = in_flight.iter().filter(|(_, flight)| flight.over.is_none());
        let attempts = open.map(|(&(step, attempt), flight)| LeftAttempt {
            step: Arc::clone(&self.scheduler.plan().step(step).name),
            attempt,
            started: flight.started.clone(),
        });
        let is_launched = |event: &RunEvent| match event {
            RunEvent::AttemptLaunched { step, .. } | RunEvent::StepFinished { step, .. } => Some(Arc::from(&**step)),
            _ => None,
        };
        let left = TakeOver { attempts: attempts.collect(), launched: events.iter().filter_map(is_launched).collect() };
        Arc::clone(&self.executor).take_over(left).await;
        for ((step, attempt), flight) in in_flight {
            self.adopt(step, attempt, flight, completed);
        }
    }

    fn adopt(&mut self, step: StepIndex, attempt: u32, flight: InFlight, completed: &BTreeSet<String>) {
        let spec = self.spec(step, attempt);
        let (live, control) = self.live(&spec, flight.stop);
        let sink = Arc::clone(&live.sink);
        if let Some(outcome) = flight.over {
            let log_tail = sink.kept_tail();
            self.live.insert((step, attempt), Live { over: true, ..live });
            return self.ask(step, attempt, outcome, log_tail);
        }
        self.live.insert((step, attempt), live);
        let has_completed = completed.contains(&*spec.name);
        let executor = Arc::clone(&self.executor);
        self.supervise((step, attempt), async move {
            let reports = || Arc::clone(&sink) as Arc<dyn AttemptSink>;
            let adopted = Arc::clone(&executor).adopt(spec.clone(), control.clone(), reports()).await;
            let outcome = match adopted {
                Some(outcome) => outcome,
                None if has_completed => Outcome::Completed,
                None if flight.started.is_some() => {
                    Outcome::Lost { reason: "its container was removed while nobody drove the run".to_owned() }
                }
                None => executor.run(spec, control, reports()).await,
            };
            sink.settled(&outcome);
            outcome
        });
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Cancel(reason) => {
                self.abandoned |= reason == CancelReason::Abandon;
                self.feed(Input::Cancel { reason });
            }
            Order::Request(spec, recorded) => {
                self.unrecorded.push(recorded);
                self.feed(Input::StepRequested { spec });
            }
            Order::Drop(name) => {
                if let Some(step) = self.scheduler.plan().position(&name) {
                    self.feed(Input::StepDropped { step });
                }
            }
        }
    }

    fn feed(&mut self, input: Input) {
        let now = self.behind + self.begun.elapsed();
        self.wake_at = None;
        let effects = self.scheduler.handle(now, input.clone());
        let Some(ledger) = &mut self.ledger else {
            self.tell_recorded();
            return self.carry_out(effects);
        };
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
                let complaint = ledger.complaint(&error);
                if now - since >= JOURNAL_LIMIT {
                    self.carry_out(effects);
                    return self.give_journal_up(&complaint);
                }
                if since == now {
                    self.warn(format!(
                        "the run waits for its journal, {} s at most: {complaint}",
                        JOURNAL_LIMIT.as_secs()
                    ));
                }
                self.journal_retry_at = Some(now + JOURNAL_RETRY);
            }
        }
        if self.journal_retry_at.is_none() {
            self.tell_recorded();
        }
        self.carry_out(effects);
    }

    fn tell_recorded(&mut self) {
        for record in self.unrecorded.drain(..) {
            record.send_replace(true);
        }
    }

    fn give_journal_up(&mut self, why: &str) {
        self.journal_retry_at = None;
        let Some(ledger) = self.ledger.take() else { return };
        self.warn(format!("the run goes on without a journal: {why}; `step-engine runs` will not know of it"));
        self.tell_recorded();
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
        let (live, control) = self.live(&spec, None);
        let sink = Arc::clone(&live.sink);
        self.live.insert((step, attempt), live);
        let executor = Arc::clone(&self.executor);
        self.supervise((step, attempt), async move {
            let outcome = executor.run(spec, control, Arc::clone(&sink) as Arc<dyn AttemptSink>).await;
            sink.settled(&outcome);
            outcome
        });
    }

    fn live(&self, spec: &AttemptSpec, stopped: Option<StopForce>) -> (Live, AttemptControl) {
        let directory = self.run.log_directory.as_deref();
        let sink = Sink::open(spec, directory, &self.messages, &self.notices, &self.told_of_logs);
        let (stop, record, control) = AttemptControl::recording();
        stop.send_replace(stopped);
        (Live { stop, record: Some(record), sink, over: false }, control)
    }

    fn supervise(&mut self, id: (StepIndex, u32), attempt: impl Future<Output = Outcome> + Send + 'static) {
        let task = self.attempts.spawn(attempt);
        self.of_task.insert(task.id(), id);
    }

    fn on_joined(&mut self, ended: Result<(Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            // The runtime goes down, and this owner with it. That says nothing of the step, and must not be written down.
            Err(error) if error.is_cancelled() => return,
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
                self.retire(step, attempt);
                self.feed(Input::AttemptEnded { step, attempt, verdict });
            }
        }
    }

    fn on_over(&mut self, step: StepIndex, attempt: u32, outcome: Outcome) {
        let Some(live) = self.live.get_mut(&(step, attempt)) else { return };
        if std::mem::replace(&mut live.over, true) {
            return;
        }
        self.unrecorded.extend(live.record.take());
        if outcome.is_completed() {
            self.retire(step, attempt);
            let verdict = Verdict { outcome, may_retry: false };
            self.feed(Input::AttemptEnded { step, attempt, verdict });
            return;
        }
        let log_tail = live.sink.tail();
        let outcome = self.scheduler.classify(step, attempt, outcome);
        self.feed(Input::AttemptOver { step, attempt, outcome: outcome.clone() });
        self.ask(step, attempt, outcome, log_tail);
    }

    /// Asks the host for its verdict.
    fn ask(&self, step: StepIndex, attempt: u32, outcome: Outcome, log_tail: Vec<String>) {
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
        self.without_room.retain(|sink| sink.is_behind());
        let again = unfinished > 0 || !self.without_room.is_empty();
        self.look_at = again.then(|| Instant::now() + QUIET_LINE);
    }

    /// Forgets an attempt, but for a log that waits for room.
    fn retire(&mut self, step: StepIndex, attempt: u32) {
        let Some(live) = self.live.remove(&(step, attempt)).filter(|live| live.sink.is_behind()) else { return };
        self.without_room.push(live.sink);
        if let Some(at) = self.without_room.len().checked_sub(LOGS_WITHOUT_ROOM + 1) {
            self.without_room[at].shed();
        }
        self.look_at.get_or_insert_with(|| Instant::now() + QUIET_LINE);
    }

    /// The last word on logs for which there was no room to the end.
    fn warn_of_missing_logs(&self) {
        let sinks = self.without_room.iter().chain(self.live.values().map(|live| &live.sink));
        let behind = sinks.filter(|sink| sink.is_behind());
        let (logs, bytes) = behind.fold((0_u32, 0), |(logs, bytes), sink| (logs + 1, bytes + sink.missing_bytes()));
        if let Some(directory) = self.run.log_directory.as_ref().filter(|_| logs > 0) {
            let directory = directory.display();
            self.warn(format!("{logs} of the logs in {directory} lack {bytes} bytes for which there was no room"));
        }
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
