//! A region, credentials and one client per service. Makes no call by itself.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sts::config::IdentityCache;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::credentials::{Keys, Pushed};
use super::error::AwsError;
use super::pace::{Pace, backoff};
use super::tasks::Families;

/// Where and as whom to call.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionOptions {
    /// Region; none takes that of the environment or the profile.
    pub region: Option<String>,
    /// Profile of the shared files.
    pub profile: Option<String>,
    /// Credentials; none takes the default chain.
    pub credentials: Option<Keys>,
}

/// Who the credentials belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Twelve digits.
    pub account: String,
    /// ARN of the user or the assumed role.
    pub arn: String,
    /// Its unique id.
    pub user_id: String,
    /// Region of the session.
    pub region: String,
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub partition: String,
}

/// Calls AWS. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: SdkConfig,
    region: String,
    pushed: Option<Pushed>,
    sfn: aws_sdk_sfn::Client,
    ecs: aws_sdk_ecs::Client,
    scheduler: aws_sdk_scheduler::Client,
    secrets: aws_sdk_secretsmanager::Client,
    ssm: aws_sdk_ssm::Client,
    sts: aws_sdk_sts::Client,
    /// By region: a template may log elsewhere.
    logs: Mutex<HashMap<String, aws_sdk_cloudwatchlogs::Client>>,
    pace: Pace,
    identity: OnceCell<Identity>,
    families: Families,
}

/// Tries of one request, the SDK's and then ours for codes that it does not know.
const SDK_ATTEMPTS: u32 = 8;
const OWN_ATTEMPTS: u32 = 10;
/// All of the SDK's tries of one request: two that nobody answered, or all eight that were throttled.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(150);

