//! State machines: deployed once per content, started once per name.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_sfn::types::{
    CloudWatchLogsLogGroup, LogDestination, LogLevel, LoggingConfiguration, StateMachineStatus, StateMachineType, Tag,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::AwsError;
use super::pace::backoff;
use super::session::Session;
use crate::asl::{content_hash, machine_name};

/// A state machine to deploy: one of `asl::Compiled::machines`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MachineSpec {
    /// Name; that of a nested machine is written into its parents.
    pub name: String,
    /// Amazon States Language.
    pub definition: String,
}

/// What belongs to a deployment beside the machines.
#[derive(Debug, Clone, Default)]
pub struct DeployOptions {
    /// Role that the machines take.
    pub role_arn: String,
    /// Tags of the machines.
    pub tags: BTreeMap<String, String>,
    /// Log group for errors of executions; none logs nothing.
    pub log_group_arn: Option<String>,
    /// Whether a version is published.
    pub publish: bool,
    /// How long to try again while IAM does not know the role yet.
    pub role_wait: Duration,
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deployed {
    /// The machine to start.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// ARNs of the machines that did not exist.
    pub created: Vec<String>,
    /// Requests that it took.
    pub calls: u32,
    /// The version that was published now.
    pub version_arn: Option<String>,
}

/// Tag: the root's name before its hash.
pub(super) const PIPELINE_TAG: &str = "step-engine:pipeline";
/// Tag: `root` or `nested`.
pub(super) const MACHINE_TAG: &str = "step-engine:machine";

const NAME_CHARACTERS: usize = 80;
const HASH_CHARACTERS: usize = 12;

/// A machine as it is.
struct Found {
    role_arn: String,
    deleting: bool,
}

impl Session {
    /// Creates the machines, those inside others first, unless the root exists: its name stands for all their content.
    ///
    /// # Errors
    /// [`AwsError`]: a definition, the role or the caller is refused.
    pub async fn deploy(&self, machines: &[MachineSpec], options: &DeployOptions) -> Result<Deployed, AwsError> {
        let Some((root, nested)) = machines.split_last() else {
            return Err(AwsError::new("CreateStateMachine", "", "NoMachines", "there is nothing to deploy"));
        };
        let mut deployed = Deployed {
            arn: String::new(),
            name: root_name(root, options),
            created: Vec::new(),
            calls: 1,
            version_arn: None,
        };
        let identity = self.identity().await?;
        let arn_of = |name: &str| {
            format!("arn:{}:states:{}:{}:stateMachine:{name}", identity.partition, identity.region, identity.account)
        };
        deployed.arn = arn_of(&deployed.name);
        if let Some(found) = self.find_machine(&deployed.arn).await?
            && !found.deleting
        {
            return Ok(deployed);
        }
        for machine in nested {
            let arn = arn_of(&machine.name);
            deployed.calls += 1;
            match self.find_machine(&arn).await? {
                Some(found) if !found.deleting => {
                    if found.role_arn != options.role_arn {
                        deployed.calls += 1;
                        let update =
                            self.sfn().update_state_machine().state_machine_arn(&arn).role_arn(&options.role_arn);
                        self.with_new_role("UpdateStateMachine", &machine.name, options, || update.clone().send())
                            .await?;
                    }
                }
                _ => {
                    deployed.calls += 1;
                    self.create(machine, &machine.name, &root.name, "nested", options).await?;
                    deployed.created.push(arn);
                }
            }
        }
        deployed.calls += 1;
        deployed.version_arn = self.create(root, &deployed.name, &root.name, "root", options).await?;
        deployed.created.push(deployed.arn.clone());
        Ok(deployed)
    }

