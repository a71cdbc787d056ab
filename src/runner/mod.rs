//! Drives a [`crate::schedule`] with an [`Executor`] on tokio. Knows no engine and no Python.

pub mod conformance;
mod drive;
mod executor;
pub mod journal;
mod ledger;
mod log_file;
mod logs;
mod notice;
pub mod replay;
mod simulate;
mod sink;
mod space;

pub use drive::{CLEANUP_LIMIT, Order, Resumption, Run, drive, resume};
pub use executor::{AttemptControl, AttemptSink, AttemptSpec, Executor, LeftAttempt, LogStream, TakeOver};
pub use logs::AttemptLog;
pub use notice::{Judgement, Notice, NoticeReceiver, NoticeSender, RunOver, notices};
// Part of the executor's contract: executors stop with a force and know nothing else of the scheduler.
pub use crate::schedule::StopForce;
pub use simulate::{Script, SimulatedExecutor, SimulatedStart};
