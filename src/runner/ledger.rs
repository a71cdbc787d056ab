//! Effects wait here until the journal holds the line that leads to them.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::journal::{Entry, FILE_NAME, Header, Journal};
use super::logs::create_private_directory;
use super::space;
use crate::schedule::Effect;

/// A journal and what is not in it yet.
#[derive(Debug)]
pub(super) struct Ledger {
    state: State,
    path: PathBuf,
    held: VecDeque<(Entry, Vec<Effect>)>,
}

#[derive(Debug)]
enum State {
    /// There was no room for its first line.
    Unbegun(Header),
    Begun(Journal),
}

impl State {
    fn journal(&mut self, path: &Path) -> io::Result<&mut Journal> {
        if let Self::Unbegun(header) = self {
            *self = Self::Begun(begin(path, header)?);
        }
        match self {
            Self::Begun(journal) => Ok(journal),
            Self::Unbegun(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Ledger {
    /// Begins the journal of a run in its directory; for want of room when its first entry is written.
    ///
    /// # Errors
    /// It cannot be written for a reason that does not pass, or it is there already.
    pub(super) fn begin(directory: &Path, header: &Header) -> io::Result<Self> {
        let path = directory.join(FILE_NAME);
        let state = match begin(&path, header) {
            Ok(journal) => State::Begun(journal),
            Err(error) if space::is_full(&error) => State::Unbegun(header.clone()),
            Err(error) => return Err(error),
        };
        Ok(Self { state, path, held: VecDeque::new() })
    }

    /// Goes on with the journal of a run in its directory.
    pub(super) fn go_on(directory: &Path, journal: Journal) -> Self {
        Self { state: State::Begun(journal), path: directory.join(FILE_NAME), held: VecDeque::new() }
    }

    /// Says what is wrong with the journal.
    pub(super) fn complaint(&self, error: &io::Error) -> String {
        space::unwritable(&self.path, error)
    }

    /// Takes an input with what it led to.
    pub(super) fn hold(&mut self, entry: Entry, effects: Vec<Effect>) {
        self.held.push_back((entry, effects));
    }

    /// Whether effects wait.
    pub(super) fn is_behind(&self) -> bool {
        !self.held.is_empty()
    }

    /// Writes as much as can be written. Gives the effects that may be carried out now, and why the others must wait.
    pub(super) fn write(&mut self) -> (Vec<Effect>, Option<io::Error>) {
        let mut effects = Vec::new();
        while let Some((entry, _)) = self.held.front() {
            if let Err(error) = self.state.journal(&self.path).and_then(|journal| journal.append(entry)) {
                return (effects, Some(error));
            }
            effects.extend(self.held.pop_front().into_iter().flat_map(|(_, effects)| effects));
        }
        (effects, None)
    }

    /// Goes on without a journal. One that lacks something would tell a wrong story, so it is removed; a disk that is full
    /// still allows that.
    pub(super) fn give_up(self) -> Vec<Effect> {
        let is_ours = matches!(self.state, State::Begun(_));
        if is_ours && fs::remove_file(&self.path).is_err() {
            // Emptied, it says that nothing of the run was started, and nothing is read out of it.
            let _ = fs::OpenOptions::new().write(true).truncate(true).open(&self.path);
        }
        self.held.into_iter().flat_map(|(_, effects)| effects).collect()
    }
}

fn begin(path: &Path, header: &Header) -> io::Result<Journal> {
    if let Some(directory) = path.parent() {
        create_private_directory(directory)?;
    }
    Journal::create(path, header)
}
