//! What a warm worker did, as the engine's own copy of its output tells it.
//!
//! The copy may lack its beginning, where the engine's log has a greatest size, so steps are known by name and attempt, never by
//! their number in it.

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::{Bytes, BytesMut};
use futures_util::stream::StreamExt as _;

use super::container::Container;
use super::error::{DockerError, is_away};
use super::frames::{Begun, Done, Frame, NONCE_BYTES, Nonce, Piece, Splitter};
use crate::runner::LogStream;

/// A marker, a nonce and what follows: kept of output in which no frame was found yet.
const KEPT_BYTES: usize = NONCE_BYTES + 32;

/// What one worker did.
#[derive(Default)]
pub(super) struct Story {
    /// By which its frames are known; none where the copy has no frame.
    pub(super) nonce: Option<Nonce>,
    /// Whether the worker says that it is ready, which is its first word.
    is_ready: bool,
    /// Beginnings and ends, in order.
    told: Vec<Told>,
    /// Ends as they stand on standard error, which the engine reads at another pace.
    ended: Vec<Begun>,
}

#[derive(Debug, Clone, PartialEq)]
enum Told {
    Began(Begun),
    Ended(Done),
}

/// What stands before the output of a step in the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// On standard output.
    pub(super) output: Option<Until>,
    /// On standard error, where no beginnings are told.
    pub(super) error: Option<Until>,
}

/// Where the output of other steps ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Until {
    /// With the beginning of the step that is followed.
    Begun,
    /// With the end of this one.
    Done(Begun),
}

impl Story {
    /// Reads it; none where the engine keeps no copy.
    ///
    /// # Errors
    /// [`DockerError`] when the engine is away.
    pub(super) async fn read(container: &Container, nonce: Option<&Nonce>) -> Result<Option<Self>, DockerError> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let mut copy = container.engine.docker.logs(&container.id, Some(options));
        let mut reader = Reader::new(nonce);
        while let Some(piece) = copy.next().await {
            match piece {
                Ok(LogOutput::StdErr { message }) => reader.push(LogStream::Stderr, message),
                Ok(piece) => reader.push(LogStream::Stdout, piece.into_bytes()),
                Err(error) if is_away(&error) => {
                    return Err(DockerError::of(format!("read the output of container {}", container.name))(error));
                }
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(reader.story))
    }

    /// The steps that began, in order.
    pub(super) fn begun(&self) -> impl Iterator<Item = &Begun> {
        self.told.iter().filter_map(|told| match told {
            Told::Began(begun) => Some(begun),
            Told::Ended(_) => None,
        })
    }

    /// Whether this step began; none where the copy has lost what would tell. `was_ready` says that the worker is known to have
    /// been ready.
    pub(super) fn has_begun(&self, step: &Begun, was_ready: bool) -> Option<bool> {
        let begun = self.begun().any(|begun| begun == step) || self.done(step).is_some();
        (begun || self.is_ready || !was_ready).then_some(begun)
    }

    /// How this step ended.
    pub(super) fn done(&self, step: &Begun) -> Option<&Done> {
        self.told.iter().find_map(|told| match told {
            Told::Ended(done) if done.of == *step => Some(done),
            _ => None,
        })
    }

    /// What stands before the output of this step.
    pub(super) fn before(&self, step: &Begun) -> Before {
        let begins = |told: &Told| matches!(told, Told::Began(begun) if begun == step);
        let later: Vec<_> = self.begun().skip_while(|begun| *begun != step).collect();
        let earlier = self.told.iter().take_while(|told| !begins(told));
        let output = match earlier.last() {
            Some(Told::Ended(done)) => Some(Until::Done(done.of.clone())),
            // What it wrote while it warmed up is its first step's.
            None if self.is_ready => None,
            _ => Some(Until::Begun),
        };
        let error = self.ended.iter().rfind(|ended| !later.contains(ended)).cloned().map(Until::Done);
        Before { output, error }
    }

    /// The step that runs in it.
    pub(super) fn serves(&self) -> Option<&Begun> {
        match self.told.last() {
            Some(Told::Began(begun)) => Some(begun),
            _ => None,
        }
    }
}

struct Reader {
    story: Story,
    streams: [Stream; 2],
}

#[derive(Default)]
struct Stream {
    splitter: Option<Splitter>,
    /// Output before the word is known by which frames are.
    before: BytesMut,
}

