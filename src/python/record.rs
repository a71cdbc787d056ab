//! `read_run`.

use std::path::PathBuf;

use pyo3::prelude::*;
use pythonize::pythonize;
use serde::Serialize;

use super::errors::engine_error;
use crate::event::{RunEvent, RunSummary};
use crate::runner::journal::{self, Entry, FILE_NAME, JournalError};
use crate::runner::replay::replay;
use crate::schedule::Input;

#[derive(Serialize)]
struct Record {
    run_id: String,
    pipeline: String,
    began_unix_seconds: f64,
    seconds: f64,
    steps: Vec<String>,
    events: Vec<RunEvent>,
    requests: Vec<Request>,
    summary: Option<RunSummary>,
}

/// A step that the run's leader asked for.
#[derive(Serialize)]
struct Request {
    step: String,
    reference: Option<String>,
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn read_run(py: Python<'_>, run_directory: PathBuf) -> PyResult<Option<Bound<'_, PyAny>>> {
    let path = run_directory.join(FILE_NAME);
    let record = py.detach(|| {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let recorded = match journal::parse(&bytes) {
            Ok(recorded) => recorded,
            Err(JournalError::Empty) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let replayed = replay(&recorded).map_err(|error| error.to_string())?;
        let began_unix_seconds = std::time::Duration::from_nanos(recorded.header.began_unix_nanos).as_secs_f64();
        Ok(Some(Record {
            run_id: recorded.header.plan.run_id,
            pipeline: recorded.header.plan.pipeline,
            began_unix_seconds,
            seconds: replayed.at.as_secs_f64(),
            steps: replayed.plan.steps.iter().map(|step| step.name.to_string()).collect(),
            events: replayed.events,
            requests: requests_in(recorded.entries),
            summary: replayed.summary,
        }))
    });
    let record = record.map_err(|why: String| engine_error(py, format!("{}: {why}.", path.display())))?;
    record.map(|record| Ok(pythonize(py, &record)?)).transpose()
}

/// Every request, a step's further attempts included, in order.
fn requests_in(entries: Vec<Entry>) -> Vec<Request> {
    let request = |entry: Entry| match entry.input {
        Input::StepRequested { spec } => Some(Request { step: spec.name, reference: spec.reference }),
        _ => None,
    };
    entries.into_iter().filter_map(request).collect()
}
