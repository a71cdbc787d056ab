//! A list schedule (Graham 1969): whenever a place is free, of the steps that are ready the one with the longest path behind it starts.
//!
//! Each place is a lane. A step takes the lane of an upstream where it can, since what happens in one lane needs no signal.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

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
    let count = inside.len();
    let tails = tails(inside, seconds);
    let mut list = List {
        starts: vec![0.0; count],
        finishes: vec![0.0; count],
        lanes: vec![Vec::new(); places.min(count)],
        lane_of: vec![usize::MAX; count],
        makespan: 0.0,
    };
    let mut waiting: Vec<usize> = (0..count).map(|node| inside.preds(node).count()).collect();
    let key = |node: usize| (Seconds(tails[node]), Reverse(node));
    let mut ready: BinaryHeap<_> = (0..count).filter(|&node| waiting[node] == 0).map(key).collect();
    let mut running = BinaryHeap::new();
    let mut is_free = vec![true; list.lanes.len()];
    let mut free = list.lanes.len();
    let mut now = 0.0;
    loop {
        let mut begin = Vec::new();
        while begin.len() < free
            && let Some((_, Reverse(node))) = ready.pop()
        {
            begin.push(node);
        }
        free -= begin.len();
        place(inside, &mut list, &mut is_free, &begin);
        for node in begin {
            (list.starts[node], list.finishes[node]) = (now, now + seconds[node]);
            running.push(Reverse((Seconds(now + seconds[node]), node)));
        }
        let Some(&Reverse((Seconds(next), _))) = running.peek() else { break };
        now = next;
        // What ends at the same moment is over together, or the order of names would decide who is ready.
        while let Some(&Reverse((Seconds(end), node))) = running.peek()
            && end <= now
        {
            running.pop();
            is_free[list.lane_of[node]] = true;
            free += 1;
            for succ in inside.succs(node) {
                waiting[succ] -= 1;
                if waiting[succ] == 0 {
                    ready.push(key(succ));
                }
            }
        }
    }
    list.makespan = now;
    list
}

/// Gives lanes to steps that start now: that of an upstream that ran last there, that of another upstream, any.
fn place(inside: &Inside, list: &mut List, is_free: &mut [bool], begin: &[usize]) {
    let mut left = Vec::new();
    for &node in begin {
        let goes_on =
            |&lane: &usize| is_free[lane] && list.lanes[lane].last().is_some_and(|last| has(inside, node, *last));
        match inside.preds(node).map(|pred| list.lane_of[pred]).find(goes_on) {
            Some(lane) => put(list, is_free, node, lane),
            None => left.push(node),
        }
    }
    let mut any = 0;
    for node in left {
        let lane = inside.preds(node).map(|pred| list.lane_of[pred]).find(|&lane| is_free[lane]);
        let lane = lane.unwrap_or_else(|| {
            while !is_free[any] {
                any += 1;
            }
            any
        });
        put(list, is_free, node, lane);
    }
}

fn has(inside: &Inside, node: usize, pred: usize) -> bool {
    inside.preds(node).any(|other| other == pred)
}

fn put(list: &mut List, is_free: &mut [bool], node: usize, lane: usize) {
    is_free[lane] = false;
    list.lane_of[node] = lane;
    list.lanes[lane].push(node);
}
