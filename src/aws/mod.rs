//! AWS, the only place that names its SDK: deploy, start, watch, stop, task definitions, logs, secrets, schedules.
//!
//! | file | what it is |
//! |---|---|
//! | `session` | region, credentials, clients; every call is paced, retried and its error wrapped |
//! | `definition` | PURE: a template and an overlay become a task definition that is named by its content |
//! | `history`, `outcome` | PURE: events of an execution -> where its steps stand, how their tasks ended |
//! | `machines`, `executions`, `tasks`, `secrets`, `schedules`, `garbage` | the operations |
//! | `watch`, `others`, `logs` | one execution, with the tasks that its own starts, as a stream of the events that a Docker run has |
//!
//! Nothing here schedules: the state machine does. Watching changes nothing, so a client may die at any moment.

mod credentials;
mod definition;
mod error;
mod executions;
mod garbage;
mod history;
mod logs;
mod machines;
mod others;
mod outcome;
mod pace;
mod raw;
mod schedules;
mod secrets;
mod session;
mod silence;
mod tasks;
mod watch;

pub use credentials::Keys;
pub use definition::{Derived, LogPlace, Overlay, derive};
pub use error::{AwsError, NO_ANSWER, NO_CREDENTIALS, TIMEOUT};
pub use executions::{Execution, Stopped};
pub use garbage::Keep;
pub use history::{Change, Event, Kind, StepState, StepView, Tracker};
pub use machines::{DeployOptions, Deployed, MachineSpec};
pub use outcome::TaskInfo;
pub use schedules::Schedule;
pub use secrets::{Backend, Secret};
pub use session::{Identity, Session, SessionOptions};
pub use tasks::{EnsureError, Ensured, StartedBy};
pub use watch::{Watch, watch};

/// The time by the calendar: by it keys end, things are old, and schedules begin.
fn unix_seconds() -> f64 {
    use std::time::{SystemTime, UNIX_EPOCH};

    #[expect(clippy::disallowed_methods, reason = "AWS counts by the calendar")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
