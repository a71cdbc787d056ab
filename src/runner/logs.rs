//! An attempt's log: the complete bytes in a file, readable lines for whoever watches, the tail for error messages.
//!
//! Watching never slows a step: when the watcher lags, lines are left out of the display and counted; the file is complete,
//! unless its disk was full for long: then it says how much it lacks.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::LogStream;
use super::log_file::LogFile;
use super::space;

/// A longer line is shown in pieces of this many bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// An unfinished line is shown after so many looks without a newline, even if it still grows: a busy progress bar.
const MAX_LOOKS: u8 = 10;
/// Lines kept for error messages.
const TAIL_LINES: usize = 20;
/// A longer step name is cut in its log's file name.
const MAX_NAME_BYTES: usize = 100;
/// Bytes kept of each of them.
const TAIL_LINE_BYTES: usize = 2 * 1024;

/// One attempt's log.
#[derive(Debug)]
pub struct AttemptLog {
    file: Option<LogFile>,
    partial: [Partial; 2],
    tail: VecDeque<String>,
    /// Bytes to come that were shown before.
    shown_before: u64,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Set when nothing arrived since the last look.
    quiet: bool,
    /// How often it was looked at and left alone.
    looks: u8,
}

impl AttemptLog {
    /// Opens the file, if there is to be one. A file that cannot be opened is reported and done without.
    pub fn open(path: Option<&Path>) -> (Self, Option<String>) {
        let (file, warning) = match path.map(|path| (path, LogFile::open(path))) {
            None => (None, None),
            Some((_, Ok(file))) => (Some(file), None),
            Some((path, Err(error))) => (None, Some(format!("the log file {}", space::unwritable(path, &error)))),
        };
        (Self { file, partial: Default::default(), tail: VecDeque::new(), shown_before: 0 }, warning)
    }

    /// All of the output comes again, at least so many bytes: the file begins anew, and as much as it had is not shown once
    /// more. False when the file has more than that, which is then kept.
    pub(super) fn restart(&mut self, bytes: u64) -> bool {
        let Some(file) = &mut self.file else { return true };
        let kept = file.kept_bytes();
        if kept > bytes || file.restart().is_err() {
            return false;
        }
        self.shown_before = kept;
        true
    }

    /// The last lines of a file that a former owner kept.
    pub(super) fn kept_tail(path: &Path) -> Vec<String> {
        const ENOUGH: i64 = 16 * 1024;

        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
            file.seek(SeekFrom::End(-length.min(ENOUGH)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let (mut log, _) = Self::open(None);
        log.push(LogStream::Stdout, &read().unwrap_or_default());
        log.finish(LogStream::Stdout);
        log.tail()
    }

    /// Takes bytes; gives the lines that are complete now, and the error with which the file falls behind.
    pub fn push(&mut self, stream: LogStream, bytes: &[u8]) -> (String, Option<io::Error>) {
        let error = self.file.as_mut().and_then(|file| file.append(bytes));
        let before = usize::try_from(self.shown_before).unwrap_or(usize::MAX).min(bytes.len());
        let (before, new) = bytes.split_at(before);
        self.shown_before -= before.len() as u64;
        // For the tail.
        drop(self.lines(stream, before));
        (self.lines(stream, new), error)
    }

    /// Writes what waited for room on the disk, if there is any. Whether something waits still.
    pub(super) fn is_behind(&mut self) -> bool {
        self.file.as_mut().is_some_and(|file| file.is_behind() && file.catch_up().is_err())
    }

    /// Keeps nothing that waits for room but how much it is.
    pub(super) fn shed(&mut self) {
        if let Some(file) = &mut self.file {
            file.shed();
        }
    }

    /// Bytes that the file lacks as it is now.
    pub(super) fn missing_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, LogFile::missing_bytes)
    }

    fn lines(&mut self, stream: LogStream, bytes: &[u8]) -> String {
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
        lines
    }

    /// Gives an unfinished line to which nothing was added since the last call, such as a prompt or a progress bar.
    pub fn flush_quiet(&mut self, stream: LogStream) -> String {
        let partial = &mut self.partial[slot(stream)];
        let mut lines = String::new();
        if !partial.bytes.is_empty() {
            partial.looks += 1;
            if std::mem::replace(&mut partial.quiet, true) || partial.looks >= MAX_LOOKS {
                self.complete(stream, &mut lines);
            }
        }
        lines
    }

    /// Whether a line is unfinished.
    pub fn is_unfinished(&self) -> bool {
        self.partial.iter().any(|partial| !partial.bytes.is_empty())
    }

