//! PURE. The protocol with a warm worker: what is written to it, and its frames between the bytes of its output.
//!
//! A frame is `\0step-engine <nonce> <JSON on one line>\n`, written at once and shorter than a pipe's buffer, so that it is
//! never torn apart by other output. Everything else is output. The nonce is fresh for every worker: a step cannot print a
//! frame by accident, and no frame is ever handed on as output.

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

/// What both sides speak.
const PROTOCOL_VERSION: u32 = 1;

/// A frame is shorter than this (`PIPE_BUF`); what is longer is none.
const MAX_FRAME_BYTES: usize = 4096;

/// What a frame begins with, before the nonce.
const MARKER: &[u8] = b"\0step-engine ";

/// Characters of a nonce.
pub(super) const NONCE_BYTES: usize = 32;

/// A secret word between one worker and its client.
#[derive(Clone)]
pub(super) struct Nonce(String);

impl Nonce {
    /// 128 random bits.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let (high, low) = (getrandom::u64()?, getrandom::u64()?);
        Ok(Self(format!("{high:016x}{low:016x}")))
    }

    /// The word in the first frame of a worker's output, for whoever was not there when it was agreed upon.
    pub(super) fn in_output(output: &[u8]) -> Option<Self> {
        memchr::memmem::find_iter(output, MARKER).find_map(|at| {
            let word = output.get(at + MARKER.len()..at + MARKER.len() + NONCE_BYTES)?;
            let follows = output.get(at + MARKER.len() + NONCE_BYTES..at + MARKER.len() + NONCE_BYTES + 2)?;
            let is_word = word.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && follows == b" {";
            is_word.then(|| Self(String::from_utf8_lossy(word).into_owned()))
        })
    }

    fn marker(&self) -> Vec<u8> {
        [MARKER, self.0.as_bytes(), b" "].concat()
    }
}

/// A line to a worker.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Command<'a> {
    Hello { version: u32, nonce: &'a str },
    Go { step: &'a str, attempt: u32 },
    Signal { number: i32 },
}

impl Command<'_> {
    fn line(&self) -> Vec<u8> {
        // Strings and numbers are always JSON.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The first line to a worker.
pub(super) fn hello(nonce: &Nonce) -> Vec<u8> {
    Command::Hello { version: PROTOCOL_VERSION, nonce: &nonce.0 }.line()
}

/// Lets a step begin as soon as the worker is ready.
pub(super) fn go(step: &str, attempt: u32) -> Vec<u8> {
    Command::Go { step, attempt }.line()
}

/// Sends a signal to the step that a worker runs in a process of its own.
pub(super) fn signal(number: i32) -> Vec<u8> {
    Command::Signal { number }.line()
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Frame {
    /// It is warm and waits.
    Ready,
    /// It cannot warm up, and ends.
    Unfit,
    /// It has read its go; the step begins now.
    Started(Begun),
    /// The step has ended.
    Done(Done),
    /// A newer worker says more than this client knows.
    #[serde(other)]
    Unknown,
}

/// Which step begins in a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Begun {
    /// Step name.
    #[serde(default)]
    pub(super) step: String,
    /// Attempt number, from 1.
    #[serde(default)]
    pub(super) attempt: u32,
}

/// How a step ended in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Done {
    /// Which one.
    #[serde(flatten)]
    pub(super) of: Begun,
    /// Exit code; 128 + n when signal n ended it.
    pub(super) code: i64,
    /// Whether the kernel killed a process of it for memory.
    #[serde(default)]
    pub(super) oom: bool,
    /// The most memory that its processes had at one moment, in bytes.
    #[serde(default)]
    pub(super) peak_memory_bytes: Option<u64>,
    /// Why the worker can serve no further step, if it cannot.
    #[serde(default)]
    pub(super) damaged: Option<String>,
}

/// A part of what a worker wrote.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Output(Bytes),
    Frame(Frame),
}

/// Takes the frames out of one stream, however it is cut.
pub(super) struct Splitter {
    marker: Finder<'static>,
    /// Not decided yet: a marker that may go on, or a frame whose end is to come.
    held: BytesMut,
    in_frame: bool,
}

