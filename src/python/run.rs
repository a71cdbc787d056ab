//! `DockerRun`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};

use super::engine::DockerEngine;
use super::errors::{docker_error, engine_error, from_python, plan_error};
use super::host::Host;
use super::inbox::Inbox;
use crate::docker::{ContainerSpec, DockerExecutor, PullObserver, RunIdentity};
use crate::plan::{Admission, Plan, PlanError, PlanSpec, StepSpec};
use crate::runner::journal::{self, FILE_NAME, Header, Journal, VERSION};
use crate::runner::replay::replay;
use crate::runner::{NoticeReceiver, NoticeSender, Order, Resumption, Run, drive, notices, resume};
use crate::schedule::{CancelReason, Verdict};

/// One run of a plan on an engine.
#[pyclass(module = "step_engine._native", frozen)]
pub(super) struct DockerRun {
    host: Arc<Host>,
    warnings: Vec<String>,
    max_parallelism: u32,
    orders: mpsc::UnboundedSender<Order>,
    executor: Arc<DockerExecutor>,
    admission: Admission,
    waiting: Mutex<Option<Waiting>>,
    inbox: Inbox,
    judgements: Mutex<HashMap<(String, u32), oneshot::Sender<Verdict>>>,
}

/// What `start` consumes.
struct Waiting {
    run: Run,
    executor: Arc<DockerExecutor>,
    orders: mpsc::UnboundedReceiver<Order>,
    notices: NoticeSender,
    behind: Option<Behind>,
}

/// What a run that is gone on with has behind it.
struct Behind {
    journal: PathBuf,
    /// Until its last owner died, since it began.
    alive_for: Duration,
    completed: BTreeSet<String>,
}

impl Behind {
    fn read(self) -> Result<Resumption, String> {
        let unusable = |why: String| format!("{}: {why}.", self.journal.display());
        let (journal, recorded) = Journal::open(&self.journal).map_err(|error| unusable(error.to_string()))?;
        let left = replay(&recorded).map_err(|error| unusable(error.to_string()))?;
        let now = left.at.max(self.alive_for);
        Ok(Resumption { journal, left, now, completed: self.completed })
    }
}

/// What a run is driven with.
struct Made {
    executor: DockerExecutor,
    sender: NoticeSender,
    receiver: NoticeReceiver,
}

impl Made {
    fn new(
        py: Python<'_>,
        engine: &DockerEngine,
        (plan, planned): (&Plan, usize),
        admission: &Admission,
        containers: &Bound<'_, PyAny>,
        component: &str,
    ) -> PyResult<Self> {
        let specs = specs_of(plan, planned, containers).map_err(|error| plan_error(py, &error))?;
        let identity = RunIdentity {
            run_id: plan.run_id.clone(),
            pipeline: plan.pipeline.clone(),
            component: (!component.is_empty()).then(|| component.to_owned()),
        };
        let (sender, receiver) = notices();
        let pulls: PullObserver = {
            let notices = sender.clone();
            Arc::new(move |pull| notices.progress(pull.to_string()))
        };
        let executor = DockerExecutor::new(engine.engine.clone(), identity, specs, Some(pulls))
            .map_err(|error| docker_error(py, &error))?
            .expecting(plan, admission.max_parallelism);
        Ok(Self { executor, sender, receiver })
    }
}

#[pymethods]
impl DockerRun {
    #[new]
    #[pyo3(signature = (engine, plan, containers, *, run_directory=None, component=""))]
    fn new(
        py: Python<'_>,
        engine: &DockerEngine,
        plan: &Bound<'_, PyAny>,
        containers: &Bound<'_, PyAny>,
        run_directory: Option<PathBuf>,
        component: &str,
    ) -> PyResult<Self> {
        let spec: PlanSpec = from_python(plan, "").map_err(|error| plan_error(py, &error))?;
        let plan = Plan::new(spec.clone()).map_err(|error| plan_error(py, &error))?;
        let capacity = engine.engine.info().capacity();
        let admission = Admission::new(&plan, capacity).map_err(|error| plan_error(py, &error))?;
        let made = Made::new(py, engine, (&plan, plan.len()), &admission, containers, component)?;
        let prepare = made.executor.can_prepare();
        #[expect(clippy::disallowed_methods, reason = "when the run began, for people")]
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_unix_nanos = u64::try_from(began.as_nanos()).unwrap_or(u64::MAX);
        let journal = Some(Header { version: VERSION, plan: spec, capacity, prepare, began_unix_nanos });
        let run = Run { plan: Arc::new(plan), admission, prepare, log_directory: run_directory, journal };
        Ok(Self::made(engine, run, made, None))
    }

