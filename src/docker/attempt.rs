//! One attempt, top to bottom: obtain a container, start, stream, wait, settle, remove.
//!
//! [`warm`] takes a worker out of the pool, if there is one; [`launch`] starts a container that it creates. Watching, signals
//! and the judgement of the end are the same for both.

pub(super) mod adopted;
mod launch;
mod signals;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use bollard::models::ContainerState;
use bollard::query_parameters::WaitContainerOptionsBuilder;
use futures_util::stream::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use self::launch::Launched;
use self::signals::Signals;
use super::container::{Container, Found, RunIdentity};
use super::engine::{Engine, Outage, patiently};
use super::error::{self, DockerError};
use super::files::Archives;
use super::frames::Done;
use super::gpu::{GpuLease, GpuPool};
use super::image::Images;
use super::log::{Log, Plain};
use super::pool::Pool;
use super::spec::{ContainerSpec, KeepContainers};
use super::sweep;
use crate::event::{AttemptDetails, Outcome};
use crate::runner::{AttemptControl, AttemptSink, AttemptSpec, StopForce};

const CHILD_OUT_OF_MEMORY: &str = "the memory limit was reached and a child process was killed";

const OUT_OF_MEMORY_UNTOLD: &str = "the step was killed, the engine does not say why, and it has a memory limit: that is \
    taken for the reason";

/// SIGKILL is sent again after so long.
const KILL_AGAIN: Duration = Duration::from_secs(10);

/// A kill that goes to the step's own process in a shared worker has so long to work, then the worker is killed.
const CHILD_KILL_PATIENCE: Duration = Duration::from_secs(3);

/// Whether a lost container has ended is asked so often.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A container that is to be kept has so long to end once its step has.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Everything an attempt needs. Owned, so that the future of an attempt borrows nothing of the run.
pub(super) struct Attempt {
    pub(super) engine: Engine,
    pub(super) images: Images,
    pub(super) archives: Archives,
    pub(super) gpus: GpuPool,
    pub(super) pool: Pool,
    pub(super) run: Arc<RunIdentity>,
    pub(super) container: Arc<ContainerSpec>,
    pub(super) spec: AttemptSpec,
    pub(super) sink: Arc<dyn AttemptSink>,
}

/// How the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exit {
    /// As its worker says.
    Done(Done),
    /// With a code, as the engine says; `after_outage` when the engine was away meanwhile.
    Code { code: i64, after_outage: bool },
    /// Its container was removed.
    Gone,
    /// Nobody can tell.
    Unknown(String),
}

/// Runs an attempt. Returns its outcome, and the name of a container that could not be removed.
pub(super) async fn run(attempt: &Attempt, mut control: AttemptControl) -> (Outcome, Option<String>) {
    if let Err(outcome) = until_alone(attempt, &mut control).await {
        attempt.sink.settled(&outcome);
        return (outcome, None);
    }
    match warm::begin(attempt, &mut control).await {
        warm::Beginning::Begun(serving) => return warm::run(attempt, serving, control).await,
        warm::Beginning::Over(outcome) => {
            attempt.sink.settled(&outcome);
            return (outcome, None);
        }
        warm::Beginning::Cold => {}
    }
    let launched = match launch::launch(attempt, &mut control).await {
        Ok(launched) => launched,
        Err(not_launched) => {
            let outcome = not_launched.outcome.clone();
            attempt.sink.settled(&outcome);
            control.recorded().await;
            return (outcome, not_launched.clear(attempt).await);
        }
    };
    let container = launched.container.clone();
    let outcome = supervise(attempt, launched, &mut control).await;
    attempt.sink.settled(&outcome);
    control.recorded().await;
    let left = dispose(attempt, &container, &outcome).await;
    (outcome, left)
}

/// Waits until no container of an earlier attempt of the step runs. One may: an attempt counts as lost when the engine was
/// away for too long, whatever its container does. A shared worker is not found by its step, and is not waited for.
async fn until_alone(attempt: &Attempt, control: &mut AttemptControl) -> Result<(), Outcome> {
    if attempt.spec.attempt <= 1 {
        return Ok(());
    }
    let begin = Instant::now();
    let mut outage = Outage::new();
    loop {
        let looked = async {
            // One that is to be kept ends by itself, when its step is over.
            let force = begin.elapsed() > EXIT_PATIENCE;
            let left = sweep::end_earlier(&attempt.engine, &attempt.run.run_id, &attempt.spec, force).await;
            let reason = match left {
                Ok(left) if left.is_empty() => return Some(Ok(())),
                Ok(left) => format!("{} does not end", left.join(", ")),
                Err(error) => error.to_string(),
            };
            if outage.is_too_long() {
                let reason = format!("an earlier attempt of the step may still run: {reason}");
                return Some(Err(Outcome::LaunchFailed { reason }));
            }
            outage.pause().await;
            None
        };
        let looked = tokio::select! {
            biased;
            () = control.stop_requested(StopForce::Graceful) => return Err(Outcome::Stopped),
            looked = looked => looked,
        };
        if let Some(ended) = looked {
            return ended;
        }
    }
}

