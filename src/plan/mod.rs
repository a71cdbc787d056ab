//! PURE. The input ([`PlanSpec`]) becomes a validated [`Plan`]: a DAG with resources, retries and limits.
//!
//! What a step's container looks like is not a matter of the plan; executors keep their own specification by step name.

mod capacity;
mod error;
mod graph;
mod spec;

use std::sync::Arc;
use std::time::Duration;

pub use capacity::{Admission, Capacity, Demand, Warning};
pub use error::PlanError;
pub use graph::{Dag, StepIndex};
pub use spec::{ExecutionMode, PlanSpec, ResourceSpec, RetrySpec, StepSpec};

/// A validated pipeline: unique names, no cycle, finite numbers.
///
/// A plan with a [`Plan::leader`] grows while it runs, see [`Plan::add`].
#[derive(Debug, Clone)]
pub struct Plan {
    /// Identity of the run, as the orchestrator names it.
    pub run_id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// What a failure does to the rest of the run.
    pub execution_mode: ExecutionMode,
    /// How many steps may run at once; none leaves the choice to the host's CPU count.
    pub max_parallelism: Option<u32>,
    /// Steps in declaration order; a [`StepIndex`] points here.
    pub steps: Vec<Step>,
    /// The step that asks for further ones. The run lasts as long as it does and ends as it ends.
    pub leader: Option<StepIndex>,
    dag: Dag,
}

/// One step of a [`Plan`].
#[derive(Debug, Clone)]
pub struct Step {
    /// Unique name.
    pub name: Arc<str>,
    /// What it asks of the host.
    pub resources: ResourceSpec,
    /// Retries after a failed attempt.
    pub retry: Retry,
    /// An attempt is stopped when it has run for so long.
    pub timeout: Option<Duration>,
    /// Time between asking a container to stop and killing it.
    pub stop_grace: Duration,
    /// Expected run time from earlier runs.
    pub expected: Option<Duration>,
}

/// Retries with exponential backoff: the wait before retry `n` (from 1) is `delay * backoff^(n-1)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// How often a failed step is tried again.
    pub max_retries: u32,
    /// Wait before the first retry.
    pub delay: Duration,
    /// Factor between waits, at least 1.
    pub backoff: f64,
}

impl Retry {
    /// No wait exceeds a day, whatever delay and backoff say.
    pub const MAX_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// Wait before retry `n`, counted from 1.
    #[must_use]
    pub fn delay_before(&self, n: u32) -> Duration {
        let exponent = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.delay.as_secs_f64() * self.backoff.powi(exponent);
        Duration::try_from_secs_f64(seconds).unwrap_or(Self::MAX_DELAY).min(Self::MAX_DELAY)
    }
}

impl Plan {
    /// Grace of a step that names none. Docker's own default.
    pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

    /// Validates a specification.
    ///
    /// # Errors
    /// [`PlanError`] names the step and the field that are wrong, and for a cycle its members in order.
    pub fn new(spec: PlanSpec) -> Result<Self, PlanError> {
        if spec.max_parallelism == Some(0) {
            return Err(PlanError::field("max_parallelism", "must be at least 1"));
        }
        let dag = Dag::new(&spec.steps)?;
        let leader = spec.leader.as_deref().map(|name| leader(name, &spec.steps, &dag)).transpose()?;
        let steps =
            spec.steps.into_iter().enumerate().map(|(at, step)| Step::new(at, step)).collect::<Result<_, _>>()?;
        Ok(Self {
            run_id: spec.run_id,
            pipeline: spec.pipeline,
            execution_mode: spec.execution_mode,
            max_parallelism: spec.max_parallelism,
            steps,
            leader,
            dag,
        })
    }

    /// Adds a step that waits for no other, measured against a host.
    ///
    /// # Errors
    /// [`PlanError`] when the plan has no leader, the name is taken, a field is wrong, or the host lacks what it asks for.
    pub fn add(&mut self, spec: StepSpec, admission: &mut Admission) -> Result<StepIndex, PlanError> {
        let wrong = |field: &str, why: &str| Err(PlanError::of_step(&spec.name, field, why));
        if self.leader.is_none() {
            return wrong("", "cannot be added: no step of the plan leads it");
        }
        if spec.name.is_empty() || self.position(&spec.name).is_some() {
            return wrong("name", "must be a name that no other step has");
        }
        if !spec.upstream.is_empty() {
            return wrong("upstream", "must be empty: who asks for a step has waited for its upstreams");
        }
        let (step, demand, warning) = admission.measure(spec)?;
        let index = self.dag.add()?;
        self.steps.push(step);
        admission.demands.push(demand);
        admission.warnings.extend(warning);
        Ok(index)
    }

