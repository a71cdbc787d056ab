//! Containers found by label: stopping a run from another process, its status, what a dead client left behind.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerStateStatusEnum, ContainerSummaryStateEnum};
use bollard::query_parameters::{KillContainerOptionsBuilder, ListContainersOptionsBuilder};
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::container::{self, Place, label};
use super::engine::Engine;
use super::error::DockerError;
use crate::runner::{AttemptSpec, StopForce};

/// Waiting time after SIGKILL until a container counts as left running.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What a container gets that says nothing of its own, as with `docker stop`.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// How often containers that are asked to stop are looked at: nobody waits on a stream here.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A container of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerStatus {
    /// Full id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Step it belongs to; empty for a warm worker that serves several.
    pub step: String,
    /// Attempt number, from 1; 0 for such a worker.
    pub attempt: u32,
    /// Number of the warm worker that serves several steps.
    pub worker: Option<u32>,
    /// Whether it is a warm worker, for one attempt or for several.
    pub warm: bool,
    /// Whether the process runs (or is paused, or restarting).
    pub running: bool,
    /// Whether it was created and never started.
    pub created: bool,
    /// Whether it is to stay for inspection, at least when it failed.
    pub kept: bool,
    /// Whether it is to stay however it ended.
    pub always_kept: bool,
    /// Exit code, when it has ended.
    pub exit_code: Option<i64>,
    /// Whether the kernel killed a process of it for memory.
    pub out_of_memory: bool,
    /// Id of its image.
    pub image_id: Option<String>,
}

/// Every container of a run that the engine has, by step and attempt.
///
/// # Errors
/// [`DockerError`] when the engine cannot be asked.
pub async fn list(engine: &Engine, run_id: &str) -> Result<Vec<ContainerStatus>, DockerError> {
    let mut found = find(engine, vec![format!("{}={run_id}", label::RUN)]).await?;
    let ended = found.iter_mut().filter(|container| !container.running && !container.created);
    // The listing tells the exit code in a sentence only.
    join_all(ended.map(|container| async move {
        let Ok(inspected) = engine.docker.inspect_container(&container.id, None).await else { return };
        let state = inspected.state.unwrap_or_default();
        if state.status == Some(ContainerStateStatusEnum::EXITED) {
            container.exit_code = state.exit_code;
        }
        container.out_of_memory = state.oom_killed == Some(true);
    }))
    .await;
    Ok(found)
}

/// Stops every container of a run, and those that appear meanwhile. Does not remove them: their owner judges their end.
/// Containers that were created and not started are removed, so that nobody starts them.
///
/// `grace` is the time between SIGTERM and SIGKILL; none is each container's own, which its step's settings gave it.
///
/// Returns the names of the containers that still run.
///
/// # Errors
/// [`DockerError`] when the engine cannot be asked.
pub async fn stop(
    engine: &Engine,
    run_id: &str,
    force: StopForce,
    grace: Option<Duration>,
) -> Result<Vec<String>, DockerError> {
    let filter = || vec![format!("{}={run_id}", label::RUN)];
    let mut asked: HashMap<String, Asked> = HashMap::new();
    loop {
        let mut present = find(engine, filter()).await?;
        let created: Vec<_> = present.extract_if(.., |container| container.created).collect();
        join_all(created.iter().map(|one| container::remove(engine, &one.id, &one.name))).await;
        present.retain(|container| container.running);
        let new: Vec<_> = present.iter().filter(|container| !asked.contains_key(&container.id)).collect();
        let patience = join_all(new.iter().map(|container| async {
            match (force, grace) {
                (StopForce::Kill, _) => Duration::ZERO,
                (_, Some(grace)) => grace,
                (_, None) => own_grace(engine, &container.id).await,
            }
        }));
        let patience = patience.await;
        let now = Instant::now();
        for (container, patience) in new.into_iter().zip(patience) {
            asked.insert(container.id.clone(), Asked { force: None, kill_at: now + patience });
        }
        let given_up = |id: &String| asked.get(id).is_some_and(|asked| now > asked.kill_at + KILL_PATIENCE);
        if present.iter().all(|container| given_up(&container.id)) {
            return Ok(present.into_iter().map(|container| container.name).collect());
        }
        let mut signals = Vec::new();
        for container in &present {
            let Some(asked) = asked.get_mut(&container.id) else { continue };
            let wanted = if now >= asked.kill_at { StopForce::Kill } else { StopForce::Graceful };
            if asked.force < Some(wanted) {
                asked.force = Some(wanted);
                signals.push((&container.id, if wanted == StopForce::Kill { "SIGKILL" } else { "SIGTERM" }));
            }
        }
        join_all(signals.into_iter().map(|(id, signal)| async move {
            let options = KillContainerOptionsBuilder::new().signal(signal).build();
            // One that has ended meanwhile is not running at the next look; one that resists is reported in the end.
            drop(engine.docker.kill_container(id, Some(options)).await);
        }))
        .await;
        sleep(LOOK_EVERY).await;
    }
}

