//! `drive()` with simulated executors in tokio's paused time.

mod ending;
mod full;
mod growing;
mod host;
mod journal;
mod journalled;
mod logs;
mod resumed;
mod running;