    /// Whether the bytes are kept in a file.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Gives what is left when the attempt is over.
    pub fn finish(&mut self, stream: LogStream) -> String {
        let mut lines = String::new();
        if !self.partial[slot(stream)].bytes.is_empty() {
            self.complete(stream, &mut lines);
        }
        lines
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> Vec<String> {
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
        partial.quiet = false;
        partial.looks = 0;
    }
}

fn slot(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}

/// Where the log of an attempt is kept.
///
/// A step's name that is no safe file name is spelled with `_`, and with a digest of the name so that no two steps share a
/// file.
pub(super) fn log_path(directory: &Path, step: &str, attempt: u32) -> PathBuf {
    let is_safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if step.len() <= MAX_NAME_BYTES && step.chars().all(is_safe) {
        return directory.join(format!("{step}.{attempt}.log"));
    }
    // FNV-1a, 64 bit: file names must be the same in every process.
    let digest = step
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let is_shown = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let shown: String = step.chars().take(MAX_NAME_BYTES).map(|c| if is_shown(c) { c } else { '_' }).collect();
    directory.join(format!("{shown}-{digest:016x}.{attempt}.log"))
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

#[cfg(test)]
mod tests {
    use super::super::log_file::BACKLOG_BYTES;
    use super::*;

    impl AttemptLog {
        /// As if the file had had no room so far.
        fn reopen(&mut self) {
            self.file.as_mut().unwrap().forget_file();
        }
    }

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
    fn a_busy_progress_bar_is_shown_now_and_then() {
        let (mut log, _) = AttemptLog::open(None);
        let shown: Vec<String> = (0..25)
            .map(|percent| {
                log.push(LogStream::Stderr, format!("\r{percent}%").as_bytes());
                log.flush_quiet(LogStream::Stderr)
            })
            .filter(|text| !text.is_empty())
            .collect();
        assert_eq!(shown, ["9%\n", "19%\n"]);
    }

    #[test]
    fn what_comes_again_is_kept_once_and_shown_once() {
        let path = std::env::temp_dir().join(format!("step-engine-log-again-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let (mut log, _) = AttemptLog::open(Some(&path));
        log.push(LogStream::Stdout, b"one\ntwo\nth");
        drop(log);
        assert_eq!(AttemptLog::kept_tail(&path), ["one", "two", "th"]);
        let (mut log, _) = AttemptLog::open(Some(&path));
        assert!(!log.restart(9), "the engine's copy has lost its beginning");
        assert!(log.restart(10));
        let shown: String =
            ["one\nt", "wo\nthr", "ee\nfour\n"].map(|piece| log.push(LogStream::Stdout, piece.as_bytes()).0).concat();
        assert_eq!(shown, "three\nfour\n");
        assert_eq!(log.tail(), ["one", "two", "three", "four"]);
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\nthree\nfour\n");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_tail_keeps_the_last_lines_cut_to_size() {
        let (mut log, _) = AttemptLog::open(None);
        for line in 0..30 {
            log.push(LogStream::Stdout, format!("line {line}\n").as_bytes());
        }
        log.push(LogStream::Stderr, "\u{e9}".repeat(2000).as_bytes());
        log.finish(LogStream::Stderr);
        let tail = log.tail();
        assert_eq!((tail.len(), tail[0].as_str(), tail[19].len()), (20, "line 11", TAIL_LINE_BYTES));
    }

    #[test]
    fn every_step_has_a_safe_file_of_its_own() {
        let name = |step: &str| log_path(Path::new("/run"), step, 2).file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name("trainer_2"), "trainer_2.2.log");
        let long = "\u{1f980}".repeat(200);
        let awkward = ["../../etc/passwd", "a b", "a_b", "a/b", "a.b", "A_B", ".", &long, &long[4..]];
        let names: std::collections::BTreeSet<String> = awkward.iter().map(|step| name(step).to_lowercase()).collect();
        assert_eq!(names.len(), awkward.len());
        for name in names {
            assert!(name.len() < 255 && !name.starts_with('.') && !name.contains('/'), "{name}");
        }
    }

    #[test]
    fn a_full_disk_is_told_once_and_the_display_goes_on() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let (mut log, opening) = AttemptLog::open(Some(full));
        assert_eq!(opening, None);
        let (shown, error) = log.push(LogStream::Stdout, b"a\n");
        assert!(error.is_some_and(|error| space::is_full(&error)));
        assert_eq!(shown, "a\n");
        let (shown, error) = log.push(LogStream::Stdout, b"b\n");
        assert!(shown == "b\n" && error.is_none() && log.is_behind());
        assert_eq!(log.missing_bytes(), 4);
    }

    #[test]
    fn what_had_no_room_is_written_later_and_what_was_too_much_is_counted() {
        if !Path::new("/dev/full").exists() {
            return;
        }
        let directory = std::env::temp_dir().join(format!("step-engine-log-room-{}", std::process::id()));
        let path = directory.join("a.1.log");
        fs::create_dir_all(&path).unwrap();
        assert!(AttemptLog::open(Some(&path)).1.is_some(), "a directory is in the way for good");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let (mut log, _) = AttemptLog::open(Some(&path));
        let block = vec![b'x'; BACKLOG_BYTES - 4];
        log.push(LogStream::Stdout, b"one\n");
        log.push(LogStream::Stdout, &block);
        log.push(LogStream::Stdout, b"lost\n");
        assert!(log.is_behind());
        // Room again: the next write goes to a file.
        fs::remove_file(&path).unwrap();
        log.reopen();
        log.push(LogStream::Stdout, b"end\n");
        assert!(!log.is_behind());
        let note = b"\n[step-engine: 5 bytes could not be kept, there was no room]\n".to_vec();
        assert_eq!(fs::read(&path).unwrap(), [b"one\n".to_vec(), block, note, b"end\n".to_vec()].concat());
        fs::remove_dir_all(directory).unwrap();
    }
}
