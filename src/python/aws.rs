//! `AwsSession` and `AwsRun`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pythonize::pythonize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::errors::{aws_error, engine_error, ensure_error, from_python, plan_error};
use super::host::Host;
use super::inbox::Inbox;
use crate::aws::{
    AwsError, Backend, DeployOptions, Keep, Keys, MachineSpec, Overlay, Schedule, Secret, Session, SessionOptions,
    StartedBy, Watch,
};
use crate::plan::{Plan, PlanError};
use crate::runner::{NoticeSender, notices};

/// Calls AWS in one account and region.
#[pyclass(module = "step_engine._native", frozen)]
pub(super) struct AwsSession {
    host: Arc<Host>,
    session: Session,
}

impl AwsSession {
    /// Runs a call to its end; its error becomes an exception.
    fn wait<T: Send + 'static>(
        &self,
        py: Python<'_>,
        call: impl Future<Output = Result<T, AwsError>> + Send + 'static,
    ) -> PyResult<T> {
        self.host.wait(py, call)?.map_err(|error| aws_error(py, &error))
    }

    /// The same for an answer that becomes a Python value.
    fn wait_for<'py, T: serde::Serialize + Send + 'static>(
        &self,
        py: Python<'py>,
        call: impl Future<Output = Result<T, AwsError>> + Send + 'static,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize(py, &self.wait(py, call)?)?)
    }
}

fn convert<T: serde::de::DeserializeOwned>(value: &Bound<'_, PyAny>, place: &str) -> PyResult<T> {
    from_python(value, place).map_err(|error| plan_error(value.py(), &error))
}

fn seconds(py: Python<'_>, field: &str, value: f64) -> PyResult<Duration> {
    let wrong = |_| PlanError {
        step: None,
        field: field.to_owned(),
        message: format!("must be a number of seconds from 0 up, got {value}"),
    };
    Duration::try_from_secs_f64(value).map_err(wrong).map_err(|error| plan_error(py, &error))
}

#[pymethods]
impl AwsSession {
    #[new]
    #[pyo3(signature = (*, region=None, profile=None, credentials=None))]
    fn new(
        py: Python<'_>,
        region: Option<String>,
        profile: Option<String>,
        credentials: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let credentials: Option<Keys> = credentials.map(|keys| convert(keys, "credentials")).transpose()?;
        let host = Host::new().map_err(|error| engine_error(py, format!("No threads could be started: {error}")))?;
        let options = SessionOptions { region, profile, credentials };
        let session = host.wait(py, Session::open(options))?.map_err(|error| aws_error(py, &error))?;
        Ok(Self { host: Arc::new(host), session })
    }

    #[getter]
    fn region(&self) -> &str {
        self.session.region()
    }

    #[getter]
    fn credentials_expire_in_seconds(&self) -> Option<f64> {
        self.session.credentials_expire_in_seconds()
    }