/// From the start to the end of the process and of its log.
async fn supervise(attempt: &Attempt, launched: Launched, control: &mut AttemptControl) -> Outcome {
    let Launched { container, image_id, attached, stop_signal, blind, lease } = launched;
    attempt.sink.started(AttemptDetails {
        container_id: Some(container.id.clone()),
        container_name: Some(container.name.clone()),
        image_id: Some(image_id.to_string()),
        ..AttemptDetails::default()
    });
    let mut log = if blind {
        drop(attached);
        let receiver = Arc::new(Plain(Arc::clone(&attempt.sink)));
        Log::again(receiver, &container, &*attempt.sink).await.0
    } else {
        Log::to_sink(Arc::clone(&attempt.sink), attached)
    };
    let mut signals = Signals::new(attempt, &container, &stop_signal, None, Some(Instant::now()));
    let exit = watch(&container, &mut log, std::future::pending(), &mut signals, control).await;
    // The engine that ends a container as it goes may be back before anybody asks how it ended.
    let exit = match exit {
        Exit::Code { code, after_outage } => Exit::Code { code, after_outage: after_outage || blind },
        exit => exit,
    };
    log.drain().await;
    let outcome = judge(attempt, &container, exit, signals.sent).await;
    release(lease, &container, &outcome);
    outcome
}

/// Gives GPUs back, unless the step's process may still have them.
fn release(lease: GpuLease, container: &Container, outcome: &Outcome) {
    match outcome {
        Outcome::Lost { .. } => keep_until_ended(lease, container),
        _ => drop(lease),
    }
}

/// Keeps GPUs until the engine says that the container that may have them does not run, or until the run is over.
fn keep_until_ended(lease: GpuLease, container: &Container) {
    if lease.is_empty() {
        return;
    }
    let container = container.clone();
    tokio::spawn(async move {
        keep_until(lease, || is_over(&container)).await;
    });
}

async fn is_over(container: &Container) -> bool {
    match container.inspect().await {
        Ok(Found::Gone) => true,
        Ok(Found::Here(state)) => has_ended(&state),
        Err(_) => false,
    }
}

async fn keep_until<F: Future<Output = bool>>(lease: GpuLease, ended: impl Fn() -> F) {
    while !ended().await {
        sleep(LOOK_AGAIN).await;
    }
    drop(lease);
}

/// Waits for the end of the process, following its output and passing stops on. `done` may know the end before the engine.
async fn watch(
    container: &Container,
    log: &mut Log,
    done: impl Future<Output = Done>,
    signals: &mut Signals<'_>,
    control: &mut AttemptControl,
) -> Exit {
    let (broken, mut reconnects) = mpsc::unbounded_channel();
    let waiting = exit_of(container, broken);
    tokio::pin!(waiting, done);
    loop {
        tokio::select! {
            biased;
            done = &mut done => return Exit::Done(done),
            exit = &mut waiting => return exit,
            Some(()) = reconnects.recv() => signals.attempt.sink.warning(match log.reconnect(container).await {
                Ok(()) => "the connection to the engine broke; some output may be missing".to_owned(),
                Err(error) => format!("the output is not followed any longer: {error}"),
            }),
            () = control.stop_requested(signals.next_force()), if signals.more() => signals.send(control.stop_force()),
            () = sleep_until(signals.due), if signals.is_due_set() => signals.send(Some(StopForce::Kill)),
        }
    }
}

/// Waits for the end of the process through outages of the engine. Says so whenever a connection was found broken while the
/// process still ran.
async fn exit_of(container: &Container, broken: mpsc::UnboundedSender<()>) -> Exit {
    let mut after_outage = false;
    loop {
        let failure = match wait_once(container).await {
            Ok(code) => return Exit::Code { code, after_outage },
            Err(failure) => failure,
        };
        after_outage |= failure.is_engine_away();
        match patiently(|| container.inspect()).await {
            Ok(Found::Gone) => return Exit::Gone,
            Ok(Found::Here(state)) if has_ended(&state) => {
                return Exit::Code { code: state.exit_code.unwrap_or(255), after_outage };
            }
            Ok(Found::Here(_)) => {
                // Without a receiver the attempt is over, and nobody needs to know.
                let _ = broken.send(());
                sleep(Duration::from_millis(250)).await;
            }
            Err(error) => return Exit::Unknown(error.to_string()),
        }
    }
}

