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
use crate::runner::StopForce;

/// Waiting time after SIGKILL until a container counts as left running.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

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
    /// Whether the process runs (or is paused, or restarting).
    pub running: bool,
    /// Whether it was created and never started.
    pub created: bool,
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
/// Returns the names of the containers that still run.
///
/// # Errors
/// [`DockerError`] when the engine cannot be asked.
pub async fn stop(
    engine: &Engine,
    run_id: &str,
    force: StopForce,
    grace: Duration,
) -> Result<Vec<String>, DockerError> {
    let filter = || vec![format!("{}={run_id}", label::RUN)];
    let patience = if force == StopForce::Kill { Duration::ZERO } else { grace };
    let mut signalled: HashMap<String, StopForce> = HashMap::new();
    let begin = Instant::now();
    loop {
        let mut present = find(engine, filter()).await?;
        let created: Vec<_> = present.extract_if(.., |container| container.created).collect();
        join_all(created.iter().map(|one| container::remove(engine, &one.id, &one.name))).await;
        present.retain(|container| container.running);
        let waited = begin.elapsed();
        if present.is_empty() || waited > patience + KILL_PATIENCE {
            return Ok(present.into_iter().map(|container| container.name).collect());
        }
        let wanted = if waited >= patience { StopForce::Kill } else { StopForce::Graceful };
        let signal = if wanted == StopForce::Kill { "SIGKILL" } else { "SIGTERM" };
        let behind = present.iter().filter(|container| signalled.get(&container.id) < Some(&wanted));
        let behind: Vec<_> = behind.map(|container| container.id.clone()).collect();
        join_all(behind.iter().map(|id| async {
            let options = KillContainerOptionsBuilder::new().signal(signal).build();
            // One that has ended meanwhile is not running at the next look; one that resists is reported in the end.
            drop(engine.docker.kill_container(id, Some(options)).await);
        }))
        .await;
        signalled.extend(behind.into_iter().map(|id| (id, wanted)));
        sleep(LOOK_EVERY).await;
    }
}

/// Removes every container of a run, running or not. Returns the names of those that could not be removed.
///
/// # Errors
/// [`DockerError`] when the engine cannot be asked.
pub async fn remove(engine: &Engine, run_id: &str) -> Result<Vec<String>, DockerError> {
    let found = find(engine, vec![format!("{}={run_id}", label::RUN)]).await?;
    let removed = join_all(found.iter().map(|one| container::remove(engine, &one.id, &one.name))).await;
    Ok(found.into_iter().zip(removed).filter(|(_, removed)| removed.is_err()).map(|(one, _)| one.name).collect())
}

/// Removes what a failed creation may have left.
pub(super) async fn remove_of(engine: &Engine, place: Place<'_>) -> Result<(), DockerError> {
    let labels = place.identity().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    for found in find(engine, labels).await? {
        container::remove(engine, &found.id, &found.name).await?;
    }
    Ok(())
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
                exit_code: None,
                out_of_memory: false,
                image_id: summary.image_id,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.step, a.attempt, &a.name).cmp(&(&b.step, b.attempt, &b.name)));
    Ok(all)
}
