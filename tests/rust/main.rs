//! One test binary for the crate's public interface.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod house;
mod plan;
mod plan_fuzz;
#[cfg(feature = "runner")]
mod runner;
mod schedule;
