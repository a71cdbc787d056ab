//! Executions: started once per name, described, stopped with all that they run.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_smithy_types::DateTime;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::error::AwsError;
use super::history::{Event, StepView, Tracker};
use super::raw::raw_call;
use super::session::Session;
use super::tasks::StartedBy;
use crate::asl::parse_cause;

/// An execution as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Execution {
    /// ARN.
    pub arn: String,
    /// Name.
    pub name: String,
    /// Its machine.
    pub state_machine_arn: String,
    /// `RUNNING`, `SUCCEEDED`, `FAILED`, `TIMED_OUT`, `ABORTED`, `PENDING_REDRIVE`.
    pub status: String,
    /// When it began.
    pub started_at_unix_seconds: f64,
    /// When it ended.
    pub stopped_at_unix_seconds: Option<f64>,
    /// Name of the error.
    pub error: Option<String>,
    /// Its cause.
    pub cause: Option<String>,
    /// Labels of the steps that failed, of a run that went on after failures.
    pub failed_steps: Vec<String>,
    /// Labels of the steps that were skipped.
    pub skipped_steps: Vec<String>,
    /// How often it was redriven.
    pub redrive_count: i32,
    /// Its input.
    pub input: Option<Value>,
    /// Its output.
    pub output: Option<Value>,
}

/// What a stop did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stopped {
    /// Whether the execution was running.
    pub was_running: bool,
    /// ARNs of tasks that were running and have ended.
    pub stopped_tasks: Vec<String>,
    /// ARNs of tasks that still run.
    pub left_running: Vec<String>,
    /// ARNs of those tasks that the execution's own had started.
    pub others: Vec<String>,
}

