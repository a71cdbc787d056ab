//! PURE. `Scheduler::handle(now, Input) -> Vec<Effect>`: every decision of a run, as a state machine without I/O.
//!
//! No clock, no randomness, no channels, no hash order: the same inputs give the same effects. It does not know what a
//! container is; [`crate::runner`] carries its effects out.

mod ahead;
mod cancel;
mod growth;
mod prepare;
mod ready;
mod scheduler;
mod timers;

use std::fmt;
use std::time::Duration;

pub use cancel::GIVE_UP_AFTER_KILL;
pub use scheduler::{ScheduleOptions, Scheduler};

use serde::{Deserialize, Serialize};

use crate::event::{AttemptDetails, Outcome, RunEvent, RunSummary};
use crate::plan::{StepIndex, StepSpec};

/// What the outside tells the scheduler. Its written form is part of a run's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Input {
    /// The run begins. The first input, once.
    Start,
    /// The attempt's process runs: its timeout begins to count.
    AttemptStarted {
        /// Step.
        step: StepIndex,
        /// Attempt number, from 1.
        attempt: u32,
        /// For the event.
        details: AttemptDetails,
    },
    /// The attempt's process is over and the verdict on it is being found: its timeout no longer counts and a stop would
    /// come too late. Not required before [`Input::AttemptEnded`].
    AttemptOver {
        /// Step.
        step: StepIndex,
        /// Attempt number, from 1.
        attempt: u32,
        /// How, as far as the executor can tell.
        outcome: Outcome,
    },
    /// The attempt is over.
    AttemptEnded {
        /// Step.
        step: StepIndex,
        /// Attempt number, from 1.
        attempt: u32,
        /// How, after whoever knows better than the exit code was asked.
        verdict: Verdict,
    },
    /// The leader asks for a step; nothing happens in a plan without one. One that failed and may be tried again gets its next
    /// attempt; its description stays as it was. Any other step that the plan has already is left alone.
    StepRequested {
        /// The step. It waits for no other.
        spec: StepSpec,
    },
    /// The leader does not want a step any longer that it asked for; nothing happens to any other.
    StepDropped {
        /// Step.
        step: StepIndex,
    },
    /// Somebody wants the run to end. Only a worse reason than the present one acts.
    Cancel {
        /// How badly.
        reason: CancelReason,
    },
    /// Time has passed; sent at the latest at the moment of the last [`Effect::WakeAt`].
    Tick,
}

/// How an attempt ended, as the scheduler has to take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether another attempt makes sense, if the step has retries left.
    pub may_retry: bool,
}

/// Why a run ends early, from mild to severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A step failed under `STOP_ON_FAILURE`: nothing new starts, what runs finishes.
    StopOnFailure,
    /// A step failed under `FAIL_FAST`: what runs is stopped.
    FailFast,
    /// The leader is over: what it asked for is stopped, for nobody waits for it.
    LeaderEnded,
    /// The user asked to stop: what runs is stopped, with its grace.
    Interrupt,
    /// The user insists: what runs is killed.
    Kill,
    /// The user does not want to wait any longer: return and name what is left.
    Abandon,
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StopOnFailure => "a step failed: nothing new starts, what runs finishes",
            Self::FailFast => "a step failed: what runs is stopped",
            Self::LeaderEnded => "the orchestration ended: what runs is stopped",
            Self::Interrupt => "stop requested: what runs is stopped",
            Self::Kill => "stop requested again: what runs is killed",
            Self::Abandon => "stop requested a third time: what runs is left behind",
        })
    }
}

/// How an attempt is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopForce {
    /// SIGTERM.
    Graceful,
    /// SIGKILL.
    Kill,
}

/// What the outside has to do.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Effect {
    /// A step is likely to start next: get ready for it, at low priority. Never required for [`Effect::Launch`].
    Prepare {
        /// Step.
        step: StepIndex,
    },
    /// A prepared step will not start (soon): give back what was prepared.
    Discard {
        /// Step.
        step: StepIndex,
    },
    /// Start an attempt.
    Launch {
        /// Step.
        step: StepIndex,
        /// Attempt number, from 1.
        attempt: u32,
    },
    /// Stop a running attempt. Its end still comes as [`Input::AttemptEnded`].
    Stop {
        /// Step.
        step: StepIndex,
        /// Attempt number, from 1.
        attempt: u32,
        /// With which force. Repeated only with a greater one.
        force: StopForce,
    },
    /// Send an input at this time, if none comes earlier. Replaces earlier wishes.
    WakeAt {
        /// Time since the start of the run.
        at: Duration,
    },
    /// Tell whoever listens.
    Emit(RunEvent),
    /// Every step has its final status; the last effect. [`RunEvent::RunFinished`] is left to whoever releases what the run
    /// held.
    Finish(RunSummary),
}