    #[getter]
    fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.session.calls().into_iter().collect()
    }

    fn set_credentials(&self, py: Python<'_>, credentials: &Bound<'_, PyAny>) -> PyResult<()> {
        self.session.set_credentials(convert(credentials, "credentials")?).map_err(|error| aws_error(py, &error))
    }

    fn identity<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session.clone();
        self.wait_for(py, async move { session.identity().await.cloned() })
    }

    fn describe_task_definition<'py>(&self, py: Python<'py>, task_definition: String) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session.clone();
        let described = self.wait(py, async move { session.describe_task_definition(&task_definition).await })?;
        Ok(pythonize(py, &*described)?)
    }

    fn ensure_task_definition<'py>(
        &self,
        py: Python<'py>,
        template: String,
        overlay: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let overlay: Overlay = convert(overlay, "overlay")?;
        let session = self.session.clone();
        let ensured = self.host.wait(py, async move { session.ensure_task_definition(&template, &overlay).await })?;
        Ok(pythonize(py, &ensured.map_err(|error| ensure_error(py, &error))?)?)
    }

    #[pyo3(signature = (machines, *, role_arn, tags=None, log_group_arn=None, publish=false, role_wait_seconds=20.0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn deploy<'py>(
        &self,
        py: Python<'py>,
        machines: &Bound<'py, PyAny>,
        role_arn: String,
        tags: Option<BTreeMap<String, String>>,
        log_group_arn: Option<String>,
        publish: bool,
        role_wait_seconds: f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let machines: Vec<MachineSpec> = convert(machines, "machines")?;
        let role_wait = seconds(py, "role_wait_seconds", role_wait_seconds)?;
        let options = DeployOptions { role_arn, tags: tags.unwrap_or_default(), log_group_arn, publish, role_wait };
        let session = self.session.clone();
        self.wait_for(py, async move { session.deploy(&machines, &options).await })
    }

    #[pyo3(signature = (pipeline, *, keep=5, min_age_seconds=86_400.0))]
    fn collect_machines(
        &self,
        py: Python<'_>,
        pipeline: String,
        keep: usize,
        min_age_seconds: f64,
    ) -> PyResult<Vec<String>> {
        let keep = Keep { newest: keep, min_age: seconds(py, "min_age_seconds", min_age_seconds)? };
        let session = self.session.clone();
        self.wait(py, async move { session.collect_machines(&pipeline, keep).await })
    }

    #[pyo3(signature = (template, *, keep=20, min_age_seconds=2_592_000.0))]
    fn collect_task_definitions(
        &self,
        py: Python<'_>,
        template: String,
        keep: usize,
        min_age_seconds: f64,
    ) -> PyResult<Vec<String>> {
        let keep = Keep { newest: keep, min_age: seconds(py, "min_age_seconds", min_age_seconds)? };
        let session = self.session.clone();
        self.wait(py, async move { session.collect_task_definitions(&template, keep).await })
    }

    #[pyo3(signature = (state_machine_arn, *, name, input))]
    fn start(
        &self,
        py: Python<'_>,
        state_machine_arn: String,
        name: String,
        input: &Bound<'_, PyAny>,
    ) -> PyResult<String> {
        let input: Value = convert(input, "input")?;
        let session = self.session.clone();
        self.wait(py, async move { session.start(&state_machine_arn, &name, &input).await })
    }

    #[pyo3(signature = (execution_arn, *, cause="", grace_seconds=30.0, others=None))]
    fn stop<'py>(
        &self,
        py: Python<'py>,
        execution_arn: String,
        cause: &str,
        grace_seconds: f64,
        others: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let grace = seconds(py, "grace_seconds", grace_seconds)?;
        let others: Option<StartedBy> = others.map(|others| convert(others, "others")).transpose()?;
        let (session, cause) = (self.session.clone(), cause.to_owned());
        self.wait_for(py, async move { session.stop(&execution_arn, &cause, grace, others.as_ref()).await })
    }

    fn describe_execution<'py>(&self, py: Python<'py>, execution_arn: String) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session.clone();
        self.wait_for(py, async move { session.describe_execution(&execution_arn).await })
    }

    fn execution_steps<'py>(
        &self,
        py: Python<'py>,
        execution_arn: String,
        steps: Vec<String>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session.clone();
        let views = self.wait(py, async move { session.execution_steps(&execution_arn, &steps).await })?;
        let dict = pyo3::types::PyDict::new(py);
        for (step, view) in views {
            dict.set_item(step, pythonize(py, &view)?)?;
        }
        Ok(dict.into_any())
    }

    #[pyo3(signature = (backend, name, value, *, tags=None, kms_key=None, overwrite=true))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn put_secret(
        &self,
        py: Python<'_>,
        backend: &Bound<'_, PyAny>,
        name: String,
        value: String,
        tags: Option<BTreeMap<String, String>>,
        kms_key: Option<String>,
        overwrite: bool,
    ) -> PyResult<String> {
        let backend: Backend = convert(backend, "backend")?;
        let secret = Secret { name, value, tags: tags.unwrap_or_default(), kms_key, overwrite };
        let session = self.session.clone();
        self.wait(py, async move { session.put_secret(backend, &secret).await })
    }

    fn delete_secret(&self, py: Python<'_>, backend: &Bound<'_, PyAny>, name: String) -> PyResult<bool> {
        let backend: Backend = convert(backend, "backend")?;
        let session = self.session.clone();
        self.wait(py, async move { session.delete_secret(backend, &name).await })
    }

    #[pyo3(signature = (group, stream, *, limit=1_000, from_head=false, region=None))]
    fn log_lines(
        &self,
        py: Python<'_>,
        group: String,
        stream: String,
        limit: usize,
        from_head: bool,
        region: Option<String>,
    ) -> PyResult<Vec<String>> {
        let session = self.session.clone();
        self.wait(py, async move { session.log_lines(&group, &stream, limit, from_head, region.as_deref()).await })
    }

    fn run_task<'py>(&self, py: Python<'py>, request: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let request: Value = convert(request, "request")?;
        let session = self.session.clone();
        self.wait_for(py, async move { session.run_task(&request).await })
    }

    fn describe_tasks<'py>(&self, py: Python<'py>, cluster: String, tasks: Vec<String>) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session.clone();
        self.wait_for(py, async move { session.describe_tasks(&cluster, &tasks).await })
    }

    #[pyo3(signature = (cluster, task, *, reason=""))]
    fn stop_task(&self, py: Python<'_>, cluster: String, task: String, reason: &str) -> PyResult<()> {
        let (session, reason) = (self.session.clone(), reason.to_owned());
        self.wait(py, async move { session.stop_task(&cluster, &task, &reason).await })
    }

    #[pyo3(signature = (
        name, *, expression, state_machine_arn, role_arn, input, group=None, timezone=None, start_at_unix_seconds=None,
        end_at_unix_seconds=None, enabled=true, flexible_minutes=None, description="",
        delete_after_completion=false, create=true
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn put_schedule<'py>(
        &self,
        py: Python<'py>,
        name: String,
        expression: String,
        state_machine_arn: String,
        role_arn: String,
        input: &Bound<'py, PyAny>,
        group: Option<String>,
        timezone: Option<String>,
        start_at_unix_seconds: Option<f64>,
        end_at_unix_seconds: Option<f64>,
        enabled: bool,
        flexible_minutes: Option<u16>,
        description: &str,
        delete_after_completion: bool,
        create: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let schedule = Schedule {
            name,
            group,
            expression,
            timezone,
            start_at_unix_seconds,
            end_at_unix_seconds,
            enabled,
            state_machine_arn,
            role_arn,
            input: convert(input, "input")?,
            flexible_minutes,
            description: description.to_owned(),
            delete_after_completion,
            arn: String::new(),
        };
        let session = self.session.clone();
        let put = async move {
            match create {
                true => session.put_schedule(&schedule).await,
                false => session.change_schedule(&schedule).await.map(|arn| (arn, false)),
            }
        };
        let (arn, created) = self.wait(py, put)?;
        Ok(pythonize(py, &json!({"arn": arn, "created": created}))?)
    }

    #[pyo3(signature = (name, *, group=None))]
    fn get_schedule<'py>(&self, py: Python<'py>, name: String, group: Option<String>) -> PyResult<Bound<'py, PyAny>> {
        let session = self.session.clone();
        self.wait_for(py, async move { session.get_schedule(&name, group.as_deref()).await })
    }

    #[pyo3(signature = (name, enabled, *, group=None))]
    fn set_schedule_enabled(
        &self,
        py: Python<'_>,
        name: String,
        enabled: bool,
        group: Option<String>,
    ) -> PyResult<bool> {
        let session = self.session.clone();
        self.wait(py, async move { session.set_schedule_enabled(&name, group.as_deref(), enabled).await })
    }

    #[pyo3(signature = (name, *, group=None))]
    fn delete_schedule(&self, py: Python<'_>, name: String, group: Option<String>) -> PyResult<bool> {
        let session = self.session.clone();
        self.wait(py, async move { session.delete_schedule(&name, group.as_deref()).await })
    }
}

