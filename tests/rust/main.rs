//! One test binary for the crate's public interface.

#[cfg(feature = "docker")]
mod docker;
mod house;
mod plan;
mod plan_fuzz;
#[cfg(feature = "runner")]
mod runner;
mod schedule;
