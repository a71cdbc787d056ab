//! An attempt that starts cold: from nothing to a process that runs, in a container of its own.
//!
//! An engine that goes away meanwhile is waited for, and one whose disk is full; then what was asked of it is removed and asked
//! for anew. No process is started that may be running already.

use std::sync::Arc;

use bollard::container::AttachContainerResults;

use super::super::container::{self, Container, Owner, Place, Unstarted};
use super::super::engine::Outage;
use super::super::error::{self, DockerError};
use super::super::gpu::GpuLease;
use super::super::left::Left;
use super::super::limits::{Limits, Shares};
use super::super::run_args::RunArgs;
use super::super::sweep;
use super::{Attempt, keep_until_ended, lost};
use crate::event::Outcome;
use crate::runner::{AttemptControl, StopForce};

/// An attempt is launched so often at most: requests that take too long count as an engine that is away, although it answers
/// the next one.
const LAUNCH_TRIES: u32 = 6;

/// A process that runs, with its output attached.
pub(super) struct Launched {
    pub(super) container: Container,
    pub(super) image_id: Arc<str>,
    pub(super) attached: AttachContainerResults,
    pub(super) stop_signal: String,
    /// Whether the engine was away when it was asked for the start: then `attached` brings nothing.
    pub(super) blind: bool,
    /// Held until the process is over.
    pub(super) lease: GpuLease,
}

/// Why nothing runs that anybody could follow.
pub(super) struct NotLaunched {
    pub(super) outcome: Outcome,
    left: Left,
}

/// Why one try came to nothing.
enum Failure {
    Over(Outcome),
    /// The engine is away, as the text says.
    Away(String),
    /// Its disk is full.
    Full(String),
}

impl From<&DockerError> for Failure {
    fn from(error: &DockerError) -> Self {
        match error {
            error if error.is_engine_away() => Self::Away(error.to_string()),
            error if error.is_engine_full() => Self::Full(error.to_string()),
            error => Self::Over(launch_failed(error)),
        }
    }
}

impl NotLaunched {
    /// Removes what is left. Returns the name of a container that could not be removed.
    pub(super) async fn clear(self, attempt: &Attempt) -> Option<String> {
        let (name, error) = self.left.clear(&attempt.engine, place(attempt), false).await.err()?;
        attempt.sink.warning(error::one_line(&error.to_string()));
        name
    }
}

/// Launches the attempt, as often as the engine goes away; all its absences together may take as long as one. For room on its
/// disk it is waited as long, from the first time that there was none.
pub(super) async fn launch(attempt: &Attempt, control: &mut AttemptControl) -> Result<Launched, NotLaunched> {
    let mut left = Left::Nothing;
    let mut outage: Option<Outage> = None;
    let mut shortage: Option<Outage> = None;
    let mut tries = 0;
    loop {
        tries += 1;
        let failure = match once(attempt, control, &mut left).await {
            Ok(launched) => return Ok(launched),
            Err(failure) => failure,
        };
        let ended = match failure {
            Failure::Over(outcome) => Err(outcome),
            Failure::Away(error) if tries == LAUNCH_TRIES => Err(launch_failed(error)),
            Failure::Away(error) => {
                let outage = match &mut outage {
                    Some(outage) => outage,
                    None => {
                        attempt.sink.warning(format!("the engine is away, the step waits for it: {error}"));
                        outage.insert(Outage::new())
                    }
                };
                outage.begin();
                let cleared = until_cleared(attempt, control, outage, error).await;
                outage.end();
                cleared
            }
            Failure::Full(error) => {
                tries -= 1;
                let shortage = shortage.get_or_insert_with(|| {
                    let message = format!("the disk of the engine is full, the step waits for room: {error}");
                    attempt.sink.warning(message);
                    Outage::new()
                });
                until_cleared(attempt, control, shortage, error).await
            }
        };
        match ended {
            Ok(()) => left = Left::Nothing,
            Err(outcome) => return Err(NotLaunched { outcome, left }),
        }
    }
}

/// Waits until the engine can be asked again and nothing of the attempt is in it.
async fn until_cleared(
    attempt: &Attempt,
    control: &mut AttemptControl,
    outage: &mut Outage,
    error: String,
) -> Result<(), Outcome> {
    while !outage.is_too_long() {
        let cleared = async {
            outage.pause().await;
            sweep::remove_of(&attempt.engine, place(attempt), false).await
        };
        // A stop may drop this: what is left then is removed once more.
        let cleared = tokio::select! {
            biased;
            () = control.stop_requested(StopForce::Graceful) => return Err(Outcome::Stopped),
            cleared = cleared => cleared,
        };
        // Any error is waited out, also one that is no sign of absence: the engine may not be all there yet.
        if cleared.is_ok() {
            return Ok(());
        }
    }
    Err(launch_failed(format!("{error}; that was waited out in vain")))
}

