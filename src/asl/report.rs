//! What a compilation amounts to, for people and for the layer that deploys it.

use serde::Serialize;

use super::barrier::AddedWait;
use super::fargate::Size;
use super::limits;
use super::options::Synchronization;

/// The compile report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Number of steps.
    pub steps: usize,
    /// Edges after transitive reduction.
    pub edges: usize,
    /// How dependencies are kept that the tree cannot express.
    pub synchronization: Synchronization,
    /// How many steps may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallelism: Option<u32>,
    /// How many steps could run at once without that limit; not computed where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Dependencies that became token edges: who signals, who waits.
    pub token_edges: Vec<(String, String)>,
    /// Waits that no dependency asks for.
    pub added_waits: Vec<AddedWait>,
    /// Longest path in expected seconds; without earlier runs every step counts as 1.
    pub critical_path_seconds: f64,
    /// What the machine takes if every step takes what is expected, in seconds.
    pub makespan_seconds: f64,
    /// `makespan_seconds / critical_path_seconds`; 1 is exact.
    pub makespan_ratio: f64,
    /// Whether every step had an expected duration.
    pub durations_known: bool,
    /// Events of the root execution without a retry.
    pub events: u64,
    /// State transitions of a run without a retry, over all machines, when every waiter comes before its signal.
    pub transitions: u64,
    /// Price of those transitions in US dollars (us-east-1), without tasks and S3 requests.
    pub dollars_per_run: f64,
    /// Bytes, events and steps of each machine.
    pub machines: Vec<MachineReport>,
    /// Fargate sizes of the steps that run there.
    pub sizes: Vec<StepSize>,
    /// What this machine's role must be allowed to do: an IAM policy document.
    pub policy: serde_json::Value,
}

/// One machine of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachineReport {
    /// Name.
    pub name: String,
    /// Steps inside, those of machines inside included.
    pub steps: usize,
    /// Bytes of the definition.
    pub definition_bytes: usize,
    /// Events of one execution without a retry.
    pub events: u64,
}

/// The Fargate size of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepSize {
    /// Step name.
    pub step: String,
    /// Size.
    #[serde(flatten)]
    pub size: Size,
}

/// Events and transitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Events in the history.
    pub events: u64,
    /// State transitions.
    pub transitions: u64,
}

impl Counts {
    pub(super) fn add(&mut self, events: u64, transitions: u64) {
        self.events += events;
        self.transitions += transitions;
    }
}

/// Price of transitions in US dollars.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a price")]
pub fn dollars(transitions: u64) -> f64 {
    transitions as f64 * limits::DOLLARS_PER_TRANSITION
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { steps, edges, events, transitions, .. } = self;
        writeln!(f, "steps               {steps}, {edges} edges after transitive reduction")?;
        let mode = format!("{:?}", self.synchronization).to_lowercase();
        writeln!(
            f,
            "synchronization     {mode}: {} token edges, {} barriers",
            self.token_edges.len(),
            self.added_waits.len()
        )?;
        if let (Some(limit), Some(width)) = (self.max_parallelism, self.width) {
            let is_kept = if width as u64 <= u64::from(limit) { "never reached" } else { "kept by lanes" };
            writeln!(f, "at most             {limit} steps at once, {width} without a limit: {is_kept}")?;
        }
        let known = if self.durations_known { "from earlier runs" } else { "partly or wholly assumed" };
        writeln!(
            f,
            "expected makespan   {:.1} s, critical path {:.1} s, ratio {:.3} (durations {known})",
            self.makespan_seconds, self.critical_path_seconds, self.makespan_ratio
        )?;
        writeln!(f, "history events      {events} of {} in the root execution", limits::HISTORY_EVENTS)?;
        writeln!(f, "transitions         {transitions}, {:.6} US dollars per run", self.dollars_per_run)?;
        for machine in &self.machines {
            let MachineReport { name, steps, definition_bytes, events } = machine;
            writeln!(f, "machine             {name}: {steps} steps, {definition_bytes} bytes, {events} events")?;
        }
        for (from, to) in &self.token_edges {
            writeln!(f, "token edge          {from} -> {to}")?;
        }
        for wait in &self.added_waits {
            writeln!(f, "added wait          {} wait for all of {}", wait.then.join(", "), wait.first.join(", "))?;
        }
        for StepSize { step, size } in &self.sizes {
            let rounded = if size.cpu_rounded || size.memory_rounded { ", rounded up" } else { "" };
            writeln!(f, "Fargate size        {step}: {} CPU units, {} MiB{rounded}", size.cpu_units, size.memory_mib)?;
        }
        Ok(())
    }
}
