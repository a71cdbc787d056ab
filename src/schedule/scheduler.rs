//! The state machine itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::prepare::Preparation;
use super::ready::{Rank, ReadyQueue};
use super::{CancelReason, Effect, Input, StopForce, Verdict};
use crate::event::{AttemptDetails, Failure, Outcome, RunEvent, RunStatus, RunSummary, StepStatus};
use crate::plan::{Admission, ExecutionMode, Plan, StepIndex};

/// An attempt that does not end so long after SIGKILL is given up and named in `left_running`, so that a run always ends.
pub const GIVE_UP_AFTER_KILL: Duration = Duration::from_secs(60);

/// Choices that the plan does not make.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScheduleOptions {
    /// Whether to emit [`Effect::Prepare`] and [`Effect::Discard`].
    pub prepare: bool,
}

/// One run's decisions.
#[derive(Debug)]
pub struct Scheduler {
    plan: Arc<Plan>,
    max_parallelism: u32,
    phases: Vec<Phase>,
    /// Upstreams that have not completed.
    missing: Vec<u32>,
    /// Upstreams that have neither completed nor are running.
    unstarted: Vec<u32>,
    rank_of: Vec<Rank>,
    step_of: Vec<StepIndex>,
    ready: ReadyQueue,
    preparation: Option<Preparation>,
    timers: BTreeSet<(Duration, u32, Timer)>,
    cancelled: Option<CancelReason>,
    unfinished: usize,
    running: u32,
    peak: u32,
    attempts: u32,
    first_failure: Option<Failure>,
    left_running: Vec<String>,
    started: bool,
    over: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Waiting,
    Ready { attempt: u32 },
    Running(Attempt),
    Retrying { attempt: u32, last: Outcome },
    Done(StepStatus),
}

