//! PURE. What ECS says of a task that ended, and what that means for the step.

use std::str::FromStr;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::Serialize;
use serde_json::Value;

use crate::event::Outcome;

/// What is known of a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TaskInfo {
    /// ARN.
    pub arn: Option<String>,
    /// Name or ARN of its cluster.
    pub cluster: Option<String>,
    /// Its definition.
    pub task_definition: Option<String>,
    /// The container that runs the step.
    pub container: Option<String>,
    /// When the state that runs it was entered.
    pub state_entered_at_unix_seconds: Option<f64>,
    /// When ECS took it.
    pub submitted_at_unix_seconds: Option<f64>,
    /// When its containers ran.
    pub started_at_unix_seconds: Option<f64>,
    /// When it was over.
    pub stopped_at_unix_seconds: Option<f64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Of the container that runs the step.
    pub exit_code: Option<i64>,
    /// ECS's words on the end of the task, or Step Functions' when there was none.
    pub stopped_reason: Option<String>,
    /// `EssentialContainerExited`, `TaskFailedToStart`, `UserInitiated`, …
    pub stop_code: Option<String>,
    /// CPU units of the task.
    pub cpu: Option<String>,
    /// Memory of the task in MiB.
    pub memory: Option<String>,
    /// `FARGATE`, `EC2`, `EXTERNAL`.
    pub launch_type: Option<String>,
    /// Capacity provider.
    pub capacity_provider: Option<String>,
}

/// Reasons that say that the step never began.
const NEVER_BEGAN: [&str; 7] = [
    "CannotPull",
    "CannotStartContainer",
    "CannotCreateContainer",
    "ResourceInitializationError",
    "CannotInspectContainer",
    "TaskFailedToStart",
    "Timeout waiting for network interface",
];

impl TaskInfo {
    /// Takes over what a task says of itself: the answer of `DescribeTasks`, or its form in an execution's history.
    pub(super) fn learn(&mut self, task: &Value) {
        let set = |slot: &mut Option<String>, field: &str| {
            if let Some(text) = get(task, field).and_then(Value::as_str).filter(|text| !text.is_empty()) {
                *slot = Some(text.to_owned());
            }
        };
        set(&mut self.arn, "taskArn");
        set(&mut self.cluster, "clusterArn");
        set(&mut self.task_definition, "taskDefinitionArn");
        set(&mut self.stopped_reason, "stoppedReason");
        set(&mut self.stop_code, "stopCode");
        set(&mut self.cpu, "cpu");
        set(&mut self.memory, "memory");
        set(&mut self.launch_type, "launchType");
        set(&mut self.capacity_provider, "capacityProviderName");
        let set_time = |slot: &mut Option<f64>, field: &str| {
            if let Some(time) = get(task, field).and_then(time) {
                *slot = Some(time);
            }
        };
        set_time(&mut self.submitted_at_unix_seconds, "createdAt");
        set_time(&mut self.started_at_unix_seconds, "startedAt");
        set_time(&mut self.stopped_at_unix_seconds, "stoppedAt");
        let containers = get(task, "containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if self.container.is_none()
            && let [only] = containers
        {
            self.container = get(only, "name").and_then(Value::as_str).map(str::to_owned);
        }
        if let Some(container) = self.own(containers) {
            self.exit_code = get(container, "exitCode").and_then(Value::as_i64).or(self.exit_code);
        }
    }

    /// How a task ended that is over; `succeeded` is what Step Functions makes of it.
    pub(super) fn judge(&self, task: &Value, succeeded: bool) -> Outcome {
        let containers = get(task, "containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let reason_of =
            |container: &Value| get(container, "reason").and_then(Value::as_str).unwrap_or_default().to_owned();
        let own_reason = self.own(containers).map(reason_of).unwrap_or_default();
        let stopped_reason = self.stopped_reason.clone().unwrap_or_default();
        let stop_code = self.stop_code.as_deref().unwrap_or_default();
        if succeeded {
            return Outcome::Completed;
        }
        if own_reason.contains("OutOfMemory") || stopped_reason.contains("OutOfMemory") {
            return Outcome::OutOfMemory;
        }
        let never_began = |text: &str| NEVER_BEGAN.iter().any(|start| text.contains(start));
        if stop_code == "TaskFailedToStart"
            || (self.exit_code.is_none() && (never_began(&stopped_reason) || never_began(&own_reason)))
        {
            return Outcome::LaunchFailed { reason: first_of([stopped_reason, own_reason], "the task did not start") };
        }
        match stop_code {
            "SpotInterruption" | "TerminationNotice" | "ServiceSchedulerInitiated" => {
                return Outcome::Lost { reason: first_of([stopped_reason], "AWS took the machine back") };
            }
            "UserInitiated" => {
                let why = first_of([stopped_reason], "no reason given");
                return Outcome::Lost { reason: format!("the task was stopped from outside: {why}") };
            }
            _ => {}
        }
        match self.exit_code {
            Some(code) if code != 0 => Outcome::Exited { code },
            Some(_) => {
                let failed = containers
                    .iter()
                    .find(|container| get(container, "exitCode").and_then(Value::as_i64).is_some_and(|code| code != 0));
                let name = failed.and_then(|container| get(container, "name")).and_then(Value::as_str);
                let reason = match name {
                    Some(name) => format!("the step ended well, but container `{name}` of its task failed"),
                    None => first_of([stopped_reason], "the step ended well, but its task failed"),
                };
                Outcome::Lost { reason }
            }
            None => {
                Outcome::Lost { reason: first_of([own_reason, stopped_reason], "ECS does not say why the task ended") }
            }
        }
    }

    fn own<'a>(&self, containers: &'a [Value]) -> Option<&'a Value> {
        let name = self.container.as_deref()?;
        containers.iter().find(|container| get(container, "name").and_then(Value::as_str) == Some(name))
    }
}

