//! PURE. Events of an execution's history -> where its steps stand.
//!
//! A step is known by the group of its task, which the compiler writes as `<execution>:<label>`. What follows belongs to it by
//! `previousEventId`. One tracker takes the histories of a root execution and of those inside it.

mod event;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use event::{Event, Kind};
use serde::Serialize;
use serde_json::Value;

use super::outcome::{TaskInfo, get, judge_error};
use crate::asl::label;
use crate::event::{Outcome, StepStatus};

/// What an event changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Step Functions began with an attempt.
    Launched {
        /// Index of the step.
        step: usize,
    },
    /// ECS has the task.
    Submitted {
        /// Index of the step.
        step: usize,
    },
    /// ECS did not take the task, and Step Functions tries again.
    TriedAgain {
        /// Index of the step.
        step: usize,
        /// What ECS said.
        reason: String,
    },
    /// An attempt ended.
    Ended {
        /// Index of the step.
        step: usize,
        /// The error's name, unless it completed.
        error: String,
    },
    /// A step has its final status.
    Finished {
        /// Index of the step.
        step: usize,
    },
    /// The root execution ended.
    Over {
        /// As in `DescribeExecution`.
        status: &'static str,
        /// Cause of its end.
        cause: String,
    },
    /// The root execution goes on.
    Redriven,
}

/// Where a step stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepState {
    /// Attempts of which ECS has or had a task, and the one that is under way.
    pub attempts: u32,
    /// When the last one was begun.
    pub launched_at: f64,
    /// When it ended.
    pub ended_at: f64,
    /// Its task.
    pub task: TaskInfo,
    /// The final status.
    pub status: Option<StepStatus>,
    /// ECS took the task of the last attempt.
    submitted: bool,
    /// ECS refused it, which is tried again without counting.
    refused: Option<String>,
    /// ECS said itself that the task is over.
    seen_over: bool,
    entered_at: Option<f64>,
}

impl StepState {
    /// Whether ECS itself said that the last attempt's task is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.seen_over
    }
}

/// The same for hosts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepView {
    /// `waiting`, `running`, `retrying`, `completed`, `failed`, `stopped`, `skipped`.
    pub status: &'static str,
    /// Number of attempts.
    pub attempts: u32,
    /// The last one's task.
    pub task: Option<TaskInfo>,
}

/// Folds histories.
#[derive(Debug)]
pub struct Tracker {
    names: Vec<String>,
    by_label: HashMap<String, usize>,
    steps: Vec<StepState>,
    root: String,
    chains: HashMap<String, Chain>,
    nested: Vec<String>,
    over: bool,
    over_at: f64,
    /// Whether names are taken from the history, because the caller knows none.
    open: bool,
}

/// One execution.
#[derive(Debug, Default)]
struct Chain {
    last_id: i64,
    over: bool,
    /// Which step an event belongs to.
    owner: HashMap<i64, usize>,
    /// When the state was entered that an event belongs to.
    entered: HashMap<i64, f64>,
}

impl Tracker {
    /// A tracker of these steps. With none, it takes the steps as it meets them.
    #[must_use]
    pub fn new(names: &[String], root: &str) -> Self {
        Self {
            by_label: names.iter().enumerate().map(|(at, name)| (label(name), at)).collect(),
            steps: vec![StepState::default(); names.len()],
            names: names.to_vec(),
            root: root.to_owned(),
            chains: HashMap::from([(root.to_owned(), Chain::default())]),
            nested: Vec::new(),
            over: false,
            over_at: 0.0,
            open: names.is_empty(),
        }
    }

    /// State of a step.
    #[must_use]
    pub fn step(&self, step: usize) -> &StepState {
        &self.steps[step]
    }

    /// The same, to note what ECS says meanwhile.
    pub(super) fn task_mut(&mut self, step: usize) -> &mut TaskInfo {
        &mut self.steps[step].task
    }

    /// Whether the root execution is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Id of the last event that was seen of an execution.
    #[must_use]
    pub fn last_id(&self, execution: &str) -> i64 {
        self.chains.get(execution).map_or(0, |chain| chain.last_id)
    }

    /// Executions inside that were met since the last call.
    pub fn take_nested(&mut self) -> Vec<String> {
        std::mem::take(&mut self.nested)
    }

