//! An attempt that a former owner of the run started: follow it, or read how it ended meanwhile.

use std::sync::Arc;

use super::super::log::{Log, Plain};
use super::super::outlet::Outlet;
use super::super::run_args::RunArgs;
use super::super::survivors::{Kind, Survivor};
use super::super::worker::Record;
use super::{Attempt, Exit, Signals, dispose, judge, release, remove_or_warn, warm, watch};
use crate::event::{AttemptDetails, Outcome, Usage};
use crate::runner::AttemptControl;

/// Goes on with an attempt in its container. Returns its outcome, and the name of a container that could not be removed.
pub(in super::super) async fn run(
    attempt: &Attempt,
    survivor: Survivor,
    mut control: AttemptControl,
) -> (Outcome, Option<String>) {
    let Survivor { container, image_id, kind, lease } = survivor;
    let details = AttemptDetails {
        container_id: Some(container.id.clone()),
        container_name: Some(container.name.clone()),
        image_id,
        warm: matches!(kind, Kind::Worker { .. }),
        ..AttemptDetails::default()
    };
    let stop_signal = RunArgs::parse(&attempt.container.run_args).ok().and_then(|arguments| arguments.body.stop_signal);
    let stop_signal = stop_signal.unwrap_or_else(|| "SIGTERM".to_owned());
    // A worker has no input any more; what its container is sent, it passes on to the step.
    let mut signals = Signals::new(attempt, &container, &stop_signal, None, None);
    let (outcome, shared) = match kind {
        Kind::Cold => {
            attempt.sink.started(details);
            let receiver = Arc::new(Plain(Arc::clone(&attempt.sink)));
            let (mut log, _) = Log::again(receiver, &container, &*attempt.sink).await;
            let exit = watch(&container, &mut log, std::future::pending(), &mut signals, &mut control).await;
            log.drain().await;
            (judge(attempt, &container, exit, signals.sent).await, None)
        }
        Kind::Worker { nonce, step, before, shared } => {
            let (outlet, mut events) = Outlet::of(&nonce, step.clone(), before);
            outlet.call(Arc::clone(&attempt.sink), details);
            let (mut log, is_whole) = Log::again(Arc::clone(&outlet) as _, &container, &*attempt.sink).await;
            if !is_whole {
                outlet.join();
            }
            let record = Record { container: container.clone(), nonce, step, was_ready: true };
            let reconnects = log.reconnects();
            let done = warm::done_in(&mut events, || record.done(), &reconnects);
            let exit = watch(&container, &mut log, done, &mut signals, &mut control).await;
            let (exit, _) = warm::all_output(&log, &mut events, &outlet, exit).await;
            let outcome = judge(attempt, &container, exit.clone(), signals.sent).await;
            if let Exit::Done(done) = exit
                && let Some(bytes) = done.peak_memory_bytes
            {
                attempt.sink.measured(Usage { peak_memory_bytes: Some(bytes) });
            }
            (outcome, shared)
        }
    };
    if let Some(lease) = lease {
        release(lease, &container, &outcome);
    }
    attempt.sink.settled(&outcome);
    control.recorded().await;
    let left = match shared {
        // Another attempt may still be read out of its output.
        Some(shared) => match Arc::into_inner(shared) {
            Some(()) => remove_or_warn(attempt, &container).await,
            None => None,
        },
        None => dispose(attempt, &container, &outcome).await,
    };
    (outcome, left)
}
