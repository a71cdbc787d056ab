//! An attempt that a warm worker takes.
//!
//! Until the worker says that the step began, everything that goes wrong with it ends in a cold start: the step is started
//! twice under no circumstances.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::container::Found;
use super::super::engine::patiently;
use super::super::error::DockerError;
use super::super::frames::Done;
use super::super::log::{Log, Reconnects};
use super::super::outlet::{Event, Outlet};
use super::super::pool::{Lease, Taken};
use super::super::worker::{NEVER_BEGAN, Worker};
use super::{Attempt, EXIT_PATIENCE, Exit, Signals, dispose, has_ended, judge, lost, wait_once, watch};
use crate::event::{Outcome, Usage};
use crate::runner::{AttemptControl, StopForce};

/// A launched step waits so long for its worker to get ready. Then it starts cold, where its own timeout counts.
const WARM_UP_LIMIT: Duration = Duration::from_secs(300);

/// How long a container may take to end after its output did.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The pauses between looks into a copy of the output grow from this to that.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LAST_LOOK: Duration = Duration::from_secs(30);

/// So long after a reconnection the copy has everything that was written before.
const COPY_DELAY: Duration = Duration::from_secs(30);

/// How an attempt begins.
pub(super) enum Beginning {
    /// In a worker.
    Begun(Box<Serving>),
    /// It does not.
    Over(Outcome),
    /// In a container that is started for it.
    Cold,
}

/// A worker with a step that has begun.
pub(super) struct Serving {
    worker: Worker,
    lease: Lease,
    /// Whether the connection is lost with which the beginning was to be told.
    blind: bool,
}

/// Takes a worker out of the pool and lets the step begin in it.
pub(super) async fn begin(attempt: &Attempt, control: &mut AttemptControl) -> Beginning {
    // Also when it is stopped already: what was prepared for it goes.
    let taken = attempt.pool.take(&attempt.spec);
    if control.stop_force().is_some() {
        return Beginning::Over(Outcome::Stopped);
    }
    let beginning = match taken {
        Some(taken) => begin_in(attempt, taken, control).await,
        None => Beginning::Cold,
    };
    if matches!(beginning, Beginning::Cold)
        && attempt.container.warm.is_some()
        && let Some(warning) = attempt.pool.warning()
    {
        attempt.sink.warning(warning);
    }
    beginning
}

async fn begin_in(attempt: &Attempt, taken: Taken, control: &mut AttemptControl) -> Beginning {
    let Taken { worker, lease } = taken;
    let deadline = Instant::now() + WARM_UP_LIMIT;
    // Whoever keeps the worker removes it when nobody waits for it any more.
    let mut worker = tokio::select! {
        biased;
        () = control.stop_requested(StopForce::Graceful) => return Beginning::Over(Outcome::Stopped),
        () = sleep_until(deadline) => return Beginning::Cold,
        worker = worker => match worker {
            Ok(Some(worker)) => worker,
            Ok(None) => return Beginning::Cold,
            Err(_) => {
                lease.failed(false);
                return Beginning::Cold;
            }
        },
    };
    // A write that fails shows in the worker's end.
    drop(worker.go(&attempt.spec, attempt.sink.clone()).await);
    loop {
        // A worker that is ready has read the word: what stops the step then is up to the step.
        let force = if worker.ready { StopForce::Kill } else { StopForce::Graceful };
        tokio::select! {
            biased;
            event = worker.event() => match event {
                Event::Started => {
                    worker.ready = true;
                    worker.served += 1;
                    return Beginning::Begun(Box::new(Serving { worker, lease, blind: false }));
                }
                Event::Unfit => {
                    lease.failed(true);
                    lease.retire(worker);
                    return Beginning::Cold;
                }
                Event::Ready | Event::Done(_) | Event::Complete => {}
                Event::Ended => return ended(attempt, worker, lease).await,
            },
            () = control.stop_requested(force) => {
                lease.retire(worker);
                return Beginning::Over(Outcome::Stopped);
            }
            () = sleep_until(deadline) => return ended(attempt, worker, lease).await,
        }
    }
}

