//! Parts that are not series-parallel, exactly: an edge that stands in the way becomes a token edge, one at a time, and whatever
//! can be merged after that is merged. Fewest token edges is NP-hard; the rule takes the edge whose loss frees most.
//!
//! 1. Steps that wait for the same several steps get a junction between (many-to-many becomes many-to-one-to-many): never a token
//!    edge for each pair.
//! 2. A node and its only downstream, whose only upstream it is, become a row. Nodes with the same upstreams and downstreams become
//!    one, side by side. (The reductions of Valdes, Tarjan, Lawler 1982.)
//! 3. When nothing can be merged, the edge with the fewest rivals at both of its ends becomes a token edge.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use super::decompose::{Decomposer, Local};
use super::tree::{Kind, Part};

/// An edge with its rating, least first.
type Rival = Reverse<((bool, usize), usize, usize)>;

/// Decomposes a prime part with token edges.
pub fn with_tokens(decomposer: &mut Decomposer<'_>, nodes: &[u32]) -> Part {
    let local = Local::new(nodes);
    let mut core = Core::default();
    for &node in nodes {
        core.add(Part::new(Kind::Step(node)));
    }
    for (at, &node) in nodes.iter().enumerate() {
        for pred in decomposer.preds(node) {
            core.link(local.at(pred), at);
        }
    }
    core.join_equal_upstreams();
    let (part, depth) = core.reduce(&mut decomposer.token_edges);
    decomposer.grow(decomposer.level() + depth, nodes[0]);
    part
}

#[derive(Default)]
struct Core {
    /// None once it has been merged into another.
    parts: Vec<Option<Part>>,
    preds: Vec<BTreeSet<usize>>,
    succs: Vec<BTreeSet<usize>>,
    /// Order-free hashes of `preds` and `succs`.
    signature: Vec<(u64, u64)>,
    dirty: BTreeSet<usize>,
    /// Levels of each part.
    depth: Vec<u32>,
}

impl Core {
    fn add(&mut self, part: Part) -> usize {
        self.parts.push(Some(part));
        self.preds.push(BTreeSet::new());
        self.succs.push(BTreeSet::new());
        self.signature.push((0, 0));
        self.depth.push(0);
        self.dirty.insert(self.parts.len() - 1);
        self.parts.len() - 1
    }

    fn link(&mut self, from: usize, to: usize) {
        if self.succs[from].insert(to) {
            self.preds[to].insert(from);
            self.touch(from, to);
        }
    }

    fn unlink(&mut self, from: usize, to: usize) {
        if self.succs[from].remove(&to) {
            self.preds[to].remove(&from);
            self.touch(from, to);
        }
    }

    fn touch(&mut self, from: usize, to: usize) {
        self.signature[from].1 ^= scramble(to);
        self.signature[to].0 ^= scramble(from);
        self.dirty.extend([from, to]);
    }

    fn join_equal_upstreams(&mut self) {
        let mut groups: BTreeMap<&BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
        for (node, preds) in self.preds.iter().enumerate().filter(|(_, preds)| preds.len() > 1) {
            groups.entry(preds).or_default().push(node);
        }
        let groups: Vec<(Vec<usize>, Vec<usize>)> = groups
            .into_iter()
            .filter(|(_, members)| members.len() > 1)
            .map(|(preds, members)| (preds.iter().copied().collect(), members))
            .collect();
        for (preds, members) in groups {
            let junction = self.add(Part::new(Kind::Junction));
            for &member in &members {
                for &pred in &preds {
                    self.unlink(pred, member);
                }
                self.link(junction, member);
            }
            for &pred in &preds {
                self.link(pred, junction);
            }
        }
    }

