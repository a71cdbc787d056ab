//! A connection to an engine, and what the engine is.

use std::sync::Arc;
use std::time::Duration;

use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use http::HeaderValue;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::endpoint::{self, Address, Endpoint, Surroundings};
use super::error::{self, DockerError};
use super::gpu;
use crate::plan::Capacity;

/// The oldest API that will do: Docker 20.10, the first with `host-gateway`, and a platform when creating a container.
pub const MINIMUM_API: (usize, usize) = (1, 41);

/// Waiting time for the engine's answer, in seconds. Creating on a busy disk takes long.
const REQUEST_TIMEOUT_SECONDS: u64 = 120;

/// How long an engine may be away, for instance while it restarts, before what was asked of it counts as failed and its
/// containers as lost.
pub(super) const ENGINE_PATIENCE: Duration = Duration::from_secs(60);

/// The pauses between two requests to an engine that is away grow to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Choices that the surroundings do not make.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Address in the form of `DOCKER_HOST`; beats everything else.
    pub host: Option<String>,
    /// Ids of the GPUs that steps may use; none looks for them.
    pub gpu_ids: Option<Vec<String>>,
}

/// What an engine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    /// Its address.
    pub address: String,
    /// Where the address was found.
    pub origin: String,
    /// What tells it from other engines, also after a restart; empty where it does not say.
    pub id: String,
    /// Version of the server.
    pub server_version: String,
    /// API version spoken.
    pub api_version: String,
    /// `linux` or `windows`.
    pub os: String,
    /// Machine, such as `x86_64`.
    pub architecture: String,
    /// Number of CPUs.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Ids of the GPUs that steps may use.
    pub gpu_ids: Vec<String>,
    /// Whether the engine runs without root: root in a container is then the engine's user.
    pub rootless: bool,
    /// Whether the address says that the engine runs on this machine.
    pub local: bool,
    /// Whether it can limit memory and CPU.
    pub limits_supported: bool,
}

impl EngineInfo {
    /// What steps may take together.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        Capacity {
            cpu_millis: self.cpus.saturating_mul(1000),
            memory_bytes: self.memory_bytes,
            gpus: u32::try_from(self.gpu_ids.len()).unwrap_or(u32::MAX),
        }
    }
}

/// A connection to an engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) docker: Docker,
    info: Arc<EngineInfo>,
    around: Arc<Surroundings>,
}

impl Engine {
    /// Finds the engine as the `docker` command does, and asks what it is.
    ///
    /// # Errors
    /// [`DockerError`]: a choice of the user that cannot be used, no engine, no permission, an engine too old.
    pub async fn connect(options: ConnectOptions) -> Result<Self, DockerError> {
        Self::connect_from(Surroundings::of_process(), options).await
    }

    /// As [`Self::connect`] with surroundings of one's own.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_from(around: Surroundings, options: ConnectOptions) -> Result<Self, DockerError> {
        let mut tried = Vec::new();
        let mut denied = None;
        for endpoint in endpoint::candidates(&around, options.host.as_deref())? {
            match Self::open(&endpoint).await {
                Ok(docker) => return Self::describe(docker, endpoint, around, options.gpu_ids).await,
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Denied) => {
                    tried.push(format!("{} from {}: permission denied", endpoint.address, endpoint.origin));
                    denied.get_or_insert(endpoint.address.to_string());
                }
                Err(Failure::Away(message)) => {
                    tried.push(format!("{} from {}: {message}", endpoint.address, endpoint.origin));
                }
            }
        }
        match denied {
            Some(endpoint) => Err(DockerError::PermissionDenied { endpoint }),
            None => Err(DockerError::NoEngine { tried }),
        }
    }

    /// What the engine is.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.around
    }

    async fn open(endpoint: &Endpoint) -> Result<Docker, Failure> {
        let docker = client(&endpoint.address).map_err(|error| Failure::of(error, endpoint))?;
        let docker = docker.with_request_modifier(url_safe_registry_auth);
        docker.negotiate_version().await.map_err(|error| Failure::of(error, endpoint))
    }

    async fn describe(
        docker: Docker,
        endpoint: Endpoint,
        around: Surroundings,
        gpu_ids: Option<Vec<String>>,
    ) -> Result<Self, DockerError> {
        let version = docker.version().await.map_err(DockerError::of("ask the engine for its version"))?;
        let found = version.api_version.unwrap_or_default();
        if !is_at_least(&found, MINIMUM_API) {
            let needed = format!("{}.{}", MINIMUM_API.0, MINIMUM_API.1);
            return Err(DockerError::EngineTooOld { endpoint: endpoint.address.to_string(), found, needed });
        }
        let system = docker.info().await.map_err(DockerError::of("ask the engine what it is"))?;
        let local = endpoint.address.is_local();
        let gpu_ids = match gpu_ids {
            Some(ids) => ids,
            None => gpu::detect(&system, local).await,
        };
        let spoken = docker.client_version();
        let info = EngineInfo {
            address: endpoint.address.to_string(),
            origin: endpoint.origin,
            api_version: format!("{}.{}", spoken.major_version, spoken.minor_version),
            gpu_ids,
            local,
            ..plain_info(&system, version.version)
        };
        Ok(Self { docker, info: Arc::new(info), around: Arc::new(around) })
    }
}

