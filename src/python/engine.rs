//! `DockerEngine`.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::{docker_error, engine_error};
use super::host::Host;
use crate::docker::{self, ConnectOptions, DockerError, Engine, PullObserver};
use crate::schedule::StopForce;

/// A Docker engine.
#[pyclass(module = "step_engine._native", frozen)]
pub(super) struct DockerEngine {
    pub(super) host: Arc<Host>,
    pub(super) engine: Engine,
}

#[pymethods]
impl DockerEngine {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let host = Host::new().map_err(|error| engine_error(py, format!("No threads could be started: {error}")))?;
        let engine =
            host.wait(py, Engine::connect(ConnectOptions::default()))?.map_err(|error| docker_error(py, &error))?;
        Ok(Self { host: Arc::new(host), engine })
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let info = self.engine.info();
        let capacity = info.capacity();
        let dict = PyDict::new(py);
        dict.set_item("address", &info.address)?;
        dict.set_item("id", &info.id)?;
        dict.set_item("server_version", &info.server_version)?;
        dict.set_item("api_version", &info.api_version)?;
        dict.set_item("platform", format!("{}/{}", info.os, info.architecture))?;
        dict.set_item("cpu_millis", capacity.cpu_millis)?;
        dict.set_item("memory_bytes", capacity.memory_bytes)?;
        dict.set_item("gpus", capacity.gpus)?;
        dict.set_item("rootless", info.rootless)?;
        dict.set_item("local", info.local)?;
        Ok(dict)
    }

    #[pyo3(signature = (reference, *, pull_policy="missing", platform=None, progress=None))]
    fn image_id(
        &self,
        py: Python<'_>,
        reference: String,
        pull_policy: &str,
        platform: Option<String>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let policy = serde_json::from_value(serde_json::Value::from(pull_policy)).map_err(|_| {
            engine_error(py, format!("pull_policy must be missing, always or never, got {pull_policy}."))
        })?;
        let (sender, lines) = mpsc::channel::<String>();
        let observer: PullObserver = Arc::new(move |report| {
            let _ = sender.send(report.to_string());
        });
        let engine = self.engine.clone();
        let future =
            async move { docker::image_id(&engine, &reference, policy, platform.as_deref(), Some(observer)).await };
        let tell = || {
            let Some(progress) = &progress else { return Ok(()) };
            lines.try_iter().try_for_each(|line| progress.call1(py, (line,)).map(drop))
        };
        let resolved = self.host.wait_calling(py, future, tell)?;
        resolved.map_err(|error: Arc<DockerError>| docker_error(py, &error))
    }

    fn containers<'py>(&self, py: Python<'py>, run_id: String) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let engine = self.engine.clone();
        let found = self
            .host
            .wait(py, async move { docker::sweep::list(&engine, &run_id).await })?
            .map_err(|error| docker_error(py, &error))?;
        found
            .into_iter()
            .map(|container| {
                let state = match (container.running, container.created) {
                    (true, _) => "running",
                    (false, true) => "created",
                    (false, false) => "exited",
                };
                let dict = PyDict::new(py);
                dict.set_item("id", container.id)?;
                dict.set_item("name", container.name)?;
                dict.set_item("step", container.step)?;
                dict.set_item("attempt", container.attempt)?;
                dict.set_item("state", state)?;
                dict.set_item("exit_code", container.exit_code)?;
                dict.set_item("kept", container.kept)?;
                dict.set_item("warm", container.warm)?;
                Ok(dict)
            })
            .collect()
    }

    #[pyo3(signature = (run_id, *, force, grace_seconds=None))]
    fn stop_run(
        &self,
        py: Python<'_>,
        run_id: String,
        force: bool,
        grace_seconds: Option<f64>,
    ) -> PyResult<Vec<String>> {
        let wrong = |seconds| engine_error(py, format!("grace_seconds must be 0 or more, got {seconds}."));
        let grace = grace_seconds
            .map(|seconds| Duration::try_from_secs_f64(seconds).map_err(|_| wrong(seconds)))
            .transpose()?;
        let force = if force { StopForce::Kill } else { StopForce::Graceful };
        let engine = self.engine.clone();
        self.host
            .wait(py, async move { docker::sweep::stop(&engine, &run_id, force, grace).await })?
            .map_err(|error| docker_error(py, &error))
    }

    fn remove_run(&self, py: Python<'_>, run_id: String) -> PyResult<Vec<String>> {
        let engine = self.engine.clone();
        self.host
            .wait(py, async move { docker::sweep::remove(&engine, &run_id).await })?
            .map_err(|error| docker_error(py, &error))
    }

    fn clear_run(&self, py: Python<'_>, run_id: String) -> PyResult<Vec<String>> {
        let engine = self.engine.clone();
        self.host
            .wait(py, async move { docker::sweep::clear(&engine, &run_id).await })?
            .map_err(|error| docker_error(py, &error))
    }
}
