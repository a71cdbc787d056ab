//! An attempt's log: the complete bytes in a file, readable lines for whoever watches, the tail for error messages.
//!
//! Watching never slows a step: when the watcher lags, lines are left out of the display and counted; the file is complete.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::LogStream;

/// A longer line is shown in pieces of this many bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Lines kept for error messages.
const TAIL_LINES: usize = 20;
/// Bytes kept of each of them.
const TAIL_LINE_BYTES: usize = 2 * 1024;

/// One attempt's log.
#[derive(Debug)]
pub(super) struct AttemptLog {
    file: Option<File>,
    partial: [Partial; 2],
    tail: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Set when nothing arrived since the last look.
    quiet: bool,
}

impl AttemptLog {
    /// Opens the file, if there is to be one. A file that cannot be opened is reported and done without.
    pub(super) fn open(path: Option<&Path>) -> (Self, Option<String>) {
        let (file, warning) = match path.map(|path| (path, create_private(path))) {
            None => (None, None),
            Some((_, Ok(file))) => (Some(file), None),
            Some((path, Err(error))) => {
                (None, Some(format!("the log file {} cannot be written: {error}", path.display())))
            }
        };
        (Self { file, partial: Default::default(), tail: VecDeque::new() }, warning)
    }

    /// Takes bytes; gives the lines that are complete now, and a warning when the file has to be given up.
    pub(super) fn push(&mut self, stream: LogStream, bytes: &[u8]) -> (String, Option<String>) {
        let warning = self.write_file(bytes);
        let mut lines = String::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let partial = &mut self.partial[slot(stream)];
            partial.quiet = false;
            let room = MAX_LINE_BYTES - partial.bytes.len();
            let window = &rest[..rest.len().min(room)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    partial.bytes.extend_from_slice(&window[..end]);
                    rest = &rest[end + 1..];
                    self.complete(stream, &mut lines);
                }
                None => {
                    partial.bytes.extend_from_slice(window);
                    rest = &rest[window.len()..];
                    if partial.bytes.len() >= MAX_LINE_BYTES {
                        self.complete(stream, &mut lines);
                    }
                }
            }
        }
        (lines, warning)
    }

    /// Gives unfinished lines that have been waiting since the last call, such as a prompt or a progress bar.
    pub(super) fn flush_quiet(&mut self, stream: LogStream) -> String {
        let partial = &mut self.partial[slot(stream)];
        let mut lines = String::new();
        if !partial.bytes.is_empty() && std::mem::replace(&mut partial.quiet, true) {
            self.complete(stream, &mut lines);
        }
        lines
    }

    /// Gives what is left when the attempt is over.
    pub(super) fn finish(&mut self, stream: LogStream) -> String {
        let mut lines = String::new();
        if !self.partial[slot(stream)].bytes.is_empty() {
            self.complete(stream, &mut lines);
        }
        lines
    }

    /// The last lines, oldest first.
    pub(super) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }

    fn complete(&mut self, stream: LogStream, lines: &mut String) {
        let partial = &mut self.partial[slot(stream)];
        let text = String::from_utf8_lossy(&partial.bytes);
        // A terminal shows what stands after the last carriage return: the newest state of a progress bar.
        let text = text.trim_end_matches('\r');
        let text = text.rsplit('\r').next().unwrap_or(text);
        lines.push_str(text);
        lines.push('\n');
        let mut end = text.len().min(TAIL_LINE_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text[..end].to_owned());
        partial.bytes.clear();
    }

    fn write_file(&mut self, bytes: &[u8]) -> Option<String> {
        let error = self.file.as_mut()?.write_all(bytes).err()?;
        self.file = None;
        Some(format!("its log file ends here, the display goes on: {error}"))
    }
}

fn slot(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}

/// Where the log of an attempt is kept: the step's name with whatever is unsafe in a file name replaced.
pub(super) fn log_path(directory: &Path, step: &str, attempt: u32) -> PathBuf {
    let safe: String =
        step.chars().take(100).map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).collect();
    directory.join(format!("{safe}.{attempt}.log"))
}

/// Creates a directory that only its owner can read, with its parents.
pub(super) fn create_private_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let (mut log, _) = AttemptLog::open(None);
        let mut all: String = pieces.iter().map(|piece| log.push(LogStream::Stdout, piece).0).collect();
        all.push_str(&log.finish(LogStream::Stdout));
        all
    }

    #[test]
    fn lines_are_put_together_whatever_the_cuts() {
        assert_eq!(shown(&[b"one\ntw", b"o\r\nthr", b"ee"]), "one\ntwo\nthree\n");
        assert_eq!(shown(&[b" 10%\r 50%\r100%\n"]), "100%\n");
        assert_eq!(shown(&[b"caf\xc3", b"\xa9 \xff\n"]), "café \u{fffd}\n");
        assert_eq!(shown(&[b"\n\n"]), "\n\n");
    }

    #[test]
    fn a_megabyte_without_newline_is_shown_in_pieces() {
        let text = shown(&[&vec![b'x'; 1 << 20]]);
        assert_eq!(text.matches('x').count(), 1 << 20);
        assert_eq!(text.lines().count(), 16);
    }

    #[test]
    fn a_quiet_partial_line_is_shown_once() {
        let (mut log, _) = AttemptLog::open(None);
        log.push(LogStream::Stderr, b"name? ");
        assert_eq!(log.flush_quiet(LogStream::Stderr), "", "it may still be going on");
        assert_eq!(log.flush_quiet(LogStream::Stderr), "name? \n");
        assert_eq!(log.flush_quiet(LogStream::Stderr), "");
        assert_eq!(log.tail(), ["name? "]);
    }

    #[test]
    fn a_full_disk_is_one_warning_and_the_display_goes_on() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let (mut log, opening) = AttemptLog::open(Some(full));
        assert_eq!(opening, None);
        let (shown, warning) = log.push(LogStream::Stdout, b"a\n");
        assert!(warning.is_some_and(|w| w.contains("No space left")));
        assert_eq!(shown, "a\n");
        assert_eq!(log.push(LogStream::Stdout, b"b\n"), ("b\n".into(), None));
    }
}
