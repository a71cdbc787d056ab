//! Task definitions and tasks of ECS.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::definition::{Derived, LogPlace, Overlay, derive};
use super::error::AwsError;
use super::pace::random_name;
use super::raw::raw_call;
use super::session::Session;
use crate::plan::PlanError;

/// What a session knows of task definitions. They never change, so nothing is read twice.
#[derive(Debug, Default)]
pub(super) struct Families {
    described: std::sync::Mutex<HashMap<String, Arc<Value>>>,
    /// Registrations of one family at the same moment are refused by ECS, so each waits here for the one before.
    registered: tokio::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<String>>>>>,
}

impl Families {
    /// A definition is gone.
    pub(super) async fn forget(&self, arn: &str) {
        let families: Vec<_> = self.registered.lock().await.values().cloned().collect();
        for family in families {
            let mut known = family.lock().await;
            if known.as_deref() == Some(arn) {
                *known = None;
            }
        }
    }
}

/// A definition that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ensured {
    /// ARN with revision.
    pub arn: String,
    /// Family, which names its content.
    pub family: String,
    /// Whether it was registered now.
    pub created: bool,
    /// The container that runs the step.
    pub container_name: String,
    /// Where that logs to in CloudWatch.
    pub log: Option<LogPlace>,
    /// Network mode.
    pub network_mode: String,
}

/// Tasks outside any execution that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartedBy {
    /// Name or ARN of their cluster.
    pub cluster: String,
    /// What they were started with as `startedBy`: at most 128 letters, digits, `-`, `/` and `_`.
    pub name: String,
}