impl Splitter {
    pub(super) fn new(nonce: &Nonce) -> Self {
        Self { marker: Finder::new(&nonce.marker()).into_owned(), held: BytesMut::new(), in_frame: false }
    }

    /// The next bytes of the stream; what is certain by now goes to `piece`, in order.
    pub(super) fn push(&mut self, bytes: Bytes, mut piece: impl FnMut(Piece)) {
        let mut rest = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(&bytes);
            self.held.split().freeze()
        };
        while !rest.is_empty() {
            if self.in_frame {
                match memchr::memchr(b'\n', &rest[..rest.len().min(MAX_FRAME_BYTES)]) {
                    Some(end) => {
                        let line = rest.split_to(end + 1);
                        self.in_frame = false;
                        // What cannot be read is left out: the nonce must not be shown.
                        if let Ok(frame) = serde_json::from_slice(&line) {
                            piece(Piece::Frame(frame));
                        }
                    }
                    None if rest.len() >= MAX_FRAME_BYTES => self.in_frame = false,
                    None => return self.hold(&rest),
                }
                continue;
            }
            match self.marker.find(&rest) {
                Some(at) => {
                    output(rest.split_to(at), &mut piece);
                    drop(rest.split_to(self.marker.needle().len()));
                    self.in_frame = true;
                }
                None => {
                    let certain = rest.len() - self.beginning_at_the_end(&rest);
                    output(rest.split_to(certain), &mut piece);
                    return self.hold(&rest);
                }
            }
        }
    }

    /// The stream has ended: what was held back is output, unless it is part of a frame.
    pub(super) fn finish(&mut self, mut piece: impl FnMut(Piece)) {
        let held = self.held.split().freeze();
        if !std::mem::take(&mut self.in_frame) {
            output(held, &mut piece);
        }
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// How many bytes at the end may be the beginning of a marker. Its first byte stands in it only once.
    fn beginning_at_the_end(&self, bytes: &[u8]) -> usize {
        let marker = self.marker.needle();
        let tail = &bytes[bytes.len().saturating_sub(marker.len() - 1)..];
        match memchr::memrchr(marker[0], tail) {
            Some(at) if marker.starts_with(&tail[at..]) => tail.len() - at,
            _ => 0,
        }
    }
}

