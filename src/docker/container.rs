//! A container of ours: how it is described to the engine, created, attached, signalled, inspected and removed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::ready;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::container::AttachContainerResults;
use bollard::models::{
    ContainerCreateBody, ContainerState, ContainerStateStatusEnum, ContainerUpdateBody, DeviceRequest, Mount,
    MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, EventsOptionsBuilder, KillContainerOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::engine::{ENGINE_PATIENCE, Engine, Outage};
use super::error::DockerError;
use super::limits::{Limits, Shares};
use super::run_args::{RunArgs, Volume};
use super::spec::{ContainerSpec, KeepContainers};
use crate::runner::CLEANUP_LIMIT;

/// Labels by which containers are found again, also by other processes.
pub mod label {
    /// What the names of all of them begin with. Nobody else's label has it.
    pub const PREFIX: &str = "step-engine.";
    /// Id of the run.
    pub const RUN: &str = "step-engine.run";
    /// Name of the step.
    pub const STEP: &str = "step-engine.step";
    /// Attempt number, from 1.
    pub const ATTEMPT: &str = "step-engine.attempt";
    /// Number of the warm worker in its run, from 1, in place of step and attempt: it serves several.
    pub const WORKER: &str = "step-engine.worker";
    /// On every warm worker, whether it is for one attempt or for several.
    pub const WARM: &str = "step-engine.warm";
    /// On containers that may stay: `failed` or `always`.
    pub const KEEP: &str = "step-engine.keep";
    /// Name of the orchestrator in ZenML.
    pub const COMPONENT: &str = "step-engine.component";
}

/// An engine that is away when a container is to be removed is waited for so long: whoever waits for the removal hears of its
/// end before it gives it up.
const REMOVE_PATIENCE: Duration = CLEANUP_LIMIT.saturating_sub(Duration::from_secs(15));

/// How often a create whose name was taken is tried.
const CREATE_TRIES: u32 = 5;

/// A start that was asked for has happened after so long.
const START_PATIENCE: Duration = Duration::from_millis(1500);

/// Whose containers these are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunIdentity {
    /// Id of the run, as the orchestrator names it.
    pub run_id: String,
    /// Name of the pipeline, for the containers' names.
    pub pipeline: String,
    /// Name of the orchestrator in ZenML.
    pub component: Option<String>,
}

/// A container's place in the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) run: &'a RunIdentity,
    pub(super) owner: Owner<'a>,
}

/// What a container is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    Attempt { step: &'a str, attempt: u32 },
    Worker { number: u32 },
}

/// What became of a container that may have been asked to start.
pub(super) enum Unstarted {
    /// It had not started, and is removed.
    Removed,
    /// Somebody else removed it.
    Gone,
    /// It had.
    WasStarted(ContainerState),
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt { step, .. } => write!(f, "step `{step}`"),
            Self::Worker { number } => write!(f, "worker {number}"),
        }
    }
}

impl Place<'_> {
    /// By which this container, and what its failed creation may have left, is found.
    pub(super) fn identity(&self) -> Vec<(String, String)> {
        let mut labels = vec![(label::RUN.to_owned(), self.run.run_id.clone())];
        match self.owner {
            Owner::Attempt { step, attempt } => {
                labels.push((label::STEP.to_owned(), step.to_owned()));
                labels.push((label::ATTEMPT.to_owned(), attempt.to_string()));
            }
            Owner::Worker { number } => labels.push((label::WORKER.to_owned(), number.to_string())),
        }
        labels
    }

    fn labels(&self) -> HashMap<String, String> {
        let mut labels: HashMap<_, _> = self.identity().into_iter().collect();
        if let Some(component) = &self.run.component {
            labels.insert(label::COMPONENT.to_owned(), component.clone());
        }
        labels
    }

    /// `<pipeline>-<step>-<attempt>-<start of the run's id>`, in the characters that engines allow; of a worker
    /// `<pipeline>-worker-<number>-<…>`.
    fn name(&self, hint: Option<&str>) -> String {
        let clean = |text: &str, most: usize| {
            let text: String = text
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' })
                .take(most)
                .collect();
            text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
        };
        let run: String = self.run.run_id.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        let (what, number) = match self.owner {
            Owner::Attempt { step, attempt } => (clean(hint.unwrap_or(step), 60), attempt),
            Owner::Worker { number } => ("worker".to_owned(), number),
        };
        let parts = [clean(&self.run.pipeline, 40), what, number.to_string(), run];
        parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("-")
    }
}

