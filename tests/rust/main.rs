//! One test binary for the crate's public interface.

mod plan;

mod asl;
