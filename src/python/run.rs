//! `DockerRun`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use tokio::sync::{mpsc, oneshot};

use super::engine::DockerEngine;
use super::errors::{docker_error, engine_error, from_python, plan_error};
use super::host::Host;
use super::inbox::Inbox;
use crate::docker::{ContainerSpec, DockerExecutor, PullObserver, RunIdentity};
use crate::plan::{Admission, Plan, PlanError, PlanSpec, StepSpec};
use crate::runner::journal::{Header, VERSION};
use crate::runner::{NoticeSender, Order, Run, drive, notices};
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
        let specs = specs_of(&plan, containers).map_err(|error| plan_error(py, &error))?;
        let capacity = engine.engine.info().capacity();
        let admission = Admission::new(&plan, capacity).map_err(|error| plan_error(py, &error))?;
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
            .expecting(&plan, admission.max_parallelism);
        let warnings = admission.warnings.iter().map(|w| format!("Step `{}` {}.", w.step, w.message)).collect();
        let (orders, inbox) = mpsc::unbounded_channel();
        let executor = Arc::new(executor);
        let prepare = executor.can_prepare();
        #[expect(clippy::disallowed_methods, reason = "when the run began, for people")]
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_unix_nanos = u64::try_from(began.as_nanos()).unwrap_or(u64::MAX);
        let header = Header { version: VERSION, plan: spec, capacity, prepare, began_unix_nanos };
        Ok(Self {
            host: Arc::clone(&engine.host),
            warnings,
            max_parallelism: admission.max_parallelism,
            orders,
            executor: Arc::clone(&executor),
            admission: admission.clone(),
            waiting: Mutex::new(Some(Waiting {
                run: Run {
                    plan: Arc::new(plan),
                    admission,
                    prepare,
                    log_directory: run_directory,
                    journal: Some(header),
                },
                executor,
                orders: inbox,
                notices: sender,
            })),
            inbox: Inbox::new(receiver),
            judgements: Mutex::default(),
        })
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
        runtime.spawn(drive(waiting.run, waiting.executor, waiting.orders, waiting.notices));
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
        // Fails only when the run is over.
        let _ = self.orders.send(Order::Request(step));
        Ok(warning.map(|warning| format!("Step `{}` {}.", warning.step, warning.message)))
    }

    fn drop_step(&self, step: String) {
        // Fails only when the run is over.
        let _ = self.orders.send(Order::Drop(step));
    }
}

/// The container of every step; one that is described for no step is a mistake, too.
fn specs_of(plan: &Plan, containers: &Bound<'_, PyAny>) -> Result<BTreeMap<String, ContainerSpec>, PlanError> {
    let specs: BTreeMap<String, ContainerSpec> = from_python(containers, "containers")?;
    let wrong = |step: &str, message: &str| PlanError {
        step: Some(step.to_owned()),
        field: format!("containers.{step}"),
        message: message.to_owned(),
    };
    if let Some(step) = plan.steps.iter().find(|step| !specs.contains_key(&*step.name)) {
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
