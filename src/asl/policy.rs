//! The IAM policy of the machine's role: what these machines call, nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::options::AslOptions;
use super::task::Ready;

/// Machines inside others that a policy names one by one: each takes some 200 characters in two statements.
const MACHINES_BY_NAME: usize = 16;

/// What is used of the service integrations.
#[derive(Debug, Clone, Copy)]
pub struct Uses {
    /// Token edges or the stop signal.
    pub signals: bool,
    /// Machines inside others.
    pub nested: bool,
}

/// The policy document for the role that the machines run as.
pub fn document(options: &AslOptions, ready: &[Ready], nested: &[String], uses: Uses) -> Value {
    let account = &options.account;
    let arn = |service: &str, rest: &str| {
        format!("arn:{}:{service}:{}:{}:{rest}", account.partition, account.region, account.id)
    };
    let definitions: BTreeSet<String> =
        ready.iter().map(|ready| task_definition_arn(ready.task_definition(), &arn)).collect();
    let mut statements = vec![
        json!({"Sid": "RunTasks", "Effect": "Allow", "Action": ["ecs:RunTask"], "Resource": definitions}),
        json!({"Sid": "WatchAndStopTasks", "Effect": "Allow", "Action": ["ecs:StopTask", "ecs:DescribeTasks"], "Resource": ["*"]}),
    ];
    let mut rules = vec![arn("events", "rule/StepFunctionsGetEventsForECSTaskRule")];
    if ready.iter().any(|ready| ready.settings().tags.as_ref().is_some_and(|tags| !tags.is_empty())) {
        statements.push(json!({"Sid": "TagTasks", "Effect": "Allow", "Action": ["ecs:TagResource"], "Resource": [arn("ecs", "task/*")]}));
    }
    if !options.pass_roles.is_empty() {
        statements.push(json!({
            "Sid": "PassTaskRoles", "Effect": "Allow", "Action": ["iam:PassRole"], "Resource": options.pass_roles,
            "Condition": {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
        }));
    }
    if let (true, Some(store)) = (uses.signals, &options.signals) {
        let bucket = format!("arn:{}:s3:::{}", account.partition, store.bucket);
        let keys = if store.prefix.is_empty() { "*".to_owned() } else { format!("{}/*", store.prefix) };
        statements.push(json!({
            "Sid": "ExchangeSignals", "Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"],
            "Resource": [format!("{bucket}/{keys}")]
        }));
        // Without it a missing object answers "access denied" instead of "no such key".
        statements.push(json!({
            "Sid": "SeeMissingSignals", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket],
            "Condition": {"StringLike": {"s3:prefix": [keys]}}
        }));
        statements.push(json!({"Sid": "ReleaseWaiters", "Effect": "Allow", "Action": ["states:SendTaskSuccess"], "Resource": ["*"]}));
    }
    if uses.nested {
        let patterns = name_patterns(nested);
        let machines: Vec<String> =
            patterns.iter().map(|name| arn("states", &format!("stateMachine:{name}"))).collect();
        let executions: Vec<String> =
            patterns.iter().map(|name| arn("states", &format!("execution:{name}:*"))).collect();
        statements.push(json!({"Sid": "StartMachines", "Effect": "Allow", "Action": ["states:StartExecution"], "Resource": machines}));
        statements.push(json!({
            "Sid": "WatchAndStopMachines", "Effect": "Allow",
            "Action": ["states:DescribeExecution", "states:StopExecution"], "Resource": executions
        }));
        rules.push(arn("events", "rule/StepFunctionsGetEventsForStepFunctionsExecutionRule"));
    }
    statements.push(json!({
        "Sid": "ManagedRules", "Effect": "Allow",
        "Action": ["events:PutTargets", "events:PutRule", "events:DescribeRule"], "Resource": rules
    }));
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// Names of machines, or one pattern for all where a role's policies, which hold 10,240 characters together, have no room for each.
fn name_patterns(names: &[String]) -> Vec<String> {
    let Some(first) = names.first().filter(|_| names.len() > MACHINES_BY_NAME) else { return names.to_vec() };
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let length = names.iter().map(|name| common(first, name)).min().unwrap_or(0);
    vec![format!("{}*", &first[..length])]
}

/// A definition without a revision means the latest one, so every revision must be allowed.
fn task_definition_arn(given: &str, arn: &impl Fn(&str, &str) -> String) -> String {
    let full =
        if given.starts_with("arn:") { given.to_owned() } else { arn("ecs", &format!("task-definition/{given}")) };
    let has_revision = full.rsplit_once("task-definition/").is_some_and(|(_, rest)| rest.contains(':'));
    if has_revision { full } else { format!("{full}:*") }
}
