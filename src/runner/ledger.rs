//! Effects wait here until the journal holds the line that leads to them.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::journal::{Entry, FILE_NAME, Header, Journal};
use crate::schedule::Effect;

/// A journal and what is not in it yet.
#[derive(Debug)]
pub(super) struct Ledger {
    journal: Journal,
    path: PathBuf,
    held: VecDeque<(Entry, Vec<Effect>)>,
}

impl Ledger {
    /// Begins the journal of a run in its directory.
    ///
    /// # Errors
    /// It cannot be written, or it is there already.
    pub(super) fn begin(directory: &Path, header: &Header) -> io::Result<Self> {
        let path = directory.join(FILE_NAME);
        Ok(Self { journal: Journal::create(&path, header)?, path, held: VecDeque::new() })
    }

    /// Goes on with the journal of a run in its directory.
    pub(super) fn go_on(directory: &Path, journal: Journal) -> Self {
        Self { journal, path: directory.join(FILE_NAME), held: VecDeque::new() }
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
            if let Err(error) = self.journal.append(entry) {
                return (effects, Some(error));
            }
            effects.extend(self.held.pop_front().into_iter().flat_map(|(_, effects)| effects));
        }
        (effects, None)
    }

    /// Goes on without a journal. One that lacks something would tell a wrong story, so it is removed; a disk that is full
    /// still allows that.
    pub(super) fn give_up(self) -> Vec<Effect> {
        if fs::remove_file(&self.path).is_err() {
            // Emptied, it says that nothing of the run was started, and nothing is read out of it.
            let _ = fs::OpenOptions::new().write(true).truncate(true).open(&self.path);
        }
        self.held.into_iter().flat_map(|(_, effects)| effects).collect()
    }
}
