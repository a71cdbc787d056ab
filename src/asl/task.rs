//! A step as an `ecs:runTask.sync` state.

use std::time::Duration;

use super::options::{AslOptions, ExecutionField, RunValue, TaskSettings, Value};
use super::states::{Retrier, Template, quoted};
use super::{AslError, limits};
use crate::plan::{Retry, Step};

/// How a machine reads what each execution brings. A nested machine gets the root's through its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The root machine.
    Root,
    /// A machine that another one starts.
    Nested,
}

impl Scope {
    /// Path of the root execution's name.
    pub fn execution_name(self) -> &'static str {
        if self == Self::Root { "$$.Execution.Name" } else { "$$.Execution.Input.execution" }
    }

    /// Path of the root execution's ARN.
    pub fn execution_id(self) -> &'static str {
        if self == Self::Root { "$$.Execution.Id" } else { "$$.Execution.Input.execution_id" }
    }

    /// Path of how often the root execution was redriven.
    pub fn redrive_count(self) -> &'static str {
        if self == Self::Root { "$$.Execution.RedriveCount" } else { "$$.Execution.Input.redrive" }
    }

    /// Path of the root execution's input.
    pub fn input(self) -> &'static str {
        if self == Self::Root { "$$.Execution.Input" } else { "$$.Execution.Input.input" }
    }

    fn path(self, value: &RunValue) -> String {
        match value {
            RunValue::Input(field) => format!("{}.{field}", self.input()),
            RunValue::Execution(ExecutionField::Name) => self.execution_name().into(),
            RunValue::Execution(ExecutionField::Id) => self.execution_id().into(),
        }
    }

    fn template(self, value: &Value) -> Template {
        match value {
            Value::Literal(text) => Template::text(text),
            Value::Run(value) => Template::expression(self.path(value)),
        }
    }
}

/// Characters that a value from the execution is taken to have, for the check of the overrides' length. An execution's ARN has up
/// to 80 for its machine's name, 80 for its own and about 60 around them.
const RUN_VALUE_CHARACTERS: usize = 224;

/// A step's settings, complete.
#[derive(Debug)]
pub struct Ready {
    settings: TaskSettings,
    cluster: String,
    task_definition: String,
    container: String,
}

impl Ready {
    /// Fills a step's settings from the defaults and checks them.
    pub fn new(step: &Step, options: &AslOptions) -> Result<Self, AslError> {
        let own = options.steps.get(step.name.as_ref()).cloned().unwrap_or_default();
        let settings = own.or(&options.task);
        let missing = |field: &str, what: &str| {
            let message = format!("has no {what}; set task.{field} or steps.{}.{field}", step.name);
            AslError::option(Some(&step.name), format!("task.{field}"), message)
        };
        let ready = Self {
            cluster: settings.cluster.clone().ok_or_else(|| missing("cluster", "cluster"))?,
            task_definition: settings
                .task_definition
                .clone()
                .ok_or_else(|| missing("task_definition", "task definition"))?,
            container: settings.container.clone().ok_or_else(|| missing("container", "container name"))?,
            settings,
        };
        ready.check(step)?;
        Ok(ready)
    }