/// What the engine is told to create, for a container that runs the step's command. Pure.
pub(super) fn body(
    place: Place<'_>,
    spec: &ContainerSpec,
    arguments: RunArgs,
    image_id: &str,
    (limits, shares): (Limits, Shares),
    gpus: Option<DeviceRequest>,
) -> ContainerCreateBody {
    let RunArgs { environment, labels, extra_hosts, volumes, mut body, mut host, .. } = arguments;

    let mut variables = environment;
    variables.extend(spec.environment.iter().map(|(name, value)| (name.clone(), Some(value.clone()))));
    let assign = |(name, value): (String, Option<String>)| match value {
        Some(value) => format!("{name}={value}"),
        None => name, // the engine takes the image's variable away
    };
    body.env = Some(variables.into_iter().map(assign).collect());

    // By ours a container is found, kept or taken for a worker: a step must not say so of itself.
    let theirs = labels.into_iter().chain(spec.labels.clone()).filter(|(name, _)| !name.starts_with(label::PREFIX));
    let mut all_labels: HashMap<_, _> = theirs.collect();
    all_labels.extend(place.labels());
    let keep = match spec.keep_containers {
        KeepContainers::Never => None,
        KeepContainers::Failed => Some("failed"),
        KeepContainers::Always => Some("always"),
    };
    all_labels.extend(keep.map(|keep| (label::KEEP.to_owned(), keep.to_owned())));
    body.labels = Some(all_labels);

    body.image = Some(image_id.to_owned());
    body.entrypoint = (!spec.entrypoint.is_empty()).then(|| spec.entrypoint.clone());
    body.cmd = (!spec.command.is_empty()).then(|| spec.command.clone());
    body.user = body.user.or_else(|| spec.user.clone());
    body.working_dir = body.working_dir.or_else(|| spec.working_dir.clone());
    body.attach_stdout = Some(true);
    body.attach_stderr = Some(true);
    body.tty = Some(false);
    #[expect(clippy::cast_possible_truncation, reason = "at most a day of seconds")]
    let stop_timeout = spec.stop_grace().map(|grace| grace.as_secs_f64().ceil() as i64);
    body.stop_timeout = stop_timeout;

    host.network_mode = host.network_mode.or_else(|| spec.network.clone());
    let shares_network = host.network_mode.as_deref().is_some_and(|mode| mode.starts_with("container:"));
    let mut hosts = extra_hosts;
    hosts.extend(spec.extra_hosts.clone());
    // In another container's network its hosts file counts, and the engine refuses one of our own.
    if !hosts.is_empty() && !shares_network {
        host.extra_hosts = Some(hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect());
    }
    host.shm_size = host.shm_size.or_else(|| spec.shm_size_bytes.map(signed));
    host.init = host.init.or(Some(true));

    let mut by_target: BTreeMap<String, Volume> = volumes.into_iter().map(|v| (v.target.clone(), v)).collect();
    for volume in &spec.volumes {
        let mode = if volume.read_only { "ro" } else { "rw" }.to_owned();
        let volume = Volume { source: volume.source.clone(), target: volume.target.clone(), mode };
        by_target.insert(volume.target.clone(), volume);
    }
    // Mounts rather than binds where the mode allows it: the engine creates the missing source of a bind as an empty
    // directory of root, and refuses that of a mount.
    for volume in by_target.into_values() {
        match volume.mode.as_str() {
            "rw" | "ro" | "" => {
                let mount = mount(volume, host.volume_driver.as_deref());
                host.mounts.get_or_insert_default().push(mount);
            }
            _ => {
                let bind = format!("{}:{}:{}", volume.source, volume.target, volume.mode);
                host.binds.get_or_insert_default().push(bind);
            }
        }
    }

    limits.apply(&mut host, shares);
    host.device_requests.get_or_insert_default().extend(gpus);

    let says_otherwise = host.security_opt.iter().flatten().any(|option| option.starts_with("no-new-privileges"));
    if !says_otherwise && host.privileged != Some(true) {
        host.security_opt.get_or_insert_default().push("no-new-privileges".to_owned());
    }
    body.host_config = Some(host);
    body
}

fn mount(volume: Volume, driver: Option<&str>) -> Mount {
    let is_path = volume.source.starts_with('/') || volume.source.get(1..3).is_some_and(|drive| drive == ":\\");
    let driver_config = driver.filter(|_| !is_path).map(|name| MountVolumeOptions {
        driver_config: Some(MountVolumeOptionsDriverConfig { name: Some(name.to_owned()), ..Default::default() }),
        ..Default::default()
    });
    Mount {
        target: Some(volume.target),
        source: Some(volume.source),
        typ: Some(if is_path { MountType::BIND } else { MountType::VOLUME }),
        read_only: Some(volume.mode == "ro"),
        volume_options: driver_config,
        ..Default::default()
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A container that the engine has.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) engine: Engine,
    pub(super) id: String,
    pub(super) name: String,
}