    /// The step of this name.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<StepIndex> {
        self.steps.iter().position(|step| *step.name == *name).map(StepIndex::new)
    }

    /// Parses and validates JSON.
    ///
    /// # Errors
    /// [`PlanError`], whose field is the path of what is wrong, such as `steps[3].retry.delay_seconds`.
    pub fn from_json(json: &str) -> Result<Self, PlanError> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let spec: PlanSpec = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| PlanError::field(error.path().to_string(), error.inner().to_string()))?;
        deserializer.end().map_err(|error| PlanError::field("", error.to_string()))?;
        Self::new(spec)
    }

    /// Number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The edges.
    #[must_use]
    pub fn dag(&self) -> &Dag {
        &self.dag
    }

    /// The step behind an index of this plan.
    #[must_use]
    pub fn step(&self, index: StepIndex) -> &Step {
        &self.steps[index.get()]
    }

    /// For each step the length in seconds of the longest path from its start to the end of the run.
    ///
    /// A step without an expected duration counts as the mean of those that have one, or as 1 when none has.
    #[must_use]
    pub fn remaining_path_seconds(&self) -> Vec<f64> {
        let known: Vec<f64> = self.steps.iter().filter_map(|step| step.expected).map(|d| d.as_secs_f64()).collect();
        #[expect(clippy::cast_precision_loss, reason = "a count of steps is far below 2^52")]
        let unknown = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let mut remaining = vec![0.0_f64; self.steps.len()];
        for &index in self.dag.topological_order().iter().rev() {
            let below = self.dag.downstream(index).iter().map(|d| remaining[d.get()]).fold(0.0, f64::max);
            let own = self.step(index).expected.map_or(unknown, |d| d.as_secs_f64());
            remaining[index.get()] = own + below;
        }
        remaining
    }
}

fn leader(name: &str, steps: &[StepSpec], dag: &Dag) -> Result<StepIndex, PlanError> {
    let Some(index) = steps.iter().position(|step| step.name == name).map(StepIndex::new) else {
        return Err(PlanError::field("leader", format!("there is no step `{name}`")));
    };
    if !dag.upstream(index).is_empty() || !dag.downstream(index).is_empty() {
        return Err(PlanError::field("leader", format!("step `{name}` waits for others, or others for it")));
    }
    Ok(index)
}

impl Step {
    fn new(at: usize, spec: StepSpec) -> Result<Self, PlanError> {
        let wrong = |field: &str, why: String| PlanError::of_step(&spec.name, format!("steps[{at}].{field}"), why);
        let seconds = |field: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| wrong(field, format!("must be a number of seconds from 0 up, got {value}")))
        };
        let retry = Retry {
            max_retries: spec.retry.max_retries,
            delay: seconds("retry.delay_seconds", spec.retry.delay_seconds)?,
            // ZenML's default backoff is 0 and would make every later retry immediate: treated as 1.
            backoff: match spec.retry.backoff {
                value if !value.is_finite() || value < 0.0 => {
                    return Err(wrong("retry.backoff", format!("must be a finite number from 0 up, got {value}")));
                }
                value => value.max(1.0),
            },
        };
        let timeout = spec.timeout_seconds.map(|value| seconds("timeout_seconds", value)).transpose()?;
        if timeout == Some(Duration::ZERO) {
            return Err(wrong("timeout_seconds", "must be greater than 0".into()));
        }
        let stop_grace = spec.stop_grace_seconds.map(|value| seconds("stop_grace_seconds", value)).transpose()?;
        let expected = spec.expected_seconds.map(|value| seconds("expected_seconds", value)).transpose()?;
        Ok(Self {
            name: Arc::from(spec.name),
            resources: spec.resources,
            retry,
            timeout,
            stop_grace: stop_grace.unwrap_or(Plan::DEFAULT_STOP_GRACE),
            expected,
        })
    }
}
