//! The vocabulary everyone shares: how an attempt ends, what happened in a run, what a run amounted to.
//!
//! Values only. Nothing here decides; the decisions are in [`crate::schedule`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How one attempt of a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// The step did its work.
    Completed,
    /// The process ended with a non-zero exit code.
    Exited {
        /// Exit code as the engine reports it; above 128 it is 128 + the signal's number.
        code: i64,
    },
    /// The kernel killed the process because the memory limit was reached.
    OutOfMemory,
    /// The step ran longer than its `timeout_seconds` and was stopped.
    TimedOut,
    /// The attempt never ran: no image, no such volume, engine refused.
    LaunchFailed {
        /// One sentence for the user.
        reason: String,
    },
    /// The attempt was stopped because the run was stopped.
    Stopped,
    /// Nobody can tell: the container vanished or the engine went away.
    Lost {
        /// One sentence for the user.
        reason: String,
    },
}

impl Outcome {
    /// Whether the step did its work.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        matches!(self, Self::Completed)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Exited { code } => match signal_name(*code) {
                Some(name) => write!(f, "killed by {name} (exit code {code})"),
                None => write!(f, "exit code {code}"),
            },
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::TimedOut => f.write_str("timed out"),
            Self::LaunchFailed { reason } => write!(f, "could not start: {reason}"),
            Self::Stopped => f.write_str("stopped"),
            Self::Lost { reason } => write!(f, "lost: {reason}"),
        }
    }
}

/// Name of the signal behind an exit code above 128, for the signals that end containers in practice.
fn signal_name(code: i64) -> Option<&'static str> {
    Some(match code.checked_sub(128)? {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

/// Where a step stands in the end. Every step of a run gets exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Its last attempt completed.
    Completed,
    /// Its last attempt failed and no retry was left or allowed.
    Failed,
    /// It was running when the run was stopped.
    Stopped,
    /// It never started: an upstream failed, or the run ended first.
    Skipped,
}

/// How the run as a whole ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Every step completed.
    Completed,
    /// At least one step failed.
    Failed,
    /// The run was stopped from outside.
    Stopped,
}

/// Something that happened to the run, in the past tense. `step` is the step's name.
///
/// Log output is not an event: it flows beside, see `runner`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunEvent {
    /// The run began.
    RunStarted {
        /// Number of steps that the plan has.
        steps: usize,
        /// How many steps may run at the same time.
        max_parallelism: u32,
    },
    /// An attempt was handed to the executor.
    AttemptLaunched {
        /// Step name.
        step: String,
        /// Attempt number, from 1.
        attempt: u32,
    },
    /// The attempt's container runs.
    AttemptStarted {
        /// Step name.
        step: String,
        /// Attempt number, from 1.
        attempt: u32,
        /// Container id and whatever else the executor wants the user to know.
        details: AttemptDetails,
    },
    /// An attempt ended.
    AttemptEnded {
        /// Step name.
        step: String,
        /// Attempt number, from 1.
        attempt: u32,
        /// How.
        outcome: Outcome,
        /// From the launch to the end.
        #[serde(with = "seconds")]
        duration: Duration,
    },
    /// What an attempt took was measured; comes before it ends, and not at all when nobody could measure it.
    AttemptMeasured {
        /// Step name.
        step: String,
        /// Attempt number, from 1.
        attempt: u32,
        /// What it took.
        usage: Usage,
    },
    /// An attempt failed and another one follows after `delay`.
    RetryScheduled {
        /// Step name.
        step: String,
        /// Number of the attempt to come.
        attempt: u32,
        /// Waiting time until then.
        #[serde(with = "seconds")]
        delay: Duration,
    },
    /// A step reached its final status.
    StepFinished {
        /// Step name.
        step: String,
        /// The status.
        status: StepStatus,
        /// Outcome of the last attempt; none when it never ran.
        outcome: Option<Outcome>,
    },
    /// The run began to stop.
    StopRequested {
        /// Why, for people.
        reason: String,
        /// Whether running attempts are stopped, too.
        stops_running: bool,
    },
    /// The run ended and everything it held was released.
    RunFinished {
        /// What it amounted to.
        summary: RunSummary,
    },
}

/// What an executor knows about a started attempt. No environment value ever stands here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptDetails {
    /// Full container id.
    pub container_id: Option<String>,
    /// Container name.
    pub container_name: Option<String>,
    /// Image id that the container was created from.
    pub image_id: Option<String>,
    /// Where this attempt's log is kept.
    pub log_path: Option<String>,
    /// Whether a warm worker took it, rather than a container that was started for it.
    #[serde(default)]
    pub warm: bool,
    /// From the worker's being told to go until the step began; none for a cold start.
    #[serde(with = "optional_seconds", default)]
    pub go_to_started: Option<Duration>,
    /// The task of ECS that it is, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Box<TaskDetails>>,
}

/// A task of ECS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskDetails {
    /// ARN.
    pub arn: String,
    /// Name or ARN of its cluster.
    pub cluster: String,
    /// Its definition.
    pub task_definition: String,
    /// The container that runs the step.
    pub container: String,
    /// Log group in CloudWatch.
    pub log_group: Option<String>,
    /// Log stream there.
    pub log_stream: Option<String>,
}

/// What an attempt took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The most memory that its processes had at one moment, in bytes, as the warm worker saw it.
    pub peak_memory_bytes: Option<u64>,
}

/// What a run amounted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// How the run ended.
    pub status: RunStatus,
    /// Final status of every step, in the plan's order.
    pub steps: Vec<(String, StepStatus)>,
    /// The first step that failed, if any.
    pub first_failure: Option<Failure>,
    /// Steps whose containers could not be stopped.
    pub left_running: Vec<String>,
    /// From start to finish.
    #[serde(with = "seconds")]
    pub duration: Duration,
    /// The largest number of attempts that were running at one moment.
    pub peak_parallelism: u32,
    /// Number of attempts that were launched.
    pub attempts: u32,
    /// Number of attempts that a warm worker took.
    #[serde(default)]
    pub warm_starts: u32,
    /// The longest time between the launch of an attempt and its start; none when nothing started.
    #[serde(with = "optional_seconds", default)]
    pub longest_start: Option<Duration>,
}

/// A step that failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Step name.
    pub step: String,
    /// Number of its last attempt.
    pub attempt: u32,
    /// How that ended.
    pub outcome: Outcome,
}

/// Durations cross to Python and JSON as float seconds.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The same for a duration that may be missing.
pub(crate) mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "the form that serde calls")]
    pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|duration| duration.as_secs_f64()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        seconds.map(Duration::try_from_secs_f64).transpose().map_err(D::Error::custom)
    }
}