#[derive(Debug, Clone, PartialEq)]
struct Attempt {
    number: u32,
    launched: Duration,
    stop: Option<StopForce>,
    timed_out: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Retry,
    Timeout { attempt: u32 },
    Kill { attempt: u32 },
    GiveUp { attempt: u32 },
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
            max_parallelism: admission.max_parallelism,
            phases: vec![Phase::Waiting; count],
            unstarted: missing.clone(),
            missing,
            ready: ReadyQueue::new(admission, step_of.iter().map(|step| admission.demands[step.get()])),
            rank_of,
            step_of,
            preparation: options.prepare.then(|| Preparation::new(admission.max_parallelism)),
            timers: BTreeSet::new(),
            cancelled: None,
            unfinished: count,
            running: 0,
            peak: 0,
            attempts: 0,
            first_failure: None,
            left_running: Vec::new(),
            started: false,
            over: false,
            plan,
        }
    }

    /// Takes an input at `now` (time since the start of the run, never going back) and says what to do.
    ///
    /// An input that makes no sense in the present state (an attempt that is not running, anything after the end) has no
    /// effect.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.over || (!self.started && input != Input::Start) {
            return effects;
        }
        match input {
            Input::Start => self.start(&mut effects),
            Input::AttemptStarted { step, attempt, details } => {
                self.attempt_started(now, step, attempt, details, &mut effects);
            }
            Input::AttemptEnded { step, attempt, verdict } => {
                self.attempt_ended(now, step, attempt, verdict, &mut effects);
            }
            Input::Cancel { reason } => self.cancel(now, reason, &mut effects),
            Input::Tick => {}
        }
        self.fire_timers(now, &mut effects);
        if self.cancelled.is_none() {
            self.launch(now, &mut effects);
            self.prepare(&mut effects);
        }
        if self.unfinished == 0 {
            self.finish(now, &mut effects);
        } else if let Some(&(at, ..)) = self.timers.first() {
            effects.push(Effect::WakeAt { at });
        }
        effects
    }

    fn start(&mut self, effects: &mut Vec<Effect>) {
        if self.started {
            return;
        }
        self.started = true;
        effects
            .push(Effect::Emit(RunEvent::RunStarted { steps: self.plan.len(), max_parallelism: self.max_parallelism }));
        for at in 0..self.plan.len() {
            if self.missing[at] == 0 {
                self.make_ready(StepIndex::new(at), 1);
            }
        }
    }

    fn make_ready(&mut self, step: StepIndex, attempt: u32) {
        self.phases[step.get()] = Phase::Ready { attempt };
        let rank = self.rank_of[step.get()];
        self.ready.insert(rank);
        if let Some(preparation) = &mut self.preparation {
            preparation.is_soon(rank, false);
        }
    }

    fn launch(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(rank) = self.ready.admit() {
            let step = self.step_of[rank as usize];
            let Phase::Ready { attempt } = self.phases[step.get()] else { continue };
            let running = Attempt { number: attempt, launched: now, stop: None, timed_out: false };
            self.phases[step.get()] = Phase::Running(running);
            self.running += 1;
            self.peak = self.peak.max(self.running);
            self.attempts += 1;
            if let Some(preparation) = &mut self.preparation {
                preparation.take(rank, &self.ready);
                for gone in preparation.make_room(&self.ready) {
                    effects.push(Effect::Discard { step: self.step_of[gone as usize] });
                }
                if attempt == 1 {
                    let plan = Arc::clone(&self.plan);
                    for &below in plan.dag().downstream(step) {
                        self.unstarted[below.get()] -= 1;
                        if self.unstarted[below.get()] == 0 && self.phases[below.get()] == Phase::Waiting {
                            preparation.is_soon(self.rank_of[below.get()], true);
                        }
                    }
                }
            }
            effects.push(Effect::Emit(RunEvent::AttemptLaunched { step: self.name(step), attempt }));
            effects.push(Effect::Launch { step, attempt });
        }
    }

    fn prepare(&mut self, effects: &mut Vec<Effect>) {
        if let Some(preparation) = &mut self.preparation {
            for rank in preparation.fill(&self.ready) {
                effects.push(Effect::Prepare { step: self.step_of[rank as usize] });
            }
        }
    }

    fn discard(&mut self, step: StepIndex, effects: &mut Vec<Effect>) {
        if let Some(preparation) = &mut self.preparation
            && preparation.take(self.rank_of[step.get()], &self.ready)
        {
            effects.push(Effect::Discard { step });
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
        if self.running_attempt(step, number).is_none() {
            return;
        }
        effects.push(Effect::Emit(RunEvent::AttemptStarted { step: self.name(step), attempt: number, details }));
        if let Some(timeout) = self.plan.step(step).timeout {
            self.set_timer(now + timeout, step, Timer::Timeout { attempt: number });
        }
    }

    fn attempt_ended(
        &mut self,
        now: Duration,
        step: StepIndex,
        number: u32,
        verdict: Verdict,
        effects: &mut Vec<Effect>,
    ) {
        let Some(attempt) = self.running_attempt(step, number).cloned() else { return };
        let outcome = match verdict.outcome {
            Outcome::Completed => Outcome::Completed,
            _ if attempt.timed_out => Outcome::TimedOut,
            other => other,
        };
        self.running -= 1;
        self.ready.release(self.rank_of[step.get()]);
        effects.push(Effect::Emit(RunEvent::AttemptEnded {
            step: self.name(step),
            attempt: number,
            outcome: outcome.clone(),
            duration: now.saturating_sub(attempt.launched),
        }));
        let asked_to_stop = attempt.stop.is_some() && !attempt.timed_out;
        if outcome.is_completed() {
            self.settle(step, StepStatus::Completed, Some(outcome), effects);
            let plan = Arc::clone(&self.plan);
            for &below in plan.dag().downstream(step) {
                self.missing[below.get()] -= 1;
                if self.missing[below.get()] == 0
                    && self.phases[below.get()] == Phase::Waiting
                    && self.cancelled.is_none()
                {
                    self.make_ready(below, 1);
                }
            }
        } else if outcome == Outcome::Stopped || asked_to_stop {
            self.settle(step, StepStatus::Stopped, Some(outcome), effects);
            self.skip_descendants(step, effects);
        } else if verdict.may_retry && self.cancelled.is_none() && number <= self.plan.step(step).retry.max_retries {
            let delay = self.plan.step(step).retry.delay_before(number);
            let next = number + 1;
            effects.push(Effect::Emit(RunEvent::RetryScheduled { step: self.name(step), attempt: next, delay }));
            self.phases[step.get()] = Phase::Retrying { attempt: next, last: outcome };
            self.set_timer(now + delay, step, Timer::Retry);
        } else {
            self.fail(now, step, number, outcome, effects);
        }
    }

    fn fail(&mut self, now: Duration, step: StepIndex, attempt: u32, outcome: Outcome, effects: &mut Vec<Effect>) {
        if self.first_failure.is_none() {
            self.first_failure = Some(Failure { step: self.name(step), attempt, outcome: outcome.clone() });
        }
        self.settle(step, StepStatus::Failed, Some(outcome), effects);
        self.skip_descendants(step, effects);
        match self.plan.execution_mode {
            ExecutionMode::ContinueOnFailure => {}
            ExecutionMode::StopOnFailure => self.cancel(now, CancelReason::StopOnFailure, effects),
            ExecutionMode::FailFast => self.cancel(now, CancelReason::FailFast, effects),
        }
    }

    fn cancel(&mut self, now: Duration, reason: CancelReason, effects: &mut Vec<Effect>) {
        if self.cancelled >= Some(reason) {
            return;
        }
        self.cancelled = Some(reason);
        effects.push(Effect::Emit(RunEvent::StopRequested {
            reason: reason.to_string(),
            stops_running: reason > CancelReason::StopOnFailure,
        }));
        for at in 0..self.plan.len() {
            let step = StepIndex::new(at);
            match self.phases[at].clone() {
                Phase::Waiting | Phase::Ready { attempt: 1 } => self.settle(step, StepStatus::Skipped, None, effects),
                Phase::Ready { .. } => self.settle(step, self.status_of_dropped_retry(), None, effects),
                Phase::Retrying { last, .. } => {
                    self.settle(step, self.status_of_dropped_retry(), Some(last), effects);
                }
                Phase::Running(_) => match reason {
                    CancelReason::StopOnFailure => {}
                    CancelReason::FailFast | CancelReason::Interrupt => {
                        self.stop(now, step, StopForce::Graceful, effects);
                    }
                    CancelReason::Kill => self.stop(now, step, StopForce::Kill, effects),
                    CancelReason::Abandon => {
                        self.left_running.push(self.name(step));
                        self.settle(step, StepStatus::Stopped, None, effects);
                    }
                },
                Phase::Done(_) => {}
            }
        }
    }

    /// A step whose retry was dropped has failed, unless the user stopped the run.
    fn status_of_dropped_retry(&self) -> StepStatus {
        if self.cancelled >= Some(CancelReason::Interrupt) { StepStatus::Stopped } else { StepStatus::Failed }
    }

    fn stop(&mut self, now: Duration, step: StepIndex, force: StopForce, effects: &mut Vec<Effect>) {
        let Phase::Running(attempt) = &mut self.phases[step.get()] else { return };
        if attempt.stop >= Some(force) {
            return;
        }
        attempt.stop = Some(force);
        let number = attempt.number;
        effects.push(Effect::Stop { step, attempt: number, force });
        let (at, timer) = match force {
            StopForce::Graceful => (now + self.plan.step(step).stop_grace, Timer::Kill { attempt: number }),
            StopForce::Kill => (now + GIVE_UP_AFTER_KILL, Timer::GiveUp { attempt: number }),
        };
        self.set_timer(at, step, timer);
    }

    fn fire_timers(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(&(at, index, timer)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            let step = StepIndex::new(index as usize);
            match timer {
                Timer::Retry => {
                    if let Phase::Retrying { attempt, .. } = self.phases[step.get()] {
                        self.make_ready(step, attempt);
                    }
                }
                Timer::Timeout { attempt } => {
                    if let Some(running) = self.running_attempt(step, attempt)
                        && running.stop.is_none()
                    {
                        running.timed_out = true;
                        self.stop(now, step, StopForce::Graceful, effects);
                    }
                }
                Timer::Kill { attempt } => {
                    if self.running_attempt(step, attempt).is_some() {
                        self.stop(now, step, StopForce::Kill, effects);
                    }
                }
                Timer::GiveUp { attempt } => {
                    if self.running_attempt(step, attempt).is_some() {
                        self.left_running.push(self.name(step));
                        let reason = "it did not end after SIGKILL".to_owned();
                        let verdict = Verdict { outcome: Outcome::Lost { reason }, may_retry: false };
                        self.attempt_ended(now, step, attempt, verdict, effects);
                    }
                }
            }
        }
    }

    fn settle(&mut self, step: StepIndex, status: StepStatus, outcome: Option<Outcome>, effects: &mut Vec<Effect>) {
        if let Phase::Ready { .. } = self.phases[step.get()] {
            self.ready.remove(self.rank_of[step.get()]);
        }
        self.discard(step, effects);
        self.phases[step.get()] = Phase::Done(status);
        self.unfinished -= 1;
        effects.push(Effect::Emit(RunEvent::StepFinished { step: self.name(step), status, outcome }));
    }

    fn skip_descendants(&mut self, step: StepIndex, effects: &mut Vec<Effect>) {
        let plan = Arc::clone(&self.plan);
        let mut stack: Vec<StepIndex> = plan.dag().downstream(step).to_vec();
        while let Some(below) = stack.pop() {
            if self.phases[below.get()] == Phase::Waiting {
                self.settle(below, StepStatus::Skipped, None, effects);
                stack.extend_from_slice(plan.dag().downstream(below));
            }
        }
    }

    fn finish(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.over = true;
        let steps: Vec<(String, StepStatus)> = self
            .plan
            .steps
            .iter()
            .zip(&self.phases)
            .map(|(step, phase)| {
                let Phase::Done(status) = phase else { return (step.name.to_string(), StepStatus::Skipped) };
                (step.name.to_string(), *status)
            })
            .collect();
        let any = |wanted: StepStatus| steps.iter().any(|(_, status)| *status == wanted);
        let status = if steps.iter().all(|(_, status)| *status == StepStatus::Completed) {
            RunStatus::Completed
        } else if self.cancelled >= Some(CancelReason::Interrupt) || !any(StepStatus::Failed) {
            RunStatus::Stopped
        } else {
            RunStatus::Failed
        };
        let summary = RunSummary {
            status,
            steps,
            first_failure: self.first_failure.clone(),
            left_running: self.left_running.clone(),
            duration: now,
            peak_parallelism: self.peak,
            attempts: self.attempts,
        };
        effects.push(Effect::Finish(summary));
    }

    fn running_attempt(&mut self, step: StepIndex, number: u32) -> Option<&mut Attempt> {
        match self.phases.get_mut(step.get())? {
            Phase::Running(attempt) if attempt.number == number => Some(attempt),
            _ => None,
        }
    }

    fn set_timer(&mut self, at: Duration, step: StepIndex, timer: Timer) {
        self.timers.insert((at, u32::try_from(step.get()).unwrap_or(u32::MAX), timer));
    }

    fn name(&self, step: StepIndex) -> String {
        self.plan.step(step).name.to_string()
    }
}
