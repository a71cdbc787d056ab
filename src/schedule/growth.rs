//! Steps that come while the run goes on: its leader asks for them, and drops them.

use std::sync::Arc;
use std::time::Duration;

use super::scheduler::{Phase, Scheduler};
use super::{CancelReason, Effect, StopForce};
use crate::event::{RunEvent, StepStatus};
use crate::plan::{StepIndex, StepSpec};

impl Scheduler {
    pub(super) fn requested(&mut self, now: Duration, spec: StepSpec, effects: &mut Vec<Effect>) {
        if self.plan.leader.is_none() {
            return;
        }
        if let Some(step) = self.plan.position(&spec.name) {
            return self.requested_again(now, step);
        }
        // Whoever asks has checked the description; a wrong one is nothing that could run.
        let Some(step) = self.add(spec) else { return };
        effects.push(Effect::Emit(RunEvent::StepAdded { step: self.name(step) }));
        if self.cancelled.is_some() {
            self.settle(step, StepStatus::Skipped, None, effects);
        } else {
            self.make_ready(step, 1, None);
        }
    }

    /// Makes room for a step everywhere; none when its description is wrong.
    fn add(&mut self, spec: StepSpec) -> Option<StepIndex> {
        // Copies the plan once at most: nobody else keeps the one that grows.
        let step = Arc::make_mut(&mut self.plan).add(spec, &mut self.admission).ok()?;
        self.phases.push(Phase::Waiting);
        self.missing.push(0);
        self.rank_of.push(u32::try_from(self.step_of.len()).unwrap_or(u32::MAX));
        self.step_of.push(step);
        self.ready.add(self.demand(step));
        self.timers.add();
        if let Some(ahead) = &mut self.ahead {
            ahead.add();
        }
        self.unfinished += 1;
        Some(step)
    }

    fn requested_again(&mut self, now: Duration, step: StepIndex) {
        let Phase::Resting { attempt, last, not_before } = &self.phases[step.get()] else { return };
        let (attempt, last, wait) = (*attempt, last.clone(), not_before.saturating_sub(now));
        self.phases[step.get()] = Phase::Retrying { attempt, last };
        self.timers.set(step, now, wait);
        self.refresh_nearness(step);
    }

    pub(super) fn dropped(&mut self, now: Duration, step: StepIndex, effects: &mut Vec<Effect>) {
        // Only what was asked for can be dropped: nothing waits for that, so that nothing is left to wait for ever.
        if step.get() < self.planned {
            return;
        }
        match self.phases.get(step.get()) {
            Some(Phase::Running(_)) => self.stop(now, step, StopForce::Graceful, effects),
            Some(Phase::Retrying { last, .. } | Phase::Resting { last, .. }) => {
                let last = last.clone();
                self.settle(step, StepStatus::Stopped, Some(last), effects);
            }
            Some(Phase::Ready { .. }) => self.settle(step, StepStatus::Stopped, None, effects),
            Some(Phase::Waiting | Phase::Done(_)) | None => {}
        }
    }

    /// Nobody waits for what the leader asked for once it is over.
    pub(super) fn end_with_leader(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if let Some(leader) = self.plan.leader
            && matches!(self.phases[leader.get()], Phase::Done(_))
            && self.unfinished > 0
        {
            self.cancel(now, CancelReason::LeaderEnded, effects);
        }
    }
}