    fn check(&self, step: &Step) -> Result<(), AslError> {
        let values = self.settings.command.iter().flatten();
        let values = values.chain(self.settings.environment.iter().flatten().map(|(_, value)| value));
        for value in values.chain(self.settings.tags.iter().flatten().map(|(_, value)| value)) {
            let Value::Run(RunValue::Input(field)) = value else { continue };
            if field.is_empty() || !field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                let message = format!("takes `{field}` from the input; a field has letters, digits and `_`");
                return Err(AslError::option(Some(&step.name), "task.command", message));
            }
        }
        self.check_placement(step)?;
        let length = |value: &Value| match value {
            Value::Literal(text) => serde_json::to_string(text).map_or(0, |json| json.chars().count()),
            Value::Run(_) => RUN_VALUE_CHARACTERS,
        };
        let command: usize = self.settings.command.iter().flatten().map(|value| length(value) + 1).sum();
        let environment: usize =
            self.settings.environment.iter().flatten().map(|(name, value)| name.len() + length(value) + 22).sum();
        // The names of the fields around them.
        let actual = (command + environment + self.container.len() + 70) as u64;
        if actual > limits::OVERRIDES_CHARACTERS {
            return Err(AslError::Limit {
                step: Some(step.name.to_string()),
                what: "the overrides of an ECS task; shorten its command or move its environment into the task definition",
                unit: "characters",
                limit: limits::OVERRIDES_CHARACTERS,
                actual,
            });
        }
        Ok(())
    }

    /// What ECS would refuse at the first run.
    fn check_placement(&self, step: &Step) -> Result<(), AslError> {
        let refuse =
            |field: &str, message: String| Err(AslError::option(Some(&step.name), format!("task.{field}"), message));
        if let Some(network) = &self.settings.network {
            let (subnets, groups) = (network.subnets.len(), network.security_groups.len());
            if !(1..=limits::SUBNETS).contains(&subnets) {
                return refuse("network.subnets", format!("has {subnets} subnets; give 1 to {}", limits::SUBNETS));
            }
            if groups > limits::SECURITY_GROUPS {
                let message = format!("has {groups} security groups; give at most {}", limits::SECURITY_GROUPS);
                return refuse("network.security_groups", message);
            }
        }
        if let Some(providers) = self.settings.strategy() {
            if providers.iter().all(|provider| provider.weight == 0) {
                return refuse("capacity_providers", "has no capacity provider with a weight above 0".into());
            }
            if providers.iter().filter(|provider| provider.base > 0).count() > 1 {
                return refuse("capacity_providers", "has more than one capacity provider with a base; one may".into());
            }
        }
        Ok(())
    }

    /// Task definition as it was given.
    pub fn task_definition(&self) -> &str {
        &self.task_definition
    }

    /// The complete settings.
    pub fn settings(&self) -> &TaskSettings {
        &self.settings
    }

    /// Parameters of `RunTask`.
    pub fn parameters(&self, label: &str, scope: Scope) -> Template {
        let settings = &self.settings;
        let mut fields =
            vec![("Cluster", Template::text(&self.cluster)), ("TaskDefinition", Template::text(&self.task_definition))];
        if let Some(providers) = settings.strategy() {
            let providers = providers.iter().map(|provider| {
                Template::Object(vec![
                    ("CapacityProvider", Template::text(&provider.name)),
                    ("Weight", Template::Number(provider.weight.into())),
                    ("Base", Template::Number(provider.base.into())),
                ])
            });
            fields.push(("CapacityProviderStrategy", Template::List(providers.collect())));
        } else if let Some(launch_type) = settings.launch_type {
            fields.push(("LaunchType", Template::text(launch_type.as_str())));
        }
        if let Some(version) = &settings.platform_version {
            fields.push(("PlatformVersion", Template::text(version)));
        }
        if let Some(network) = &settings.network {
            let texts = |items: &[String]| Template::List(items.iter().map(Template::text).collect());
            let public = if network.assign_public_ip { "ENABLED" } else { "DISABLED" };
            let awsvpc = Template::Object(vec![
                ("Subnets", texts(&network.subnets)),
                ("SecurityGroups", texts(&network.security_groups)),
                ("AssignPublicIp", Template::text(public)),
            ]);
            fields.push(("NetworkConfiguration", Template::Object(vec![("AwsvpcConfiguration", awsvpc)])));
        }
        let group = format!("States.Format('{{}}:{{}}', {}, {})", scope.execution_name(), quoted(label));
        fields.push(("Group", Template::Expression(group)));
        if let Some(true) = settings.enable_execute_command {
            fields.push(("EnableExecuteCommand", Template::Bool(true)));
        }
        if let Some(tags) = settings.tags.as_ref().filter(|tags| !tags.is_empty()) {
            let pair = |(key, value): (&String, &Value)| {
                Template::Object(vec![("Key", Template::text(key)), ("Value", scope.template(value))])
            };
            fields.push(("Tags", Template::List(tags.iter().map(pair).collect())));
            fields.push(("PropagateTags", Template::text("TASK_DEFINITION")));
        }
        fields.push(("Overrides", self.overrides(scope)));
        Template::Object(fields)
    }

    fn overrides(&self, scope: Scope) -> Template {
        let mut fields = vec![("Name", Template::text(&self.container))];
        if let Some(command) = self.settings.command.as_ref().filter(|command| !command.is_empty()) {
            fields.push(("Command", command_template(command, scope)));
        }
        if let Some(environment) = self.settings.environment.as_ref().filter(|environment| !environment.is_empty()) {
            let pair = |(name, value): (&String, &Value)| {
                Template::Object(vec![("Name", Template::text(name)), ("Value", scope.template(value))])
            };
            fields.push(("Environment", Template::List(environment.iter().map(pair).collect())));
        }
        Template::Object(vec![("ContainerOverrides", Template::List(vec![Template::Object(fields)]))])
    }
}

