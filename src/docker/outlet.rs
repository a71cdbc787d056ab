//! Where the output of a warm worker goes: frames become events, bytes belong to the step that it serves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::frames::{Begun, Done, Frame, Nonce, Piece, Splitter};
use super::log::Receive;
use super::story::{Before, Until};
use crate::event::AttemptDetails;
use crate::runner::{AttemptSink, LogStream};

/// Output of a warm-up that is kept for the first step, of each stream: which of the two comes first is chance, and what is kept
/// of one must not depend on it.
const HELD_BYTES: usize = 1024 * 1024;

const CUT_NOTE: &[u8] = b"\n... more output of the warm-up was left out\n";

/// What happened to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// It is warm and waits.
    Ready,
    /// It cannot warm up.
    Unfit,
    /// Its step began.
    Started,
    /// Its step ended; some output may still be under way.
    Done(Done),
    /// All output of the step has arrived.
    Complete,
    /// Nothing more comes over this connection.
    Ended,
}

/// The receiver of one worker's output.
pub(super) struct Outlet {
    state: Mutex<State>,
    events: mpsc::UnboundedSender<Event>,
}

struct State {
    splitters: [Splitter; 2],
    held: Held,
    serves: Serves,
    /// The only step that is followed, in output that others are in, too.
    only: Option<Begun>,
    /// What is still to come of others before it, on each stream.
    before: [Option<Until>; 2],
}

enum Serves {
    /// Nobody yet: what it writes is held for the first step.
    Nobody,
    /// A step that was told to go.
    Called { sink: Arc<dyn AttemptSink>, details: AttemptDetails, at: Instant },
    /// A step that runs; `done` where its end was read, for each stream.
    Step { sink: Arc<dyn AttemptSink>, done: [bool; 2] },
    /// Nobody any more: what it writes between two steps belongs to neither.
    Between,
}

#[derive(Default)]
struct Held {
    pieces: Vec<(LogStream, Bytes)>,
    bytes: [usize; 2],
}

impl Held {
    fn push(&mut self, stream: LogStream, bytes: Bytes) {
        let held = &mut self.bytes[slot(stream)];
        if *held >= HELD_BYTES {
            return;
        }
        let kept = bytes.slice(..bytes.len().min(HELD_BYTES - *held));
        *held += kept.len();
        // A copy: a small slice must not keep the large buffer that it was read into.
        self.pieces.push((stream, Bytes::copy_from_slice(&kept)));
        if *held >= HELD_BYTES {
            self.pieces.push((stream, Bytes::from_static(CUT_NOTE)));
        }
    }
}

impl Outlet {
    pub(super) fn new(nonce: &Nonce) -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let splitters = [Splitter::new(nonce), Splitter::new(nonce)];
        let state =
            State { splitters, held: Held::default(), serves: Serves::Nobody, only: None, before: [None, None] };
        (Arc::new(Self { state: Mutex::new(state), events }), receiver)
    }

    /// For the output of one step in all that a worker wrote, as far as that is kept.
    pub(super) fn of(nonce: &Nonce, step: Begun, before: Before) -> (Arc<Self>, mpsc::UnboundedReceiver<Event>) {
        let (outlet, events) = Self::new(nonce);
        let mut state = outlet.lock();
        state.only = Some(step);
        state.before = [before.output, before.error];
        drop(state);
        (outlet, events)
    }

    /// The next step to begin is this one. Before the worker is told to go.
    pub(super) fn call(&self, sink: Arc<dyn AttemptSink>, details: AttemptDetails) {
        self.lock().serves = Serves::Called { sink, details, at: Instant::now() };
    }

    /// What comes is not the output from its beginning after all, but that of the step that was called.
    pub(super) fn join(&self) {
        let mut state = self.lock();
        state.before = [None, None];
        state.begin(&self.events);
    }

    /// The step that was called has begun, also if the worker's word for it was lost.
    pub(super) fn begin(&self) {
        self.lock().begin(&self.events);
    }

    /// Whatever the worker writes from now on is nobody's.
    pub(super) fn leave(&self) {
        self.lock().serves = Serves::Between;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, stream: LogStream, split: impl FnOnce(&mut Splitter, &mut dyn FnMut(Piece))) {
        let mut state = self.lock();
        let mut pieces = Vec::new();
        split(&mut state.splitters[slot(stream)], &mut |piece| pieces.push(piece));
        for piece in pieces {
            match piece {
                Piece::Output(bytes) => state.output(stream, bytes),
                Piece::Frame(frame) => state.frame(stream, frame, &self.events),
            }
        }
    }
}

impl Receive for Outlet {
    fn output(&self, stream: LogStream, bytes: Bytes) {
        self.take(stream, |splitter, piece| splitter.push(bytes, piece));
    }

    fn ended(&self) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            self.take(stream, |splitter, piece| splitter.finish(piece));
        }
        // Fails only when nobody needs the worker any more, as below.
        let _ = self.events.send(Event::Ended);
    }
}

impl State {
    fn output(&mut self, stream: LogStream, bytes: Bytes) {
        if self.before[slot(stream)].is_some() {
            return;
        }
        match &self.serves {
            Serves::Nobody | Serves::Called { .. } => self.held.push(stream, bytes),
            Serves::Step { sink, done } if !done[slot(stream)] => sink.log(stream, bytes),
            Serves::Step { .. } | Serves::Between => {}
        }
    }

    fn frame(&mut self, stream: LogStream, frame: Frame, events: &mpsc::UnboundedSender<Event>) {
        let of = match &frame {
            Frame::Started(begun) => Some(begun),
            Frame::Done(done) => Some(&done.of),
            _ => None,
        };
        let before = &mut self.before[slot(stream)];
        if matches!((&*before, &frame), (Some(Until::Done(last)), Frame::Done(done)) if done.of == *last) {
            *before = None;
        }
        // A step is known by its name: its number says nothing in output that has lost its beginning.
        if self.only.as_ref().zip(of).is_some_and(|(only, of)| only != of) {
            return;
        }
        if matches!((&*before, &frame), (Some(Until::Begun), Frame::Started(_))) {
            *before = None;
        }
        match frame {
            Frame::Ready => drop(events.send(Event::Ready)),
            Frame::Unfit => drop(events.send(Event::Unfit)),
            Frame::Started(_) => self.begin(events),
            Frame::Done(done) => self.done(stream, done, events),
            Frame::Unknown => {}
        }
    }

    fn begin(&mut self, events: &mpsc::UnboundedSender<Event>) {
        let Serves::Called { sink, details, at } = &mut self.serves else { return };
        let mut details = std::mem::take(details);
        details.go_to_started = Some(at.elapsed());
        sink.started(details);
        for (stream, bytes) in std::mem::take(&mut self.held).pieces {
            sink.log(stream, bytes);
        }
        self.serves = Serves::Step { sink: Arc::clone(sink), done: [false; 2] };
        let _ = events.send(Event::Started);
    }

    fn done(&mut self, stream: LogStream, outcome: Done, events: &mpsc::UnboundedSender<Event>) {
        // The streams are two pipes: the end on one may overtake the beginning on the other.
        self.begin(events);
        let Serves::Step { done, .. } = &mut self.serves else { return };
        let first = !done.contains(&true);
        done[slot(stream)] = true;
        let complete = *done == [true; 2];
        if first {
            let _ = events.send(Event::Done(outcome));
        }
        if complete {
            self.serves = Serves::Between;
            let _ = events.send(Event::Complete);
        }
    }
}

fn slot(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}
