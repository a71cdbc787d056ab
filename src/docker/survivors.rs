//! What is left of a run whose owner died: which container belongs to which attempt, as labels and warm workers tell.
//!
//! A worker's input ended with its owner: one that runs a step runs it to its end, one that waits goes by itself. So before
//! anything is adopted, those that serve nobody are waited for; then it is certain that nothing begins any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::future::{join_all, try_join, try_join_all};
use futures_util::stream::StreamExt as _;
use tokio::time::{Instant, sleep};

use super::container::{self, Container, Found, Unstarted};
use super::engine::{ENGINE_PATIENCE, Engine, patiently};
use super::error::DockerError;
use super::frames::{Begun, Nonce};
use super::gpu::{GpuLease, GpuPool};
use super::log::Output;
use super::story::{Before, Story};
use super::sweep::{self, ContainerStatus};
use crate::runner::LeftAttempt;

/// A worker without an owner has so long to go by itself: one that warms up looks every second.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// After SIGKILL one has so long to end; whoever resumes the run is not to wait for ever.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A container of an attempt that a former owner launched.
pub(super) struct Survivor {
    pub(super) container: Container,
    pub(super) image_id: Option<String>,
    pub(super) kind: Kind,
    /// The GPUs that it has.
    pub(super) lease: Option<GpuLease>,
}

/// How it runs its step.
pub(super) enum Kind {
    /// As its main process, without a word of ours in its output.
    Cold,
    /// As a warm worker.
    Worker {
        nonce: Nonce,
        /// As its worker names it.
        step: Begun,
        /// What stands before its output.
        before: Before,
        /// Set where it served several: whoever holds the last of these may remove it.
        shared: Option<Arc<()>>,
    },
}

/// Everything of a run that is there to be adopted.
#[derive(Default)]
pub(super) struct Survivors(Mutex<State>);

#[derive(Default)]
struct State {
    of_attempt: HashMap<(String, u32), Survivor>,
    /// Why nobody knows.
    unknown: Option<String>,
    /// Containers that stay against our will.
    left: Vec<String>,
    took_over: bool,
}

/// A warm worker, and its story.
struct Known {
    status: ContainerStatus,
    story: Story,
}

impl Survivors {
    /// Finds out, removes what nobody needs, and returns the highest number of a shared worker. Containers of attempts that
    /// are over go as well, unless they are to be kept.
    pub(super) async fn find(&self, engine: &Engine, run_id: &str, attempts: &[LeftAttempt], gpus: &GpuPool) -> u32 {
        let found = match patiently(|| sweep::list(engine, run_id)).await {
            Ok(found) => found,
            Err(error) => {
                self.give_up(&error);
                return 0;
            }
        };
        let last_number = found.iter().filter_map(|status| status.worker).max().unwrap_or(0);
        let (workers, cold): (Vec<_>, Vec<_>) = found.into_iter().partition(|status| status.warm);
        let is_wanted = |id: &(String, u32)| attempts.iter().any(|left| *left.step == *id.0 && left.attempt == id.1);
        let workers = try_join_all(workers.into_iter().map(|status| settled(engine, status, &is_wanted)));
        let cold = try_join_all(cold.into_iter().map(|status| async {
            let may_start = status.created && is_wanted(&(status.step.clone(), status.attempt));
            if may_start { unless_removed(engine, status).await } else { Ok(Some(status)) }
        }));
        let (workers, cold) = match try_join(workers, cold).await {
            Ok((workers, cold)) => (workers, cold.into_iter().flatten().collect::<Vec<_>>()),
            Err(error) => {
                self.give_up(&error);
                return last_number;
            }
        };
        let mut of_attempt = HashMap::new();
        let mut unneeded = Vec::new();
        for status in cold {
            let id = (status.step.clone(), status.attempt);
            if is_wanted(&id) && !status.created && !of_attempt.contains_key(&id) {
                of_attempt.insert(id, survivor(engine, &status, Kind::Cold, gpus).await);
            } else {
                unneeded.push(status);
            }
        }
        for Known { status, story } in workers {
            let mut is_needed = false;
            let shared = status.worker.map(|_| Arc::new(()));
            for begun in story.begun() {
                let id = id_of(&status, begun);
                let Some(nonce) = story.nonce.clone().filter(|_| is_wanted(&id)) else { continue };
                let (step, before) = (begun.clone(), story.before(begun));
                let kind = Kind::Worker { nonce, step, before, shared: shared.clone() };
                of_attempt.insert(id, survivor(engine, &status, kind, gpus).await);
                is_needed = true;
            }
            if !is_needed {
                unneeded.push(status);
            }
        }
        unneeded.retain(|status| !stays(status));
        let removed = join_all(unneeded.iter().map(|one| container::remove(engine, &one.id, &one.name))).await;
        let left = unneeded.into_iter().zip(removed).filter(|(_, removed)| removed.is_err()).map(|(one, _)| one.name);
        let mut state = self.lock();
        state.of_attempt = of_attempt;
        state.left = left.collect();
        state.took_over = true;
        last_number
    }

