//! What the plan does not say: where the tasks run, what they are told, how the machine waits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::AslError;

/// Everything that a compilation needs beside the plan. Unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AslOptions {
    /// Name of the root machine; none takes the pipeline's. Nested machines add a hash of their content.
    pub name: Option<String>,
    /// How dependencies are kept that `Parallel` and `Next` cannot express.
    pub synchronization: Synchronization,
    /// `auto` takes a barrier when it costs less than this fraction of the critical path, over all barriers.
    pub auto_threshold: f64,
    /// Where tokens and the stop signal are exchanged.
    pub signals: Option<SignalStore>,
    /// A waiter looks again for its upstream after so many seconds, then after four times as many each time, should a signal have been lost.
    pub recheck_seconds: u64,
    /// The whole execution times out after so many seconds.
    pub timeout_seconds: Option<u64>,
    /// Settings of every task.
    pub task: TaskSettings,
    /// Settings of single steps by name; what is not set falls back to `task`.
    pub steps: BTreeMap<String, TaskSettings>,
    /// How often an infrastructure error is retried.
    pub infrastructure_retries: u64,
    /// Account in which nested machines live; their ARNs are written into their parents.
    pub account: Account,
    /// Roles that the tasks take; the policy document lets the machine pass them.
    pub pass_roles: Vec<String>,
    /// Limits of one machine. Smaller ones give more and smaller nested machines.
    pub limits: MachineLimits,
}

impl Default for AslOptions {
    fn default() -> Self {
        Self {
            name: None,
            synchronization: Synchronization::Exact,
            auto_threshold: 0.02,
            signals: None,
            recheck_seconds: 10,
            timeout_seconds: None,
            task: TaskSettings::default(),
            steps: BTreeMap::new(),
            infrastructure_retries: 8,
            account: Account::default(),
            pass_roles: Vec::new(),
            limits: MachineLimits::default(),
        }
    }
}

/// How dependencies are kept that `Parallel` and `Next` cannot express.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Synchronization {
    /// Token edges: a step waits for its own upstreams and for nothing else.
    #[default]
    Exact,
    /// Waits that no dependency asks for; no token edges.
    Barrier,
    /// Barriers where they cost little, token edges elsewhere.
    Auto,
}

/// A place in S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalStore {
    /// Bucket.
    pub bucket: String,
    /// Prefix of every key, without slashes at its ends.
    #[serde(default = "default_prefix")]
    pub prefix: String,
}

fn default_prefix() -> String {
    "step-engine/signals".into()
}

/// An AWS account in a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Account {
    /// `aws`, `aws-cn` or `aws-us-gov`.
    pub partition: String,
    /// Region.
    pub region: String,
    /// Twelve digits.
    pub id: String,
}

impl Default for Account {
    fn default() -> Self {
        Self { partition: "aws".into(), region: "us-east-1".into(), id: "000000000000".into() }
    }
}

/// Limits of one machine, at most the service's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineLimits {
    /// Bytes of the definition.
    pub definition_bytes: u64,
    /// Events of an execution without a retry. The rest up to the service's limit is left to retries.
    pub events: u64,
    /// `Parallel` states inside each other.
    pub depth: u32,
    /// Branches of a `Parallel`.
    pub branches: usize,
}

impl Default for MachineLimits {
    fn default() -> Self {
        Self {
            definition_bytes: super::limits::DEFINITION_BYTES,
            events: super::limits::HISTORY_EVENTS * 4 / 5,
            depth: super::limits::PARALLEL_DEPTH,
            branches: super::limits::PARALLEL_BRANCHES,
        }
    }
}

/// How a step becomes an ECS task. Every field may be left out in a step's own settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// Name or ARN of the cluster.
    pub cluster: Option<String>,
    /// Family, `family:revision` or ARN of the task definition.
    pub task_definition: Option<String>,
    /// Launch type; left out when a capacity provider strategy is given.
    pub launch_type: Option<LaunchType>,
    /// Capacity provider strategy; takes the place of the launch type.
    pub capacity_providers: Option<Vec<CapacityProvider>>,
    /// Fargate platform version.
    pub platform_version: Option<String>,
    /// Network of `awsvpc` tasks.
    pub network: Option<Network>,
    /// Name of the container that runs the step.
    pub container: Option<String>,
    /// Command of that container.
    pub command: Option<Vec<Value>>,
    /// The run's identity, and nothing else: it is echoed into the execution's history. No secret belongs here.
    pub environment: Option<BTreeMap<String, Value>>,
    /// Tags of the task.
    pub tags: Option<BTreeMap<String, Value>>,
    /// Lets people open a shell in the task.
    pub enable_execute_command: Option<bool>,
}

