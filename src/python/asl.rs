//! `compile_asl` and `draw_asl`.

use pyo3::prelude::*;
use pythonize::pythonize;

use super::errors::{asl_error, from_python, plan_error};
use crate::asl::{self, AslOptions, Picture};
use crate::plan::Plan;

fn input(py: Python<'_>, plan: &Bound<'_, PyAny>, options: &Bound<'_, PyAny>) -> PyResult<(Plan, AslOptions)> {
    let plan = from_python(plan, "").and_then(Plan::new).map_err(|error| plan_error(py, &error))?;
    let options = from_python(options, "").map_err(|error| plan_error(py, &error))?;
    Ok((plan, options))
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn compile_asl<'py>(
    py: Python<'py>,
    plan: &Bound<'py, PyAny>,
    options: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let (plan, options) = input(py, plan, options)?;
    let compiled = py.detach(|| asl::compile(&plan, &options)).map_err(|error| asl_error(py, &error))?;
    Ok(pythonize(py, &compiled)?)
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn draw_asl(
    py: Python<'_>,
    plan: &Bound<'_, PyAny>,
    options: &Bound<'_, PyAny>,
    picture: &Bound<'_, PyAny>,
) -> PyResult<String> {
    let (plan, options) = input(py, plan, options)?;
    let picture: Picture = from_python(picture, "picture").map_err(|error| plan_error(py, &error))?;
    py.detach(|| asl::draw(&plan, &options, picture)).map_err(|error| asl_error(py, &error))
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn asl_report(py: Python<'_>, plan: &Bound<'_, PyAny>, options: &Bound<'_, PyAny>) -> PyResult<String> {
    let (plan, options) = input(py, plan, options)?;
    let compiled = py.detach(|| asl::compile(&plan, &options)).map_err(|error| asl_error(py, &error))?;
    Ok(compiled.report.to_string())
}
