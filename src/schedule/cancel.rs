//! Ending early: why, with which force, and what happens when the time for it is up.
//!
//! Graceful, then after the step's grace a kill, then after [`GIVE_UP_AFTER_KILL`] the attempt is given up and named. So a
//! run always ends, whatever its attempts do.

use std::time::Duration;

use super::scheduler::{Phase, Scheduler};
use super::{CancelReason, Effect, StopForce, Verdict};
use crate::event::{Outcome, RunEvent, StepStatus};
use crate::plan::StepIndex;

/// An attempt that has not ended so long after SIGKILL is given up and named in
/// [`RunSummary::left_running`](crate::event::RunSummary::left_running). Its capacity counts as free from then on.
pub const GIVE_UP_AFTER_KILL: Duration = Duration::from_secs(60);

impl Scheduler {
    pub(super) fn cancel(&mut self, now: Duration, reason: CancelReason, effects: &mut Vec<Effect>) {
        if self.cancelled >= Some(reason) {
            return;
        }
        self.cancelled = Some(reason);
        effects.push(Effect::Emit(RunEvent::StopRequested {
            reason: reason.to_string(),
            stops_running: reason > CancelReason::StopOnFailure,
        }));
        let mut failed = false;
        for at in 0..self.plan.len() {
            let step = StepIndex::new(at);
            match &self.phases[at] {
                Phase::Waiting | Phase::Ready { last: None, .. } => {
                    self.settle(step, StepStatus::Skipped, None, effects);
                }
                Phase::Ready { last: Some(last), attempt }
                | Phase::Retrying { last, attempt }
                | Phase::Resting { last, attempt, .. } => {
                    let (last, attempt) = (last.clone(), attempt - 1);
                    failed |= self.drop_retry(step, attempt, last, effects) == StepStatus::Failed;
                }
                Phase::Running(_) => match reason {
                    CancelReason::StopOnFailure => {}
                    CancelReason::FailFast | CancelReason::LeaderEnded | CancelReason::Interrupt => {
                        self.stop(now, step, StopForce::Graceful, effects);
                    }
                    CancelReason::Kill => self.stop(now, step, StopForce::Kill, effects),
                    CancelReason::Abandon => self.give_up(now, step, "the run was abandoned", effects),
                },
                Phase::Done(_) => {}
            }
        }
        if failed {
            self.apply_mode(now, effects);
        }
    }

    /// A step whose retry is dropped has failed; the user's stop makes it a stopped one.
    pub(super) fn drop_retry(
        &mut self,
        step: StepIndex,
        attempt: u32,
        last: Outcome,
        effects: &mut Vec<Effect>,
    ) -> StepStatus {
        if self.cancelled >= Some(CancelReason::Interrupt) {
            self.settle(step, StepStatus::Stopped, Some(last), effects);
            return StepStatus::Stopped;
        }
        self.fail(step, attempt, last, effects);
        StepStatus::Failed
    }

    pub(super) fn stop(&mut self, now: Duration, step: StepIndex, force: StopForce, effects: &mut Vec<Effect>) {
        let Phase::Running(attempt) = &mut self.phases[step.get()] else { return };
        if attempt.stop >= Some(force) || attempt.ended.is_some() {
            return;
        }
        attempt.stop = Some(force);
        effects.push(Effect::Stop { step, attempt: attempt.number, force });
        let wait = match force {
            StopForce::Graceful => self.plan.step(step).stop_grace,
            StopForce::Kill => GIVE_UP_AFTER_KILL,
        };
        self.timers.set(step, now, wait);
    }

    /// Does not wait for an attempt any longer. One that has ended already only lacks its verdict and is not left running.
    fn give_up(&mut self, now: Duration, step: StepIndex, why: &str, effects: &mut Vec<Effect>) {
        let Phase::Running(attempt) = &mut self.phases[step.get()] else { return };
        let number = attempt.number;
        let outcome = match attempt.ended.clone() {
            Some((_, outcome)) => outcome,
            None => {
                attempt.stop.get_or_insert(StopForce::Kill);
                self.left_running.push((step, number));
                Outcome::Lost { reason: format!("still running when {why}") }
            }
        };
        // Never retried: two attempts of a step must not run at once.
        self.attempt_ended(now, step, number, Verdict { outcome, may_retry: false }, effects);
    }

    pub(super) fn ring_alarms(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(step) = self.timers.pop_due(now) {
            match &mut self.phases[step.get()] {
                Phase::Retrying { attempt, last } => {
                    let (attempt, last) = (*attempt, last.clone());
                    self.make_ready(step, attempt, Some(last));
                }
                Phase::Running(attempt) => match attempt.stop {
                    None => {
                        attempt.timed_out = true;
                        self.stop(now, step, StopForce::Graceful, effects);
                    }
                    Some(StopForce::Graceful) => self.stop(now, step, StopForce::Kill, effects),
                    Some(StopForce::Kill) => self.give_up(now, step, "the wait after its kill was over", effects),
                },
                Phase::Waiting | Phase::Ready { .. } | Phase::Resting { .. } | Phase::Done(_) => {}
            }
        }
    }
}
