//! One test binary for the crate's public interface.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::type_complexity, reason = "a test may panic")]

mod asl;
#[cfg(feature = "docker")]
mod docker;
mod house;
mod plan;
mod plan_fuzz;
#[cfg(feature = "runner")]
mod runner;
mod schedule;
