//! The Docker executor on a real engine. Plain `cargo test` runs these; `STEP_ENGINE_SKIP_DOCKER=1` leaves them out.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]
#![expect(clippy::disallowed_methods, reason = "a real engine runs by the real clock")]

mod adoption;
mod conformance;
mod endings;
mod engine;
mod fixture;
mod logs;
mod measure;
mod outage;
mod registry;
mod settings;
mod stopping;
mod sweeping;
mod warm;
