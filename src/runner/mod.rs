//! Drives a [`crate::schedule`] with an [`Executor`] on tokio. Knows no engine and no Python.

mod executor;

pub use executor::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};