/// How an attempt ended that Step Functions reports with an error and a cause that is no task.
pub(super) fn judge_error(error: &str, cause: &str, was_submitted: bool) -> Outcome {
    match error {
        "States.Timeout" | "States.HeartbeatTimeout" => Outcome::TimedOut,
        _ => {
            let reason = [error, cause].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
            if was_submitted { Outcome::Lost { reason } } else { Outcome::LaunchFailed { reason } }
        }
    }
}

/// A field in the spelling of ECS, or in that of an execution's history, which begins with a capital.
pub(super) fn get<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get(field).or_else(|| {
        let mut name = field.to_owned();
        name.get_mut(..1)?.make_ascii_uppercase();
        object.get(&name)
    })
}

/// Seconds since 1970. ECS gives seconds with a fraction, histories give milliseconds, some emulators a text.
fn time(value: &Value) -> Option<f64> {
    /// No time in seconds is as large, and every time in milliseconds since 1973 is larger.
    const LARGEST_SECONDS: f64 = 1e11;
    match value {
        Value::Number(number) => number.as_f64().map(|time| if time > LARGEST_SECONDS { time / 1_000.0 } else { time }),
        Value::String(text) => {
            let parsed = DateTime::from_str(text, Format::DateTimeWithOffset).ok();
            parsed.map(|time| time.as_secs_f64()).or_else(|| f64::from_str(text).ok())
        }
        _ => None,
    }
}

fn first_of<const N: usize>(texts: [String; N], otherwise: &str) -> String {
    texts.into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| otherwise.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judged(task: &Value) -> Outcome {
        let mut info = TaskInfo { container: Some("main".into()), ..TaskInfo::default() };
        info.learn(task);
        info.judge(task, false)
    }

    fn task(main: Value, stop_code: &str, stopped_reason: &str) -> Value {
        json!({
            "Containers": [{"Name": "proxy", "ExitCode": 0}, main], "StopCode": stop_code, "StoppedReason": stopped_reason
        })
    }

    #[test]
    fn every_ending_has_its_outcome() {
        let exited = "Essential container in task exited";
        let code = |code: i64| json!({"Name": "main", "ExitCode": code});
        let lost = |reason: &str| Outcome::Lost { reason: reason.into() };
        for (task, outcome) in [
            (task(code(3), "EssentialContainerExited", exited), Outcome::Exited { code: 3 }),
            (
                task(
                    json!({"Name": "main", "ExitCode": 137, "Reason": "OutOfMemoryError: Container killed due to memory usage"}),
                    "EssentialContainerExited",
                    exited,
                ),
                Outcome::OutOfMemory,
            ),
            (
                task(json!({"Name": "main"}), "TaskFailedToStart", "CannotPullContainerError: no such image"),
                Outcome::LaunchFailed { reason: "CannotPullContainerError: no such image".into() },
            ),
            (
                task(json!({"Name": "main", "Reason": "CannotStartContainerError: x"}), "", ""),
                Outcome::LaunchFailed { reason: "CannotStartContainerError: x".into() },
            ),
            (
                task(code(137), "UserInitiated", "killed by hand"),
                lost("the task was stopped from outside: killed by hand"),
            ),
            (
                task(code(143), "SpotInterruption", "Your Spot Task was interrupted."),
                lost("Your Spot Task was interrupted."),
            ),
            (
                json!({"containers": [{"name": "main", "exitCode": 0}, {"name": "proxy", "exitCode": 9}]}),
                lost("the step ended well, but container `proxy` of its task failed"),
            ),
            (task(json!({"Name": "main"}), "", ""), lost("ECS does not say why the task ended")),
        ] {
            assert_eq!(judged(&task), outcome, "{task}");
        }
        assert_eq!(judge_error("States.Timeout", "", true), Outcome::TimedOut);
        let refused = judge_error("ECS.AccessDeniedException", "not authorized", false);
        assert_eq!(refused, Outcome::LaunchFailed { reason: "ECS.AccessDeniedException: not authorized".into() });
    }

    #[test]
    fn times_come_in_three_forms() {
        assert_eq!(time(&json!(1_700_000_000.25)), Some(1_700_000_000.25));
        assert_eq!(time(&json!(1_700_000_000_250_i64)), Some(1_700_000_000.25));
        assert_eq!(time(&json!("2023-11-14T22:13:20.250Z")), Some(1_700_000_000.25));
        assert_eq!(time(&json!("2023-11-14T23:13:20.250000+01:00")), Some(1_700_000_000.25));
        assert_eq!(time(&json!("soon")), None);
    }
}
