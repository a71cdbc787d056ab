//! The core of zenml-step-engine: what runs a ZenML pipeline step by step in containers.
//!
//! | module | may use | what it is |
//! |---|---|---|
//! | [`event`] | – | the vocabulary everyone shares: outcomes, run events, summaries |
//! | [`plan`] | `event` | PURE: the input (`PlanSpec`) becomes a validated DAG (`Plan`) |
//! | [`schedule`] | `plan`, `event` | PURE: `Scheduler::handle(now, Input) -> Vec<Effect>` |
//! | [`asl`] | `plan` | PURE: `Plan` -> Amazon States Language: tree, token edges, limits, report |
//! | `runner` | `schedule`, `plan`, `event` | tokio: drives a scheduler with an `Executor` |
//! | `docker` | `runner`'s trait, `plan`, `event` | bollard: containers on one engine |
//! | `aws` | `runner`'s line to the host, `asl`'s output, `plan`, `event` | aws-sdk: deploys, starts and watches state machines |
//! | `python` | all | pyo3: registration, conversion, errors; decides nothing |
//!
//! Pure modules know no clock, no randomness, no I/O. `tests/rust/house.rs` holds the table against the code.

pub mod asl;
pub mod event;
pub mod plan;
pub mod schedule;

#[cfg(feature = "runner")]
pub mod runner;

#[cfg(feature = "docker")]
pub mod docker;

#[cfg(feature = "aws")]
pub mod aws;

#[cfg(feature = "python")]
mod python;