    /// Executions whose end was not seen, the root included.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.chains.iter().filter(|(_, chain)| !chain.over).map(|(arn, _)| arn.clone()).collect()
    }

    /// The same without the root.
    #[must_use]
    pub fn running_nested(&self) -> Vec<String> {
        self.running().into_iter().filter(|arn| *arn != self.root).collect()
    }

    /// Clusters and ARNs of tasks of which ECS did not say that they are over.
    #[must_use]
    pub fn unfinished_tasks(&self) -> Vec<(String, String)> {
        let unfinished = self.steps.iter().filter(|step| step.submitted && !step.seen_over);
        unfinished.filter_map(|step| Some((step.task.cluster.clone()?, step.task.arn.clone()?))).collect()
    }

    /// All steps for the host.
    #[must_use]
    pub fn views(&self) -> Vec<(String, StepView)> {
        let view = |step: &StepState| StepView {
            status: match step.status {
                Some(StepStatus::Completed) => "completed",
                Some(StepStatus::Failed) => "failed",
                Some(StepStatus::Stopped) => "stopped",
                Some(StepStatus::Skipped) => "skipped",
                None if step.attempts == 0 => "waiting",
                None if step.task.outcome.is_some() || step.refused.is_some() => "retrying",
                None => "running",
            },
            attempts: step.attempts,
            task: (step.attempts > 0).then(|| step.task.clone()),
        };
        self.names.iter().cloned().zip(self.steps.iter().map(view)).collect()
    }

    /// Takes the next event of an execution.
    pub fn apply(&mut self, execution: &str, event: &Event) -> Vec<Change> {
        let mut changes = Vec::new();
        let chain = self.chains.entry(execution.to_owned()).or_default();
        chain.last_id = event.id;
        let owner = chain.owner.get(&event.previous).copied();
        let entered = match event.kind {
            Kind::Entered { .. } => Some(event.at),
            _ => chain.entered.get(&event.previous).copied(),
        };
        if let Some(entered) = entered {
            chain.entered.insert(event.id, entered);
        }
        let mut belongs = owner;
        match &event.kind {
            Kind::Entered { state } => {
                belongs = None;
                let skipped = state.strip_suffix(": skipped").and_then(|label| self.by_label.get(label)).copied();
                if let Some(step) = skipped.filter(|&step| self.steps[step].attempts == 0) {
                    self.finish(step, StepStatus::Skipped, &mut changes);
                }
            }
            Kind::Scheduled { service, parameters } if service == "ecs" => {
                belongs = self.step_of(parameters);
                if let Some(step) = belongs {
                    self.launch(step, parameters, entered, event.at, &mut changes);
                }
            }
            Kind::Scheduled { .. } | Kind::Other => {}
            Kind::Submitted { output } => match owner {
                Some(step) => {
                    let task = get(output, "tasks").and_then(|tasks| tasks.get(0)).unwrap_or(&Value::Null);
                    let state = &mut self.steps[step];
                    state.submitted = true;
                    state.task.submitted_at_unix_seconds = Some(event.at);
                    state.task.learn(task);
                    changes.push(Change::Submitted { step });
                }
                None => {
                    if let Some(arn) = get(output, "executionArn").and_then(Value::as_str) {
                        self.chains.entry(arn.to_owned()).or_default();
                        self.nested.push(arn.to_owned());
                    }
                }
            },
            Kind::NotSubmitted { error, cause } => {
                if let Some(step) = owner {
                    let reason = [error.as_str(), cause].join(": ");
                    self.steps[step].refused = Some(reason.trim_end_matches(": ").to_owned());
                    self.steps[step].ended_at = event.at;
                }
            }
            Kind::Succeeded { output } => {
                if let Some(step) = owner {
                    self.end(step, output, true, event.at, "", &mut changes);
                    self.finish(step, StepStatus::Completed, &mut changes);
                }
            }
            Kind::Failed { error, cause } => {
                if let Some(step) = owner {
                    self.fail(step, error, cause, event.at, &mut changes);
                }
            }
            Kind::Exited => {
                belongs = None;
                if let Some(step) = owner {
                    self.give_up(step, event.at, &mut changes);
                }
            }
            Kind::Aborted => {
                if let Some(step) = owner {
                    self.abort(step, event.at, &mut changes);
                }
            }
            Kind::Redriven => {
                chain.over = false;
                if execution == self.root {
                    self.over = false;
                    changes.push(Change::Redriven);
                }
            }
            Kind::Over { status, cause, .. } => self.close(execution, status, cause, event.at, &mut changes),
        }
        if let (Some(step), Some(chain)) = (belongs, self.chains.get_mut(execution)) {
            chain.owner.insert(event.id, step);
        }
        changes
    }

    fn step_of(&mut self, parameters: &Value) -> Option<usize> {
        // The name of an execution has no colon.
        let (_, label) = get(parameters, "group")?.as_str()?.split_once(':')?;
        if let Some(&step) = self.by_label.get(label) {
            return Some(step);
        }
        if !self.open {
            return None;
        }
        self.by_label.insert(label.to_owned(), self.names.len());
        self.names.push(label.to_owned());
        self.steps.push(StepState::default());
        Some(self.names.len() - 1)
    }

    fn launch(&mut self, step: usize, parameters: &Value, entered: Option<f64>, at: f64, changes: &mut Vec<Change>) {
        let state = &mut self.steps[step];
        state.status = None;
        state.entered_at = entered;
        if let Some(reason) = state.refused.take() {
            changes.push(Change::TriedAgain { step, reason });
            return;
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let overrides = get(parameters, "overrides").and_then(|overrides| get(overrides, "containerOverrides"));
        state.task = TaskInfo {
            cluster: text(get(parameters, "cluster")),
            task_definition: text(get(parameters, "taskDefinition")),
            launch_type: text(get(parameters, "launchType")),
            container: overrides.and_then(|all| text(get(all.get(0)?, "name"))),
            state_entered_at_unix_seconds: entered,
            ..TaskInfo::default()
        };
        state.attempts += 1;
        state.launched_at = at;
        state.submitted = false;
        state.seen_over = false;
        changes.push(Change::Launched { step });
    }

    fn end(&mut self, step: usize, task: &Value, succeeded: bool, at: f64, error: &str, changes: &mut Vec<Change>) {
        let state = &mut self.steps[step];
        state.task.learn(task);
        state.task.stopped_at_unix_seconds.get_or_insert(at);
        state.task.outcome = Some(state.task.judge(task, succeeded));
        state.ended_at = at;
        state.seen_over = true;
        changes.push(Change::Ended { step, error: error.to_owned() });
    }

    fn fail(&mut self, step: usize, error: &str, cause: &str, at: f64, changes: &mut Vec<Change>) {
        let task: Value = serde_json::from_str(cause).unwrap_or_default();
        if get(&task, "taskArn").is_some() || get(&task, "containers").is_some() {
            return self.end(step, &task, false, at, error, changes);
        }
        let outcome = judge_error(error, cause, self.steps[step].submitted);
        if !self.steps[step].submitted && !matches!(outcome, Outcome::TimedOut) {
            // ECS did not take it. Whether that is the end, what follows will tell.
            let reason = [error, cause].join(": ").trim_end_matches(": ").to_owned();
            self.steps[step].refused = Some(reason);
            self.steps[step].ended_at = at;
            return;
        }
        self.end_with(step, outcome, at, error, changes);
    }

    fn end_with(&mut self, step: usize, outcome: Outcome, at: f64, error: &str, changes: &mut Vec<Change>) {
        let state = &mut self.steps[step];
        if let Outcome::Lost { reason } | Outcome::LaunchFailed { reason } = &outcome {
            state.task.stopped_reason.get_or_insert_with(|| reason.clone());
        }
        state.task.outcome = Some(outcome);
        state.task.stopped_at_unix_seconds.get_or_insert(at);
        state.ended_at = at;
        changes.push(Change::Ended { step, error: error.to_owned() });
    }

    /// The state is left, or its execution is over: no attempt follows.
    fn give_up(&mut self, step: usize, at: f64, changes: &mut Vec<Change>) {
        let state = &mut self.steps[step];
        if state.status.is_some() || state.attempts == 0 {
            return;
        }
        if let Some(reason) = state.refused.take() {
            self.end_with(step, Outcome::LaunchFailed { reason }, at, "", changes);
        }
        self.finish(step, StepStatus::Failed, changes);
    }

    fn abort(&mut self, step: usize, at: f64, changes: &mut Vec<Change>) {
        if self.steps[step].status.is_some() || self.steps[step].attempts == 0 {
            return;
        }
        if self.steps[step].task.outcome.is_some() {
            // It failed and was waiting for its next attempt.
            return self.finish(step, StepStatus::Failed, changes);
        }
        self.end_with(step, Outcome::Stopped, at, "", changes);
        self.finish(step, StepStatus::Stopped, changes);
    }

    fn close(&mut self, execution: &str, status: &'static str, cause: &str, at: f64, changes: &mut Vec<Change>) {
        let mut steps: Vec<usize> = Vec::new();
        if let Some(chain) = self.chains.get_mut(execution) {
            chain.over = true;
            steps = chain.owner.values().copied().collect();
            steps.sort_unstable();
            steps.dedup();
        }
        for step in steps {
            let state = &self.steps[step];
            if state.task.outcome.is_some() || state.refused.is_some() {
                self.give_up(step, at, changes);
            } else {
                self.abort(step, at, changes);
            }
        }
        if execution == self.root {
            self.over = true;
            self.over_at = at;
            changes.push(Change::Over { status, cause: cause.to_owned() });
        }
    }

    /// The root execution is over and every history inside it was read: what has no final status gets one.
    pub fn settle(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for step in 0..self.steps.len() {
            if self.steps[step].attempts == 0 && self.steps[step].status.is_none() {
                self.finish(step, StepStatus::Skipped, &mut changes);
            } else {
                self.abort(step, self.over_at, &mut changes);
            }
        }
        changes
    }

    /// The history of an execution inside cannot be read: it is taken to be over.
    pub fn forget(&mut self, execution: &str) {
        if let Some(chain) = self.chains.get_mut(execution) {
            chain.over = true;
        }
    }

    fn finish(&mut self, step: usize, status: StepStatus, changes: &mut Vec<Change>) {
        if self.steps[step].status.replace(status).is_none() {
            changes.push(Change::Finished { step });
        }
    }

    /// Final statuses by name, in the order of the plan.
    #[must_use]
    pub fn statuses(&self) -> Vec<(String, StepStatus)> {
        let status = |state: &StepState| state.status.unwrap_or(StepStatus::Stopped);
        self.names.iter().cloned().zip(self.steps.iter().map(status)).collect()
    }
}