/// What the engine says about a container.
pub(super) enum Found {
    /// It has it.
    Here(ContainerState),
    /// It does not have it, or is removing it.
    Gone,
}

impl Container {
    /// Creates the container. A name that is taken gets a suffix. When the engine's answer is lost, there may be one
    /// nevertheless, see [`super::sweep::remove_of`].
    pub(super) async fn create(
        engine: &Engine,
        place: Place<'_>,
        spec: &ContainerSpec,
        platform: Option<&str>,
        body: ContainerCreateBody,
    ) -> Result<Self, DockerError> {
        let wanted = place.name(spec.name_hint.as_deref());
        let mut name = wanted.clone();
        let mut tries = 1;
        loop {
            let mut options = CreateContainerOptionsBuilder::new().name(&name);
            if let Some(platform) = platform {
                options = options.platform(platform);
            }
            let error = match engine.docker.create_container(Some(options.build()), body.clone()).await {
                Ok(created) => return Ok(Self { engine: engine.clone(), id: created.id, name }),
                Err(error) => DockerError::of(format!("create the container of {}", place.owner))(error),
            };
            if tries >= CREATE_TRIES {
                return Err(error);
            }
            match error.status() {
                // 409 has other meanings; only the taken name has this text.
                Some(409) if error.to_string().contains("is already in use") => {
                    tries += 1;
                    name = format!("{wanted}-{tries}");
                }
                _ => return Err(explain_create(error, place.owner)),
            }
        }
    }

    /// Attaches to both output streams, and to standard input if asked. Before the start this loses nothing.
    pub(super) async fn attach(&self, stdin: bool) -> Result<AttachContainerResults, DockerError> {
        let options = AttachContainerOptionsBuilder::new().stream(true).stdin(stdin).stdout(true).stderr(true).build();
        let attached = self.engine.docker.attach_container(&self.id, Some(options)).await;
        attached.map_err(DockerError::of(format!("attach to container {}", self.name)))
    }

    pub(super) async fn start(&self) -> Result<(), DockerError> {
        let started = self.engine.docker.start_container(&self.id, None).await;
        started.map_err(DockerError::of(format!("start container {}", self.name)))
    }