    /// Nobody knows what is there, so nothing is touched.
    fn give_up(&self, error: &DockerError) {
        let mut state = self.lock();
        state.unknown = Some(error.to_string());
        state.took_over = true;
    }

    /// The container of an attempt; an error when nobody knows whether there is one.
    pub(super) fn take(&self, step: &str, attempt: u32) -> Result<Option<Survivor>, String> {
        let mut state = self.lock();
        match &state.unknown {
            Some(reason) => Err(reason.clone()),
            None => Ok(state.of_attempt.remove(&(step.to_owned(), attempt))),
        }
    }

    /// Names of containers that could not be removed; none when this run had no other owner.
    pub(super) fn left(&self) -> Option<Vec<String>> {
        let state = self.lock();
        state.took_over.then(|| state.left.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a container whose attempt is over is to be kept.
fn stays(status: &ContainerStatus) -> bool {
    let ended = !status.running && !status.created;
    ended && status.kept && (status.always_kept || status.exit_code.is_none_or(|code| code != 0))
}

async fn survivor(engine: &Engine, status: &ContainerStatus, kind: Kind, gpus: &GpuPool) -> Survivor {
    let container = Container { engine: engine.clone(), id: status.id.clone(), name: status.name.clone() };
    let lease = match status.running {
        true => gpus.claim(&container.device_ids().await),
        false => None,
    };
    Survivor { container, image_id: status.image_id.clone(), kind, lease }
}

/// Removes a container that was created and never ran, so that its attempt starts anew; unless its owner had asked for its
/// start before it died. An error when the engine says neither.
async fn unless_removed(engine: &Engine, status: ContainerStatus) -> Result<Option<ContainerStatus>, DockerError> {
    let container = Container { engine: engine.clone(), id: status.id.clone(), name: status.name.clone() };
    Ok(match container.remove_unstarted().await? {
        Unstarted::Removed | Unstarted::Gone => None,
        Unstarted::WasStarted(state) => {
            Some(ContainerStatus { created: false, running: state.running == Some(true), ..status })
        }
    })
}

/// The step of a beginning in a worker: one for one attempt has it on its label.
fn id_of(status: &ContainerStatus, begun: &Begun) -> (String, u32) {
    match status.worker {
        Some(_) => (begun.step.clone(), begun.attempt),
        None => (status.step.clone(), status.attempt),
    }
}

/// Waits until a worker has ended, or runs a step that is wanted: the copy that tells is a little later than the worker, and
/// the end of another step may not be in it yet. One that takes too long is killed; what does not end even then
/// counts as one that has nothing to tell. An error when the engine says neither.
async fn settled(
    engine: &Engine,
    status: ContainerStatus,
    is_wanted: &impl Fn(&(String, u32)) -> bool,
) -> Result<Known, DockerError> {
    if status.created {
        return Ok(Known { status, story: Story::default() });
    }
    let container = Container { engine: engine.clone(), id: status.id.clone(), name: status.name.clone() };
    let begin = Instant::now();
    let mut deadline = begin + LEAVE_PATIENCE;
    let mut next_read = begin;
    loop {
        let runs = match container.inspect().await {
            Ok(Found::Here(state)) => Ok(state.running == Some(true)),
            Ok(Found::Gone) => Ok(false),
            Err(error) => Err(error),
        };
        let now = Instant::now();
        let story = match &runs {
            Ok(true) if now < next_read => Ok(None),
            // Nothing, where the engine keeps no copy.
            Ok(_) => Story::read(&container, None).await.map(|story| Some(story.unwrap_or_default())),
            Err(_) => Ok(None),
        };
        match (runs, story) {
            (Ok(runs), Ok(story)) => {
                if let Some(story) = story {
                    let serves = story.serves().map(|begun| id_of(&status, begun));
                    if !runs || serves.is_some_and(|id| is_wanted(&id)) {
                        return Ok(Known { status, story });
                    }
                    next_read = now + Duration::from_secs(1);
                }
            }
            // What it does cannot be told now, and to take it for idle would be to run its step twice.
            (Err(error), _) | (_, Err(error)) => {
                if begin.elapsed() > ENGINE_PATIENCE {
                    return Err(error);
                }
                deadline = now + LEAVE_PATIENCE;
            }
        }
        if now >= deadline + KILL_PATIENCE {
            // It serves nobody who is wanted, and reads nothing any more. It is named as one that stays.
            return Ok(Known { status, story: Story::default() });
        }
        if now >= deadline {
            // It reads no go that was not written; its end makes sure that it does not read one that was.
            drop(container.signal("SIGKILL").await);
            next_read = now;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// How many bytes a container has written, as the engine's copy has it; none when it has no copy.
pub(super) async fn written_bytes(container: &Container) -> Option<u64> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    let mut copy = container.engine.docker.logs(&container.id, Some(options));
    let mut written = 0;
    while let Some(piece) = copy.next().await {
        written += piece.ok()?.into_bytes().len() as u64;
    }
    Some(written)
}

/// Everything that a container has written and will write, out of the engine's copy.
pub(super) fn whole_output(container: &Container) -> Output {
    let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).build();
    container.engine.docker.logs(&container.id, Some(options)).boxed()
}