/// Why there is no definition to use.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// The overlay does not fit the template.
    #[error(transparent)]
    Overlay(#[from] PlanError),
    /// AWS refused.
    #[error(transparent)]
    Aws(#[from] AwsError),
}

/// At most so many tasks are described by one request. ECS API reference, `DescribeTasks`.
const TASKS_OF_A_REQUEST: usize = 100;

impl Session {
    /// Reads a task definition: the answer of `DescribeTaskDefinition` in the API's spelling.
    ///
    /// # Errors
    /// [`AwsError`]: it does not exist or may not be read.
    pub async fn describe_task_definition(&self, name: &str) -> Result<Arc<Value>, AwsError> {
        let known = || self.families().described.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(described) = known().get(name) {
            return Ok(Arc::clone(described));
        }
        let described = Arc::new(self.read_task_definition(name).await?);
        known().insert(name.to_owned(), Arc::clone(&described));
        Ok(described)
    }

    async fn read_task_definition(&self, name: &str) -> Result<Value, AwsError> {
        let subject = format!("task definition `{name}`");
        let tags = aws_sdk_ecs::types::TaskDefinitionField::Tags;
        let builder = self.ecs().describe_task_definition().task_definition(name).include(tags);
        raw_call!(self, "DescribeTaskDefinition", &subject, builder.clone(), None)
    }

    /// Registers what a template becomes with an overlay, unless that exists.
    ///
    /// # Errors
    /// [`EnsureError`]: the overlay does not fit, the template does not exist, the registration was refused.
    pub async fn ensure_task_definition(&self, template: &str, overlay: &Overlay) -> Result<Ensured, EnsureError> {
        let described = self.describe_task_definition(template).await?;
        let derived = derive(&described, overlay)?;
        let family = {
            let mut families = self.families().registered.lock().await;
            Arc::clone(families.entry(derived.family.clone()).or_default())
        };
        let mut arn = family.lock().await;
        if let Some(arn) = &*arn {
            return Ok(ensured(derived, arn.clone(), false));
        }
        let (found, created) = match self.read_task_definition(&derived.family).await {
            Ok(described) if described["taskDefinition"]["status"] == "ACTIVE" => (arn_of(&described), false),
            // Deregistered: no execution could use it.
            Ok(_) => (self.register(&derived).await?, true),
            // ECS has no code of its own for a family that does not exist.
            Err(error) if error.is("ClientException") => (self.register(&derived).await?, true),
            Err(error) => return Err(error.into()),
        };
        let found = self.first_of_equals(found).await;
        *arn = Some(found.clone());
        Ok(ensured(derived, found, created))
    }

    async fn register(&self, derived: &Derived) -> Result<String, AwsError> {
        let subject = format!("task definition `{}`", derived.family);
        let builder = self.ecs().register_task_definition();
        let answer = raw_call!(self, "RegisterTaskDefinition", &subject, builder.clone(), Some(&derived.request))?;
        Ok(arn_of(&answer))
    }

    /// Clients that register the same at the same time make several revisions of a family, whose content is equal. All take
    /// the first one, as a machine names its revisions and equal pipelines have one machine.
    async fn first_of_equals(&self, found: String) -> String {
        let mut first = found;
        while let Some(before) = revision_before(&first) {
            match self.read_task_definition(&before).await {
                Ok(described) if described["taskDefinition"]["status"] == "ACTIVE" => first = before,
                // Deregistered, or not to be seen: what was found serves as well.
                _ => break,
            }
        }
        first
    }

    /// Starts a single task. Request and answer are in the API's spelling.
    ///
    /// # Errors
    /// [`AwsError`]: it was refused, or there is no capacity for it.
    pub async fn run_task(&self, request: &Value) -> Result<Value, AwsError> {
        let subject = format!("task definition `{}`", request["taskDefinition"].as_str().unwrap_or_default());
        let mut request = request.clone();
        if request["clientToken"].is_null() {
            // The same for every try of this call, so that a lost answer starts nothing twice.
            request["clientToken"] = random_name().into();
        }
        let mut answer = raw_call!(self, "RunTask", &subject, self.ecs().run_task(), Some(&request))?;
        match answer["tasks"].as_array_mut().and_then(Vec::pop) {
            Some(task) => Ok(task),
            None => {
                let failure = &answer["failures"][0];
                let text = |field: &str| failure[field].as_str().unwrap_or_default();
                let message = format!("ECS could not place the task: {} {}", text("reason"), text("detail"));
                Err(AwsError::new("RunTask", &subject, "Failure", message.trim_end()))
            }
        }
    }

    /// Describes tasks in the API's spelling; those that ECS has forgotten are left out.
    ///
    /// # Errors
    /// [`AwsError`]: they may not be read.
    pub async fn describe_tasks(&self, cluster: &str, tasks: &[String]) -> Result<Vec<Value>, AwsError> {
        let subject = format!("cluster `{cluster}`");
        let mut found = Vec::new();
        for some in tasks.chunks(TASKS_OF_A_REQUEST) {
            let builder = self.ecs().describe_tasks().cluster(cluster).set_tasks(Some(some.to_vec()));
            let mut answer = raw_call!(self, "DescribeTasks", &subject, builder.clone(), None)?;
            if let Some(tasks) = answer["tasks"].as_array_mut() {
                found.append(tasks);
            }
        }
        Ok(found)
    }

    /// ARNs of the tasks of a cluster that somebody's name was given to when they were started (`startedBy`), and that are to run,
    /// or are not any longer. ECS forgets the latter about an hour after their end.
    ///
    /// # Errors
    /// [`AwsError`]: they may not be listed.
    pub async fn list_tasks(&self, started: &StartedBy, stopped: bool) -> Result<Vec<String>, AwsError> {
        use aws_sdk_ecs::types::DesiredStatus;

        let subject = format!("cluster `{}`", started.cluster);
        // Those that are to run are what ECS lists unless it is told otherwise; with `startedBy` it wants no other filter.
        let status = stopped.then_some(DesiredStatus::Stopped);
        let list = self.ecs().list_tasks().cluster(&started.cluster).started_by(&started.name);
        let list = list.set_desired_status(status);
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = list.clone().set_next_token(token.take());
            let answer = self.call("ListTasks", &subject, || page.clone().send()).await?;
            found.extend(answer.task_arns.unwrap_or_default());
            token = answer.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Asks a task to end.
    ///
    /// # Errors
    /// [`AwsError`]: it may not be stopped.
    pub async fn stop_task(&self, cluster: &str, task: &str, reason: &str) -> Result<(), AwsError> {
        let reason: String = reason.chars().take(255).collect();
        let builder =
            self.ecs().stop_task().cluster(cluster).task(task).set_reason((!reason.is_empty()).then_some(reason));
        self.call("StopTask", task, || builder.clone().send()).await.map(drop)
    }
}

fn revision_before(arn: &str) -> Option<String> {
    let (family, revision) = arn.rsplit_once(':')?;
    let before = revision.parse::<u64>().ok()?.checked_sub(1).filter(|before| *before > 0)?;
    Some(format!("{family}:{before}"))
}

fn arn_of(answer: &Value) -> String {
    answer["taskDefinition"]["taskDefinitionArn"].as_str().unwrap_or_default().to_owned()
}

fn ensured(derived: Derived, arn: String, created: bool) -> Ensured {
    let Derived { family, container_name, log, network_mode, .. } = derived;
    Ensured { arn, family, created, container_name, log, network_mode }
}