/// What a container was asked.
struct Asked {
    force: Option<StopForce>,
    kill_at: Instant,
}

/// The time that a container was created with.
async fn own_grace(engine: &Engine, id: &str) -> Duration {
    let inspected = engine.docker.inspect_container(id, None).await.ok();
    let seconds = inspected.and_then(|found| found.config?.stop_timeout);
    seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DEFAULT_GRACE, Duration::from_secs)
}

/// Removes the containers of a run whose owner is gone: all that do not run, except those that are to be kept. Returns the
/// names of those that could not be removed.
///
/// # Errors
/// [`DockerError`] when the engine cannot be asked.
pub async fn clear(engine: &Engine, run_id: &str) -> Result<Vec<String>, DockerError> {
    let mut found = find(engine, vec![format!("{}={run_id}", label::RUN)]).await?;
    found.retain(|container| !container.running && !container.kept);
    Ok(remove_all(engine, found).await)
}

/// Removes every container of a run, running or not. Returns the names of those that could not be removed.
///
/// # Errors
/// [`DockerError`] when the engine cannot be asked.
pub async fn remove(engine: &Engine, run_id: &str) -> Result<Vec<String>, DockerError> {
    let found = find(engine, vec![format!("{}={run_id}", label::RUN)]).await?;
    Ok(remove_all(engine, found).await)
}

async fn remove_all(engine: &Engine, found: Vec<ContainerStatus>) -> Vec<String> {
    let removed = join_all(found.iter().map(|one| container::remove(engine, &one.id, &one.name))).await;
    found.into_iter().zip(removed).filter(|(_, removed)| removed.is_err()).map(|(one, _)| one.name).collect()
}

/// Removes what a creation whose answer was lost may have left: of an attempt its workers, when they are `warm`, or the
/// others, so that neither takes away what the other is making.
pub(super) async fn remove_of(engine: &Engine, place: Place<'_>, warm: bool) -> Result<(), DockerError> {
    let labels = place.identity().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    for found in find(engine, labels).await?.into_iter().filter(|found| found.warm == warm) {
        container::remove(engine, &found.id, &found.name).await?;
    }
    Ok(())
}

/// Removes what may still run, or start, of earlier attempts of a step; what is to be kept is killed, and with `force` only.
/// Returns the names of those that were there and are to be looked at again.
pub(super) async fn end_earlier(
    engine: &Engine,
    run_id: &str,
    spec: &AttemptSpec,
    force: bool,
) -> Result<Vec<String>, DockerError> {
    let labels = vec![format!("{}={run_id}", label::RUN), format!("{}={}", label::STEP, spec.name)];
    let mut found = find(engine, labels).await?;
    found.retain(|one| (1..spec.attempt).contains(&one.attempt) && (one.running || one.created));
    let ended = join_all(found.iter().map(|one| async {
        if one.created || !one.kept {
            return container::remove(engine, &one.id, &one.name).await;
        }
        if force {
            let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
            // One that has ended meanwhile is not running at the next look.
            drop(engine.docker.kill_container(&one.id, Some(options)).await);
        }
        Ok(())
    }));
    ended.await.into_iter().collect::<Result<(), _>>()?;
    Ok(found.into_iter().filter(|one| one.running && one.kept).map(|one| one.name).collect())
}

async fn find(engine: &Engine, labels: Vec<String>) -> Result<Vec<ContainerStatus>, DockerError> {
    let options = ListContainersOptionsBuilder::new().all(true).filters(&HashMap::from([("label", labels)])).build();
    let found = engine.docker.list_containers(Some(options)).await.map_err(DockerError::of("list the containers"))?;
    let mut all: Vec<_> = found
        .into_iter()
        .map(|summary| {
            use ContainerSummaryStateEnum::{CREATED, PAUSED, RESTARTING, RUNNING};

            let labels = summary.labels.unwrap_or_default();
            let id = summary.id.unwrap_or_default();
            let name = summary.names.unwrap_or_default().into_iter().next();
            ContainerStatus {
                name: name.map_or_else(|| id.clone(), |name| name.trim_start_matches('/').to_owned()),
                id,
                step: labels.get(label::STEP).cloned().unwrap_or_default(),
                attempt: labels.get(label::ATTEMPT).and_then(|text| text.parse().ok()).unwrap_or_default(),
                running: matches!(summary.state, Some(RUNNING | PAUSED | RESTARTING)),
                created: summary.state == Some(CREATED),
                worker: labels.get(label::WORKER).and_then(|text| text.parse().ok()),
                warm: labels.contains_key(label::WARM) || labels.contains_key(label::WORKER),
                kept: labels.contains_key(label::KEEP),
                always_kept: labels.get(label::KEEP).is_some_and(|keep| keep == "always"),
                exit_code: None,
                out_of_memory: false,
                image_id: summary.image_id,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.step, a.attempt, &a.name).cmp(&(&b.step, b.attempt, &b.name)));
    Ok(all)
}
