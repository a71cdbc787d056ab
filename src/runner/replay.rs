//! PURE. Rebuilds the state of a run from its journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::journal::Recorded;
use crate::event::{AttemptDetails, Outcome, RunEvent, RunSummary};
use crate::plan::{Admission, Plan, PlanError, StepIndex};
use crate::schedule::{Effect, Input, ScheduleOptions, Scheduler, StopForce};

/// A run as its last owner left it.
#[derive(Debug)]
pub struct Replayed {
    /// The pipeline, as far as it had grown.
    pub plan: Arc<Plan>,
    /// That plan measured against the host as it was when the run began.
    pub admission: Admission,
    /// In the state after the last entry.
    pub scheduler: Scheduler,
    /// Time of the last entry, since the run began.
    pub at: Duration,
    /// When the scheduler wants to be woken, if nothing comes earlier.
    pub wake_at: Option<Duration>,
    /// Attempts that were launched and whose end was not decided upon, by step and number.
    pub in_flight: BTreeMap<(StepIndex, u32), InFlight>,
    /// Steps that were prepared and neither launched nor given back.
    pub prepared: BTreeSet<StepIndex>,
    /// What the last owner told its host, or was about to.
    pub events: Vec<RunEvent>,
    /// Set when every step has its final status.
    pub summary: Option<RunSummary>,
}

/// An attempt that may still run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Set once its process was seen to run.
    pub started: Option<AttemptDetails>,
    /// Set once its process was over; only the verdict lacks.
    pub over: Option<Outcome>,
    /// The greatest force that it was to be stopped with.
    pub stop: Option<StopForce>,
}

/// A journal that does not lead to a state.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The plan or the host in it is not valid.
    #[error("the plan in the journal cannot be run: {0}")]
    Plan(#[from] PlanError),
    /// The decisions in it are not those of this scheduler.
    #[error(
        "line {line} of the journal records other decisions than this version makes; resume with the version that began it"
    )]
    Diverged {
        /// From 1.
        line: usize,
    },
}

/// Feeds a scheduler what the journal says and carries nothing out.
///
/// # Errors
/// [`ReplayError`] when the journal was not written by a scheduler that decides as this one.
pub fn replay(recorded: &Recorded) -> Result<Replayed, ReplayError> {
    let header = &recorded.header;
    let plan = Arc::new(Plan::new(header.plan.clone())?);
    let admission = Admission::new(&plan, header.capacity)?;
    let options = ScheduleOptions { prepare: header.prepare };
    let mut replayed = Replayed {
        scheduler: Scheduler::new(Arc::clone(&plan), &admission, options),
        plan,
        admission,
        at: Duration::ZERO,
        wake_at: None,
        in_flight: BTreeMap::new(),
        prepared: BTreeSet::new(),
        events: Vec::new(),
        summary: None,
    };
    for (at, entry) in recorded.entries.iter().enumerate() {
        let launched = replayed.take(entry.time(), &entry.input);
        if launched != entry.launched {
            // The first line is the header.
            return Err(ReplayError::Diverged { line: at + 2 });
        }
    }
    replayed.plan = Arc::clone(replayed.scheduler.plan());
    replayed.admission = replayed.scheduler.admission().clone();
    Ok(replayed)
}

impl Replayed {
    /// Takes one input. Returns what it launched.
    fn take(&mut self, now: Duration, input: &Input) -> Vec<(StepIndex, u32)> {
        self.at = self.at.max(now);
        self.wake_at = None;
        match input {
            Input::AttemptStarted { step, attempt, details } => {
                self.change((*step, *attempt), |attempt| attempt.started = Some(details.clone()));
            }
            Input::AttemptOver { step, attempt, outcome } => {
                self.change((*step, *attempt), |attempt| attempt.over = Some(outcome.clone()));
            }
            Input::AttemptEnded { step, attempt, .. } => drop(self.in_flight.remove(&(*step, *attempt))),
            Input::Start
            | Input::StepRequested { .. }
            | Input::StepDropped { .. }
            | Input::Cancel { .. }
            | Input::Tick => {}
        }
        let mut launched = Vec::new();
        for effect in self.scheduler.handle(now, input.clone()) {
            match effect {
                Effect::Prepare { step } => drop(self.prepared.insert(step)),
                Effect::Discard { step } => drop(self.prepared.remove(&step)),
                Effect::Launch { step, attempt } => {
                    self.prepared.remove(&step);
                    self.in_flight.insert((step, attempt), InFlight::default());
                    launched.push((step, attempt));
                }
                Effect::Stop { step, attempt, force } => {
                    self.change((step, attempt), |attempt| attempt.stop = attempt.stop.max(Some(force)));
                }
                Effect::WakeAt { at } => self.wake_at = Some(at),
                Effect::Emit(event) => self.events.push(event),
                Effect::Finish(summary) => self.summary = Some(summary),
            }
        }
        launched
    }

    fn change(&mut self, attempt: (StepIndex, u32), change: impl FnOnce(&mut InFlight)) {
        self.in_flight.entry(attempt).and_modify(change);
    }
}