/// Step Functions is given so long to stop the tasks itself.
const ABORT_GRACE: Duration = Duration::from_secs(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Events of one answer. API reference, `GetExecutionHistory`: up to 1,000.
const EVENTS_OF_A_REQUEST: i32 = 1_000;
/// Events of an answer when only the newest are wanted.
const NEWEST_EVENTS: i32 = 100;

impl Session {
    /// Starts an execution, once: the same name and input give the same execution.
    ///
    /// # Errors
    /// [`AwsError`]: it was refused, or the name was used with another input.
    pub async fn start(&self, machine_arn: &str, name: &str, input: &Value) -> Result<String, AwsError> {
        let start = self.sfn().start_execution().state_machine_arn(machine_arn).name(name).input(input.to_string());
        let refused = match self.call("StartExecution", &format!("`{name}`"), || start.clone().send()).await {
            Ok(started) => return Ok(started.execution_arn),
            Err(error) => error,
        };
        // The answer to an earlier try may have been lost, and the execution be over by now.
        let may_have_started = refused.is("ExecutionAlreadyExists") || refused.is_transient();
        if may_have_started
            && let Some(arn) = execution_arn(machine_arn, name)
            && let Ok(found) = self.describe_execution(&arn).await
            && found.input.as_ref() == Some(input)
        {
            return Ok(arn);
        }
        Err(refused)
    }

    /// Describes an execution.
    ///
    /// # Errors
    /// [`AwsError`]: it does not exist or may not be read.
    pub async fn describe_execution(&self, arn: &str) -> Result<Execution, AwsError> {
        let describe = self.sfn().describe_execution().execution_arn(arn);
        let found = self.call("DescribeExecution", arn, || describe.clone().send()).await?;
        let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
        let (failed_steps, skipped_steps) = found.cause.as_deref().and_then(parse_cause).unwrap_or_default();
        Ok(Execution {
            arn: found.execution_arn,
            name: found.name.unwrap_or_default(),
            state_machine_arn: found.state_machine_arn,
            status: found.status.as_str().to_owned(),
            started_at_unix_seconds: found.start_date.as_secs_f64(),
            stopped_at_unix_seconds: found.stop_date.as_ref().map(DateTime::as_secs_f64),
            error: found.error,
            cause: found.cause,
            failed_steps,
            skipped_steps,
            redrive_count: found.redrive_count.unwrap_or_default(),
            input: json(found.input),
            output: json(found.output),
        })
    }

    /// Where the steps of an execution stand, from its history and those of the executions inside it.
    ///
    /// # Errors
    /// [`AwsError`]: it does not exist or may not be read.
    pub async fn execution_steps(&self, arn: &str, steps: &[String]) -> Result<Vec<(String, StepView)>, AwsError> {
        Ok(self.track(arn, steps).await?.views())
    }

    async fn track(&self, arn: &str, steps: &[String]) -> Result<Tracker, AwsError> {
        let mut tracker = Tracker::new(steps, arn);
        let mut open = vec![arn.to_owned()];
        while let Some(execution) = open.pop() {
            for event in self.new_events(&execution, 0).await? {
                tracker.apply(&execution, &event);
            }
            open.extend(tracker.take_nested());
        }
        if tracker.is_over() {
            tracker.settle();
        }
        Ok(tracker)
    }

    /// Events of an execution after the one with id `after`, oldest first.
    ///
    /// A history that is known in part is read from its end, so that a look costs one request however long it is.
    pub(super) async fn new_events(&self, arn: &str, after: i64) -> Result<Vec<Event>, AwsError> {
        let newest_first = after > 0;
        let mut events: Vec<Event> = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let builder = self
                .sfn()
                .get_execution_history()
                .execution_arn(arn)
                .include_execution_data(true)
                .reverse_order(newest_first)
                .max_results(if newest_first { NEWEST_EVENTS } else { EVENTS_OF_A_REQUEST })
                .set_next_token(token.take());
            let answer = raw_call!(self, "GetExecutionHistory", arn, builder.clone(), None)?;
            let page: Vec<Event> = answer["events"].as_array().into_iter().flatten().filter_map(Event::of).collect();
            let reached = newest_first && page.iter().any(|event| event.id <= after);
            events.extend(page.into_iter().filter(|event| event.id > after));
            token = answer["nextToken"].as_str().map(str::to_owned);
            if reached || token.is_none() {
                events.sort_by_key(|event| event.id);
                return Ok(events);
            }
        }
    }

    /// Stops an execution with those inside it, and every task that Step Functions leaves running. With `others` also the tasks that
    /// the execution's own have started.
    ///
    /// # Errors
    /// [`AwsError`]: it does not exist or may not be stopped.
    pub async fn stop(
        &self,
        arn: &str,
        cause: &str,
        grace: Duration,
        others: Option<&StartedBy>,
    ) -> Result<Stopped, AwsError> {
        let was_running = self.describe_execution(arn).await?.status == "RUNNING";
        if was_running {
            self.stop_execution(arn, cause).await?;
        }
        let tracker = self.track(arn, &[]).await?;
        for nested in tracker.running_nested() {
            self.stop_execution(&nested, cause).await?;
        }
        let mut tasks = tracker.unfinished_tasks();
        let mut stopped = Stopped { was_running, ..Stopped::default() };
        let begun = Instant::now();
        let mut asked: BTreeSet<String> = BTreeSet::new();
        let mut running: BTreeSet<String> = tasks.iter().map(|(_, task)| task.clone()).collect();
        // What may not be listed or stopped is told in the end: the rest is to stop all the same.
        let mut refused: Option<AwsError> = None;
        loop {
            if let Some(others) = others {
                // In every look: who starts them may start another one until it has ended.
                let listed = self.list_tasks(others, false).await.unwrap_or_else(|error| {
                    refused = Some(error);
                    Vec::new()
                });
                for task in listed {
                    // Nobody else stops them.
                    if asked.insert(task.clone()) {
                        if let Err(error) = self.stop_task(&others.cluster, &task, cause).await {
                            refused = Some(error);
                            continue;
                        }
                        running.insert(task.clone());
                        stopped.others.push(task.clone());
                        tasks.push((others.cluster.clone(), task));
                    }
                }
            }
            if running.is_empty() {
                break;
            }
            let clusters: BTreeSet<String> = tasks.iter().map(|(cluster, _)| cluster.clone()).collect();
            for cluster in &clusters {
                let of_cluster = tasks.iter().filter(|(its, task)| its == cluster && running.contains(task));
                let of_cluster: Vec<String> = of_cluster.map(|(_, task)| task.clone()).collect();
                let described = self.describe_tasks(cluster, &of_cluster).await?;
                for task in of_cluster {
                    let seen = described.iter().find(|seen| seen["taskArn"] == task.as_str());
                    // ECS has forgotten tasks that ended long ago.
                    if seen.is_none_or(|seen| seen["lastStatus"] == "STOPPED") {
                        running.remove(&task);
                        if seen.is_some() {
                            stopped.stopped_tasks.push(task);
                        }
                    } else if seen.is_some_and(|seen| seen["desiredStatus"] != "STOPPED")
                        && begun.elapsed() >= ABORT_GRACE.min(grace)
                        && asked.insert(task.clone())
                    {
                        self.stop_task(cluster, &task, cause).await?;
                    }
                }
            }
            if begun.elapsed() >= grace {
                break;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        stopped.left_running = running.into_iter().collect();
        match refused {
            Some(error) => Err(error),
            None => Ok(stopped),
        }
    }

    async fn stop_execution(&self, arn: &str, cause: &str) -> Result<(), AwsError> {
        let cause: String = cause.chars().take(crate::asl::limits::CAUSE_CHARACTERS).collect();
        let stop = self.sfn().stop_execution().execution_arn(arn).error("StepEngine.Stopped").cause(cause);
        self.call("StopExecution", arn, || stop.clone().send()).await.map(drop)
    }
}

/// ARN of an execution, from those of its machine (or of a version or alias of it) and its name.
fn execution_arn(machine_arn: &str, name: &str) -> Option<String> {
    let mut parts = machine_arn.split(':');
    let head: Vec<&str> = parts.by_ref().take(5).collect();
    let machine = parts.nth(1)?;
    Some(format!("{}:execution:{machine}:{name}", head.join(":")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_has_the_name_of_its_machine() {
        let machine = "arn:aws:states:eu-west-1:1:stateMachine:train-1";
        let execution = "arn:aws:states:eu-west-1:1:execution:train-1:run";
        assert_eq!(execution_arn(machine, "run").as_deref(), Some(execution));
        assert_eq!(execution_arn(&format!("{machine}:3"), "run").as_deref(), Some(execution));
        assert_eq!(execution_arn("train", "run"), None);
    }
}
