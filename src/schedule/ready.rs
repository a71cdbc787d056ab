//! Ready steps in order of urgency, and what the host has left for them.
//!
//! Steps with equal demands form a class, because if one of them does not fit none of them does. An event looks at no
//! more than [`LOOK_AHEAD`] classes, so that 100,000 ready steps cost no more than a few.

use std::collections::{BTreeSet, HashMap};

use crate::plan::{Admission, Demand};

/// How many classes are considered for one launch.
const LOOK_AHEAD: usize = 64;

/// How many less urgent steps may overtake the most urgent one while it does not fit. After that nothing else starts until
/// it fits, so that a big step never starves behind small ones.
const MAX_OVERTAKES: u32 = 16;

/// Position in the order of urgency; 0 is the most urgent step of the plan.
pub(super) type Rank = u32;

/// Ready steps and free capacity.
#[derive(Debug)]
pub(super) struct ReadyQueue {
    /// Class of each rank.
    class_of: Vec<u32>,
    classes: Vec<Class>,
    /// The most urgent member of every class that has one.
    heads: BTreeSet<(Rank, u32)>,
    all: BTreeSet<Rank>,
    free: Demand,
    free_slots: u32,
    overtaken: Option<(Rank, u32)>,
}

#[derive(Debug)]
struct Class {
    demand: Demand,
    ranks: BTreeSet<Rank>,
}

impl ReadyQueue {
    /// A queue with the whole host free; `demands` in order of rank.
    pub(super) fn new(admission: &Admission, demands: impl Iterator<Item = Demand>) -> Self {
        let mut classes = Vec::new();
        let mut by_demand = HashMap::new();
        let class_of = demands
            .map(|demand| {
                *by_demand.entry((demand.cpu_millis, demand.memory_bytes, demand.gpus)).or_insert_with(|| {
                    classes.push(Class { demand, ranks: BTreeSet::new() });
                    u32::try_from(classes.len() - 1).unwrap_or(u32::MAX)
                })
            })
            .collect();
        let capacity = admission.capacity;
        Self {
            class_of,
            classes,
            heads: BTreeSet::new(),
            all: BTreeSet::new(),
            free: Demand { cpu_millis: capacity.cpu_millis, memory_bytes: capacity.memory_bytes, gpus: capacity.gpus },
            free_slots: admission.max_parallelism,
            overtaken: None,
        }
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        self.all.insert(rank);
        let class = self.class_of[rank as usize];
        let ranks = &mut self.classes[class as usize].ranks;
        if let Some(&head) = ranks.first() {
            self.heads.remove(&(head, class));
        }
        ranks.insert(rank);
        if let Some(&head) = ranks.first() {
            self.heads.insert((head, class));
        }
    }

    pub(super) fn remove(&mut self, rank: Rank) {
        if !self.all.remove(&rank) {
            return;
        }
        let class = self.class_of[rank as usize];
        let ranks = &mut self.classes[class as usize].ranks;
        if let Some(&head) = ranks.first() {
            self.heads.remove(&(head, class));
        }
        ranks.remove(&rank);
        if let Some(&head) = ranks.first() {
            self.heads.insert((head, class));
        }
        if self.overtaken.is_some_and(|(overtaken, _)| overtaken == rank) {
            self.overtaken = None;
        }
    }

    /// Takes the step that should start now and its share of the host.
    pub(super) fn admit(&mut self) -> Option<Rank> {
        if self.free_slots == 0 {
            return None;
        }
        let (first, _) = *self.heads.first()?;
        let rank = self
            .heads
            .iter()
            .take(LOOK_AHEAD)
            .find(|&&(_, class)| fits(self.classes[class as usize].demand, self.free))
            .map(|&(rank, _)| rank)?;
        if rank != first {
            let overtakes = match self.overtaken {
                Some((overtaken, count)) if overtaken == first => count,
                _ => 0,
            };
            if overtakes >= MAX_OVERTAKES {
                return None;
            }
            self.overtaken = Some((first, overtakes + 1));
        }
        self.remove(rank);
        let demand = self.demand(rank);
        self.free.cpu_millis -= demand.cpu_millis;
        self.free.memory_bytes -= demand.memory_bytes;
        self.free.gpus -= demand.gpus;
        self.free_slots -= 1;
        Some(rank)
    }

    /// Gives back the share of a step that was admitted.
    pub(super) fn release(&mut self, rank: Rank) {
        let demand = self.demand(rank);
        self.free.cpu_millis += demand.cpu_millis;
        self.free.memory_bytes += demand.memory_bytes;
        self.free.gpus += demand.gpus;
        self.free_slots += 1;
    }

    /// Ready steps, most urgent first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Rank> + '_ {
        self.all.iter().copied()
    }

    pub(super) fn free_memory(&self) -> u64 {
        self.free.memory_bytes
    }

    pub(super) fn demand(&self, rank: Rank) -> Demand {
        self.classes[self.class_of[rank as usize] as usize].demand
    }
}

fn fits(demand: Demand, free: Demand) -> bool {
    demand.cpu_millis <= free.cpu_millis && demand.memory_bytes <= free.memory_bytes && demand.gpus <= free.gpus
}