fn output(bytes: Bytes, piece: &mut impl FnMut(Piece)) {
    if !bytes.is_empty() {
        piece(Piece::Output(bytes));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nonce() -> Nonce {
        Nonce("0123456789abcdef0123456789abcdef".to_owned())
    }

    fn framed(json: &str) -> Vec<u8> {
        [nonce().marker().as_slice(), json.as_bytes(), b"\n"].concat()
    }

    /// Output joined, frames with the number of output bytes before them.
    fn split(chunks: &[&[u8]]) -> (Vec<u8>, Vec<(usize, Frame)>) {
        let (mut bytes, mut frames) = (Vec::new(), Vec::new());
        let mut splitter = Splitter::new(&nonce());
        let mut take = |piece: Piece| match piece {
            Piece::Output(output) => bytes.extend_from_slice(&output),
            Piece::Frame(frame) => frames.push((bytes.len(), frame)),
        };
        for chunk in chunks {
            splitter.push(Bytes::copy_from_slice(chunk), &mut take);
        }
        splitter.finish(&mut take);
        (bytes, frames)
    }

    #[test]
    fn commands_are_lines_of_json() {
        assert_eq!(go("a \"b\"", 2), b"{\"go\":{\"step\":\"a \\\"b\\\"\",\"attempt\":2}}\n");
        assert_eq!(signal(15), b"{\"signal\":{\"number\":15}}\n");
        let text = String::from_utf8(hello(&nonce())).unwrap();
        assert_eq!(text, format!("{{\"hello\":{{\"version\":1,\"nonce\":\"{}\"}}}}\n", nonce().0));
        let random = Nonce::random().unwrap();
        assert!(random.0.len() == 32 && random.0 != Nonce::random().unwrap().0);
    }

    #[test]
    fn every_frame_of_the_protocol_is_read() {
        let done = r#"{"event": "done", "step": "a", "attempt": 2, "code": 137, "signal": 9, "oom": true, "peak_memory_bytes": 5, "seconds": 0.1, "damaged": null}"#;
        let stream = [
            framed(r#"{"event": "ready", "seconds": 5.1}"#),
            b"out".to_vec(),
            framed(r#"{"event": "started", "step": "a", "attempt": 2}"#),
            framed(done),
            framed(r#"{"event": "unfit", "reason": "b"}"#),
            framed(r#"{"event": "sings", "song": 1}"#),
            framed("no json"),
        ]
        .concat();
        let of = Begun { step: "a".to_owned(), attempt: 2 };
        let started = Frame::Started(of.clone());
        let done = Frame::Done(Done { of, code: 137, oom: true, peak_memory_bytes: Some(5), damaged: None });
        let frames = vec![(0, Frame::Ready), (3, started), (3, done), (3, Frame::Unfit), (3, Frame::Unknown)];
        assert_eq!(split(&[&stream]), (b"out".to_vec(), frames));
    }

    #[test]
    fn the_nonce_is_found_in_the_first_frame() {
        let output = [b"a\0step-engine 12\0step-engine \n".as_slice(), &framed("{\"event\": \"ready\"}")].concat();
        assert_eq!(Nonce::in_output(&output).unwrap().0, nonce().0);
        for end in 0..output.len() - 21 {
            assert!(Nonce::in_output(&output[..end]).is_none());
        }
    }

    #[test]
    fn what_only_looks_like_a_frame_is_output() {
        let other = b"\0step-engine 00000000000000000000000000000000 {\"event\": \"done\", \"code\": 0}\n";
        assert_eq!(split(&[other]), (other.to_vec(), Vec::new()));
        for text in [b"\0".as_slice(), b"\0step-engine", b"a\0\0step-engine 0123", &nonce().marker()[..20]] {
            assert_eq!(split(&[text]), (text.to_vec(), Vec::new()), "at the end of the stream");
            assert_eq!(split(&[text, b"."]).0, [text, b"."].concat());
        }
    }

    #[test]
    fn what_cannot_become_a_marker_is_not_held_back() {
        let mut splitter = Splitter::new(&nonce());
        let mut out = Vec::new();
        for text in ["name? ", "\0step-engineer", "\0\0x"] {
            splitter.push(Bytes::copy_from_slice(text.as_bytes()), |piece| out.push(piece));
        }
        let expected = ["name? ", "\0step-engineer", "\0\0x"].map(|text| Piece::Output(Bytes::from(text)));
        assert_eq!(out, expected);
    }

    #[test]
    fn a_frame_without_end_is_given_up_without_the_nonce() {
        let long = [nonce().marker(), vec![b'x'; 3 * MAX_FRAME_BYTES]].concat();
        assert_eq!(split(&[&long]), (vec![b'x'; 3 * MAX_FRAME_BYTES], Vec::new()));
        let cut = [b"a".as_slice(), &nonce().marker(), b"{\"event\": \"rea"].concat();
        assert_eq!(split(&[&cut]), (b"a".to_vec(), Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Whatever the bytes and the cuts: every byte of output and every frame arrives, in order.
        #[test]
        fn cuts_change_nothing(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| (bytes, false)),
                    Just((b"\0step-engine 0123456789abcdef ".to_vec(), false)),
                    Just((b"\0".to_vec(), false)),
                    Just((framed(r#"{"event":"started","step":"a"}"#), true)),
                ],
                0..12,
            ),
            cuts in prop::collection::vec(1_usize..50, 0..60),
        ) {
            let stream: Vec<u8> = parts.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let started = Frame::Started(Begun { step: "a".to_owned(), attempt: 0 });
            let (mut output, mut frames) = (Vec::new(), Vec::new());
            for (bytes, is_frame) in &parts {
                if *is_frame { frames.push((output.len(), started.clone())) } else { output.extend_from_slice(bytes) }
            }
            let (mut chunks, mut rest) = (Vec::new(), stream.as_slice());
            for cut in cuts {
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            prop_assert_eq!(split(&chunks), (output, frames));
        }
    }
}