fn command_template(command: &[Value], scope: Scope) -> Template {
    if command.iter().all(|value| matches!(value, Value::Literal(_))) {
        return Template::List(command.iter().map(|value| scope.template(value)).collect());
    }
    let arguments = command.iter().map(|value| match value {
        Value::Literal(text) => quoted(text),
        Value::Run(value) => scope.path(value),
    });
    Template::Expression(format!("States.Array({})", arguments.collect::<Vec<_>>().join(", ")))
}

/// Errors that another attempt cannot mend: they say what is wrong with the request or the rights.
const HOPELESS: [&str; 10] = [
    "ECS.AccessDeniedException",
    "ECS.BlockedException",
    "ECS.ClientException",
    "ECS.ClusterNotFoundException",
    "ECS.PlatformTaskDefinitionIncompatibilityException",
    "ECS.PlatformUnknownException",
    "ECS.UnsupportedFeatureException",
    "States.IntrinsicFailure",
    "States.ParameterPathFailure",
    "States.Permissions",
];

/// Errors of the infrastructure. Throttling of ECS comes under several of these names, lack of capacity as `AmazonECS.Unknown`.
const INFRASTRUCTURE: [&str; 7] = [
    "AmazonECS.Unknown",
    "ECS.AmazonECSException",
    "ECS.EcsException",
    "ECS.InvalidParameterException",
    "ECS.SdkClientException",
    "ECS.ServerException",
    "ECS.ThrottlingException",
];

/// The retriers of a step: never what is hopeless, infrastructure without counting, then the step's own.
pub fn retriers(retry: &Retry, infrastructure_retries: u64) -> Vec<Retrier> {
    let mut retriers = Vec::new();
    if retry.max_retries > 0 {
        retriers.push(Retrier {
            error_equals: &HOPELESS,
            interval_seconds: None,
            max_attempts: 0,
            backoff_rate: None,
            max_delay_seconds: None,
            jitter_strategy: None,
        });
    }
    retriers.push(infrastructure(&INFRASTRUCTURE, infrastructure_retries, 60));
    if retry.max_retries > 0 {
        let delay = whole_seconds(retry.delay.min(Retry::MAX_DELAY));
        let longest = Retry::MAX_DELAY.as_secs().min(limits::MAX_DELAY_SECONDS);
        let grows = retry.backoff > 1.0 && delay < longest;
        retriers.push(Retrier {
            error_equals: &["States.TaskFailed", "States.Timeout"],
            interval_seconds: Some(delay),
            max_attempts: u64::from(retry.max_retries).min(limits::SECONDS),
            // Where the delay is the cap already, nothing may grow any more.
            backoff_rate: Some(if grows { retry.backoff.min(Retry::MAX_DELAY.as_secs_f64()) } else { 1.0 }),
            max_delay_seconds: grows.then_some(longest),
            jitter_strategy: None,
        });
    }
    retriers
}

/// Full jitter: many tasks that were throttled together must not come back together.
pub fn infrastructure(error_equals: &'static [&'static str], max_attempts: u64, max_delay_seconds: u64) -> Retrier {
    Retrier {
        error_equals,
        interval_seconds: Some(2),
        max_attempts,
        backoff_rate: Some(2.0),
        max_delay_seconds: Some(max_delay_seconds),
        jitter_strategy: Some("FULL"),
    }
}

/// Seconds as the language takes them: whole, at least 1, never less than asked for.
pub fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).clamp(1, limits::SECONDS)
}