    async fn find_machine(&self, arn: &str) -> Result<Option<Found>, AwsError> {
        let describe = self.sfn().describe_state_machine().state_machine_arn(arn);
        match self.call("DescribeStateMachine", arn, || describe.clone().send()).await {
            Ok(found) => Ok(Some(Found {
                deleting: found.status == Some(StateMachineStatus::Deleting),
                role_arn: found.role_arn,
            })),
            Err(error) if error.is("StateMachineDoesNotExist") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(
        &self,
        machine: &MachineSpec,
        name: &str,
        pipeline: &str,
        kind: &str,
        options: &DeployOptions,
    ) -> Result<Option<String>, AwsError> {
        let mut tags = options.tags.clone();
        tags.insert(PIPELINE_TAG.into(), pipeline.to_owned());
        tags.insert(MACHINE_TAG.into(), kind.to_owned());
        let tags = tags.into_iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let create = self
            .sfn()
            .create_state_machine()
            .name(name)
            .definition(&machine.definition)
            .role_arn(&options.role_arn)
            .r#type(StateMachineType::Standard)
            .set_tags(Some(tags))
            .set_logging_configuration(options.log_group_arn.as_deref().map(errors_to))
            .publish(options.publish);
        let created = self.with_new_role("CreateStateMachine", name, options, || create.clone().send()).await?;
        Ok(created.state_machine_version_arn)
    }

    /// Calls again while IAM has not spread a new role or policy, or a machine of this name is being deleted.
    async fn with_new_role<T, E, R, F>(
        &self,
        operation: &'static str,
        name: &str,
        options: &DeployOptions,
        mut send: impl FnMut() -> F,
    ) -> Result<T, AwsError>
    where
        F: Future<Output = Result<T, aws_sdk_sfn::error::SdkError<E, R>>>,
        E: aws_sdk_sfn::error::ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug,
        aws_sdk_sfn::error::SdkError<E, R>: aws_sdk_sfn::operation::RequestId,
    {
        let end = Instant::now() + options.role_wait;
        let mut attempt = 0;
        loop {
            let answer = self.call(operation, &format!("state machine `{name}`"), &mut send).await;
            match answer {
                Err(error) if may_spread(&error) && Instant::now() < end => {
                    attempt += 1;
                    tokio::time::sleep(backoff(attempt, Duration::from_millis(500), Duration::from_secs(8))).await;
                }
                other => return other,
            }
        }
    }
}

/// Whether a role that is right may answer so while IAM spreads it.
fn may_spread(error: &AwsError) -> bool {
    let texts = ["managed-rule", "authorized to assume", "Log Destination"];
    let role = error.is("AccessDeniedException") && texts.iter().any(|text| error.message.contains(text));
    role || error.is("StateMachineDeleting") || error.is("ConflictException")
}

fn errors_to(log_group_arn: &str) -> LoggingConfiguration {
    // The service wants the ARN of the group's streams.
    let arn = if log_group_arn.ends_with(":*") { log_group_arn.to_owned() } else { format!("{log_group_arn}:*") };
    let group = CloudWatchLogsLogGroup::builder().log_group_arn(arn).build();
    LoggingConfiguration::builder()
        .level(LogLevel::Error)
        .include_execution_data(false)
        .destinations(LogDestination::builder().cloud_watch_logs_log_group(group).build())
        .build()
}

/// The root's name: the pipeline's and a hash of all that would make it another machine.
fn root_name(root: &MachineSpec, options: &DeployOptions) -> String {
    let log = options.log_group_arn.as_deref().unwrap_or_default();
    let content = [&root.definition, &options.role_arn, log].join("\n");
    let hash = content_hash(content.as_bytes());
    format!("{}-{}", machine_name(&root.name, NAME_CHARACTERS - HASH_CHARACTERS - 1), &hash[..HASH_CHARACTERS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_named_by_all_its_content() {
        let root = MachineSpec { name: "train".into(), definition: "{}".into() };
        let options = DeployOptions { role_arn: "arn:r".into(), ..DeployOptions::default() };
        let name = root_name(&root, &options);
        assert!(name.starts_with("train-") && name.len() == 18, "{name}");
        assert_eq!(name, root_name(&root, &DeployOptions { publish: true, ..options.clone() }));
        let other_role = DeployOptions { role_arn: "arn:s".into(), ..options.clone() };
        let other_log = DeployOptions { log_group_arn: Some("arn:l".into()), ..options.clone() };
        let other_definition = MachineSpec { definition: "{ }".into(), ..root.clone() };
        let long = MachineSpec { name: "x".repeat(80), ..root.clone() };
        assert_ne!(name, root_name(&root, &other_role));
        assert_ne!(name, root_name(&root, &other_log));
        assert_ne!(name, root_name(&other_definition, &options));
        assert_eq!(root_name(&long, &options).len(), 80);
    }

    #[test]
    fn only_what_time_can_mend_is_tried_again() {
        let denied = |message: &str| AwsError::new("CreateStateMachine", "", "AccessDeniedException", message);
        assert!(may_spread(&denied("'arn:r' is not authorized to create managed-rule.")));
        assert!(may_spread(&denied(
            "Neither the global service principal states.amazonaws.com, nor the regional one is authorized to assume \
             the provided role."
        )));
        assert!(!may_spread(&denied("User: arn:u is not authorized to perform: states:CreateStateMachine")));
    }
}