impl Reader {
    fn new(nonce: Option<&Nonce>) -> Self {
        Self { story: Story { nonce: nonce.cloned(), ..Story::default() }, streams: Default::default() }
    }

    fn push(&mut self, stream: LogStream, bytes: Bytes) {
        let Self { story, streams: [out, error] } = self;
        match stream {
            LogStream::Stdout => out.push(&mut story.nonce, bytes, |frame| match frame {
                Frame::Ready => story.is_ready = true,
                Frame::Started(begun) => story.told.push(Told::Began(begun)),
                Frame::Done(done) => story.told.push(Told::Ended(done)),
                _ => {}
            }),
            LogStream::Stderr => error.push(&mut story.nonce, bytes, |frame| {
                if let Frame::Done(done) = frame {
                    story.ended.push(done.of);
                }
            }),
        }
    }
}

impl Stream {
    fn push(&mut self, nonce: &mut Option<Nonce>, bytes: Bytes, mut take: impl FnMut(Frame)) {
        let splitter = match &mut self.splitter {
            Some(splitter) => splitter,
            None => {
                self.before.extend_from_slice(&bytes);
                *nonce = nonce.take().or_else(|| Nonce::in_output(&self.before));
                let Some(nonce) = nonce else {
                    let gone = self.before.len().saturating_sub(KEPT_BYTES);
                    drop(self.before.split_to(gone));
                    return;
                };
                self.splitter.insert(Splitter::new(nonce))
            }
        };
        let bytes = if self.before.is_empty() { bytes } else { self.before.split().freeze() };
        splitter.push(bytes, |piece| {
            if let Piece::Frame(frame) = piece {
                take(frame);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "0123456789abcdef0123456789abcdef";

    fn begun(step: &str, attempt: u32) -> Begun {
        Begun { step: step.to_owned(), attempt }
    }

    fn frame(event: &str, step: &str, attempt: u32) -> String {
        format!(
            "\0step-engine {NONCE} {{\"event\": \"{event}\", \"step\": \"{step}\", \"attempt\": {attempt}, \"code\": {attempt}}}\n"
        )
    }

    /// As an engine that reads standard error first.
    fn story(output: &str, error: &str) -> Story {
        let mut reader = Reader::new(None);
        for (stream, text) in [(LogStream::Stderr, error), (LogStream::Stdout, output)] {
            for piece in text.as_bytes().chunks(7) {
                reader.push(stream, Bytes::copy_from_slice(piece));
            }
        }
        reader.story
    }

    #[test]
    fn steps_are_known_by_name_whatever_the_copy_lacks() {
        let whole = [
            frame("ready", "", 0),
            "warm".to_owned(),
            frame("started", "a", 1),
            "of a\n".to_owned(),
            frame("done", "a", 1),
            frame("started", "b", 1),
            frame("done", "b", 1),
            frame("started", "a", 2),
        ];
        for lost in 0..whole.len() {
            let story = story(&whole[lost..].concat(), &[frame("done", "a", 1), frame("done", "b", 1)].concat());
            assert_eq!(story.has_begun(&begun("a", 2), true), Some(true), "{lost}");
            assert_eq!(story.has_begun(&begun("b", 1), true), (lost <= 6).then_some(true), "{lost}");
            assert_eq!(story.has_begun(&begun("c", 1), true), (lost == 0).then_some(false), "{lost}");
            assert_eq!(story.has_begun(&begun("c", 1), false), Some(false), "{lost}");
            assert_eq!(story.done(&begun("b", 1)).map(|done| done.code), (lost <= 6).then_some(1), "{lost}");
            assert_eq!(story.done(&begun("a", 2)), None, "{lost}");
            let last = Some(Until::Done(begun("b", 1)));
            let output = if lost <= 6 { last.clone() } else { Some(Until::Begun) };
            let before = Before { output, error: last.clone() };
            assert_eq!(story.before(&begun("a", 2)), before, "{lost}");
            if lost <= 2 {
                let before = Before { output: (lost > 0).then_some(Until::Begun), error: None };
                assert_eq!(story.before(&begun("a", 1)), before, "{lost}");
            }
            assert_eq!(story.serves(), Some(&begun("a", 2)), "{lost}");
        }
        let ended = story(&whole[..7].concat(), "");
        assert!(ended.serves().is_none() && ended.before(&begun("a", 1)) == Before::default());
        assert_eq!(ended.begun().count(), 2);
        assert!(story("no frame", "").nonce.is_none());
    }
}
