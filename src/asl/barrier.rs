//! Parts that are not series-parallel, with waits instead of token edges.
//!
//! A front that holds all upstreams of its members is cut off where the longest path of the front and the longest path of the rest
//! add up to the least; both are decomposed again. With a threshold on the earliest finish every candidate costs O(1) after
//! sorting, because both sides are closed under the order.

use serde::Serialize;

use super::decompose::{Decomposer, Local};
use super::limits;
use super::tree::{Kind, Part};

/// A wait that no dependency asks for, as nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Wait {
    /// Last steps of the front.
    pub first: Vec<u32>,
    /// First steps of what waits.
    pub then: Vec<u32>,
}

/// A wait that the compiler added, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AddedWait {
    /// All of these must be over before one of `then` starts.
    pub first: Vec<String>,
    /// Steps that wait.
    pub then: Vec<String>,
    /// Pairs of a step that waits and a step that it does not depend on.
    pub pairs: usize,
}

/// Splits a prime part by a barrier.
pub fn split(decomposer: &mut Decomposer<'_>, nodes: &[u32]) -> Part {
    let finishes = earliest_finishes(decomposer, nodes);
    let tails = longest_tails(decomposer, nodes);
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by(|&a, &b| finishes[a].total_cmp(&finishes[b]).then(a.cmp(&b)));
    // Longest path of what is not in the front, for each length of the front.
    let mut rest = vec![0.0_f64; nodes.len() + 1];
    for at in (0..nodes.len()).rev() {
        rest[at] = rest[at + 1].max(tails[order[at]]);
    }
    // Equal finishes stay together, unless all are equal: then the front is what the topological order puts first.
    let boundary = |at: &usize| finishes[order[*at - 1]] < finishes[order[*at]];
    let cost = |at: usize| finishes[order[at - 1]] + rest[at];
    let least = (1..nodes.len()).filter(boundary).map(cost).fold(f64::INFINITY, f64::min);
    // Of the cheapest the most even one, else large parts are peeled layer by layer and the tree becomes as deep as they are long.
    // In a large part a thousandth more counts as equal; where the tree is half as deep as it may be, evenness is all that counts.
    let slack = match nodes.len() {
        _ if decomposer.level() > limits::TREE_DEPTH / 2 => f64::INFINITY,
        65.. => 1.001,
        _ => 1.0,
    };
    let uneven = |at: usize| at.abs_diff(nodes.len() / 2);
    let best = (1..nodes.len()).filter(boundary).filter(|&at| cost(at) <= least * slack).min_by_key(|&at| uneven(at));
    let length = best.unwrap_or(nodes.len() / 2);
    let front = {
        let mut front: Vec<u32> = order[..length].iter().map(|&at| nodes[at]).collect();
        front.sort_unstable();
        // Steps of no duration can finish together with their upstreams: a topological prefix is always closed.
        if best.is_none() { nodes[..length].to_vec() } else { front }
    };
    let back: Vec<u32> = nodes.iter().copied().filter(|node| front.binary_search(node).is_err()).collect();
    let is_front = |node: u32| front.binary_search(&node).is_ok();
    let first = front.iter().copied().filter(|&node| decomposer.succs(node).all(|succ| !is_front(succ))).collect();
    let then = back.iter().copied().filter(|&node| decomposer.preds(node).all(is_front)).collect();
    for &node in &back {
        let crossing: Vec<u32> = decomposer.preds(node).filter(|&pred| is_front(pred)).collect();
        decomposer.guards[node as usize].extend(crossing);
    }
    decomposer.waits.push(Wait { first, then });
    let (front, back) = (decomposer.part(front), decomposer.part(back));
    Part::new(Kind::Barrier(Box::new(front), Box::new(back)))
}

/// Earliest finish of each node when only the part runs, in expected seconds.
pub fn earliest_finishes(decomposer: &Decomposer<'_>, nodes: &[u32]) -> Vec<f64> {
    let local = Local::new(nodes);
    let mut finishes = vec![0.0_f64; nodes.len()];
    for (at, &node) in nodes.iter().enumerate() {
        let start = decomposer.preds(node).map(|pred| finishes[local.at(pred)]).fold(0.0, f64::max);
        finishes[at] = start + decomposer.seconds[node as usize];
    }
    finishes
}

fn longest_tails(decomposer: &Decomposer<'_>, nodes: &[u32]) -> Vec<f64> {
    let local = Local::new(nodes);
    let mut tails = vec![0.0_f64; nodes.len()];
    for (at, &node) in nodes.iter().enumerate().rev() {
        let below = decomposer.succs(node).map(|succ| tails[local.at(succ)]).fold(0.0, f64::max);
        tails[at] = below + decomposer.seconds[node as usize];
    }
    tails
}

/// Makespan of a tree without token edges.
pub fn makespan(part: &Part, seconds: &[f64]) -> f64 {
    match &part.kind {
        Kind::Step(node) => seconds[*node as usize],
        Kind::Junction => 0.0,
        Kind::Parallel(parts) => parts.iter().map(|part| makespan(part, seconds)).fold(0.0, f64::max),
        Kind::Series(_) | Kind::Barrier(..) | Kind::Nested(_) => {
            part.children().into_iter().map(|part| makespan(part, seconds)).sum()
        }
    }
}
