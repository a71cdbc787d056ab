//! Parts that are not series-parallel, with waits instead of token edges.
//!
//! A front that holds all upstreams of its members is cut off where the longest path of the front and the longest path of the rest
//! add up to the least; both are decomposed again. With a threshold on the earliest finish every candidate costs O(1) after
//! sorting, because both sides are closed under the order.

use serde::Serialize;

use super::decompose::{Decomposer, Local};
use super::limits;
use super::list::{self, List};
use super::tree::{Kind, Part};
use super::width::Inside;

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

/// Where a part can be cut, and what each cut costs.
struct Cuts {
    /// Nodes by position, those of every front first.
    order: Vec<usize>,
    /// For each length of the front whether the order allows a cut there.
    allowed: Vec<bool>,
    /// For each length of the front when it is over and how long the rest takes after that.
    cost: Vec<f64>,
}

impl Cuts {
    /// `keys` grow along every path. `rest` tells, from the steps that are not in the front, how long those take.
    fn new(keys: &[f64], finishes: &[f64], mut rest: impl FnMut(usize) -> f64) -> Self {
        let count = keys.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]).then(a.cmp(&b)));
        let mut cost = vec![0.0; count + 1];
        for at in (0..count).rev() {
            cost[at] = rest(order[at]);
        }
        let mut over = 0.0_f64;
        for at in 1..=count {
            over = over.max(finishes[order[at - 1]]);
            cost[at] += over;
        }
        // Equal keys stay together.
        let allowed = |at: usize| at > 0 && at < count && keys[order[at - 1]] < keys[order[at]];
        let allowed = (0..=count).map(allowed).collect();
        Self { order, allowed, cost }
    }

    /// Cuts of a part on so many places: what the schedule starts first is the front.
    fn of_list(inside: &Inside, seconds: &[f64], list: &List, places: usize) -> Self {
        let tails = list::tails(inside, seconds);
        let (mut longest, mut work) = (0.0_f64, 0.0_f64);
        #[expect(clippy::cast_precision_loss, reason = "a number of places")]
        let places = places as f64;
        Self::new(&list.starts, &list.finishes, |node| {
            (longest, work) = (longest.max(tails[node]), work + seconds[node]);
            longest.max(work / places)
        })
    }

    fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        (1..self.order.len()).filter(|&at| self.allowed[at])
    }

    fn least(&self) -> f64 {
        self.lengths().map(|at| self.cost[at]).fold(f64::INFINITY, f64::min)
    }

    /// Of the cheapest the most even one, else large parts are peeled layer by layer and the tree becomes as deep as they are long. In a
    /// large part a thousandth more counts as equal; where the tree is half as deep as it may be, evenness is all that counts.
    fn best(&self, level: u32) -> Option<usize> {
        let slack = match self.order.len() {
            _ if level > limits::TREE_DEPTH / 2 => f64::INFINITY,
            65.. => 1.001,
            _ => 1.0,
        };
        let (least, even) = (self.least(), self.order.len() / 2);
        self.lengths().filter(|&at| self.cost[at] <= least * slack).min_by_key(|&at| at.abs_diff(even))
    }

    /// The front of the best cut. Where all are equal it is what the topological order puts first.
    fn front(&self, level: u32, nodes: &[u32]) -> Vec<u32> {
        let Some(length) = self.best(level) else {
            // Steps of no duration can finish together with their upstreams: a topological prefix is always closed.
            return nodes[..nodes.len() / 2].to_vec();
        };
        let mut front: Vec<u32> = self.order[..length].iter().map(|&at| nodes[at]).collect();
        front.sort_unstable();
        front
    }
}

/// Splits a prime part by a barrier.
pub fn split(decomposer: &mut Decomposer<'_>, nodes: &[u32]) -> Part {
    let finishes = earliest_finishes(decomposer, nodes);
    let tails = longest_tails(decomposer, nodes);
    let mut longest = 0.0_f64;
    let cuts = Cuts::new(&finishes, &finishes, |node| {
        longest = longest.max(tails[node]);
        longest
    });
    Part::new(Kind::Barrier(halves(decomposer, nodes, &cuts)))
}

/// Splits a part that is too wide, along its list schedule.
pub fn split_by(decomposer: &mut Decomposer<'_>, nodes: &[u32], inside: &Inside, seconds: &[f64], list: &List) -> Part {
    let cuts = Cuts::of_list(inside, seconds, list, decomposer.ways().places);
    decomposer.mark(nodes);
    Part::rows(halves(decomposer, nodes, &cuts))
}

/// When a part would be over that [`split_by`] splits, at the best.
pub fn promise(inside: &Inside, seconds: &[f64], list: &List, places: usize) -> f64 {
    Cuts::of_list(inside, seconds, list, places).least()
}

fn halves(decomposer: &mut Decomposer<'_>, nodes: &[u32], cuts: &Cuts) -> Vec<Part> {
    let front = cuts.front(decomposer.level(), nodes);
    let back: Vec<u32> = nodes.iter().copied().filter(|node| front.binary_search(node).is_err()).collect();
    let is_front = |node: u32| front.binary_search(&node).is_ok();
    let first = front.iter().copied().filter(|&node| decomposer.succs(node).all(|succ| !is_front(succ))).collect();
    let then = back.iter().copied().filter(|&node| decomposer.preds(node).all(is_front)).collect();
    for &node in &back {
        let crossing: Vec<u32> = decomposer.preds(node).filter(|&pred| is_front(pred)).collect();
        decomposer.guards[node as usize].extend(crossing);
    }
    decomposer.waits.push(Wait { first, then });
    vec![decomposer.part(front), decomposer.part(back)]
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
