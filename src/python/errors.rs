//! The core's errors become the exceptions of `step_engine.errors`.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::asl::AslError;
use crate::aws::{AwsError, EnsureError};
use crate::docker::DockerError;
use crate::plan::PlanError;

/// `StepEngineError(message)`.
pub(super) fn engine_error(py: Python<'_>, message: impl Into<String>) -> PyErr {
    raise(py, "StepEngineError", (message.into(),))
}

/// `PlanError(message, step, field)`.
pub(super) fn plan_error(py: Python<'_>, error: &PlanError) -> PyErr {
    raise(py, "PlanError", (error.to_string(), error.step.clone(), error.field.clone()))
}

/// `DockerError(message, operation)`.
pub(super) fn docker_error(py: Python<'_>, error: &DockerError) -> PyErr {
    raise(py, "DockerError", (error.to_string(), error.operation().to_owned()))
}

/// `AwsError(message, operation, code, request_id)`.
pub(super) fn aws_error(py: Python<'_>, error: &AwsError) -> PyErr {
    raise(py, "AwsError", (error.to_string(), error.operation, error.code.clone(), error.request_id.clone()))
}

/// The error of a task definition that is not there.
pub(super) fn ensure_error(py: Python<'_>, error: &EnsureError) -> PyErr {
    match error {
        EnsureError::Overlay(error) => plan_error(py, error),
        EnsureError::Aws(error) => aws_error(py, error),
    }
}

/// `AslLimitError(message, limit, actual, step)` or `AslError(message, step, field)`.
pub(super) fn asl_error(py: Python<'_>, error: &AslError) -> PyErr {
    let message = error.to_string();
    match error {
        AslError::Limit { step, limit, actual, .. } => {
            raise(py, "AslLimitError", (message, *limit, *actual, step.clone()))
        }
        AslError::Option { step, field, .. } => raise(py, "AslError", (message, step.clone(), field.clone())),
        AslError::Resources { step, .. } => raise(py, "AslError", (message, Some(step.clone()), "resources")),
        AslError::Empty => raise(py, "AslError", (message, None::<String>, "steps")),
    }
}

fn raise<'py>(
    py: Python<'py>,
    name: &str,
    arguments: impl pyo3::call::PyCallArgs<'py> + IntoPyObject<'py, Error: Into<PyErr>>,
) -> PyErr {
    let made = py
        .import("step_engine.errors")
        .and_then(|module| module.getattr(name))
        .and_then(|class| class.call1(arguments))
        .map(PyErr::from_value);
    made.unwrap_or_else(|error| PyRuntimeError::new_err(format!("step_engine.errors.{name} cannot be raised: {error}")))
}

/// A Python value as a Rust one; a wrong field fails with its path.
pub(super) fn from_python<T: serde::de::DeserializeOwned>(
    value: &Bound<'_, PyAny>,
    place: &str,
) -> Result<T, PlanError> {
    let mut deserializer = pythonize::Depythonizer::from_object(value);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let field = match (place, path.as_str()) {
            (place, "" | ".") => place.to_owned(),
            ("", path) => path.to_owned(),
            (place, path) => format!("{place}.{path}"),
        };
        PlanError { step: None, field, message: error.inner().to_string() }
    })
}
