//! One warm worker: a container that gets ready ahead of need, waits, and runs a step when it is told to go.
//!
//! Whoever holds a [`Worker`] owns its container. It is never dropped without [`Worker::remove`], except with the runtime;
//! then its standard input ends, and the worker with it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::container::AttachContainerResults;
use bollard::models::{ContainerCreateBody, ContainerState, HostConfig};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::container::{self, Container, Found, Owner, Place, RunIdentity, label};
use super::engine::{Engine, patiently};
use super::error::DockerError;
use super::files::Archives;
use super::frames::{self, Begun, Done, Nonce};
use super::image::Images;
use super::left::Left;
use super::limits::{Limits, Shares};
use super::log::Log;
use super::outlet::{Event, Outlet};
use super::run_args::RunArgs;
use super::spec::{ContainerSpec, WarmSpec};
use super::story::Story;
use crate::event::AttemptDetails;
use crate::plan::Demand;
use crate::runner::{AttemptControl, AttemptSink, AttemptSpec};

/// Exit code of a worker whose client went away before it was told to go.
pub(super) const NEVER_BEGAN: i64 = 75;

/// A line to a worker goes into a buffer that is never full; an engine that takes it no sooner is as good as away.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// What a worker is made of.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) engine: Engine,
    pub(super) images: Images,
    pub(super) archives: Archives,
    pub(super) run: Arc<RunIdentity>,
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) warm: WarmSpec,
    pub(super) purpose: Purpose,
    /// Of the step that it is made for.
    pub(super) demand: Demand,
    /// Whether it is made before its step is launched.
    pub(super) ahead: bool,
    /// Whether it warms up at the lowest CPU share, which has to be raised later.
    pub(super) idles: bool,
}

/// What a worker is made for.
#[derive(Clone)]
pub(super) enum Purpose {
    /// One attempt.
    Attempt { step: Arc<str>, attempt: u32 },
    /// Any step whose container is described alike.
    Shared { number: u32 },
}

impl Purpose {
    fn owner(&self) -> Owner<'_> {
        match self {
            Self::Attempt { step, attempt } => Owner::Attempt { step, attempt: *attempt },
            Self::Shared { number } => Owner::Worker { number: *number },
        }
    }
}

/// Why there is no worker, and what the engine has of it.
pub(super) struct NotMade {
    /// Whether the engine was away, or its disk full: that tells nothing about the workers to come.
    pub(super) engine_failed: bool,
    left: Left,
}

impl NotMade {
    fn nothing() -> Self {
        Self { engine_failed: false, left: Left::Nothing }
    }

    fn because(error: &DockerError, left: Left) -> Self {
        Self { engine_failed: error.is_engine_away() || error.is_engine_full(), left }
    }
}

/// A started worker.
pub(super) struct Worker {
    pub(super) container: Container,
    pub(super) image_id: Arc<str>,
    pub(super) stop_signal: String,
    pub(super) input: Input,
    pub(super) log: Log,
    pub(super) outlet: Arc<Outlet>,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    /// What the run arguments say.
    host: Box<HostConfig>,
    limits: Limits,
    ahead: bool,
    /// Whether its CPU shares and its CPU limit are those of warming up.
    sleeps: bool,
    nonce: Nonce,
    pub(super) ready: bool,
    /// Steps that began in it.
    pub(super) served: usize,
    /// Of the step that it served last.
    pub(super) control: Option<AttemptControl>,
}

/// A worker's standard input.
#[derive(Clone)]
pub(super) struct Input(Arc<Mutex<Pin<Box<dyn AsyncWrite + Send>>>>);

impl Input {
    /// Writes a line.
    pub(super) async fn write(&self, line: &[u8]) -> std::io::Result<()> {
        let written = timeout(WRITE_PATIENCE, async {
            let mut pipe = self.0.lock().await;
            pipe.write_all(line).await?;
            pipe.flush().await
        });
        written.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }
}

