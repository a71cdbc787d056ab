//! Which steps are worth getting ready for before their turn.
//!
//! Nearest first: ready steps that wait for capacity; steps whose upstreams have all completed or are running, and retries
//! that wait; then, one further, steps whose remaining upstreams are prepared themselves, because a chain of short steps
//! would otherwise wait for each preparation. No more than `max_parallelism` are prepared at a time, and only while running
//! and prepared steps together fit the host's memory; a launch that needs the memory takes it back, farthest first.

use std::collections::BTreeSet;

use super::ready::{Rank, ReadyQueue};

/// Memory of a prepared step that names no memory of its own: a Python process with ZenML imported, rounded up.
pub(super) const IDLE_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// How many candidates are considered for one preparation while memory is short.
const LOOK_AHEAD: usize = 64;

/// How soon a step can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nearness {
    /// It only waits for capacity.
    Ready,
    /// It waits for running steps, or for its retry.
    Next,
    /// It waits for prepared steps too.
    AfterNext,
}

/// Prepared steps and those that could be.
#[derive(Debug)]
pub(super) struct Preparation {
    max: usize,
    prepared: BTreeSet<(Nearness, Rank)>,
    candidates: BTreeSet<(Nearness, Rank)>,
    /// By rank, for both sets.
    place: Vec<Option<Nearness>>,
    memory_bytes: u64,
}

impl Preparation {
    pub(super) fn new(max_parallelism: u32, steps: usize) -> Self {
        Self {
            max: max_parallelism as usize,
            prepared: BTreeSet::new(),
            candidates: BTreeSet::new(),
            place: vec![None; steps],
            memory_bytes: 0,
        }
    }

    /// Makes room for a step.
    pub(super) fn add(&mut self) {
        self.place.push(None);
    }

    /// Says how near a step is; none when it cannot start soon. What is prepared stays prepared.
    pub(super) fn set_nearness(&mut self, rank: Rank, nearness: Option<Nearness>) {
        let before = self.place[rank as usize];
        if before == nearness {
            return;
        }
        if let Some(key) = before.map(|before| (before, rank)) {
            if self.prepared.contains(&key) {
                if let Some(nearness) = nearness {
                    self.prepared.remove(&key);
                    self.prepared.insert((nearness, rank));
                    self.place[rank as usize] = Some(nearness);
                }
                return;
            }
            self.candidates.remove(&key);
        }
        self.place[rank as usize] = nearness;
        if let Some(nearness) = nearness {
            self.candidates.insert((nearness, rank));
        }
    }

    /// How near the step is, if it is prepared.
    pub(super) fn prepared(&self, rank: Rank) -> Option<Nearness> {
        self.place[rank as usize].filter(|&nearness| self.prepared.contains(&(nearness, rank)))
    }

    /// Forgets a step that starts or never will; whether it was prepared.
    pub(super) fn forget(&mut self, rank: Rank, queue: &ReadyQueue) -> bool {
        let Some(nearness) = self.place[rank as usize].take() else { return false };
        self.candidates.remove(&(nearness, rank));
        let taken = self.prepared.remove(&(nearness, rank));
        if taken {
            self.memory_bytes -= memory(rank, queue);
        }
        taken
    }

    /// Makes room in memory for what was just admitted: the farthest preparations that have to go, and no more.
    pub(super) fn make_room(&mut self, queue: &ReadyQueue) -> Vec<Rank> {
        let mut gone = Vec::new();
        while self.memory_bytes > queue.free_memory() {
            let Some(last) = self.prepared.pop_last() else { break };
            self.memory_bytes -= memory(last.1, queue);
            gone.push(last);
        }
        // Nearest first again: a small one that went before a big one may fit after all.
        gone.reverse();
        gone.retain(|&key| {
            let bytes = memory(key.1, queue);
            let stays = self.memory_bytes.saturating_add(bytes) <= queue.free_memory();
            if stays {
                self.memory_bytes += bytes;
                self.prepared.insert(key);
            } else {
                self.candidates.insert(key);
            }
            !stays
        });
        gone.into_iter().map(|(_, rank)| rank).collect()
    }

    /// Chooses one more step to prepare.
    pub(super) fn choose(&mut self, queue: &ReadyQueue) -> Option<Rank> {
        if self.prepared.len() >= self.max {
            return None;
        }
        let free = queue.free_memory().checked_sub(self.memory_bytes)?;
        let key = *self.candidates.iter().take(LOOK_AHEAD).find(|(_, rank)| memory(*rank, queue) <= free)?;
        self.candidates.remove(&key);
        self.prepared.insert(key);
        self.memory_bytes += memory(key.1, queue);
        Some(key.1)
    }
}

fn memory(rank: Rank, queue: &ReadyQueue) -> u64 {
    match queue.demand(rank).memory_bytes {
        0 => IDLE_MEMORY_BYTES,
        bytes => bytes,
    }
}
