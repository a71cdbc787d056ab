//! The file of one attempt's log: every byte in it, in order, as far as there is room.
//!
//! A full disk is waited out. What comes meanwhile is kept in memory, up to a limit; how much came beyond that stands in the
//! file afterwards. Nothing here waits: whoever writes, or looks now and then, tries again.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::logs::create_private_directory;
use super::space;

/// So much of one log waits in memory for room.
pub(super) const BACKLOG_BYTES: usize = 1024 * 1024;

/// A log file that is being written.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// None until there is room for it.
    file: Option<File>,
    /// What comes next in the file.
    backlog: Vec<u8>,
    /// Bytes that came after these and are kept nowhere.
    lost: u64,
}

impl LogFile {
    /// Opens the file. For want of room it is made later.
    ///
    /// # Errors
    /// It cannot be written, for a reason that does not pass.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = match create_private(path) {
            Ok(file) => Some(file),
            Err(error) if space::is_full(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_path_buf(), file, backlog: Vec::new(), lost: 0 })
    }

    /// Adds bytes. The error with which it falls behind; what comes then is no error.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Option<io::Error> {
        let was_behind = self.is_behind();
        let (written, failure) = match self.catch_up() {
            Ok(()) => self.write(bytes),
            Err(error) => (0, Some(error)),
        };
        let rest = &bytes[written..];
        // After a gap nothing is kept until the gap can be told.
        let room = if self.lost > 0 { 0 } else { BACKLOG_BYTES.saturating_sub(self.backlog.len()) };
        let (kept, lost) = rest.split_at(rest.len().min(room));
        self.backlog.extend_from_slice(kept);
        self.lost += lost.len() as u64;
        failure.filter(|_| !was_behind)
    }

    /// Writes what waits for room, and how much is missing.
    ///
    /// # Errors
    /// There is no room yet.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        loop {
            if self.backlog.is_empty() {
                if self.lost == 0 {
                    return Ok(());
                }
                let note = format!("\n[step-engine: {} bytes could not be kept, there was no room]\n", self.lost);
                self.backlog = note.into_bytes();
                self.lost = 0;
            }
            let backlog = std::mem::take(&mut self.backlog);
            let (written, failure) = self.write(&backlog);
            self.backlog = backlog;
            self.backlog.drain(..written);
            if let Some(error) = failure {
                return Err(error);
            }
        }
    }

    /// Whether something waits for room.
    pub(super) fn is_behind(&self) -> bool {
        !self.backlog.is_empty() || self.lost > 0
    }

    /// Keeps nothing in memory any more but how much is missing.
    pub(super) fn shed(&mut self) {
        self.lost += self.backlog.len() as u64;
        self.backlog = Vec::new();
    }

    /// Bytes that are in no file.
    pub(super) fn missing_bytes(&self) -> u64 {
        self.backlog.len() as u64 + self.lost
    }

    /// Bytes that are in the file.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len())
    }

    /// Begins anew.
    ///
    /// # Errors
    /// The file stays as it is.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        self.backlog.clear();
        self.lost = 0;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn forget_file(&mut self) {
        self.file = None;
    }

    /// Writes as much as there is room for.
    fn write(&mut self, bytes: &[u8]) -> (usize, Option<io::Error>) {
        let mut written = 0;
        while written < bytes.len() {
            let file = match &mut self.file {
                Some(file) => file,
                None => match create_private(&self.path) {
                    Ok(file) => self.file.insert(file),
                    Err(error) => return (written, Some(error)),
                },
            };
            match file.write(&bytes[written..]) {
                Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (written, Some(error)),
            }
        }
        (written, None)
    }
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let opened = options.open(path);
    match (&opened, path.parent()) {
        // There was no room for the directory, either.
        (Err(error), Some(directory)) if error.kind() == ErrorKind::NotFound => {
            create_private_directory(directory)?;
            options.open(path)
        }
        _ => opened,
    }
}
