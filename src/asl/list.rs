//! A list schedule (Graham 1969): whenever a place is free, of the steps that are ready the one with the longest path behind it starts.
//!
//! Each place is a lane. A step takes the lane of an upstream where it can, since what happens in one lane needs no signal. By the longest
//! path alone independent chains take turns and change lanes at every step, though nothing is gained by it; so there is a second
//! schedule, [`in_lanes`], that leaves a lane only for what would be late otherwise.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap};

use super::width::Inside;

/// Seconds that can be ordered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seconds(pub f64);

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What the schedule says, by positions in the part.
#[derive(Debug)]
pub struct List {
    /// When each step starts, and is over.
    pub starts: Vec<f64>,
    pub finishes: Vec<f64>,
    /// Steps of each lane in the order in which they start. No step stands before an upstream in the order of all starts.
    pub lanes: Vec<Vec<usize>>,
    /// The lane of each step.
    pub lane_of: Vec<usize>,
    /// When all are over.
    pub makespan: f64,
}

/// Longest path from the start of each node to the end of the part.
pub fn tails(inside: &Inside, seconds: &[f64]) -> Vec<f64> {
    let mut tails = vec![0.0_f64; inside.len()];
    for node in (0..inside.len()).rev() {
        tails[node] = seconds[node] + inside.succs(node).map(|succ| tails[succ]).fold(0.0, f64::max);
    }
    tails
}

/// Schedules a part on `places` places.
pub fn schedule(inside: &Inside, seconds: &[f64], places: usize) -> List {
    run(inside, seconds, places, f64::NEG_INFINITY)
}

/// Schedules a part such that a lane goes on with a downstream of what it did last, as long as no step that waits for a place would make
/// all be over after `due`. It may be over later all the same, and may cross lanes more often: neither of the two is always better.
pub fn in_lanes(inside: &Inside, seconds: &[f64], places: usize, due: f64) -> List {
    run(inside, seconds, places, due)
}

/// What waits for a place.
struct Ready {
    /// By the longest path behind them. One that was taken from the middle stays until it comes up.
    heap: BinaryHeap<(Seconds, Reverse<usize>)>,
    is_ready: Vec<bool>,
}

impl Ready {
    fn push(&mut self, node: usize, tail: f64) {
        self.is_ready[node] = true;
        self.heap.push((Seconds(tail), Reverse(node)));
    }

    /// The next one, if its longest path is above a length.
    fn pop_above(&mut self, length: f64) -> Option<usize> {
        loop {
            let &(Seconds(tail), Reverse(node)) = self.heap.peek()?;
            if !self.is_ready[node] {
                self.heap.pop();
                continue;
            }
            if tail <= length {
                return None;
            }
            self.heap.pop();
            self.is_ready[node] = false;
            return Some(node);
        }
    }

    fn take(&mut self, node: usize) -> bool {
        std::mem::replace(&mut self.is_ready[node], false)
    }
}

fn run(inside: &Inside, seconds: &[f64], places: usize, due: f64) -> List {
    let count = inside.len();
    let tails = tails(inside, seconds);
    let longest = seconds.iter().copied().fold(0.0, f64::max);
    let mut list = List {
        starts: vec![0.0; count],
        finishes: vec![0.0; count],
        lanes: vec![Vec::new(); places.min(count)],
        lane_of: vec![usize::MAX; count],
        makespan: 0.0,
    };
    let mut waiting: Vec<usize> = (0..count).map(|node| inside.preds(node).count()).collect();
    let mut ready = Ready { heap: BinaryHeap::new(), is_ready: vec![false; count] };
    (0..count).filter(|&node| waiting[node] == 0).for_each(|node| ready.push(node, tails[node]));
    let mut running = BinaryHeap::new();
    let mut free: BTreeSet<usize> = (0..list.lanes.len()).collect();
    let mut ended: Vec<usize> = Vec::new();
    let mut now = 0.0;
    loop {
        let mut begin = Vec::new();
        // A place that is not taken now is free again after the longest step at the latest.
        while begin.len() < free.len()
            && let Some(node) = ready.pop_above(due - now - longest)
        {
            begin.push(node);
        }
        if begin.len() < free.len() {
            ended.sort_by(|&a, &b| tails[b].total_cmp(&tails[a]).then(a.cmp(&b)));
            for node in ended.drain(..) {
                let next = inside.succs(node).filter(|&succ| ready.is_ready[succ]);
                let next = next.max_by(|&a, &b| tails[a].total_cmp(&tails[b]).then(b.cmp(&a)));
                begin.extend(next.filter(|&next| begin.len() < free.len() && ready.take(next)));
            }
        }
        while begin.len() < free.len()
            && let Some(node) = ready.pop_above(f64::NEG_INFINITY)
        {
            begin.push(node);
        }
        place(inside, &mut list, &mut free, &begin);
        for node in begin {
            (list.starts[node], list.finishes[node]) = (now, now + seconds[node]);
            running.push(Reverse((Seconds(now + seconds[node]), node)));
        }
        let Some(&Reverse((Seconds(next), _))) = running.peek() else { break };
        now = next;
        ended.clear();
        // What ends at the same moment is over together, or the order of names would decide who is ready.
        while let Some(&Reverse((Seconds(end), node))) = running.peek()
            && end <= now
        {
            running.pop();
            free.insert(list.lane_of[node]);
            ended.push(node);
            for succ in inside.succs(node) {
                waiting[succ] -= 1;
                if waiting[succ] == 0 {
                    ready.push(succ, tails[succ]);
                }
            }
        }
    }
    list.makespan = now;
    list
}

/// Gives lanes to steps that start now: that of an upstream that ran last there, that of another upstream, any.
fn place(inside: &Inside, list: &mut List, free: &mut BTreeSet<usize>, begin: &[usize]) {
    let mut left = Vec::new();
    for &node in begin {
        let goes_on = |&lane: &usize| {
            free.contains(&lane) && list.lanes[lane].last().is_some_and(|last| has(inside, node, *last))
        };
        match inside.preds(node).map(|pred| list.lane_of[pred]).find(goes_on) {
            Some(lane) => put(list, free, node, lane),
            None => left.push(node),
        }
    }
    for node in left {
        let lane = inside.preds(node).map(|pred| list.lane_of[pred]).find(|lane| free.contains(lane));
        let Some(lane) = lane.or_else(|| free.first().copied()) else { continue };
        put(list, free, node, lane);
    }
}

fn has(inside: &Inside, node: usize, pred: usize) -> bool {
    inside.preds(node).any(|other| other == pred)
}

fn put(list: &mut List, free: &mut BTreeSet<usize>, node: usize, lane: usize) {
    free.remove(&lane);
    list.lane_of[node] = lane;
    list.lanes[lane].push(node);
}