    fn reduce(mut self, token_edges: &mut usize) -> (Part, u32) {
        let mut by_signature: HashMap<(u64, u64), usize> = HashMap::with_capacity(self.parts.len());
        let mut rivals = BinaryHeap::new();
        loop {
            while let Some(node) = self.dirty.pop_first() {
                if self.parts[node].is_some() && !self.merge_row(node) {
                    self.merge_twin(node, &mut by_signature);
                    // High degrees are not worth a fresh look each time: their edges come up as they stand in the heap.
                    if self.parts[node].is_some() && self.preds[node].len() + self.succs[node].len() <= 8 {
                        self.rate_edges_of(node, &mut rivals);
                    }
                }
            }
            if rivals.is_empty() {
                for node in 0..self.parts.len() {
                    for &to in &self.succs[node] {
                        rivals.push(Reverse((self.rating(node, to), node, to)));
                    }
                }
            }
            let Some(Reverse((rating, from, to))) = rivals.pop() else { break };
            if !self.succs[from].contains(&to) {
                continue;
            }
            let current = self.rating(from, to);
            if current > rating {
                rivals.push(Reverse((current, from, to)));
                continue;
            }
            self.unlink(from, to);
            if let Some(part) = &mut self.parts[from] {
                part.signals.push(*token_edges);
            }
            if let Some(part) = &mut self.parts[to] {
                part.awaits.push(*token_edges);
            }
            *token_edges += 1;
        }
        let depth = self.depth.iter().copied().max().unwrap_or(0);
        (Part::parallel(self.parts.into_iter().flatten()), depth + 1)
    }

    /// Rivals of an edge: other edges out of its start and into its end. An edge without rivals on one side goes last.
    fn rating(&self, from: usize, to: usize) -> (bool, usize) {
        let (out, into) = (self.succs[from].len(), self.preds[to].len());
        (out < 2 || into < 2, out + into)
    }

    fn rate_edges_of(&self, node: usize, rivals: &mut BinaryHeap<Rival>) {
        rivals.extend(self.succs[node].iter().map(|&to| Reverse((self.rating(node, to), node, to))));
        rivals.extend(self.preds[node].iter().map(|&from| Reverse((self.rating(from, node), from, node))));
    }

    /// Depth of two parts merged into the first: a part of the same kind is flattened into it.
    fn deepen(&mut self, keep: usize, drop: usize, flattens: impl Fn(&Part) -> bool) {
        let level = |at: usize| self.depth[at] + u32::from(!self.parts[at].as_ref().is_some_and(&flattens));
        self.depth[keep] = level(keep).max(level(drop));
    }

    /// Merges a node with its only downstream or upstream where that has no other either.
    fn merge_row(&mut self, node: usize) -> bool {
        let only = |set: &BTreeSet<usize>| if set.len() == 1 { set.first().copied() } else { None };
        let (front, back) = match (only(&self.succs[node]), only(&self.preds[node])) {
            (Some(succ), _) if self.preds[succ].len() == 1 => (node, succ),
            (_, Some(pred)) if self.succs[pred].len() == 1 => (pred, node),
            _ => return false,
        };
        self.deepen(front, back, |part| matches!(part.kind, Kind::Series(_)));
        self.unlink(front, back);
        for succ in std::mem::take(&mut self.succs[back]) {
            self.preds[succ].remove(&back);
            self.signature[succ].0 ^= scramble(back);
            self.link(front, succ);
        }
        self.signature[back].1 = 0;
        let parts = [self.parts[front].take(), self.parts[back].take()];
        self.parts[front] = Some(Part::series(parts.into_iter().flatten()));
        self.dirty.insert(front);
        true
    }

    /// Merges a node with another one that has the same upstreams and downstreams.
    fn merge_twin(&mut self, node: usize, by_signature: &mut HashMap<(u64, u64), usize>) {
        if self.preds[node].is_empty() && self.succs[node].is_empty() {
            return;
        }
        let twin = by_signature.insert(self.signature[node], node);
        let Some(twin) = twin.filter(|&twin| {
            twin != node
                && self.parts[twin].is_some()
                && self.preds[twin] == self.preds[node]
                && self.succs[twin] == self.succs[node]
        }) else {
            return;
        };
        let (keep, drop) = (twin.min(node), twin.max(node));
        self.deepen(keep, drop, |part| matches!(part.kind, Kind::Parallel(_)));
        for pred in self.preds[drop].clone() {
            self.unlink(pred, drop);
        }
        for succ in self.succs[drop].clone() {
            self.unlink(drop, succ);
        }
        let parts = [self.parts[keep].take(), self.parts[drop].take()];
        self.parts[keep] = Some(Part::parallel(parts.into_iter().flatten()));
        by_signature.insert(self.signature[keep], keep);
        self.dirty.insert(keep);
    }
}

/// A fixed mixing of bits (the finalizer of SplitMix64, Steele, Lea, Flood 2014): the same on every machine.
fn scramble(value: usize) -> u64 {
    let mut x = (value as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