/// No word of the beginning has come, and none is waited for: the worker died or never got ready, or the word was lost with
/// the connection.
async fn ended(attempt: &Attempt, worker: Worker, lease: Lease) -> Beginning {
    let record = worker.record(&attempt.spec);
    let is_cut_off = worker.is_cut_off().await;
    let mut state = patiently(|| worker.container.inspect()).await;
    if runs(&state) {
        // Its output ends a little earlier than it does.
        drop(timeout(END_PATIENCE, wait_once(&worker.container)).await);
        state = patiently(|| worker.container.inspect()).await;
    }
    let killed = runs(&state) && !matches!(record.has_begun().await, Ok(Some(true)));
    if killed {
        // It may read its go at any moment; nothing but its end makes sure that it does not.
        drop(worker.container.signal("SIGKILL").await);
        drop(timeout(END_PATIENCE, wait_once(&worker.container)).await);
        state = patiently(|| worker.container.inspect()).await;
    }
    let (code, told) = match (state, record.has_begun().await) {
        (Ok(Found::Here(state)), Ok(told)) if !has_ended(&state) && !killed => (None, told),
        (Ok(Found::Here(state)), Ok(told)) => (state.exit_code, told),
        (Ok(Found::Gone), _) => (Some(NEVER_BEGAN), None),
        (Err(error), _) | (_, Err(error)) => {
            lease.retire(worker);
            return Beginning::Over(Outcome::Lost { reason: error.to_string() });
        }
    };
    if told.is_none() && is_cut_off && !matches!(code, None | Some(0 | NEVER_BEGAN)) {
        lease.retire(worker);
        let reason = "the engine went away when the step was to begin, and keeps no copy of its output, which would tell whether it did";
        return Beginning::Over(lost(reason));
    }
    // Without the engine's copy of the output: what ends well has begun.
    let begun = told.unwrap_or(code.is_none_or(|code| code == 0));
    match (begun, killed) {
        (true, false) => Beginning::Begun(Box::new(Serving { worker, lease, blind: true })),
        (true, true) => {
            lease.retire(worker);
            Beginning::Over(lost("the connection to the engine broke when the step began"))
        }
        (false, _) => {
            if !is_cut_off {
                lease.failed(false);
            }
            lease.retire(worker);
            Beginning::Cold
        }
    }
}

fn runs(state: &Result<Found, DockerError>) -> bool {
    matches!(state, Ok(Found::Here(state)) if !has_ended(state))
}

/// From the beginning of the step to its end. Returns its outcome, and the name of a container that could not be removed.
pub(super) async fn run(
    attempt: &Attempt,
    serving: Box<Serving>,
    mut control: AttemptControl,
) -> (Outcome, Option<String>) {
    let Serving { mut worker, lease, blind } = *serving;
    let record = worker.record(&attempt.spec);
    if blind {
        worker.outlet.begin();
        if worker.log.reconnect(&worker.container).await.is_ok() {
            attempt.sink.warning("the connection to the engine broke; some output may be missing".to_owned());
        }
    }
    let (container, stop_signal) = (worker.container.clone(), worker.stop_signal.clone());
    let child = lease.is_shared().then(|| worker.input.clone());
    // Its process waited long enough to have its handlers.
    let mut signals = Signals::new(attempt, &container, &stop_signal, child, None);
    let Worker { log, events, .. } = &mut worker;
    let reconnects = log.reconnects();
    let done = done_in(events, || record.done(), &reconnects);
    let exit = watch(&container, log, done, &mut signals, &mut control).await;
    let Worker { log, events, outlet, .. } = &mut worker;
    let (exit, complete) = all_output(log, events, outlet, exit).await;
    let outcome = judge(attempt, &container, exit.clone(), signals.sent).await;
    if let Exit::Done(Done { peak_memory_bytes: peak @ Some(_), .. }) = exit {
        attempt.sink.measured(Usage { peak_memory_bytes: peak });
    }
    if lease.is_shared() {
        worker.control = Some(control);
        // Before the end is told: the next step may be waiting for this worker.
        match exit {
            Exit::Done(Done { damaged: None, oom: false, .. }) if complete && !worker.log.is_broken() => {
                lease.give_back(worker);
            }
            _ => lease.retire(worker),
        }
        attempt.sink.settled(&outcome);
        return (outcome, None);
    }
    attempt.sink.settled(&outcome);
    control.recorded().await;
    let left = end_of(attempt, worker, &outcome, matches!(exit, Exit::Done(_))).await;
    (outcome, left)
}

