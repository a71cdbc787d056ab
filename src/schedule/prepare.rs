//! Which steps are worth getting ready for before their turn.
//!
//! Candidates are ready steps that wait for capacity, then steps whose every upstream has completed or is running. No
//! more than `max_parallelism` are prepared at a time, and only while running and prepared steps together fit the host's
//! memory.

use std::collections::BTreeSet;

use super::ready::{Rank, ReadyQueue};

/// Memory of a prepared step that names no memory of its own: a Python process with ZenML imported, rounded up.
const IDLE_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Prepared steps and those that could be.
#[derive(Debug)]
pub(super) struct Preparation {
    max: usize,
    prepared: BTreeSet<Rank>,
    memory_bytes: u64,
    /// Steps whose upstreams have all completed or are running, and which are not ready yet.
    soon: BTreeSet<Rank>,
}

impl Preparation {
    pub(super) fn new(max: u32) -> Self {
        Self { max: max as usize, prepared: BTreeSet::new(), memory_bytes: 0, soon: BTreeSet::new() }
    }

    pub(super) fn is_soon(&mut self, rank: Rank, soon: bool) {
        if soon {
            self.soon.insert(rank);
        } else {
            self.soon.remove(&rank);
        }
    }

    /// Forgets a step; whether it was prepared.
    pub(super) fn take(&mut self, rank: Rank, queue: &ReadyQueue) -> bool {
        self.soon.remove(&rank);
        let taken = self.prepared.remove(&rank);
        if taken {
            self.memory_bytes -= memory(rank, queue);
        }
        taken
    }

    /// Makes room in memory for what was just admitted: the least urgent preparations that have to go.
    pub(super) fn make_room(&mut self, queue: &ReadyQueue) -> Vec<Rank> {
        let mut gone = Vec::new();
        while self.memory_bytes > queue.free_memory() {
            let Some(&rank) = self.prepared.last() else { break };
            self.prepared.remove(&rank);
            self.memory_bytes -= memory(rank, queue);
            gone.push(rank);
        }
        gone
    }

    /// Chooses what to prepare now.
    pub(super) fn fill(&mut self, queue: &ReadyQueue) -> Vec<Rank> {
        let mut chosen = Vec::new();
        for rank in queue.iter().take(self.max).chain(self.soon.iter().copied()) {
            if self.prepared.len() >= self.max {
                break;
            }
            if self.prepared.contains(&rank) {
                continue;
            }
            if self.memory_bytes + memory(rank, queue) > queue.free_memory() {
                break;
            }
            self.memory_bytes += memory(rank, queue);
            self.prepared.insert(rank);
            chosen.push(rank);
        }
        chosen
    }
}

fn memory(rank: Rank, queue: &ReadyQueue) -> u64 {
    match queue.demand(rank).memory_bytes {
        0 => IDLE_MEMORY_BYTES,
        bytes => bytes,
    }
}
