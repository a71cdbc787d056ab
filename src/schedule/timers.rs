//! One alarm per step, earliest first.
//!
//! A step waits for at most one moment at a time: its retry, its timeout, its kill, or being given up. Which of them it is
//! follows from the step's phase, so that an alarm carries no meaning of its own and can never be stale.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::plan::StepIndex;

/// The alarms of a run.
#[derive(Debug)]
pub(super) struct Timers {
    due: BTreeSet<(Duration, StepIndex)>,
    of_step: Vec<Option<Duration>>,
}

impl Timers {
    pub(super) fn new(steps: usize) -> Self {
        Self { due: BTreeSet::new(), of_step: vec![None; steps] }
    }

    /// Makes room for a step.
    pub(super) fn add(&mut self) {
        self.of_step.push(None);
    }

    /// Sets the step's alarm in place of an earlier one. A moment beyond what a [`Duration`] can hold never comes.
    pub(super) fn set(&mut self, step: StepIndex, now: Duration, wait: Duration) {
        self.clear(step);
        if let Some(at) = now.checked_add(wait) {
            self.of_step[step.get()] = Some(at);
            self.due.insert((at, step));
        }
    }

    pub(super) fn clear(&mut self, step: StepIndex) {
        if let Some(at) = self.of_step[step.get()].take() {
            self.due.remove(&(at, step));
        }
    }

    /// Takes the earliest alarm that is due; ties in declaration order.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<StepIndex> {
        let &(at, step) = self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, step));
        self.of_step[step.get()] = None;
        Some(step)
    }

    /// When the next alarm is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.due.first().map(|&(at, _)| at)
    }
}
