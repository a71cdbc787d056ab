//! bollard, the only place that names it: containers on one Docker engine.
//!
//! | file | what it is |
//! |---|---|
//! | `endpoint`, `engine` | where the engine is, by the rules of the `docker` command, and what it is |
//! | `spec`, `run_args` | what a step's container looks like, as Python writes it |
//! | `registry`, `image`, `pin` | credentials, pulls, pinned image ids |
//! | `container` | one container: describe, create, attach, signal, inspect, remove |
//! | `gpu` | which GPUs there are and who has them |
//! | `limits`, `files` | CPU and memory limits; directories copied into a container |
//! | `attempt`, `log`, `executor` | one attempt from top to bottom, cold or warm; the `Executor` of a run |
//! | `frames`, `outlet`, `worker`, `pool` | the protocol with warm workers; one of them; those of a run |
//! | `survivors` | what is left of a run whose owner died |
//! | `sweep` | containers found by label, by any process |
//!
//! Decides nothing about the run: no retries, no timeouts, no order.

mod attempt;
mod container;
mod endpoint;
mod engine;
mod error;
mod executor;
mod files;
mod frames;
mod gpu;
mod image;
mod left;
mod limits;
mod log;
mod outlet;
mod pin;
mod pool;
mod registry;
pub mod run_args;
mod spec;
mod story;
mod survivors;
pub mod sweep;
mod worker;

pub use container::{RunIdentity, label};
pub use endpoint::Surroundings;
pub use engine::{ConnectOptions, Engine, EngineInfo, MINIMUM_API};
pub use error::DockerError;
pub use executor::DockerExecutor;
pub use image::{PullObserver, PullProgress};
pub use pin::image_id;
pub use spec::{ContainerSpec, FilesSpec, Isolation, KeepContainers, PullPolicy, VolumeSpec, WarmSpec};
