//! The reduced DAG: canonical order, transitive reduction.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::plan::{Plan, StepIndex};

/// The transitive reduction of a plan's DAG. A node is a position in a topological order that depends on names only, so that the
/// order in which steps were declared changes nothing.
#[derive(Debug)]
pub struct Reduced {
    /// For each node the step in the plan.
    pub steps: Vec<StepIndex>,
    /// Direct upstreams, ascending.
    pub preds: Vec<Vec<u32>>,
    /// Direct downstreams, ascending.
    pub succs: Vec<Vec<u32>>,
    /// For each node whether another one is neither its ancestor nor its descendant.
    pub has_concurrent: Vec<bool>,
}

impl Reduced {
    /// Aho, Garey, Ullman (1972), with one bit for each pair of nodes: n²/8 bytes, E·n/64 word operations.
    #[expect(clippy::cast_possible_truncation, reason = "positions of a plan fit in 32 bits, see `StepIndex`")]
    pub fn new(plan: &Plan) -> Self {
        let count = plan.len();
        let steps = canonical_order(plan);
        let mut position = vec![0_u32; count];
        for (at, step) in steps.iter().enumerate() {
            position[step.get()] = at as u32;
        }
        let words = count.div_ceil(64);
        let mut ancestors = vec![0_u64; words * count];
        let mut row = vec![0_u64; words];
        let (mut preds, mut succs) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        let mut ancestor_count = vec![0_usize; count];
        for at in 0..count {
            row.fill(0);
            let mut direct: Vec<u32> =
                plan.dag().upstream(steps[at]).iter().map(|upstream| position[upstream.get()]).collect();
            direct.sort_unstable_by_key(|&pred| Reverse(pred));
            // From the latest upstream to the earliest: whatever an earlier one reaches has been seen.
            for pred in direct {
                let p = pred as usize;
                if row[p / 64] >> (p % 64) & 1 == 1 {
                    continue;
                }
                preds[at].push(pred);
                for (into, from) in row.iter_mut().zip(&ancestors[p * words..(p + 1) * words]).take(p / 64 + 1) {
                    *into |= from;
                }
                row[p / 64] |= 1 << (p % 64);
            }
            preds[at].reverse();
            for &pred in &preds[at] {
                succs[pred as usize].push(at as u32);
            }
            ancestor_count[at] = row.iter().map(|word| word.count_ones() as usize).sum();
            ancestors[at * words..(at + 1) * words].copy_from_slice(&row);
        }
        let descendant_count = column_sums(&ancestors, words, count);
        let has_concurrent = (0..count).map(|at| ancestor_count[at] + descendant_count[at] + 1 < count).collect();
        Self { steps, preds, succs, has_concurrent }
    }
}

/// For each column how many rows have its bit.
fn column_sums(bits: &[u64], words: usize, count: usize) -> Vec<usize> {
    let mut sums = vec![0_usize; count];
    for row in bits.chunks_exact(words.max(1)) {
        for (word_at, &word) in row.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                sums[word_at * 64 + rest.trailing_zeros() as usize] += 1;
                rest &= rest - 1;
            }
        }
    }
    sums
}

/// Kahn's algorithm; of the ready steps the one whose name comes first.
fn canonical_order(plan: &Plan) -> Vec<StepIndex> {
    let dag = plan.dag();
    let mut waiting: Vec<usize> = (0..plan.len()).map(|at| dag.upstream(StepIndex::new(at)).len()).collect();
    let key = |index: StepIndex| Reverse((plan.step(index).name.as_ref(), index));
    let mut ready: BinaryHeap<_> =
        (0..plan.len()).filter(|&at| waiting[at] == 0).map(|at| key(StepIndex::new(at))).collect();
    let mut order = Vec::with_capacity(plan.len());
    while let Some(Reverse((_, index))) = ready.pop() {
        order.push(index);
        for &next in dag.downstream(index) {
            waiting[next.get()] -= 1;
            if waiting[next.get()] == 0 {
                ready.push(key(next));
            }
        }
    }
    order
}
