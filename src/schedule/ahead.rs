//! Follows which steps are near enough to be prepared, while the run goes on.

use std::sync::Arc;

use super::Effect;
use super::prepare::{Nearness, Preparation};
use super::scheduler::{Phase, Scheduler};
use crate::plan::StepIndex;

/// What preparing needs to know; absent when nothing is prepared.
#[derive(Debug)]
pub(super) struct Ahead {
    preparation: Preparation,
    /// Per step: upstreams that were never launched.
    unlaunched: Vec<u32>,
    /// Per step: upstreams that are not [`Ahead::certain`].
    uncertain: Vec<u32>,
    /// Whether the step was launched or is prepared as one of the next.
    certain: Vec<bool>,
}

impl Ahead {
    pub(super) fn new(max_parallelism: u32, upstreams: &[u32]) -> Self {
        Self {
            preparation: Preparation::new(max_parallelism, upstreams.len()),
            unlaunched: upstreams.to_vec(),
            uncertain: upstreams.to_vec(),
            certain: vec![false; upstreams.len()],
        }
    }
}

impl Ahead {
    /// Makes room for a step without upstreams.
    pub(super) fn add(&mut self) {
        self.preparation.add();
        self.unlaunched.push(0);
        self.uncertain.push(0);
        self.certain.push(false);
    }
}

impl Scheduler {
    /// Launches take their own preparation and, if need be, the memory of others'.
    pub(super) fn launched(&mut self, step: StepIndex, attempt: u32, effects: &mut Vec<Effect>) {
        let Some(ahead) = &mut self.ahead else { return };
        ahead.preparation.forget(self.rank_of[step.get()], &self.ready);
        for gone in ahead.preparation.make_room(&self.ready) {
            let gone = self.step_of[gone as usize];
            effects.push(Effect::Discard { step: gone });
            self.refresh_certainty(gone);
        }
        if attempt == 1 {
            self.set_certain(step, true);
            let plan = Arc::clone(&self.plan);
            for &below in plan.dag().downstream(step) {
                let Some(ahead) = &mut self.ahead else { return };
                ahead.unlaunched[below.get()] -= 1;
                if ahead.unlaunched[below.get()] == 0 {
                    self.refresh_nearness(below);
                }
            }
        }
    }

    pub(super) fn prepare(&mut self, effects: &mut Vec<Effect>) {
        while let Some(ahead) = &mut self.ahead
            && let Some(rank) = ahead.preparation.choose(&self.ready)
        {
            let step = self.step_of[rank as usize];
            effects.push(Effect::Prepare { step });
            self.refresh_certainty(step);
        }
    }

    /// Gives back the preparation of a step that will not start.
    pub(super) fn discard(&mut self, step: StepIndex, effects: &mut Vec<Effect>) {
        if let Some(ahead) = &mut self.ahead
            && ahead.preparation.forget(self.rank_of[step.get()], &self.ready)
        {
            effects.push(Effect::Discard { step });
        }
    }

    pub(super) fn refresh_nearness(&mut self, step: StepIndex) {
        let Some(ahead) = &mut self.ahead else { return };
        let nearness = match &self.phases[step.get()] {
            Phase::Ready { .. } => Some(Nearness::Ready),
            Phase::Retrying { .. } => Some(Nearness::Next),
            Phase::Waiting if ahead.unlaunched[step.get()] == 0 => Some(Nearness::Next),
            Phase::Waiting if ahead.uncertain[step.get()] == 0 => Some(Nearness::AfterNext),
            Phase::Waiting | Phase::Resting { .. } => None,
            Phase::Running(_) | Phase::Done(_) => return,
        };
        ahead.preparation.set_nearness(self.rank_of[step.get()], nearness);
        self.refresh_certainty(step);
    }

    /// A step stays certain once it was launched; before, it is while it is prepared and one of the next.
    fn refresh_certainty(&mut self, step: StepIndex) {
        let Some(ahead) = &self.ahead else { return };
        let launched = !matches!(self.phases[step.get()], Phase::Waiting | Phase::Ready { last: None, .. });
        let prepared = ahead.preparation.prepared(self.rank_of[step.get()]);
        self.set_certain(step, launched || prepared.is_some_and(|nearness| nearness <= Nearness::Next));
    }

    fn set_certain(&mut self, step: StepIndex, certain: bool) {
        let Some(ahead) = &mut self.ahead else { return };
        if std::mem::replace(&mut ahead.certain[step.get()], certain) == certain {
            return;
        }
        let plan = Arc::clone(&self.plan);
        for &below in plan.dag().downstream(step) {
            let Some(ahead) = &mut self.ahead else { return };
            let uncertain = &mut ahead.uncertain[below.get()];
            let before = *uncertain;
            *uncertain = if certain { before - 1 } else { before + 1 };
            if before == 0 || *uncertain == 0 {
                self.refresh_nearness(below);
            }
        }
    }
}
