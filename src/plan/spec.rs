//! The plan as it is written by others: JSON or a Python dict. Unknown fields are refused.

use serde::{Deserialize, Serialize};

/// A pipeline run, unvalidated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanSpec {
    /// Identity of the run, as the orchestrator names it.
    #[serde(default)]
    pub run_id: String,
    /// Name of the pipeline.
    #[serde(default)]
    pub pipeline: String,
    /// What a failure does to the rest of the run.
    #[serde(default)]
    pub execution_mode: ExecutionMode,
    /// How many steps may run at once; none leaves the choice to the host's CPU count.
    #[serde(default)]
    pub max_parallelism: Option<u32>,
    /// Steps in any order; the order breaks ties between equally urgent steps.
    pub steps: Vec<StepSpec>,
    /// The step that asks for further ones while it runs, as the orchestration of a dynamic pipeline does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}

/// ZenML's execution modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionMode {
    /// A failure stops what runs and starts nothing new.
    FailFast,
    /// A failure lets finish what runs and starts nothing new.
    StopOnFailure,
    /// A failure skips its own descendants; everything else runs.
    #[default]
    ContinueOnFailure,
}

/// One step, unvalidated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// Unique name.
    pub name: String,
    /// Names of the steps that must complete first. Named twice counts once.
    #[serde(default)]
    pub upstream: Vec<String>,
    /// What it asks of the host.
    #[serde(default)]
    pub resources: ResourceSpec,
    /// Retries after a failed attempt.
    #[serde(default)]
    pub retry: RetrySpec,
    /// Stop an attempt that has run for so long.
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
    /// Time between asking a container to stop and killing it.
    #[serde(default)]
    pub stop_grace_seconds: Option<f64>,
    /// Run time of this step in earlier runs, for the order of ready steps.
    #[serde(default)]
    pub expected_seconds: Option<f64>,
    /// What the host knows a request for this step by: kept in the run's journal for whoever goes on with it, and used for
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Resources; 0 asks for nothing in particular and is never a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceSpec {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Number of GPU devices.
    pub gpus: u32,
}

/// Retries, unvalidated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySpec {
    /// How often a failed step is tried again.
    pub max_retries: u32,
    /// Wait before the first retry.
    pub delay_seconds: f64,
    /// Factor between waits; below 1 counts as 1.
    pub backoff: f64,
}
