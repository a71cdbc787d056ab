//! The state machine itself: starting, launching, ending. Cancellation and alarms are in `cancel`, preparing in `ahead`.

use std::sync::Arc;
use std::time::Duration;

use super::ahead::Ahead;
use super::ready::{Rank, ReadyQueue};
use super::timers::Timers;
use super::{CancelReason, Effect, Input, StopForce, Verdict};
use crate::event::{AttemptDetails, Failure, Outcome, RunEvent, RunStatus, RunSummary, StepStatus};
use crate::plan::{Admission, Demand, ExecutionMode, Plan, StepIndex};

/// Choices that the plan does not make.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScheduleOptions {
    /// Whether to emit [`Effect::Prepare`] and [`Effect::Discard`].
    pub prepare: bool,
}

/// One run's decisions.
///
/// - Timeouts count from [`Input::AttemptStarted`]: an image that is pulled for an hour does not use up the step's time.
/// - A timed-out attempt is stopped and counts as [`Outcome::TimedOut`], unless it completed all the same. It is retried as
///   a failure is.
/// - A step that waits for its retry holds no capacity.
/// - An attempt that completes although it was asked to stop has completed.
/// - A step that was stopped without having been asked to (from outside) is [`StepStatus::Stopped`], is not retried, and
///   acts on the rest of the run as a failure does.
/// - The run is `Completed` when every step is; else `Stopped` when the user stopped it (as in ZenML, also if a step had
///   failed before) or nothing failed; else `Failed`.
/// - A run with a leader ends as its leader does, whatever became of the steps that it asked for: it may have known how to
///   go on without one. What is left of them when it ends is stopped. `FAIL_FAST` and the like are the leader's to apply.
/// - A step that was asked for is not tried again by itself: it rests until it is asked for again, and for its delay.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) plan: Arc<Plan>,
    pub(super) admission: Admission,
    pub(super) phases: Vec<Phase>,
    /// Upstreams that have not completed.
    pub(super) missing: Vec<u32>,
    pub(super) rank_of: Vec<Rank>,
    pub(super) step_of: Vec<StepIndex>,
    pub(super) ready: ReadyQueue,
    pub(super) ahead: Option<Ahead>,
    pub(super) timers: Timers,
    pub(super) cancelled: Option<CancelReason>,
    /// Attempts that were given up and have not ended since.
    pub(super) left_running: Vec<(StepIndex, u32)>,
    max_parallelism: u32,
    pub(super) unfinished: usize,
    /// Steps from this position on were asked for.
    pub(super) planned: usize,
    running: u32,
    peak: u32,
    attempts: u32,
    warm_starts: u32,
    longest_start: Option<Duration>,
    first_failure: Option<Failure>,
    /// When the run started; none before.
    began: Option<Duration>,
    over: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    /// For its upstreams.
    Waiting,
    /// For capacity. `last` is the outcome of the attempt before.
    Ready {
        attempt: u32,
        last: Option<Outcome>,
    },
    Running(Attempt),
    /// For the delay before attempt `attempt`.
    Retrying {
        attempt: u32,
        last: Outcome,
    },
    /// Until it is asked for again; then attempt `attempt` starts, at the earliest at `not_before`.
    Resting {
        attempt: u32,
        last: Outcome,
        not_before: Duration,
    },
    Done(StepStatus),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attempt {
    pub(super) number: u32,
    launched: Duration,
    started: bool,
    pub(super) stop: Option<StopForce>,
    pub(super) timed_out: bool,
    /// Set while the verdict is awaited.
    pub(super) ended: Option<(Duration, Outcome)>,
}

impl Attempt {
    /// How an ending counts for this attempt.
    fn classify(&self, outcome: Outcome) -> Outcome {
        if self.timed_out && !outcome.is_completed() { Outcome::TimedOut } else { outcome }
    }
}

