//! One test binary for the crate's public interface.

#[cfg(feature = "docker")]
mod docker;
mod plan;
mod schedule;