impl Recipe {
    /// Makes a worker; it warms up from then on. Waiting for the image ends when `unwanted` does.
    ///
    /// What it leaves when it fails is to be [cleared](Self::clear).
    pub(super) async fn make(&self, unwanted: impl Future<Output = ()>) -> Result<Worker, NotMade> {
        let Self { engine, spec, .. } = self;
        let arguments = RunArgs::parse(&spec.run_args).map_err(|_| NotMade::nothing())?;
        let platform = arguments.platform.clone().or_else(|| spec.platform.clone());
        let image = arguments.image.clone().unwrap_or_else(|| spec.image.clone());
        let image_id = tokio::select! {
            biased;
            () = unwanted => return Err(NotMade::nothing()),
            resolved = self.images.resolve(spec, &image, platform.as_deref()) => {
                resolved.map_err(|error| NotMade::because(&error, Left::Nothing))?
            }
        };
        let nonce = Nonce::random().map_err(|_| NotMade::nothing())?;
        let limits = Limits::of(spec, &arguments.host, self.demand);
        let body = self.body(self.place(), arguments.clone(), &image_id, limits);
        let created = Container::create(engine, self.place(), spec, platform.as_deref(), body).await;
        let container = created.map_err(|error| NotMade::because(&error, Left::Perhaps))?;
        match self.start(&container).await {
            Ok(AttachContainerResults { output, input }) => {
                let input = Input(Arc::new(Mutex::new(input)));
                if input.write(&frames::hello(&nonce)).await.is_err() {
                    // One that has ended already closed its input; else the connection is what failed.
                    let engine_failed =
                        !matches!(container.inspect().await, Ok(Found::Here(state)) if ended_by_itself(&state));
                    return Err(NotMade { engine_failed, left: Left::Container(container) });
                }
                let (outlet, events) = Outlet::new(&nonce);
                // The log keeps the input, too: a write that fails must not end the connection.
                let log = Log::follow(Arc::clone(&outlet) as _, output, input.clone());
                Ok(Worker {
                    stop_signal: arguments.body.stop_signal.unwrap_or_else(|| "SIGTERM".to_owned()),
                    container,
                    image_id,
                    input,
                    log,
                    outlet,
                    events,
                    host: Box::new(arguments.host),
                    limits,
                    ahead: self.ahead,
                    sleeps: self.idles,
                    nonce,
                    ready: false,
                    served: 0,
                    control: None,
                })
            }
            Err(error) => Err(NotMade::because(&error, Left::Container(container))),
        }
    }

    /// Removes what is left of a worker that was not made, also when its engine comes back only later. Returns the name of a
    /// container that stays against our will.
    pub(super) async fn clear(&self, not_made: NotMade) -> Option<String> {
        not_made.left.clear(&self.engine, self.place(), true).await.err().and_then(|(name, _)| name)
    }

    fn place(&self) -> Place<'_> {
        Place { run: &self.run, owner: self.purpose.owner() }
    }

    fn body(&self, place: Place<'_>, arguments: RunArgs, image_id: &str, limits: Limits) -> ContainerCreateBody {
        let spec = ContainerSpec {
            entrypoint: self.warm.entrypoint.clone(),
            command: self.warm.command.clone(),
            ..ContainerSpec::clone(&self.spec)
        };
        let shares = if self.idles { Shares::Idle } else { Shares::Normal };
        let mut body = container::body(place, &spec, arguments, image_id, (limits, shares), None);
        body.attach_stdin = Some(true);
        body.open_stdin = Some(true);
        // Its input ends with our connection: no worker outlives its client.
        body.stdin_once = Some(true);
        body.labels.get_or_insert_default().insert(label::WARM.to_owned(), "true".to_owned());
        body
    }

    async fn start(&self, container: &Container) -> Result<AttachContainerResults, DockerError> {
        self.archives.upload(container, &self.spec.files).await?;
        let attached = container.attach(true).await?;
        container.start().await?;
        Ok(attached)
    }
}

