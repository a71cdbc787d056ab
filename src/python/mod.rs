//! pyo3, the only place that names it: registration, conversion, errors. Decides nothing.
//!
//! No tokio thread ever attaches to Python: the calling thread waits detached, in slices, and delivers what has come.

mod asl;
mod aws;
mod engine;
mod errors;
mod host;
mod inbox;
mod record;
mod run;

use pyo3::prelude::*;

/// The native half of the Python package `step_engine`; its reference is `_native.pyi`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("RUN_ARGS", crate::docker::run_args::SUPPORTED.to_vec())?;
    module.add_function(wrap_pyfunction!(asl::compile_asl, module)?)?;
    module.add_function(wrap_pyfunction!(asl::draw_asl, module)?)?;
    module.add_function(wrap_pyfunction!(asl::asl_report, module)?)?;
    module.add_function(wrap_pyfunction!(record::read_run, module)?)?;
    module.add_class::<aws::AwsSession>()?;
    module.add_class::<aws::AwsRun>()?;
    module.add_class::<engine::DockerEngine>()?;
    module.add_class::<run::DockerRun>()
}