    #[staticmethod]
    #[pyo3(signature = (engine, containers, *, run_directory, component="", alive_until_unix_seconds=None, completed=None))]
    fn resume(
        py: Python<'_>,
        engine: &DockerEngine,
        containers: &Bound<'_, PyAny>,
        run_directory: PathBuf,
        component: &str,
        alive_until_unix_seconds: Option<f64>,
        completed: Option<BTreeSet<String>>,
    ) -> PyResult<Self> {
        let path = run_directory.join(FILE_NAME);
        let unusable = |why: String| engine_error(py, format!("{}: {why}.", path.display()));
        let bytes = std::fs::read(&path).map_err(|error| unusable(error.to_string()))?;
        let recorded = journal::parse(&bytes).map_err(|error| unusable(error.to_string()))?;
        let left = replay(&recorded).map_err(|error| unusable(error.to_string()))?;
        let planned = recorded.header.plan.steps.len();
        let made = Made::new(py, engine, (&left.plan, planned), &left.admission, containers, component)?;
        let run = Run {
            plan: left.plan,
            admission: left.admission,
            prepare: recorded.header.prepare,
            log_directory: Some(run_directory),
            journal: None,
        };
        let began = Duration::from_nanos(recorded.header.began_unix_nanos);
        let alive_until = alive_until_unix_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let alive_for = alive_until.unwrap_or_default().saturating_sub(began);
        let behind = Behind { journal: path.clone(), alive_for, completed: completed.unwrap_or_default() };
        Ok(Self::made(engine, run, made, Some(behind)))
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    #[getter]
    fn max_parallelism(&self) -> u32 {
        self.max_parallelism
    }

    #[getter]
    fn finished(&self) -> bool {
        self.inbox.is_finished()
    }

    #[getter]
    fn summary<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.inbox.summary(py)
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        let runtime = self.host.runtime(py)?;
        let Some(waiting) = lock(&self.waiting).take() else {
            return Err(engine_error(py, "The run was started already."));
        };
        let Waiting { run, executor, orders, notices, behind } = waiting;
        match behind {
            None => drop(runtime.spawn(drive(run, executor, orders, notices))),
            Some(behind) => {
                // Again, now that the caller is the owner: somebody else may have gone on with it in the meantime.
                let resumption = behind.read().map_err(|why| engine_error(py, why))?;
                runtime.spawn(resume(run, resumption, executor, orders, notices));
            }
        }
        Ok(())
    }

    #[pyo3(signature = (timeout_seconds=1.0))]
    fn next_events<'py>(&self, py: Python<'py>, timeout_seconds: f64) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let batch = self.inbox.next(py, timeout_seconds, |judgement| {
            lock(&self.judgements).insert((judgement.step.to_string(), judgement.attempt), judgement.reply);
        })?;
        if batch.is_none() && !self.inbox.has_summary() {
            return Err(engine_error(py, "The run ended without a summary; this is a bug of the step engine."));
        }
        Ok(batch.unwrap_or_default())
    }

    fn judge(
        &self,
        py: Python<'_>,
        step: String,
        attempt: u32,
        outcome: &Bound<'_, PyAny>,
        may_retry: bool,
    ) -> PyResult<()> {
        let outcome = from_python(outcome, "outcome").map_err(|error| plan_error(py, &error))?;
        let Some(reply) = lock(&self.judgements).remove(&(step.clone(), attempt)) else {
            return Err(engine_error(py, format!("Attempt {attempt} of step `{step}` waits for no verdict.")));
        };
        // Fails only when the run is over.
        let _ = reply.send(Verdict { outcome, may_retry });
        Ok(())
    }

    fn cancel(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let reason = match reason {
            "interrupt" => CancelReason::Interrupt,
            "kill" => CancelReason::Kill,
            "abandon" => CancelReason::Abandon,
            other => {
                return Err(engine_error(py, format!("The reason must be interrupt, kill or abandon, got {other}.")));
            }
        };
        // Fails only when the run is over.
        let _ = self.orders.send(Order::Cancel(reason));
        Ok(())
    }

    fn request_step(
        &self,
        py: Python<'_>,
        step: &Bound<'_, PyAny>,
        container: &Bound<'_, PyAny>,
    ) -> PyResult<Option<String>> {
        let step: StepSpec = from_python(step, "step").map_err(|error| plan_error(py, &error))?;
        let container: ContainerSpec = from_python(container, "container").map_err(|error| plan_error(py, &error))?;
        let (_, _, warning) = self.admission.measure(step.clone()).map_err(|error| plan_error(py, &error))?;
        self.executor.describe(&step.name, container).map_err(|error| docker_error(py, &error))?;
        let (recorded, mut is_recorded) = watch::channel(false);
        // Fails only when the run is over.
        let _ = self.orders.send(Order::Request(step, recorded));
        // Whoever goes on with the run must know of what its leader was told.
        self.host.wait(py, async move { drop(is_recorded.wait_for(|recorded| *recorded).await) })?;
        Ok(warning.map(|warning| format!("Step `{}` {}.", warning.step, warning.message)))
    }

    fn drop_step(&self, step: String) {
        // Fails only when the run is over.
        let _ = self.orders.send(Order::Drop(step));
    }
}

impl DockerRun {
    fn made(engine: &DockerEngine, run: Run, made: Made, behind: Option<Behind>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let executor = Arc::new(made.executor);
        let warnings = run.admission.warnings.iter().map(|w| format!("Step `{}` {}.", w.step, w.message)).collect();
        Self {
            host: Arc::clone(&engine.host),
            warnings,
            max_parallelism: run.admission.max_parallelism,
            orders,
            executor: Arc::clone(&executor),
            admission: run.admission.clone(),
            waiting: Mutex::new(Some(Waiting { run, executor, orders: inbox, notices: made.sender, behind })),
            inbox: Inbox::new(made.receiver),
            judgements: Mutex::default(),
        }
    }
}

/// The container of every step that was planned; one that is described for no step is a mistake, too. Of the steps that came
/// later some may be over, and nobody knows theirs any more.
fn specs_of(
    plan: &Plan,
    planned: usize,
    containers: &Bound<'_, PyAny>,
) -> Result<BTreeMap<String, ContainerSpec>, PlanError> {
    let specs: BTreeMap<String, ContainerSpec> = from_python(containers, "containers")?;
    let wrong = |step: &str, message: &str| PlanError {
        step: Some(step.to_owned()),
        field: format!("containers.{step}"),
        message: message.to_owned(),
    };
    if let Some(step) = plan.steps.iter().take(planned).find(|step| !specs.contains_key(&*step.name)) {
        return Err(wrong(&step.name, "no container is described for it"));
    }
    if let Some(step) = specs.keys().find(|name| !plan.steps.iter().any(|step| *step.name == **name)) {
        return Err(wrong(step, "a container is described for it, but it is no step of the plan"));
    }
    Ok(specs)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
