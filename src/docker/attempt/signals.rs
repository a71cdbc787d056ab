//! The signals that an attempt has been sent, and those to come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::container::Container;
use super::super::engine::patiently;
use super::super::frames;
use super::super::worker::Input;
use super::{Attempt, CHILD_KILL_PATIENCE, KILL_AGAIN};
use crate::runner::{AttemptSink, StopForce};

const SIGKILL: i32 = 9;

/// A container's first process is immune to signals that it has no handler for, and it has none in its first moments: a
/// request to stop that comes so early is sent once more after this time, or it would be lost.
const SETTLING: Duration = Duration::from_secs(1);

pub(super) struct Signals<'a> {
    pub(super) attempt: &'a Attempt,
    pub(super) sent: Option<StopForce>,
    pub(super) due: Instant,
    container: &'a Container,
    stop_signal: &'a str,
    /// Of the shared worker that runs the step in a process of its own.
    child: Option<Input>,
    due_set: bool,
    /// Until then the process may be too young to have a handler, see [`SETTLING`].
    settled: Option<Instant>,
}

impl<'a> Signals<'a> {
    pub(super) fn new(
        attempt: &'a Attempt,
        container: &'a Container,
        stop_signal: &'a str,
        child: Option<Input>,
        just_started: Option<Instant>,
    ) -> Self {
        let settled = just_started.map(|started| started + SETTLING);
        Self { attempt, sent: None, due: Instant::now(), container, stop_signal, child, due_set: false, settled }
    }

    pub(super) fn next_force(&self) -> StopForce {
        if self.sent.is_none() { StopForce::Graceful } else { StopForce::Kill }
    }

    pub(super) fn more(&self) -> bool {
        self.sent < Some(StopForce::Kill)
    }

    pub(super) fn is_due_set(&self) -> bool {
        self.due_set
    }

    pub(super) fn send(&mut self, force: Option<StopForce>) {
        let Some(force) = force else { return };
        self.sent = self.sent.max(Some(force));
        let (signal, child, next) = match force {
            StopForce::Graceful => {
                let child = self.child.clone().zip(number(self.stop_signal));
                (self.stop_signal.to_owned(), child, self.attempt.container.stop_grace())
            }
            // The step's process first; when that does not help, the worker with everything in it.
            StopForce::Kill => match self.child.take() {
                Some(input) => ("SIGKILL".to_owned(), Some((input, SIGKILL)), Some(CHILD_KILL_PATIENCE)),
                None => ("SIGKILL".to_owned(), None, Some(KILL_AGAIN)),
            },
        };
        self.due_set = next.is_some();
        self.due = Instant::now() + next.unwrap_or_default();
        let again = force == StopForce::Graceful && self.settled.is_some_and(|settled| Instant::now() < settled);
        // On its own: an engine that is slow to answer must not delay the end of the process being seen.
        let (container, sink) = (self.container.clone(), Arc::clone(&self.attempt.sink));
        tokio::spawn(async move {
            if let Some((input, number)) = child
                && input.write(&frames::signal(number)).await.is_ok()
            {
                return;
            }
            send_to_container(&container, &signal, &*sink).await;
            if again {
                sleep(SETTLING).await;
                send_to_container(&container, &signal, &*sink).await;
            }
        });
    }
}

async fn send_to_container(container: &Container, signal: &str, sink: &dyn AttemptSink) {
    if let Err(error) = patiently(|| container.signal(signal)).await {
        sink.warning(error.to_string());
    }
}

/// Number of a signal as the engine takes it: a number, or a name with or without `SIG`. These are the same on all of
/// Linux's machines that have containers.
fn number(signal: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 11] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", SIGKILL),
        ("USR1", 10),
        ("USR2", 12),
        ("ALRM", 14),
        ("TERM", 15),
        ("CONT", 18),
        ("WINCH", 28),
    ];

    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    named.or_else(|| signal.parse().ok().filter(|number| (1..=64).contains(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers() {
        assert_eq!(
            ["SIGTERM", "int", "9", "SIGRTMIN+3", "0", ""].map(number),
            [Some(15), Some(2), Some(9), None, None, None]
        );
    }
}