/// The worker's word for the end of its step. After a connection was lost, what came before the next one is looked for in the
/// engine's copy: a worker whose input an engine left open when it restarted would wait for another step, and never end.
pub(super) async fn done_in<F>(
    events: &mut UnboundedReceiver<Event>,
    look: impl Fn() -> F,
    reconnects: &Reconnects,
) -> Done
where
    F: Future<Output = Option<Done>>,
{
    let told = async {
        loop {
            match events.recv().await {
                Some(Event::Done(done)) => return done,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    let copied = async {
        loop {
            reconnects.next().await;
            let (mut pause, enough) = (FIRST_LOOK, Instant::now() + COPY_DELAY);
            loop {
                // The copy is a little later than the output.
                let is_last = reconnects.follows() && Instant::now() >= enough;
                if let Some(done) = look().await {
                    return done;
                }
                if is_last {
                    break;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LAST_LOOK);
            }
        }
    };
    tokio::select! {
        biased;
        done = told => done,
        done = copied => done,
    }
}

/// Waits for the rest of the output. The worker may have said how the step ended in it; and whether all of it came.
pub(super) async fn all_output(
    log: &Log,
    events: &mut UnboundedReceiver<Event>,
    outlet: &Outlet,
    exit: Exit,
) -> (Exit, bool) {
    let mut exit = exit;
    let complete = log.unless_silent(async {
        loop {
            match events.recv().await {
                Some(Event::Complete) => return true,
                Some(Event::Done(done)) => exit = Exit::Done(done),
                Some(Event::Ended) | None => return false,
                Some(_) => {}
            }
        }
    });
    let complete = complete.await == Some(true);
    outlet.leave();
    (exit, complete)
}

/// Lets the container of a worker that served its one step go, or stay if it is to be kept.
async fn end_of(attempt: &Attempt, worker: Worker, outcome: &Outcome, may_run: bool) -> Option<String> {
    let container = worker.container.clone();
    if may_run && super::keeps(attempt, outcome) {
        let ended = timeout(EXIT_PATIENCE, wait_once(&container)).await;
        if ended.is_err() {
            // One that has ended needs no signal; one that cannot be told is named when the run is closed.
            drop(container.signal("SIGKILL").await);
        }
    }
    drop(worker);
    dispose(attempt, &container, outcome).await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_copy_is_read_for_as_long_as_it_may_know_more_than_the_connection() {
        for (follows, least, most) in [(true, 2, 8), (false, 100, 200)] {
            let (_events, mut receiver) = mpsc::unbounded_channel();
            let (reconnects, looks) = (Reconnects::default(), Cell::new(0));
            let look = || {
                looks.set(looks.get() + 1);
                std::future::ready(None)
            };
            reconnects.tell(follows);
            let hour = Duration::from_secs(3600);
            assert!(timeout(hour, done_in(&mut receiver, &look, &reconnects)).await.is_err());
            assert!((least..=most).contains(&looks.get()), "{follows}: {}", looks.get());
            // The next one is looked after anew.
            let before = looks.get();
            reconnects.tell(true);
            assert!(timeout(hour, done_in(&mut receiver, &look, &reconnects)).await.is_err());
            assert!(looks.get() > before, "{follows}");
        }
    }
}