/// Watches one execution.
#[pyclass(module = "step_engine._native", frozen)]
pub(super) struct AwsRun {
    host: Arc<Host>,
    cancelled: watch::Sender<bool>,
    waiting: Mutex<Option<Waiting>>,
    inbox: Inbox,
    failure: Arc<Mutex<Option<AwsError>>>,
}

/// What `start` consumes.
struct Waiting {
    watch: Watch,
    notices: NoticeSender,
}

#[pymethods]
impl AwsRun {
    #[new]
    #[pyo3(signature = (session, execution_arn, plan, *, logs=true, others=None))]
    fn new(
        py: Python<'_>,
        session: &AwsSession,
        execution_arn: String,
        plan: &Bound<'_, PyAny>,
        logs: bool,
        others: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let plan = from_python(plan, "").and_then(Plan::new).map_err(|error| plan_error(py, &error))?;
        let others: Option<StartedBy> = others.map(|others| convert(others, "others")).transpose()?;
        let (sender, receiver) = notices();
        let (session, host) = (session.session.clone(), Arc::clone(&session.host));
        let watch = Watch { session, execution: execution_arn, plan: Arc::new(plan), logs, others };
        Ok(Self {
            host,
            cancelled: watch::Sender::new(false),
            waiting: Mutex::new(Some(Waiting { watch, notices: sender })),
            inbox: Inbox::new(receiver),
            failure: Arc::default(),
        })
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
        let Some(Waiting { watch, notices }) = lock(&self.waiting).take() else {
            return Err(engine_error(py, "The run is watched already."));
        };
        let (cancelled, failure) = (self.cancelled.subscribe(), Arc::clone(&self.failure));
        runtime.spawn(async move {
            // Kept until the failure is stored: the host looks for it when the line closes.
            let _line = notices.clone();
            if let Err(error) = crate::aws::watch(watch, cancelled, notices).await {
                *lock(&failure) = Some(error);
            }
        });
        Ok(())
    }

    #[pyo3(signature = (timeout_seconds=1.0))]
    fn next_events<'py>(&self, py: Python<'py>, timeout_seconds: f64) -> PyResult<Vec<Bound<'py, PyAny>>> {
        if let Some(batch) = self.inbox.next(py, timeout_seconds, drop)? {
            return Ok(batch);
        }
        lock(&self.failure).take().map_or_else(|| Ok(Vec::new()), |error| Err(aws_error(py, &error)))
    }

    #[pyo3(signature = (reason="interrupt"))]
    fn cancel(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        if !["interrupt", "kill", "abandon"].contains(&reason) {
            return Err(engine_error(py, format!("The reason must be interrupt, kill or abandon, got {reason}.")));
        }
        self.cancelled.send_replace(true);
        Ok(())
    }
}

impl Drop for AwsRun {
    fn drop(&mut self) {
        self.cancelled.send_replace(true);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
