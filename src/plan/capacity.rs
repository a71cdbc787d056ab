//! What the host has against what the steps ask for.

use serde::{Deserialize, Serialize};

use super::{Plan, PlanError, Step, StepSpec};

/// What a host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Number of GPU devices.
    pub gpus: u32,
}

/// What one attempt of a step takes from the capacity while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Demand {
    /// Thousandths of a CPU, capped at what the host has.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Number of GPU devices.
    pub gpus: u32,
}

/// A request that was changed so that it can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Step name.
    pub step: String,
    /// One sentence for the user.
    pub message: String,
}

/// A plan measured against a host: what may run together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The host.
    pub capacity: Capacity,
    /// How many steps may run at once.
    pub max_parallelism: u32,
    /// What each step takes, in the plan's order.
    pub demands: Vec<Demand>,
    /// What was capped.
    pub warnings: Vec<Warning>,
}

impl Admission {
    /// Measures a plan against a host. `max_parallelism` defaults to the number of whole CPUs.
    ///
    /// More CPU than the host has is capped with a warning, because a step only runs slower on fewer CPUs.
    ///
    /// # Errors
    /// Memory and GPUs that can never fit are a [`PlanError`]: the step would be killed or could not start.
    pub fn new(plan: &Plan, capacity: Capacity) -> Result<Self, PlanError> {
        let cpus = u32::try_from(capacity.cpu_millis / 1000).unwrap_or(u32::MAX).max(1);
        let mut warnings = Vec::new();
        let demands = plan
            .steps
            .iter()
            .enumerate()
            .map(|(at, step)| demand(at, step, capacity, &mut warnings))
            .collect::<Result<_, _>>()?;
        Ok(Self { capacity, max_parallelism: plan.max_parallelism.unwrap_or(cpus), demands, warnings })
    }

    /// Measures a step that could come next in the plan.
    ///
    /// # Errors
    /// A field of it is wrong; else as for [`Admission::new`].
    pub fn measure(&self, spec: StepSpec) -> Result<(Step, Demand, Option<Warning>), PlanError> {
        let at = self.demands.len();
        let step = Step::new(at, spec)?;
        let mut warnings = Vec::new();
        let demand = demand(at, &step, self.capacity, &mut warnings)?;
        Ok((step, demand, warnings.pop()))
    }
}

fn demand(at: usize, step: &Step, capacity: Capacity, warnings: &mut Vec<Warning>) -> Result<Demand, PlanError> {
    let asked = step.resources;
    if asked.memory_bytes > capacity.memory_bytes {
        let message = format!(
            "asks for {} of memory and the host has {}; lower its memory request",
            human_bytes(asked.memory_bytes),
            human_bytes(capacity.memory_bytes)
        );
        return Err(PlanError::of_step(&step.name, format!("steps[{at}].resources.memory_bytes"), message));
    }
    if asked.gpus > capacity.gpus {
        let message = format!("asks for {} GPUs and the host offers {}", asked.gpus, capacity.gpus);
        return Err(PlanError::of_step(&step.name, format!("steps[{at}].resources.gpus"), message));
    }
    if asked.cpu_millis > capacity.cpu_millis {
        warnings.push(Warning {
            step: step.name.to_string(),
            message: format!(
                "asks for {} CPUs and the host has {}; it runs with {}",
                human_cpus(asked.cpu_millis),
                human_cpus(capacity.cpu_millis),
                human_cpus(capacity.cpu_millis)
            ),
        });
    }
    Ok(Demand {
        cpu_millis: asked.cpu_millis.min(capacity.cpu_millis),
        memory_bytes: asked.memory_bytes,
        gpus: asked.gpus,
    })
}

#[expect(clippy::cast_precision_loss, reason = "for people, two digits")]
fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn human_cpus(millis: u64) -> String {
    format!("{}", millis as f64 / 1e3)
}
