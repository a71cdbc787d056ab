//! One test binary for the crate's public interface.

mod asl;
mod plan;
#[cfg(feature = "runner")]
mod runner;
mod schedule;