impl TaskSettings {
    /// These settings with the gaps filled from others.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let strategy_here = self.launch_type.is_some() && self.capacity_providers.is_none();
        Self {
            cluster: self.cluster.or_else(|| other.cluster.clone()),
            task_definition: self.task_definition.or_else(|| other.task_definition.clone()),
            // A step that names a launch type does not inherit the strategy that would override it.
            capacity_providers: match self.capacity_providers {
                None if strategy_here => None,
                own => own.or_else(|| other.capacity_providers.clone()),
            },
            launch_type: self.launch_type.or(other.launch_type),
            platform_version: self.platform_version.or_else(|| other.platform_version.clone()),
            network: self.network.or_else(|| other.network.clone()),
            container: self.container.or_else(|| other.container.clone()),
            command: self.command.or_else(|| other.command.clone()),
            environment: self.environment.or_else(|| other.environment.clone()),
            tags: self.tags.or_else(|| other.tags.clone()),
            enable_execute_command: self.enable_execute_command.or(other.enable_execute_command),
        }
    }

    /// Capacity provider strategy; none when it is empty.
    pub(super) fn strategy(&self) -> Option<&[CapacityProvider]> {
        self.capacity_providers.as_deref().filter(|providers| !providers.is_empty())
    }
}

/// A string that stands in the machine or comes from the execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// As it stands.
    Literal(String),
    /// From the execution.
    Run(RunValue),
}

/// A string that each execution brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunValue {
    /// A field of the execution's input, such as `snapshot_id`.
    Input(String),
    /// Name (`name`) or ARN (`id`) of the root execution.
    Execution(ExecutionField),
}

/// What an execution knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionField {
    /// Its name.
    Name,
    /// Its ARN.
    Id,
}

/// Launch type of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LaunchType {
    /// AWS's own hosts; no GPUs.
    Fargate,
    /// Container instances of the cluster.
    Ec2,
    /// Hosts of one's own.
    External,
}

impl LaunchType {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Fargate => "FARGATE",
            Self::Ec2 => "EC2",
            Self::External => "EXTERNAL",
        }
    }
}

/// One item of a capacity provider strategy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityProvider {
    /// Name, such as `FARGATE_SPOT`.
    pub name: String,
    /// Share of the tasks beyond `base`.
    #[serde(default)]
    pub weight: u32,
    /// Tasks that start here first.
    #[serde(default)]
    pub base: u32,
}

/// Network of an `awsvpc` task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Subnets, at most 16.
    pub subnets: Vec<String>,
    /// Security groups, at most 5.
    pub security_groups: Vec<String>,
    /// Whether the task gets a public address.
    pub assign_public_ip: bool,
}

impl AslOptions {
    /// Parses JSON.
    ///
    /// # Errors
    /// [`AslError::Option`], whose field is the path of what is wrong, such as `task.network.subnets`.
    pub fn from_json(json: &str) -> Result<Self, AslError> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            AslError::option(None, &path, format!("{path}: {}", error.inner()))
        })
    }

    pub(super) fn check(&self, names: &std::collections::HashSet<&str>) -> Result<(), AslError> {
        let refuse = |field: &str, message: String| Err(AslError::option(None, field, message));
        if let Some(unknown) = self.steps.keys().find(|name| !names.contains(name.as_str())) {
            return refuse("steps", format!("steps: there is no step `{unknown}`"));
        }
        if !(0.0..=1.0).contains(&self.auto_threshold) {
            return refuse(
                "auto_threshold",
                format!("auto_threshold must lie between 0 and 1, got {}", self.auto_threshold),
            );
        }
        // The next two are four and sixteen times as long.
        let longest = super::limits::SECONDS / 16;
        if !(1..=longest).contains(&self.recheck_seconds) {
            return refuse("recheck_seconds", format!("recheck_seconds must lie between 1 and {longest}"));
        }
        if self.timeout_seconds.is_some_and(|seconds| !(1..=super::limits::SECONDS).contains(&seconds)) {
            return refuse("timeout_seconds", "timeout_seconds must lie between 1 and 99999999".into());
        }
        if let Some(name) = &self.name {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.len() > super::limits::NAME_CHARACTERS || !name.chars().all(allowed) {
                return refuse(
                    "name",
                    format!("name must have 1 to 80 letters, digits, `-`, `_` or `.`, got `{name}`"),
                );
            }
        }
        let limits = self.limits;
        if limits.definition_bytes > super::limits::DEFINITION_BYTES || limits.events > super::limits::HISTORY_EVENTS {
            return refuse("limits", "limits must not exceed the service's own: 1048576 bytes, 25000 events".into());
        }
        if limits.depth < 2 || limits.branches < 2 {
            return refuse("limits", "limits.depth and limits.branches must be at least 2".into());
        }
        if let Some(store) = &self.signals {
            if store.bucket.is_empty() {
                return refuse("signals.bucket", "signals.bucket must not be empty".into());
            }
            // The prefix stands inside an intrinsic function, where braces and quotes mean something.
            let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.=".contains(c);
            if store.prefix.starts_with('/') || store.prefix.ends_with('/') || !store.prefix.chars().all(plain) {
                return refuse(
                    "signals.prefix",
                    "signals.prefix takes letters, digits and `/-_.=`, no `/` at its ends".into(),
                );
            }
        }
        Ok(())
    }
}