impl Scheduler {
    /// A scheduler for one run of a plan on a host.
    #[must_use]
    pub fn new(plan: Arc<Plan>, admission: &Admission, options: ScheduleOptions) -> Self {
        let count = plan.len();
        let remaining = plan.remaining_path_seconds();
        let mut step_of: Vec<StepIndex> = (0..count).map(StepIndex::new).collect();
        step_of.sort_by(|a, b| remaining[b.get()].total_cmp(&remaining[a.get()]).then(a.cmp(b)));
        let mut rank_of = vec![0; count];
        for (rank, step) in (0..).zip(&step_of) {
            rank_of[step.get()] = rank;
        }
        let upstreams = |at: usize| u32::try_from(plan.dag().upstream(StepIndex::new(at)).len()).unwrap_or(u32::MAX);
        let missing: Vec<u32> = (0..count).map(upstreams).collect();
        Self {
            phases: vec![Phase::Waiting; count],
            ready: ReadyQueue::new(
                admission,
                step_of.iter().map(|step| admission.demands[step.get()]),
                plan.leader.map(|leader| rank_of[leader.get()]),
            ),
            ahead: options.prepare.then(|| Ahead::new(admission.max_parallelism, &missing)),
            missing,
            rank_of,
            step_of,
            timers: Timers::new(count),
            cancelled: None,
            left_running: Vec::new(),
            max_parallelism: admission.max_parallelism,
            admission: admission.clone(),
            unfinished: count,
            planned: count,
            running: 0,
            peak: 0,
            attempts: 0,
            warm_starts: 0,
            longest_start: None,
            first_failure: None,
            began: None,
            over: false,
            plan,
        }
    }