/// Waiting for an engine that is away, in pauses that grow.
#[derive(Debug)]
pub(super) struct Outage {
    begun: Instant,
    patience: Duration,
    pause: Duration,
}

impl Outage {
    /// It begins now.
    pub(super) fn new() -> Self {
        Self::of(ENGINE_PATIENCE)
    }

    /// The same with a patience of one's own.
    pub(super) fn of(patience: Duration) -> Self {
        Self { begun: Instant::now(), patience, pause: Duration::from_millis(100) }
    }

    /// It begins again; the patience is what the earlier ones have left of it.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
    }

    /// The engine is back.
    pub(super) fn end(&mut self) {
        self.patience = self.patience.saturating_sub(self.begun.elapsed());
    }

    /// Whether it is longer than anybody waits.
    pub(super) fn is_too_long(&self) -> bool {
        self.begun.elapsed() >= self.patience
    }

    /// Waits until the engine may be asked again.
    ///
    /// Cancel safe.
    pub(super) async fn pause(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks the engine; one that is away is asked again for [`ENGINE_PATIENCE`].
pub(super) async fn patiently<T, F>(mut ask: impl FnMut() -> F) -> Result<T, DockerError>
where
    F: Future<Output = Result<T, DockerError>>,
{
    let mut outage = Outage::new();
    loop {
        match ask().await {
            Err(error) if error.is_engine_away() && !outage.is_too_long() => outage.pause().await,
            answer => return answer,
        }
    }
}

fn plain_info(system: &SystemInfo, version: Option<String>) -> EngineInfo {
    let count = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or_default();
    let rootless =
        system.security_options.iter().flatten().any(|option| option.split(',').any(|part| part == "name=rootless"));
    EngineInfo {
        id: system.id.clone().unwrap_or_default(),
        server_version: version.or_else(|| system.server_version.clone()).unwrap_or_default(),
        os: system.os_type.clone().unwrap_or_default(),
        architecture: system.architecture.clone().unwrap_or_default(),
        cpus: count(system.ncpu),
        memory_bytes: count(system.mem_total),
        rootless,
        limits_supported: system.memory_limit.unwrap_or(true) && system.cpu_cfs_quota.unwrap_or(true),
        ..EngineInfo::default()
    }
}

enum Failure {
    /// Not here; another place may do.
    Away(String),
    /// Here, but not for this user.
    Denied,
    /// No other place can do better.
    Fatal(DockerError),
}

impl Failure {
    fn of(error: bollard::errors::Error, endpoint: &Endpoint) -> Self {
        use std::io::ErrorKind;

        match error::io_kind(&error) {
            Some(ErrorKind::PermissionDenied) => Self::Denied,
            Some(ErrorKind::NotFound) => Self::Away("does not exist".to_owned()),
            Some(ErrorKind::ConnectionRefused) => Self::Away("connection refused".to_owned()),
            _ if matches!(error, bollard::errors::Error::SocketNotFoundError(_)) => {
                Self::Away("does not exist".to_owned())
            }
            _ if error::is_away(&error) => Self::Away(error::chain(&error)),
            _ => {
                let reason = match &error {
                    bollard::errors::Error::DockerResponseServerError { status_code, .. } => {
                        format!("it answers with HTTP status {status_code}")
                    }
                    other => error::chain(other),
                };
                let message = format!("{} is no Docker engine that can be used ({reason})", endpoint.address);
                Self::Fatal(DockerError::configuration(endpoint.origin.clone(), message))
            }
        }
    }
}

fn client(address: &Address) -> Result<Docker, bollard::errors::Error> {
    match address {
        #[cfg(unix)]
        Address::Unix(path) => {
            Docker::connect_with_unix(&path.to_string_lossy(), REQUEST_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
        }
        #[cfg(windows)]
        Address::Pipe(name) => Docker::connect_with_named_pipe(name, REQUEST_TIMEOUT_SECONDS, API_DEFAULT_VERSION),
        Address::Tcp(host) => {
            Docker::connect_with_http(&format!("tcp://{host}"), REQUEST_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
        }
        Address::Tls { host, certificates } => {
            // Without a choice, two linked crypto providers make rustls panic. A choice made before us is as good.
            drop(rustls::crypto::ring::default_provider().install_default());
            Docker::connect_with_ssl(
                &format!("tcp://{host}"),
                &certificates.join("key.pem"),
                &certificates.join("cert.pem"),
                &certificates.join("ca.pem"),
                REQUEST_TIMEOUT_SECONDS,
                API_DEFAULT_VERSION,
            )
        }
        #[cfg(not(windows))]
        Address::Pipe(_) => Err(bollard::errors::Error::UnsupportedURISchemeError { uri: address.to_string() }),
        #[cfg(not(unix))]
        Address::Unix(_) => Err(bollard::errors::Error::UnsupportedURISchemeError { uri: address.to_string() }),
    }
}

/// The engine reads `X-Registry-Auth` as URL-safe base64 and takes a header that it cannot read as no credentials; bollard
/// 0.21 writes the standard alphabet, which differs as soon as a password has a `>`, `?` or `~` in the wrong place.
fn url_safe_registry_auth(mut request: BollardRequest) -> BollardRequest {
    if let Some(header) = request.headers_mut().get_mut("X-Registry-Auth") {
        let fixed = header.to_str().ok().map(|text| text.replace('+', "-").replace('/', "_"));
        if let Some(mut fixed) = fixed.and_then(|text| HeaderValue::from_str(&text).ok()) {
            fixed.set_sensitive(true);
            *header = fixed;
        }
    }
    request
}

fn is_at_least(version: &str, minimum: (usize, usize)) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<usize>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= minimum,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_not_text() {
        assert!(
            is_at_least("1.41", MINIMUM_API) && is_at_least("1.100", MINIMUM_API) && is_at_least("2.0", MINIMUM_API)
        );
        assert!(!is_at_least("1.40", MINIMUM_API) && !is_at_least("1.9", MINIMUM_API) && !is_at_least("", MINIMUM_API));
    }

    #[test]
    fn rootless_is_read_from_the_security_options() {
        let with = |option: &str| {
            plain_info(&SystemInfo { security_options: Some(vec![option.to_owned()]), ..Default::default() }, None)
        };
        assert!(with("name=rootless").rootless);
        assert!(!with("name=seccomp,profile=default").rootless);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_stays_away_is_asked_for_a_minute() {
        let away = || async { Err::<(), _>(DockerError::of("ask")(bollard::errors::Error::RequestTimeoutError)) };
        let begin = Instant::now();
        assert!(patiently(away).await.is_err());
        let waited = begin.elapsed();
        assert!(waited >= ENGINE_PATIENCE && waited <= ENGINE_PATIENCE + LONGEST_PAUSE, "{waited:?}");
        // What it refuses is an answer.
        let begin = Instant::now();
        assert!(patiently(|| async { Err::<(), _>(DockerError::spec("a", "b")) }).await.is_err());
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_patience_is_shared_by_all_outages_and_not_spent_between_them() {
        let mut outage = Outage::new();
        sleep(Duration::from_secs(40)).await;
        assert!(!outage.is_too_long());
        outage.end();
        sleep(Duration::from_secs(600)).await;
        outage.begin();
        sleep(Duration::from_secs(19)).await;
        assert!(!outage.is_too_long());
        sleep(Duration::from_secs(1)).await;
        assert!(outage.is_too_long());
    }
}
