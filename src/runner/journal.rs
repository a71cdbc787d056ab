//! A run's memory on disk: everything that its scheduler was told, in order, one JSON object per line.
//!
//! The first line holds the plan and what else the scheduler was made of; each further one an input, when it came, and which
//! attempts it launched. The scheduler is deterministic, so that [`super::replay`] rebuilds its state from this file alone.
//! A line is written before its effects are carried out, and is on the disk before anything starts or is forgotten because
//! of it.
//!
//! Contains no environment value. What a crash left of a last line was acted upon by nobody and is taken away.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{Capacity, PlanSpec, StepIndex};
use crate::schedule::Input;

/// Version of the format, and of the scheduler's decisions: a scheduler that decides otherwise needs another number.
pub const VERSION: u32 = 2;

/// Name of the journal in a run's directory.
pub const FILE_NAME: &str = "journal.jsonl";

/// What a run's scheduler was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] of whoever began the run.
    pub version: u32,
    /// The pipeline, as it was given.
    pub plan: PlanSpec,
    /// The host as it was then.
    pub capacity: Capacity,
    /// Whether steps are prepared ahead of need.
    pub prepare: bool,
    /// When the run began, in nanoseconds since 1970 UTC.
    pub began_unix_nanos: u64,
}

/// An input that the scheduler got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in nanoseconds since the run began.
    pub at: u64,
    /// The input.
    pub input: Input,
    /// Step and number of the attempts that it launched: a replay that comes to others is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launched: Vec<(StepIndex, u32)>,
}

impl Entry {
    /// An entry of an input that came at `now` after the run began.
    #[must_use]
    pub fn new(now: Duration, input: Input, launched: Vec<(StepIndex, u32)>) -> Self {
        Self { at: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), input, launched }
    }

    /// Since the run began.
    #[must_use]
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.at)
    }

    /// Whether the line must be on the disk before anything else happens. What is lost otherwise can be found out again.
    fn is_decision(&self) -> bool {
        !self.launched.is_empty() || !matches!(self.input, Input::AttemptStarted { .. } | Input::Tick)
    }
}

/// What a journal holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The first line.
    pub header: Header,
    /// The others.
    pub entries: Vec<Entry>,
    /// Length of what is whole, in bytes; what follows was torn by a crash.
    pub whole_bytes: usize,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("the journal cannot be used: {0}")]
    Io(#[from] io::Error),
    /// The run began and ended before anything was written.
    #[error("the journal is empty: nothing of the run was started")]
    Empty,
    /// A line before the last one is not readable.
    #[error("line {line} of the journal is damaged: {message}")]
    Damaged {
        /// From 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Another version of this package began the run.
    #[error(
        "the run was begun by another version (journal version {found}, this is {VERSION}); resume it with that one"
    )]
    OtherVersion {
        /// Version in the journal.
        found: u32,
    },
}

/// Reads what a journal holds.
///
/// # Errors
/// [`JournalError`] unless all lines but the last are whole and of this version.
pub fn parse(bytes: &[u8]) -> Result<Recorded, JournalError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }

    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').enumerate();
    let (_, first) = lines.next().filter(|(_, line)| line.ends_with(b"\n")).ok_or(JournalError::Empty)?;
    // Before the rest: another version may have written it otherwise.
    match serde_json::from_slice::<Version>(first) {
        Ok(Version { version: VERSION }) => {}
        Ok(Version { version: found }) => return Err(JournalError::OtherVersion { found }),
        Err(_) if first.len() == bytes.len() => return Err(JournalError::Empty),
        Err(error) => return Err(JournalError::Damaged { line: 1, message: error.to_string() }),
    }
    let damaged =
        |at: usize, error: &serde_json::Error| JournalError::Damaged { line: at + 1, message: error.to_string() };
    let header = serde_json::from_slice(first).map_err(|error| damaged(0, &error))?;
    let mut recorded = Recorded { header, entries: Vec::new(), whole_bytes: first.len() };
    for (at, line) in lines {
        let end = recorded.whole_bytes + line.len();
        match serde_json::from_slice(line) {
            Ok(entry) if line.ends_with(b"\n") => recorded.entries.push(entry),
            // Not even its end was written, or it never reached the disk: nobody has acted upon it.
            _ if end == bytes.len() => break,
            Err(error) => return Err(damaged(at, &error)),
            Ok(_) => break,
        }
        recorded.whole_bytes = end;
    }
    Ok(recorded)
}

/// A journal that is being written, by one owner.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Length of the whole lines.
    whole_bytes: u64,
    /// Whether something stands behind them: a line that could not be written to its end.
    torn: bool,
}