    /// Takes an input at `now` (time since the start of the run, never going back) and says what to do, in this order.
    ///
    /// An input that makes no sense in the present state (an attempt that is not running, anything before
    /// [`Input::Start`] or after [`Effect::Finish`]) has no effect.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.over || (self.began.is_none() && input != Input::Start) {
            return effects;
        }
        match input {
            Input::Start => self.start(now, &mut effects),
            Input::AttemptStarted { step, attempt, details } => {
                self.attempt_started(now, step, attempt, details, &mut effects);
            }
            Input::AttemptOver { step, attempt, outcome } => self.attempt_over(now, step, attempt, outcome),
            Input::AttemptEnded { step, attempt, verdict } => {
                self.attempt_ended(now, step, attempt, verdict, &mut effects);
            }
            Input::StepRequested { spec } => self.requested(now, spec, &mut effects),
            Input::StepDropped { step } => self.dropped(now, step, &mut effects),
            Input::Cancel { reason } => self.cancel(now, reason, &mut effects),
            Input::Tick => {}
        }
        // After the input: an attempt that ends at the moment of its timeout has ended.
        self.ring_alarms(now, &mut effects);
        self.end_with_leader(now, &mut effects);
        if self.cancelled.is_none() {
            self.launch(now, &mut effects);
            self.prepare(&mut effects);
        }
        if self.unfinished == 0 {
            self.finish(now, &mut effects);
        } else if let Some(at) = self.timers.next() {
            effects.push(Effect::WakeAt { at });
        }
        effects
    }

    /// How an ending of a running attempt will count; for whoever has to judge it first.
    #[must_use]
    pub fn classify(&self, step: StepIndex, attempt: u32, outcome: Outcome) -> Outcome {
        match self.phases.get(step.get()) {
            Some(Phase::Running(running)) if running.number == attempt => running.classify(outcome),
            _ => outcome,
        }
    }

    /// Number of the attempt that a step would launch next; for what has to be known when preparing it.
    #[must_use]
    pub fn next_attempt(&self, step: StepIndex) -> u32 {
        match self.phases.get(step.get()) {
            Some(Phase::Ready { attempt, .. } | Phase::Retrying { attempt, .. } | Phase::Resting { attempt, .. }) => {
                *attempt
            }
            Some(Phase::Running(running)) => running.number.saturating_add(1),
            _ => 1,
        }
    }

    /// The plan as far as it has grown.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The plan measured against the host, as far as it has grown.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// What an attempt of a step takes.
    #[must_use]
    pub fn demand(&self, step: StepIndex) -> Demand {
        self.admission.demands[step.get()]
    }

    fn start(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.began.is_some() {
            return;
        }
        self.began = Some(now);
        effects
            .push(Effect::Emit(RunEvent::RunStarted { steps: self.plan.len(), max_parallelism: self.max_parallelism }));
        for at in 0..self.plan.len() {
            if self.missing[at] == 0 {
                self.make_ready(StepIndex::new(at), 1, None);
            }
        }
    }

    pub(super) fn make_ready(&mut self, step: StepIndex, attempt: u32, last: Option<Outcome>) {
        self.phases[step.get()] = Phase::Ready { attempt, last };
        self.ready.insert(self.rank_of[step.get()]);
        self.refresh_nearness(step);
    }

    fn launch(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(rank) = self.ready.admit() {
            let step = self.step_of[rank as usize];
            let Phase::Ready { attempt: number, .. } = self.phases[step.get()] else { continue };
            let attempt = Attempt { number, launched: now, started: false, stop: None, timed_out: false, ended: None };
            self.phases[step.get()] = Phase::Running(attempt);
            self.running += 1;
            self.peak = self.peak.max(self.running);
            self.attempts = self.attempts.saturating_add(1);
            self.launched(step, number, effects);
            effects.push(Effect::Emit(RunEvent::AttemptLaunched { step: self.name(step), attempt: number }));
            effects.push(Effect::Launch { step, attempt: number });
        }
    }

    fn attempt_started(
        &mut self,
        now: Duration,
        step: StepIndex,
        number: u32,
        details: AttemptDetails,
        effects: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.running_attempt(step, number) else { return };
        if attempt.ended.is_some() || std::mem::replace(&mut attempt.started, true) {
            return;
        }
        let stopping = attempt.stop.is_some();
        let took = now.saturating_sub(attempt.launched);
        self.longest_start = self.longest_start.max(Some(took));
        self.warm_starts = self.warm_starts.saturating_add(u32::from(details.warm));
        effects.push(Effect::Emit(RunEvent::AttemptStarted { step: self.name(step), attempt: number, details }));
        if let Some(timeout) = self.plan.step(step).timeout
            && !stopping
        {
            self.timers.set(step, now, timeout);
        }
    }

    fn attempt_over(&mut self, now: Duration, step: StepIndex, number: u32, outcome: Outcome) {
        if let Some(attempt) = self.running_attempt(step, number)
            && attempt.ended.is_none()
        {
            attempt.ended = Some((now, attempt.classify(outcome)));
            self.timers.clear(step);
        }
    }

    pub(super) fn attempt_ended(
        &mut self,
        now: Duration,
        step: StepIndex,
        number: u32,
        verdict: Verdict,
        effects: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.running_attempt(step, number).cloned() else {
            // Given up too early: it has ended after all.
            self.left_running.retain(|left| *left != (step, number));
            return;
        };
        let outcome = attempt.classify(verdict.outcome);
        let asked_to_stop = attempt.stop.is_some() && !attempt.timed_out;
        let ended = attempt.ended.map_or(now, |(at, _)| at);
        self.running -= 1;
        self.timers.clear(step);
        self.ready.release(self.rank_of[step.get()]);
        effects.push(Effect::Emit(RunEvent::AttemptEnded {
            step: self.name(step),
            attempt: number,
            outcome: outcome.clone(),
            duration: ended.saturating_sub(attempt.launched),
        }));
        if outcome.is_completed() {
            self.complete(step, outcome, effects);
        } else if asked_to_stop || outcome == Outcome::Stopped {
            self.settle(step, StepStatus::Stopped, Some(outcome), effects);
            self.after_bad_end(now, step, effects);
        } else if verdict.may_retry && self.cancelled.is_none() && number <= self.plan.step(step).retry.max_retries {
            let delay = self.plan.step(step).retry.delay_before(number);
            let next = number + 1;
            effects.push(Effect::Emit(RunEvent::RetryScheduled { step: self.name(step), attempt: next, delay }));
            if step.get() < self.planned {
                self.phases[step.get()] = Phase::Retrying { attempt: next, last: outcome };
                self.timers.set(step, now, delay);
            } else {
                self.phases[step.get()] =
                    Phase::Resting { attempt: next, last: outcome, not_before: now.saturating_add(delay) };
            }
            self.refresh_nearness(step);
        } else {
            self.fail(step, number, outcome, effects);
            self.after_bad_end(now, step, effects);
        }
    }

    fn complete(&mut self, step: StepIndex, outcome: Outcome, effects: &mut Vec<Effect>) {
        self.settle(step, StepStatus::Completed, Some(outcome), effects);
        let plan = Arc::clone(&self.plan);
        for &below in plan.dag().downstream(step) {
            self.missing[below.get()] -= 1;
            if self.missing[below.get()] == 0 && self.phases[below.get()] == Phase::Waiting {
                self.make_ready(below, 1, None);
            }
        }
    }

    pub(super) fn fail(&mut self, step: StepIndex, attempt: u32, outcome: Outcome, effects: &mut Vec<Effect>) {
        if self.first_failure.is_none() {
            self.first_failure = Some(Failure { step: self.name(step), attempt, outcome: outcome.clone() });
        }
        self.settle(step, StepStatus::Failed, Some(outcome), effects);
    }

    /// What a step that did not complete does to the rest of the run.
    fn after_bad_end(&mut self, now: Duration, step: StepIndex, effects: &mut Vec<Effect>) {
        let plan = Arc::clone(&self.plan);
        let mut stack: Vec<StepIndex> = plan.dag().downstream(step).iter().rev().copied().collect();
        while let Some(below) = stack.pop() {
            if self.phases[below.get()] == Phase::Waiting {
                self.settle(below, StepStatus::Skipped, None, effects);
                stack.extend(plan.dag().downstream(below).iter().rev());
            }
        }
        self.apply_mode(now, effects);
    }

    pub(super) fn apply_mode(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.plan.leader.is_some() {
            return;
        }
        match self.plan.execution_mode {
            ExecutionMode::ContinueOnFailure => {}
            ExecutionMode::StopOnFailure => self.cancel(now, CancelReason::StopOnFailure, effects),
            ExecutionMode::FailFast => self.cancel(now, CancelReason::FailFast, effects),
        }
    }

    /// Gives a step its final status.
    pub(super) fn settle(
        &mut self,
        step: StepIndex,
        status: StepStatus,
        outcome: Option<Outcome>,
        effects: &mut Vec<Effect>,
    ) {
        if let Phase::Ready { .. } = self.phases[step.get()] {
            self.ready.remove(self.rank_of[step.get()]);
        }
        self.timers.clear(step);
        self.phases[step.get()] = Phase::Done(status);
        self.unfinished -= 1;
        self.discard(step, effects);
        effects.push(Effect::Emit(RunEvent::StepFinished { step: self.name(step), status, outcome }));
    }

    fn finish(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.over = true;
        let statuses = self.phases.iter().map(|phase| match phase {
            Phase::Done(status) => *status,
            _ => StepStatus::Skipped,
        });
        let steps: Vec<(String, StepStatus)> =
            self.plan.steps.iter().map(|step| step.name.to_string()).zip(statuses).collect();
        let completed = match self.plan.leader {
            Some(leader) => self.phases[leader.get()] == Phase::Done(StepStatus::Completed),
            None => steps.iter().all(|(_, status)| *status == StepStatus::Completed),
        };
        let status = if completed {
            RunStatus::Completed
        } else if self.cancelled >= Some(CancelReason::Interrupt) || self.first_failure.is_none() {
            RunStatus::Stopped
        } else {
            RunStatus::Failed
        };
        effects.push(Effect::Finish(RunSummary {
            status,
            steps,
            first_failure: self.first_failure.take().filter(|_| !completed),
            left_running: self.left_running.iter().map(|&(step, _)| self.name(step)).collect(),
            duration: now.saturating_sub(self.began.unwrap_or(now)),
            peak_parallelism: self.peak,
            attempts: self.attempts,
            warm_starts: self.warm_starts,
            longest_start: self.longest_start,
        }));
    }

    pub(super) fn running_attempt(&mut self, step: StepIndex, number: u32) -> Option<&mut Attempt> {
        match self.phases.get_mut(step.get())? {
            Phase::Running(attempt) if attempt.number == number => Some(attempt),
            _ => None,
        }
    }

    pub(super) fn name(&self, step: StepIndex) -> String {
        self.plan.step(step).name.to_string()
    }
}