/// A non-zero exit code is an `Err` in bollard in one case and an `Ok` in another; here it is a code.
async fn wait_once(container: &Container) -> Result<i64, DockerError> {
    use bollard::errors::Error::{DockerContainerWaitError, IOError};

    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    let mut stream = Box::pin(container.engine.docker.wait_container(&container.id, Some(options)));
    let operation = || format!("wait for container {}", container.name);
    match stream.next().await {
        Some(Ok(response)) => Ok(response.status_code),
        Some(Err(DockerContainerWaitError { code, .. })) => Ok(code),
        Some(Err(error)) => Err(DockerError::of(operation())(error)),
        None => {
            let err = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            Err(DockerError::of(operation())(IOError { err }))
        }
    }
}

fn has_ended(state: &ContainerState) -> bool {
    state.running != Some(true) && state.restarting != Some(true)
}

/// One outcome out of what the engine says.
async fn judge(attempt: &Attempt, container: &Container, exit: Exit, sent: Option<StopForce>) -> Outcome {
    let (code, after_outage) = match exit {
        Exit::Code { code: 0, .. } | Exit::Done(Done { code: 0, .. }) => return Outcome::Completed,
        // Before the stop: whether the process is over is what nobody knows.
        Exit::Unknown(reason) => return Outcome::Lost { reason },
        _ if sent.is_some() => return Outcome::Stopped,
        Exit::Gone => return lost("the container was removed by somebody else"),
        Exit::Done(Done { code: 137, oom: true, .. }) => return Outcome::OutOfMemory,
        Exit::Done(Done { code, oom, .. }) => {
            if oom {
                attempt.sink.warning(CHILD_OUT_OF_MEMORY.to_owned());
            }
            return Outcome::Exited { code };
        }
        Exit::Code { code, after_outage } => (code, after_outage),
    };
    let state = match container.inspect().await {
        Ok(Found::Gone) => return lost("the container was removed by somebody else"),
        Ok(Found::Here(state)) => state,
        Err(error) => {
            attempt.sink.warning(error.to_string());
            return Outcome::Exited { code };
        }
    };
    let out_of_memory = state.oom_killed == Some(true) || (code == 137 && oom_follows(container).await);
    match code {
        137 if out_of_memory => Outcome::OutOfMemory,
        137 if !after_outage && only_memory_explains(container).await => {
            attempt.sink.warning(OUT_OF_MEMORY_UNTOLD.to_owned());
            Outcome::OutOfMemory
        }
        // These are how containers end with their engine; a failing step has other codes.
        137 | 143 | 255 if after_outage => {
            lost(&format!("the engine restarted and the container ended with exit code {code}"))
        }
        _ => {
            if out_of_memory {
                attempt.sink.warning(CHILD_OUT_OF_MEMORY.to_owned());
            }
            Outcome::Exited { code }
        }
    }
}

/// Whether a kill that the engine does not explain is put down to the memory limit. The report of one can get lost: the
/// engine's runtime drops it when the container's control group is removed before it is read (3 of 75 containers with Docker
/// 20.10 on two busy cores). What else kills a process is a request to the engine, which it remembers, or somebody inside
/// the container or on its host.
async fn only_memory_explains(container: &Container) -> bool {
    container.has_memory_limit().await && !container.was_killed_by_request().await
}

/// The kernel's report of a kill for memory takes its own way to the engine and may be later than the exit.
async fn oom_follows(container: &Container) -> bool {
    for pause in [20, 80, 200] {
        sleep(Duration::from_millis(pause)).await;
        match container.inspect().await {
            Ok(Found::Here(state)) if state.oom_killed == Some(true) => return true,
            Ok(Found::Here(_)) => {}
            Ok(Found::Gone) | Err(_) => return false,
        }
    }
    false
}

fn lost(reason: &str) -> Outcome {
    Outcome::Lost { reason: reason.to_owned() }
}

/// Removes the container unless it is to be kept. Returns its name when it stays against our will.
async fn dispose(attempt: &Attempt, container: &Container, outcome: &Outcome) -> Option<String> {
    if keeps(attempt, outcome) { None } else { remove_or_warn(attempt, container).await }
}

fn keeps(attempt: &Attempt, outcome: &Outcome) -> bool {
    match attempt.container.keep_containers {
        KeepContainers::Never => false,
        KeepContainers::Failed => !matches!(outcome, Outcome::Completed | Outcome::Stopped),
        KeepContainers::Always => true,
    }
}

async fn remove_or_warn(attempt: &Attempt, container: &Container) -> Option<String> {
    let error = container.remove().await.err()?;
    attempt.sink.warning(error::one_line(&error.to_string()));
    Some(container.name.clone())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gpu_is_free_once_the_container_that_may_have_it_has_ended() {
        let pool = GpuPool::new(&["0".to_owned()]);
        let lease = pool.acquire(1).await.unwrap();
        let looks = Cell::new(0);
        let begin = Instant::now();
        let keeping = keep_until(lease, || std::future::ready(looks.replace(looks.get() + 1) == 30));
        let (_, next) = tokio::join!(keeping, pool.acquire(1));
        assert!(next.is_some() && begin.elapsed() == LOOK_AGAIN * 30, "{:?}", begin.elapsed());
    }
}
