//! Secrets for tasks, in Secrets Manager or the Parameter Store.

use std::collections::BTreeMap;

use aws_sdk_secretsmanager::types::Tag;
use aws_sdk_ssm::types::{ParameterType, Tag as ParameterTag};

use super::error::AwsError;
use super::session::Session;

/// Where secrets are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Secrets Manager.
    SecretsManager,
    /// Parameter Store of Systems Manager, as a `SecureString`.
    Ssm,
}

/// A secret to keep.
pub struct Secret {
    /// Its name.
    pub name: String,
    /// The secret itself.
    pub value: String,
    /// Tags for a new secret.
    pub tags: BTreeMap<String, String>,
    /// Key to encrypt it with; none takes the service's own.
    pub kms_key: Option<String>,
    /// Whether the value of one that exists is replaced.
    pub overwrite: bool,
}

impl Session {
    /// Keeps a secret. Returns an ARN that is fit for `valueFrom`.
    ///
    /// # Errors
    /// [`AwsError`]: it was refused. The value stands in no message.
    pub async fn put_secret(&self, backend: Backend, secret: &Secret) -> Result<String, AwsError> {
        match backend {
            Backend::SecretsManager => self.put_in_secrets_manager(secret).await,
            Backend::Ssm => self.put_parameter(secret).await,
        }
    }

    async fn put_in_secrets_manager(&self, secret: &Secret) -> Result<String, AwsError> {
        let subject = format!("secret `{}`", secret.name);
        let tags = secret.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let create = self
            .secrets_manager()
            .create_secret()
            .name(&secret.name)
            .secret_string(&secret.value)
            .set_kms_key_id(secret.kms_key.clone())
            .set_tags(Some(tags));
        match self.call("CreateSecret", &subject, || create.clone().send()).await {
            Ok(created) => return Ok(created.arn.unwrap_or_default()),
            Err(error) if error.is("ResourceExistsException") || is_scheduled_for_deletion(&error) => {}
            Err(error) => return Err(error),
        }
        let describe = self.secrets_manager().describe_secret().secret_id(&secret.name);
        let found = self.call("DescribeSecret", &subject, || describe.clone().send()).await?;
        if found.deleted_date.is_some() {
            let restore = self.secrets_manager().restore_secret().secret_id(&secret.name);
            self.call("RestoreSecret", &subject, || restore.clone().send()).await?;
        }
        if secret.overwrite || found.deleted_date.is_some() {
            let put = self.secrets_manager().put_secret_value().secret_id(&secret.name).secret_string(&secret.value);
            self.call("PutSecretValue", &subject, || put.clone().send()).await?;
        }
        Ok(found.arn.unwrap_or_default())
    }

    async fn put_parameter(&self, secret: &Secret) -> Result<String, AwsError> {
        let name = parameter_name(&secret.name);
        let subject = format!("parameter `{name}`");
        let tags = secret.tags.iter().map(|(key, value)| ParameterTag::builder().key(key).value(value).build());
        let tags: Vec<ParameterTag> = tags.filter_map(Result::ok).collect();
        let put = self
            .ssm()
            .put_parameter()
            .name(&name)
            .value(&secret.value)
            .r#type(ParameterType::SecureString)
            .set_key_id(secret.kms_key.clone());
        // Tags can only be given to a new parameter, and not together with `overwrite`.
        let create = put.clone().overwrite(false).set_tags((!tags.is_empty()).then_some(tags));
        match self.call("PutParameter", &subject, || create.clone().send()).await {
            Err(error) if error.is("ParameterAlreadyExists") => {
                if secret.overwrite {
                    self.call("PutParameter", &subject, || put.clone().overwrite(true).send()).await?;
                }
            }
            other => drop(other?),
        }
        let identity = self.identity().await?;
        Ok(format!("arn:{}:ssm:{}:{}:parameter{name}", identity.partition, identity.region, identity.account))
    }

    /// Deletes a secret at once. Returns false when there was none; Secrets Manager does not tell and is always true.
    ///
    /// # Errors
    /// [`AwsError`]: it may not be deleted.
    pub async fn delete_secret(&self, backend: Backend, name: &str) -> Result<bool, AwsError> {
        let deleted = match backend {
            Backend::SecretsManager => {
                let delete = self.secrets_manager().delete_secret().secret_id(name).force_delete_without_recovery(true);
                self.call("DeleteSecret", &format!("secret `{name}`"), || delete.clone().send()).await.map(drop)
            }
            Backend::Ssm => {
                let name = parameter_name(name);
                let delete = self.ssm().delete_parameter().name(&name);
                self.call("DeleteParameter", &format!("parameter `{name}`"), || delete.clone().send()).await.map(drop)
            }
        };
        match deleted {
            Ok(()) => Ok(true),
            Err(error) if error.is("ResourceNotFoundException") || error.is("ParameterNotFound") => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_scheduled_for_deletion(error: &AwsError) -> bool {
    error.is("InvalidRequestException") && error.message.contains("scheduled for deletion")
}

/// Name of a parameter, from its name with or without the leading `/`, or from its ARN.
fn parameter_name(name: &str) -> String {
    let name = match name.split_once(":parameter") {
        Some((_, rest)) if name.starts_with("arn:") => rest,
        _ => name,
    };
    format!("/{}", name.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_one_name() {
        for name in ["step-engine/a", "/step-engine/a", "arn:aws:ssm:eu-west-1:1:parameter/step-engine/a"] {
            assert_eq!(parameter_name(name), "/step-engine/a");
        }
    }
}