impl Session {
    /// Reads the environment and the shared files.
    ///
    /// # Errors
    /// [`AwsError`] with the operation `configure`: no region is known, or the keys are incomplete.
    pub async fn open(options: SessionOptions) -> Result<Self, AwsError> {
        let wrong = |code: &str, message: String| AwsError::new("configure", "", code, message);
        let retries = RetryConfig::standard()
            .with_max_attempts(SDK_ATTEMPTS)
            .with_initial_backoff(Duration::from_millis(200))
            .with_max_backoff(Duration::from_secs(20));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(10))
            .operation_attempt_timeout(Duration::from_secs(60))
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http_client().map_err(|message| wrong("BadCertificates", message))?)
            .retry_config(retries)
            .timeout_config(timeouts);
        if let Some(region) = options.region {
            loader = loader.region(Region::new(region));
        }
        if let Some(profile) = options.profile {
            loader = loader.profile_name(profile);
        }
        let pushed = options.credentials.map(|keys| checked(keys).map(Pushed::new)).transpose()?;
        if let Some(pushed) = &pushed {
            loader = loader.credentials_provider(pushed.clone()).identity_cache(IdentityCache::no_cache());
        }
        let config = loader.load().await;
        let Some(region) = config.region().map(ToString::to_string).filter(|region| !region.is_empty()) else {
            return Err(wrong("NoRegion", "no region is known; set `region`, or AWS_REGION".into()));
        };
        Ok(Self::of(config, region, pushed))
    }

    /// Makes the clients.
    pub(super) fn of(config: SdkConfig, region: String, pushed: Option<Pushed>) -> Self {
        Self(Arc::new(Inner {
            sfn: aws_sdk_sfn::Client::new(&config),
            ecs: aws_sdk_ecs::Client::new(&config),
            scheduler: aws_sdk_scheduler::Client::new(&config),
            secrets: aws_sdk_secretsmanager::Client::new(&config),
            ssm: aws_sdk_ssm::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
            logs: Mutex::default(),
            pace: Pace::default(),
            identity: OnceCell::new(),
            families: Families::default(),
            config,
            region,
            pushed,
        }))
    }

    /// Region of every call.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.0.region
    }

    /// A service as people call it, with where it is asked for.
    pub(super) fn place(&self, service: &str) -> String {
        match self.0.config.endpoint_url() {
            Some(endpoint) => format!("{service} at {endpoint}"),
            None => format!("{service} in {}", self.0.region),
        }
    }

    /// Seconds until pushed credentials end, negative afterwards.
    #[must_use]
    pub fn credentials_expire_in_seconds(&self) -> Option<f64> {
        self.0.pushed.as_ref()?.expire_in_seconds()
    }

    /// How often each operation was called.
    #[must_use]
    pub fn calls(&self) -> Vec<(&'static str, u64)> {
        self.0.pace.calls()
    }

    /// Takes new credentials for every request from now on.
    ///
    /// # Errors
    /// [`AwsError`] with the operation `configure`: the session takes them from the default chain, or these are incomplete.
    pub fn set_credentials(&self, keys: Keys) -> Result<(), AwsError> {
        let Some(pushed) = &self.0.pushed else {
            let message = "the session takes its credentials from the default chain, which renews its own";
            return Err(AwsError::new("configure", "", "DefaultChain", message));
        };
        pushed.set(checked(keys)?);
        Ok(())
    }

    /// Asks who the credentials belong to, once.
    ///
    /// # Errors
    /// [`AwsError`]: they are missing, wrong or expired.
    pub async fn identity(&self) -> Result<&Identity, AwsError> {
        let ask = async || {
            let answer = self.call("GetCallerIdentity", "", || self.0.sts.get_caller_identity().send()).await?;
            let arn = answer.arn.unwrap_or_default();
            let partition = arn.split(':').nth(1).filter(|partition| !partition.is_empty()).unwrap_or("aws").to_owned();
            Ok(Identity {
                account: answer.account.unwrap_or_default(),
                user_id: answer.user_id.unwrap_or_default(),
                region: self.0.region.clone(),
                partition,
                arn,
            })
        };
        self.0.identity.get_or_try_init(ask).await
    }

    /// Calls an operation: paced, retried, its error wrapped.
    pub(super) async fn call<T, E, R, F>(
        &self,
        operation: &'static str,
        subject: &str,
        mut send: impl FnMut() -> F,
    ) -> Result<T, AwsError>
    where
        F: Future<Output = Result<T, SdkError<E, R>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug,
        SdkError<E, R>: RequestId,
    {
        let mut attempt = 0;
        loop {
            self.0.pace.take(operation).await;
            let error = match send().await {
                Ok(answer) => return Ok(answer),
                Err(error) => AwsError::of_sdk(operation, subject, &error),
            };
            attempt += 1;
            if attempt >= OWN_ATTEMPTS || !error.is_race() {
                return Err(error);
            }
            tokio::time::sleep(backoff(attempt, Duration::from_millis(250), Duration::from_secs(15))).await;
        }
    }

    pub(super) fn sfn(&self) -> &aws_sdk_sfn::Client {
        &self.0.sfn
    }

    pub(super) fn ecs(&self) -> &aws_sdk_ecs::Client {
        &self.0.ecs
    }

    pub(super) fn scheduler(&self) -> &aws_sdk_scheduler::Client {
        &self.0.scheduler
    }

    pub(super) fn secrets_manager(&self) -> &aws_sdk_secretsmanager::Client {
        &self.0.secrets
    }

    pub(super) fn ssm(&self) -> &aws_sdk_ssm::Client {
        &self.0.ssm
    }

    /// Client of CloudWatch Logs; none names the session's region.
    pub(super) fn logs(&self, region: Option<&str>) -> aws_sdk_cloudwatchlogs::Client {
        let region = region.unwrap_or(&self.0.region);
        let mut clients = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let config = aws_sdk_cloudwatchlogs::config::Builder::from(&self.0.config);
            aws_sdk_cloudwatchlogs::Client::from_conf(config.region(Region::new(region.to_owned())).build())
        };
        clients.entry(region.to_owned()).or_insert_with(make).clone()
    }

    pub(super) fn families(&self) -> &Families {
        &self.0.families
    }
}

fn checked(keys: Keys) -> Result<Keys, AwsError> {
    if keys.access_key_id.is_empty() || keys.secret_access_key.is_empty() {
        let message = "credentials need access_key_id and secret_access_key";
        return Err(AwsError::new("configure", "", "IncompleteCredentials", message));
    }
    Ok(keys)
}

/// Rustls with ring; proxies from the environment, and the certificates of `AWS_CA_BUNDLE` beside the system's.
fn http_client() -> Result<aws_smithy_runtime_api::client::http::SharedHttpClient, String> {
    let mut roots = TrustStore::default();
    if let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        let pem = std::fs::read(&path)
            .map_err(|error| format!("AWS_CA_BUNDLE, {}, cannot be read: {error}", path.display()))?;
        roots = roots.with_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(roots).build().map_err(|error| error.to_string())?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .proxy_config(ProxyConfig::from_env())
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(context.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.build()
    }))
}
