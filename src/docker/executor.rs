//! [`Executor`] on an engine: every attempt in a container of its own, or in a warm worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::attempt::{self, Attempt, adopted};
use super::container::{self, RunIdentity};
use super::engine::Engine;
use super::error::DockerError;
use super::files::Archives;
use super::gpu::GpuPool;
use super::image::{Images, PullObserver};
use super::pool::Pool;
use super::spec::ContainerSpec;
use super::survivors::Survivors;
use super::sweep;
use crate::event::Outcome;
use crate::plan::{Plan, StepIndex};
use crate::runner::{AttemptControl, AttemptSink, AttemptSpec, Executor, TakeOver};

/// Runs the attempts of one run in containers.
pub struct DockerExecutor {
    engine: Engine,
    run: Arc<RunIdentity>,
    containers: Mutex<BTreeMap<String, Arc<ContainerSpec>>>,
    images: Images,
    archives: Archives,
    gpus: GpuPool,
    pool: Pool,
    survivors: Survivors,
    unremoved: Mutex<Vec<String>>,
}

impl DockerExecutor {
    /// An executor of a run; `containers` by step name.
    ///
    /// # Errors
    /// [`DockerError::InvalidSpec`] with the step and the field, before anything is created.
    pub fn new(
        engine: Engine,
        run: RunIdentity,
        containers: impl IntoIterator<Item = (String, ContainerSpec)>,
        pull_observer: Option<PullObserver>,
    ) -> Result<Self, DockerError> {
        let containers = containers
            .into_iter()
            .map(|(step, spec)| validated(&step, spec).map(|spec| (step, spec)))
            .collect::<Result<_, _>>()?;
        let (run, images, archives) = (Arc::new(run), Images::new(engine.clone(), pull_observer), Archives::default());
        let pool = Pool::new(engine.clone(), images.clone(), archives.clone(), Arc::clone(&run), &containers);
        Ok(Self {
            gpus: GpuPool::new(&engine.info().gpu_ids),
            images,
            archives,
            run,
            pool,
            containers: Mutex::new(containers),
            engine,
            survivors: Survivors::default(),
            unremoved: Mutex::default(),
        })
    }

    /// Tells what is going to run, so that no more warm workers are made than that needs.
    #[must_use]
    pub fn expecting(self, plan: &Plan, max_parallelism: u32) -> Self {
        self.pool.expect(plan, max_parallelism);
        self
    }

    /// Describes the container of a step that comes while the run goes on, or of its further attempts. It starts cold.
    ///
    /// # Errors
    /// As for [`DockerExecutor::new`].
    pub fn describe(&self, step: &str, spec: ContainerSpec) -> Result<(), DockerError> {
        let spec = validated(step, spec)?;
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).insert(step.to_owned(), spec);
        Ok(())
    }

    fn container(&self, step: &str) -> Option<Arc<ContainerSpec>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).get(step).cloned()
    }

    /// Whether any step may start warm.
    #[must_use]
    pub fn can_prepare(&self) -> bool {
        self.pool.can_prepare()
    }

    fn attempt(&self, spec: AttemptSpec, sink: Arc<dyn AttemptSink>) -> Result<Attempt, Outcome> {
        let Some(container) = self.container(&spec.name) else {
            let outcome =
                Outcome::LaunchFailed { reason: format!("step `{}` has no container specification", spec.name) };
            sink.settled(&outcome);
            return Err(outcome);
        };
        Ok(Attempt {
            engine: self.engine.clone(),
            images: self.images.clone(),
            archives: self.archives.clone(),
            pool: self.pool.clone(),
            gpus: self.gpus.clone(),
            run: Arc::clone(&self.run),
            container,
            spec,
            sink,
        })
    }

    fn stayed(&self, left: Option<String>) {
        self.unremoved.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

fn validated(step: &str, spec: ContainerSpec) -> Result<Arc<ContainerSpec>, DockerError> {
    match spec.validate() {
        Ok(()) => Ok(Arc::new(spec)),
        Err(DockerError::InvalidSpec { field, message }) => {
            Err(DockerError::spec(format!("step `{step}`, {field}"), message))
        }
        Err(other) => Err(other),
    }
}

impl Executor for DockerExecutor {
    async fn run(self: Arc<Self>, spec: AttemptSpec, control: AttemptControl, sink: Arc<dyn AttemptSink>) -> Outcome {
        match self.attempt(spec, sink) {
            Ok(attempt) => {
                let (outcome, left) = attempt::run(&attempt, control).await;
                self.stayed(left);
                outcome
            }
            Err(outcome) => outcome,
        }
    }

    async fn take_over(self: Arc<Self>, left: TakeOver) {
        let run_id = &self.run.run_id;
        let last_number = self.survivors.find(&self.engine, run_id, &left.attempts, &self.gpus).await;
        self.pool.go_on(&left.launched, last_number);
    }

    async fn adopt(
        self: Arc<Self>,
        spec: AttemptSpec,
        control: AttemptControl,
        sink: Arc<dyn AttemptSink>,
    ) -> Option<Outcome> {
        let survivor = match self.survivors.take(&spec.name, spec.attempt) {
            Ok(survivor) => survivor?,
            Err(reason) => return Some(Outcome::Lost { reason }),
        };
        match self.attempt(spec, sink) {
            Ok(attempt) => {
                let (outcome, left) = adopted::run(&attempt, survivor, control).await;
                self.stayed(left);
                Some(outcome)
            }
            Err(outcome) => Some(outcome),
        }
    }

    fn prepare(self: Arc<Self>, spec: AttemptSpec) {
        self.pool.prepare(spec);
    }

    fn discard(self: Arc<Self>, step: StepIndex) {
        self.pool.discard(step);
    }

    async fn close(self: Arc<Self>) -> Vec<String> {
        let stayed = self.pool.close().await;
        let mut left = std::mem::take(&mut *self.unremoved.lock().unwrap_or_else(PoisonError::into_inner));
        left.extend(stayed);
        if let Some(stayed) = self.survivors.left() {
            left.extend(stayed);
            // What the former owner had just asked for when it died.
            left.extend(sweep::clear(&self.engine, &self.run.run_id).await.unwrap_or_default());
        }
        // An attempt that was abandoned may have left a process that runs, a creation whose answer was lost a container that
        // appeared after it was looked for.
        let present = sweep::list(&self.engine, &self.run.run_id).await.unwrap_or_default();
        let (running, idle): (Vec<_>, Vec<_>) = present.into_iter().partition(|container| container.running);
        left.extend(running.into_iter().map(|container| container.name));
        for container in idle.into_iter().filter(|container| container.created) {
            if container::remove(&self.engine, &container.id, &container.name).await.is_err() {
                left.push(container.name);
            }
        }
        left.sort();
        left.dedup();
        left
    }
}
