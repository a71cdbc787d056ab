//! Ready steps in order of urgency, and what the host has left for them.
//!
//! The most urgent ready step starts first. While it does not fit, less urgent steps that fit may overtake it ("backfill"):
//! without limit as long as that cannot delay it, otherwise [`MAX_OVERTAKES`] times. After that the host is reserved for it,
//! so that a big step never starves behind small ones. Capacity never idles while everything that is ready fits.
//!
//! Steps with equal demands form a class, because if one of them does not fit none of them does. An event looks at no
//! more than [`LOOK_AHEAD`] classes, so that 100,000 ready steps cost no more than a few.

use std::collections::{BTreeSet, HashMap};

use crate::plan::{Admission, Demand};

/// How many classes are considered for one launch.
const LOOK_AHEAD: usize = 64;

/// How many less urgent steps may delay the most urgent one while it does not fit.
const MAX_OVERTAKES: u8 = 16;

/// Position in the order of urgency; 0 is the most urgent step of the plan.
pub(super) type Rank = u32;

/// Ready steps and free capacity.
#[derive(Debug)]
pub(super) struct ReadyQueue {
    /// Class of each rank.
    class_of: Vec<u32>,
    classes: Vec<Class>,
    /// Looked up only, never iterated: its order does not matter.
    by_demand: HashMap<Demand, u32>,
    /// The most urgent member of every class that has one.
    heads: BTreeSet<(Rank, u32)>,
    free: Demand,
    free_slots: u32,
    /// By rank: how often it was overtaken while it was the most urgent.
    overtaken: Vec<u8>,
    /// The step that leads the run. It takes no slot, or those that it waits for could find none left.
    leader: Option<Rank>,
    /// The step that has been overtaken often enough: the next to start.
    reserved: Option<Rank>,
}

#[derive(Debug)]
struct Class {
    demand: Demand,
    ranks: BTreeSet<Rank>,
}

impl ReadyQueue {
    /// A queue with the whole host free; `demands` in order of rank.
    pub(super) fn new(admission: &Admission, demands: impl Iterator<Item = Demand>, leader: Option<Rank>) -> Self {
        let capacity = admission.capacity;
        let mut queue = Self {
            overtaken: Vec::new(),
            class_of: Vec::new(),
            classes: Vec::new(),
            by_demand: HashMap::new(),
            heads: BTreeSet::new(),
            free: Demand { cpu_millis: capacity.cpu_millis, memory_bytes: capacity.memory_bytes, gpus: capacity.gpus },
            free_slots: admission.max_parallelism,
            leader,
            reserved: None,
        };
        demands.for_each(|demand| queue.add(demand));
        queue
    }

    /// Makes room for a step, less urgent than all before it.
    pub(super) fn add(&mut self, demand: Demand) {
        let classes = &mut self.classes;
        let class = *self.by_demand.entry(demand).or_insert_with(|| {
            classes.push(Class { demand, ranks: BTreeSet::new() });
            u32::try_from(classes.len() - 1).unwrap_or(u32::MAX)
        });
        self.class_of.push(class);
        self.overtaken.push(0);
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        self.change(rank, |ranks| {
            ranks.insert(rank);
        });
    }

    pub(super) fn remove(&mut self, rank: Rank) {
        self.change(rank, |ranks| {
            ranks.remove(&rank);
        });
        self.overtaken[rank as usize] = 0;
        if self.reserved == Some(rank) {
            self.reserved = None;
        }
    }

    /// Changes the class of a rank and keeps `heads` true.
    fn change(&mut self, rank: Rank, change: impl FnOnce(&mut BTreeSet<Rank>)) {
        let class = self.class_of[rank as usize];
        let ranks = &mut self.classes[class as usize].ranks;
        let before = ranks.first().copied();
        change(ranks);
        let after = ranks.first().copied();
        if before != after {
            if let Some(head) = before {
                self.heads.remove(&(head, class));
            }
            if let Some(head) = after {
                self.heads.insert((head, class));
            }
        }
    }

    /// Takes the step that should start now and its share of the host.
    pub(super) fn admit(&mut self) -> Option<Rank> {
        if let Some(leader) = self.leader
            && self.classes[self.class_of[leader as usize] as usize].ranks.contains(&leader)
            && fits(self.demand(leader), self.free)
        {
            return Some(self.take(leader));
        }
        if self.free_slots == 0 {
            return None;
        }
        let first = match self.reserved {
            Some(rank) => rank,
            None => self.heads.first()?.0,
        };
        let rank = if fits(self.demand(first), self.free) { first } else { self.backfill(first)? };
        Some(self.take(rank))
    }

    fn take(&mut self, rank: Rank) -> Rank {
        self.remove(rank);
        let demand = self.demand(rank);
        self.free.cpu_millis -= demand.cpu_millis;
        self.free.memory_bytes -= demand.memory_bytes;
        self.free.gpus -= demand.gpus;
        self.free_slots -= self.slots(rank);
        rank
    }

    fn slots(&self, rank: Rank) -> u32 {
        u32::from(self.leader != Some(rank))
    }

    /// The step that may overtake `first`, which does not fit.
    fn backfill(&mut self, first: Rank) -> Option<Rank> {
        let wanted = self.demand(first);
        let (rank, delays) = self
            .heads
            .iter()
            .take(LOOK_AHEAD)
            .map(|&(rank, class)| (rank, self.classes[class as usize].demand))
            .filter(|&(_, demand)| fits(demand, self.free))
            .map(|(rank, demand)| (rank, self.delays(wanted, demand)))
            .find(|&(_, delays)| !delays || self.reserved.is_none())?;
        if delays {
            let overtaken = &mut self.overtaken[first as usize];
            *overtaken += 1;
            if *overtaken >= MAX_OVERTAKES {
                self.reserved = Some(first);
            }
        }
        Some(rank)
    }

    /// Whether starting `other` can postpone the start of `wanted`: it takes of what `wanted` lacks, or of what `wanted`
    /// would have had enough of.
    fn delays(&self, wanted: Demand, other: Demand) -> bool {
        let postpones = |wanted: u64, other: u64, free: u64| other > 0 && wanted.saturating_add(other) > free;
        self.free_slots < 2
            || postpones(wanted.cpu_millis, other.cpu_millis, self.free.cpu_millis)
            || postpones(wanted.memory_bytes, other.memory_bytes, self.free.memory_bytes)
            || postpones(wanted.gpus.into(), other.gpus.into(), self.free.gpus.into())
    }

    /// Gives back the share of a step that was admitted.
    pub(super) fn release(&mut self, rank: Rank) {
        let demand = self.demand(rank);
        self.free.cpu_millis += demand.cpu_millis;
        self.free.memory_bytes += demand.memory_bytes;
        self.free.gpus += demand.gpus;
        self.free_slots += self.slots(rank);
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