    /// Sends a signal. A container that has ended needs none.
    pub(super) async fn signal(&self, signal: &str) -> Result<(), DockerError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        match self.engine.docker.kill_container(&self.id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = DockerError::of(format!("send {signal} to container {}", self.name))(error);
                if matches!(error.status(), Some(404 | 409)) { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Changes limits of the running container.
    pub(super) async fn update(&self, change: ContainerUpdateBody) -> Result<(), DockerError> {
        let updated = self.engine.docker.update_container(&self.id, change).await;
        updated.map_err(DockerError::of(format!("set the limits of container {}", self.name)))
    }

    pub(super) async fn inspect(&self) -> Result<Found, DockerError> {
        match self.engine.docker.inspect_container(&self.id, None).await {
            Ok(found) => Ok(match found.state {
                Some(state) if is_going(&state) => Found::Gone,
                state => Found::Here(state.unwrap_or_default()),
            }),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(Found::Gone),
            Err(error) => Err(DockerError::of(format!("inspect container {}", self.name))(error)),
        }
    }

    /// Ids of the devices that it asked for, such as GPUs.
    pub(super) async fn device_ids(&self) -> Vec<String> {
        let found = self.engine.docker.inspect_container(&self.id, None).await;
        let requests = found.ok().and_then(|found| found.host_config?.device_requests).unwrap_or_default();
        requests.into_iter().flat_map(|request| request.device_ids.unwrap_or_default()).collect()
    }

    /// Whether the engine holds the container to a limit of memory.
    pub(super) async fn has_memory_limit(&self) -> bool {
        let found = self.engine.docker.inspect_container(&self.id, None).await;
        found.ok().and_then(|found| found.host_config?.memory).is_some_and(|bytes| bytes > 0)
    }

    /// Whether anybody asked the engine to kill the container, as far as the engine remembers.
    #[expect(clippy::disallowed_methods, reason = "the engine remembers by the time of day")]
    pub(super) async fn was_killed_by_request(&self) -> bool {
        // An engine whose clock is behind ours would stream until it has caught up.
        const PATIENCE: Duration = Duration::from_secs(2);

        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let filters = HashMap::from([("container", vec![self.id.as_str()]), ("event", vec!["kill"])]);
        // Without a beginning the engine tells nothing of the past.
        let options = EventsOptionsBuilder::new().since("1").until(&until).filters(&filters).build();
        let kills = self.engine.docker.events(Some(options)).any(|event| {
            let attributes = event.ok().and_then(|event| event.actor?.attributes);
            ready(attributes.is_some_and(|all| all.get("signal").is_some_and(|signal| signal == "9")))
        });
        timeout(PATIENCE, kills).await.unwrap_or(false)
    }

    /// Removes the container if it has not started; for one whose start was asked for and not answered. An error when the
    /// engine says neither for [`ENGINE_PATIENCE`].
    pub(super) async fn remove_unstarted(&self) -> Result<Unstarted, DockerError> {
        const LOOK_EVERY: Duration = Duration::from_millis(200);

        let begin = Instant::now();
        let mut asked_to_go = false;
        loop {
            let failure = match self.inspect().await {
                Ok(Found::Gone) if asked_to_go => return Ok(Unstarted::Removed),
                Ok(Found::Gone) => return Ok(Unstarted::Gone),
                Ok(Found::Here(state)) if was_started(&state) => return Ok(Unstarted::WasStarted(state)),
                // The engine answers after what it is doing with the container, so this is longer than a request takes.
                Ok(Found::Here(_)) if begin.elapsed() < START_PATIENCE => None,
                // Not by force: one that runs by now refuses, which the next look shows. Taken to run unseen, one that does
                // not would count as one that ended well.
                Ok(Found::Here(_)) => match self.remove_idle().await {
                    Ok(()) => return Ok(Unstarted::Removed),
                    Err(error) => {
                        // One that the engine refused to remove was removed by somebody else, if it is gone at the next look.
                        asked_to_go = error.is_engine_away();
                        Some(error)
                    }
                },
                Err(error) => Some(error),
            };
            match failure {
                Some(error) if begin.elapsed() > ENGINE_PATIENCE => return Err(error),
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Removes the container unless it runs.
    async fn remove_idle(&self) -> Result<(), DockerError> {
        let options = RemoveContainerOptionsBuilder::new().v(true).build();
        let removed = self.engine.docker.remove_container(&self.id, Some(options)).await;
        removed.map_err(DockerError::of(format!("remove container {}", self.name)))
    }

    /// Removes the container and its anonymous volumes, killing it when it runs.
    pub(super) async fn remove(&self) -> Result<(), DockerError> {
        remove(&self.engine, &self.id, &self.name).await
    }
}

/// Whether somebody is removing it: then its end tells nothing about the step.
fn is_going(state: &ContainerState) -> bool {
    use bollard::models::ContainerStateStatusEnum::{DEAD, REMOVING};

    state.dead == Some(true) || matches!(state.status, Some(REMOVING | DEAD))
}

fn was_started(state: &ContainerState) -> bool {
    !matches!(state.status, None | Some(ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EMPTY))
}

/// Removes a container, however busy the engine is with it; one that is away is waited for. One that is gone is removed.
pub(super) async fn remove(engine: &Engine, id: &str, name: &str) -> Result<(), DockerError> {
    const TRIES: u32 = 10;

    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    let mut pause = Duration::from_millis(100);
    let mut outage = Outage::of(REMOVE_PATIENCE);
    let mut tries = 0;
    loop {
        let Err(error) = engine.docker.remove_container(id, Some(options.clone())).await else { return Ok(()) };
        let error = DockerError::of(format!("remove container {name}"))(error);
        match error.status() {
            Some(404) => return Ok(()),
            // In progress elsewhere, or a mount that is still busy.
            Some(409 | 500) if tries + 1 < TRIES => {
                tries += 1;
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            None if error.is_engine_away() && !outage.is_too_long() => outage.pause().await,
            _ => return Err(error),
        }
    }
}

/// Says what the engine's text means where it does not say so itself.
fn explain_create(error: DockerError, owner: Owner<'_>) -> DockerError {
    let DockerError::Refused { operation, status, message } = error else { return error };
    let message = match message.split_once("bind source path does not exist: ") {
        Some((_, path)) => format!(
            "the volume source `{}` does not exist on the engine's host; create it or correct the volumes of {owner}",
            path.trim()
        ),
        None => message,
    };
    DockerError::Refused { operation, status, message }
}

#[cfg(test)]
mod tests;