impl Journal {
    /// Begins a journal, readable by its owner only. One that is there already is not touched.
    ///
    /// # Errors
    /// The file exists or cannot be written; then there is none, so that it may be tried again.
    pub fn create(path: &Path, header: &Header) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create_new(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let journal = Self { file: options.open(path)?, whole_bytes: 0, torn: false };
        journal.begun(path, header).inspect_err(|_| {
            // Without its first line it would say that nothing of the run was started.
            let _ = std::fs::remove_file(path);
        })
    }

    fn begun(mut self, path: &Path, header: &Header) -> io::Result<Self> {
        self.write(&line(header)?, true)?;
        if let Some(directory) = path.parent() {
            // Or the file's name could be lost with the machine.
            File::open(directory)?.sync_all()?;
        }
        Ok(self)
    }

    /// Goes on with a journal and tells what it holds. What is torn is taken away.
    ///
    /// # Errors
    /// [`JournalError`], without a change to the file.
    pub fn open(path: &Path) -> Result<(Self, Recorded), JournalError> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let recorded = parse(&bytes)?;
        let mut journal = Self { file, whole_bytes: recorded.whole_bytes as u64, torn: true };
        journal.mend()?;
        Ok((journal, recorded))
    }

    /// Adds an entry. A decision is on the disk when this returns.
    ///
    /// # Errors
    /// Nothing was added, for instance because the disk is full; it may be tried again.
    pub fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.write(&line(entry)?, entry.is_decision())
    }

    fn write(&mut self, line: &[u8], durable: bool) -> io::Result<()> {
        self.mend()?;
        self.torn = true;
        self.file.write_all(line)?;
        if durable {
            self.file.sync_data()?;
        }
        self.torn = false;
        self.whole_bytes += line.len() as u64;
        Ok(())
    }

    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.whole_bytes)?;
            self.file.seek(SeekFrom::Start(self.whole_bytes))?;
            self.torn = false;
        }
        Ok(())
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            plan: serde_json::from_str(r#"{"steps": [{"name": "a"}]}"#).unwrap(),
            capacity: Capacity { cpu_millis: 1000, memory_bytes: 1, gpus: 0 },
            prepare: false,
            began_unix_nanos: 7,
        }
    }

    fn entry(at: u64) -> Entry {
        Entry { at, input: Input::Tick, launched: vec![(StepIndex::new(0), 1)] }
    }

    #[test]
    fn a_torn_last_line_is_taken_away_wherever_it_is_torn() {
        let whole = [line(&header()).unwrap(), line(&entry(1)).unwrap()].concat();
        let last = line(&entry(2)).unwrap();
        for torn in 0..last.len() {
            let recorded = parse(&[whole.as_slice(), &last[..torn]].concat()).unwrap();
            assert_eq!((recorded.entries.len(), recorded.whole_bytes), (1, whole.len()));
        }
        let zeros = [whole.as_slice(), &[0; 40]].concat();
        assert_eq!(parse(&zeros).unwrap().whole_bytes, whole.len());
    }

    #[test]
    fn damage_and_other_versions_are_told() {
        let good = line(&entry(1)).unwrap();
        let damaged = [line(&header()).unwrap(), b"{}\n".to_vec(), good].concat();
        assert!(matches!(parse(&damaged), Err(JournalError::Damaged { line: 2, .. })));
        assert!(matches!(parse(b"{\"version\":1,\"x\":1}\n"), Err(JournalError::OtherVersion { found: 1 })));
        assert!(matches!(parse(b""), Err(JournalError::Empty)));
        assert!(matches!(parse(b"{\"version\":"), Err(JournalError::Empty)));
    }

    #[test]
    fn a_journal_is_gone_on_with_and_never_begun_twice() {
        let directory = std::env::temp_dir().join(format!("step-engine-journal-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(FILE_NAME);
        let mut journal = Journal::create(&path, &header()).unwrap();
        journal.append(&entry(1)).unwrap();
        drop(journal);
        assert_eq!(Journal::create(&path, &header()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at\":2,\"inp").unwrap();
        let (mut journal, recorded) = Journal::open(&path).unwrap();
        assert_eq!(recorded.entries, [entry(1)]);
        journal.append(&entry(3)).unwrap();
        assert_eq!(parse(&std::fs::read(&path).unwrap()).unwrap().entries, [entry(1), entry(3)]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_line_that_did_not_fit_on_the_disk_leaves_no_trace() {
        let directory = std::env::temp_dir().join(format!("step-engine-journal-full-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(FILE_NAME);
        let mut journal = Journal::create(&path, &header()).unwrap();
        // As a full disk leaves it: half a line, and the journal knows.
        journal.file.write_all(b"{\"at\":").unwrap();
        journal.torn = true;
        journal.append(&entry(1)).unwrap();
        assert_eq!(parse(&std::fs::read(&path).unwrap()).unwrap().entries, [entry(1)]);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