/// Whether the process ended as no engine ends one that it takes down with itself.
fn ended_by_itself(state: &ContainerState) -> bool {
    state.running == Some(false) && !matches!(state.exit_code, Some(137 | 143))
}

impl Worker {
    /// What happens next to it. [`Event::Ended`] when nothing can happen any more.
    ///
    /// Cancel safe.
    pub(super) async fn event(&mut self) -> Event {
        let event = self.events.recv().await.unwrap_or(Event::Ended);
        self.ready |= event == Event::Ready;
        event
    }

    /// Gives it the CPU of a step and the limits of the one that it was made for.
    pub(super) async fn wake(&mut self) -> Result<(), DockerError> {
        self.limit(self.limits).await
    }

    /// Gives it the CPU and the limits of this step. Asks the engine only if anything changes.
    pub(super) async fn fit(&mut self, spec: &ContainerSpec, demand: Demand) -> Result<(), DockerError> {
        self.limit(Limits::of(spec, &self.host, demand)).await
    }

    async fn limit(&mut self, wanted: Limits) -> Result<(), DockerError> {
        let engine = self.container.engine.info();
        let change = if self.sleeps { self.limits.awake(wanted, engine) } else { self.limits.change(wanted, engine) };
        if let Some(change) = change {
            self.container.update(change).await?;
        }
        self.limits = wanted;
        self.sleeps = false;
        Ok(())
    }

    /// Whether it can be no fault of its own that nothing more comes from it: its engine is away.
    pub(super) async fn is_cut_off(&self) -> bool {
        self.container.inspect().await.is_err_and(|error| error.is_engine_away())
    }

    /// Tells it to go: at once when it is ready, else as soon as it is.
    pub(super) async fn go(&mut self, spec: &AttemptSpec, sink: Arc<dyn AttemptSink>) -> std::io::Result<()> {
        let details = AttemptDetails {
            container_id: Some(self.container.id.clone()),
            container_name: Some(self.container.name.clone()),
            image_id: Some(self.image_id.to_string()),
            warm: self.ahead || self.served > 0,
            ..AttemptDetails::default()
        };
        self.outlet.call(sink, details);
        self.input.write(&frames::go(&spec.name, spec.attempt)).await
    }

    /// Where the engine's copy of its output tells of a step.
    pub(super) fn record(&self, spec: &AttemptSpec) -> Record {
        let step = Begun { step: spec.name.to_string(), attempt: spec.attempt };
        Record { container: self.container.clone(), nonce: self.nonce.clone(), step, was_ready: self.ready }
    }

    /// Ends it and removes its container. Returns the container's name when it stays against our will.
    pub(super) async fn remove(self) -> Option<String> {
        self.outlet.leave();
        let Self { container, input, log, control, .. } = self;
        // The end of its input is its end, also when the engine does not listen just now.
        drop((log, input));
        if let Some(control) = control {
            // Its output tells how that step ended.
            control.recorded().await;
        }
        container.remove().await.err().map(|_| container.name)
    }
}

/// The engine's own copy of what a worker wrote, for one step that it serves.
pub(super) struct Record {
    pub(super) container: Container,
    pub(super) nonce: Nonce,
    pub(super) step: Begun,
    /// Whether the worker is known to have been ready.
    pub(super) was_ready: bool,
}

impl Record {
    /// Whether the worker said that the step began; none when there is no copy, or its beginning is lost.
    ///
    /// # Errors
    /// [`DockerError`] when the engine is away for longer than anybody waits.
    pub(super) async fn has_begun(&self) -> Result<Option<bool>, DockerError> {
        let story = patiently(|| Story::read(&self.container, Some(&self.nonce))).await?;
        Ok(story.and_then(|story| story.has_begun(&self.step, self.was_ready)))
    }

    /// The worker's word for the end of the step; none when there is none yet, or no copy.
    pub(super) async fn done(&self) -> Option<Done> {
        Story::read(&self.container, Some(&self.nonce)).await.ok()??.done(&self.step).cloned()
    }
}