/// Resolves the image, creates a container, attaches to it and starts it. `left` is what the engine then has of it.
async fn once(attempt: &Attempt, control: &mut AttemptControl, left: &mut Left) -> Result<Launched, Failure> {
    let Attempt { engine, spec, container: wanted, .. } = attempt;
    if control.stop_force().is_some() {
        return Err(Failure::Over(Outcome::Stopped));
    }
    let arguments = RunArgs::parse(&wanted.run_args).map_err(|error| Failure::from(&error))?;
    let platform = arguments.platform.clone().or_else(|| wanted.platform.clone());
    let image = arguments.image.clone().unwrap_or_else(|| wanted.image.clone());
    // Waiting for an image or for GPUs changes nothing in the engine, so a stop may drop it.
    let image_id = tokio::select! {
        biased;
        () = control.stop_requested(StopForce::Graceful) => return Err(Failure::Over(Outcome::Stopped)),
        resolved = attempt.images.resolve(wanted, &image, platform.as_deref()) => {
            resolved.map_err(|error| Failure::from(&*error))?
        }
    };
    let lease = tokio::select! {
        biased;
        () = control.stop_requested(StopForce::Graceful) => return Err(Failure::Over(Outcome::Stopped)),
        lease = attempt.gpus.acquire(spec.demand.gpus) => lease.ok_or_else(|| Failure::Over(too_few_gpus(attempt)))?,
    };
    let stop_signal = match &arguments.body.stop_signal {
        Some(signal) => signal.clone(),
        None => "SIGTERM".to_owned(),
    };
    let limits = Limits::of(wanted, &arguments.host, spec.demand);
    // Beside warm steps that were given their share, the default of the engine may be another one.
    let shares = if wanted.warm.is_some() { Shares::Normal } else { Shares::Default };
    let body = container::body(place(attempt), wanted, arguments, &image_id, (limits, shares), lease.request());
    // Creating is never dropped: a container whose id nobody has would stay.
    *left = Left::Perhaps;
    let created = Container::create(engine, place(attempt), wanted, platform.as_deref(), body).await;
    let container = created.map_err(|error| Failure::from(&error))?;
    *left = Left::Container(container.clone());
    if control.stop_force().is_some() {
        return Err(Failure::Over(Outcome::Stopped));
    }
    let attached = attach(attempt, &container).await.map_err(|error| Failure::from(&error))?;
    if control.stop_force().is_some() {
        return Err(Failure::Over(Outcome::Stopped));
    }
    let blind = match start(&container, control, left).await {
        Ok(blind) => blind,
        Err(failure) => {
            // It may run.
            keep_until_ended(lease, &container);
            return Err(failure);
        }
    };
    Ok(Launched { container, image_id, attached, stop_signal, blind, lease })
}

async fn attach(attempt: &Attempt, container: &Container) -> Result<AttachContainerResults, DockerError> {
    attempt.archives.upload(container, &attempt.container.files).await?;
    container.attach(false).await
}

/// Starts the process. Returns whether nobody saw that: the engine was away, and the process runs or did.
async fn start(container: &Container, control: &mut AttemptControl, left: &mut Left) -> Result<bool, Failure> {
    // Never dropped either: nobody would know whether the process runs.
    let Err(error) = container.start().await else { return Ok(false) };
    if !error.is_engine_away() {
        let stopped = control.stop_force().is_some();
        return Err(if stopped { Failure::Over(Outcome::Stopped) } else { Failure::from(&error) });
    }
    let unstarted = tokio::select! {
        biased;
        // By force, which is how the container then goes; one that runs has its grace.
        () = control.stop_requested(StopForce::Kill) => return Err(Failure::Over(Outcome::Stopped)),
        unstarted = container.remove_unstarted() => unstarted,
    };
    match unstarted {
        Ok(Unstarted::WasStarted(_)) => Ok(true),
        Ok(Unstarted::Removed) => {
            *left = Left::Nothing;
            Err(Failure::Away(error.to_string()))
        }
        Ok(Unstarted::Gone) => Err(Failure::Over(lost("the container was removed by somebody else"))),
        // It may run, so the attempt has not failed to start.
        Err(error) => Err(Failure::Over(Outcome::Lost { reason: error.to_string() })),
    }
}

fn place(attempt: &Attempt) -> Place<'_> {
    let owner = Owner::Attempt { step: &attempt.spec.name, attempt: attempt.spec.attempt };
    Place { run: &attempt.run, owner }
}

fn launch_failed(error: impl ToString) -> Outcome {
    Outcome::LaunchFailed { reason: error.to_string() }
}

fn too_few_gpus(attempt: &Attempt) -> Outcome {
    launch_failed(format!(
        "step `{}` asks for {} GPUs and the engine offers {}; install the NVIDIA container toolkit or lower the request",
        attempt.spec.name,
        attempt.spec.demand.gpus,
        attempt.engine.info().gpu_ids.len()
    ))
}
