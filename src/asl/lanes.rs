//! Parts that are wider than what may run at once.
//!
//! What is too wide becomes *lanes*: branches in which one thing is done after the other. Nothing passes a failure on from one row of a
//! lane to the next but a dependency, see [`Kind::Barrier`]. Of three ways the one is taken that is over first:
//!
//! 1. Components that have nothing to do with each other are dealt out to lanes, each with a share of the places.
//! 2. A barrier: what a list schedule starts first, then the rest, each cut again until it is narrow enough.
//! 3. The list schedule itself, one lane for each place; a dependency between two lanes becomes a token edge. It is what the others
//!    are measured against. Not where a step would have more token edges than one machine has room for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::barrier::{self, Wait};
use super::decompose::{Decomposer, Ways};
use super::list::{self, List, Seconds};
use super::options::Synchronization;
use super::tree::{Kind, Part};
use super::width::Inside;

/// Durations are estimates: less than this is no gain.
const NOTHING: f64 = 1e-9;
/// How much sooner a barrier must promise to be over than lanes of components do: its promise is kept less often.
const BARRIER_GAIN: f64 = 0.97;
/// Tries at the shortest time in which components fit into lanes.
const TRIES: usize = 24;
/// Components times places above which they are only dealt out one by one.
const LARGE: usize = 2_000_000;

/// Decomposes a part that is too wide: its components, or itself if it is connected and has no cut.
pub fn lay(decomposer: &mut Decomposer<'_>, nodes: &[u32], components: Vec<Vec<u32>>) -> Part {
    let Ways { synchronization, budget, places, signals, edges_of_step } = decomposer.ways();
    let inside = Inside::new(decomposer, nodes);
    let seconds = decomposer.seconds_of(nodes);
    let list = list::schedule(&inside, &seconds, places);
    let dealt = (components.len() > 1).then(|| Deal::new(decomposer, components, places));
    let tolerance = if synchronization == Synchronization::Auto { budget } else { 0.0 };
    let allowed = tolerance + NOTHING * list.makespan;
    if let Some(deal) = &dealt {
        let loss = deal.makespan - list.makespan;
        if loss <= allowed {
            decomposer.spend(loss);
            return deal.part(decomposer);
        }
    }
    let lanes = in_lanes(&inside, &seconds, places, &list, allowed);
    let lanes = lanes.as_ref().unwrap_or(&list);
    if crossings(&inside, lanes) == 0 {
        decomposer.spend(lanes.makespan - list.makespan);
        return by_list(decomposer, nodes, &inside, lanes);
    }
    let without = |decomposer: &mut Decomposer<'_>| match &dealt {
        Some(deal) if deal.makespan * BARRIER_GAIN <= barrier::promise(&inside, &seconds, &list, places) => {
            deal.part(decomposer)
        }
        _ => barrier::split_by(decomposer, nodes, &inside, &seconds, &list),
    };
    if synchronization == Synchronization::Barrier || !signals {
        return without(decomposer);
    }
    let Some(lanes) = [lanes, &list].into_iter().find(|lanes| has_room(edges_of_step, &inside, lanes)) else {
        return without(decomposer);
    };
    let part = decomposer.unless_slower(nodes, list.makespan, allowed, without);
    part.unwrap_or_else(|| {
        decomposer.spend(lanes.makespan - list.makespan);
        by_list(decomposer, nodes, &inside, lanes)
    })
}

/// Whether each step's token edges have room in one machine. A step that thousands wait for, or that waits for thousands, has not.
fn has_room((most_into, most_out): (usize, usize), inside: &Inside, list: &List) -> bool {
    let crosses = |node: usize, others: &mut dyn Iterator<Item = usize>| {
        others.filter(|&other| list.lane_of[other] != list.lane_of[node]).count()
    };
    (0..inside.len()).all(|node| {
        crosses(node, &mut inside.preds(node)) <= most_into && crosses(node, &mut inside.succs(node)) <= most_out
    })
}

/// Dependencies between two lanes.
fn crossings(inside: &Inside, list: &List) -> usize {
    let crosses =
        |node: usize| inside.preds(node).filter(move |&pred| list.lane_of[pred] != list.lane_of[node]).count();
    (0..inside.len()).map(crosses).sum()
}

/// The schedule that keeps to its lanes, where it crosses them less often and is over at most `allowed` seconds later.
fn in_lanes(inside: &Inside, seconds: &[f64], places: usize, list: &List, allowed: f64) -> Option<List> {
    let before = crossings(inside, list);
    let lanes = (before > 0).then(|| list::in_lanes(inside, seconds, places, list.makespan))?;
    (lanes.makespan - list.makespan <= allowed && crossings(inside, &lanes) < before).then_some(lanes)
}

/// The list schedule as it is: one lane for each place.
fn by_list(decomposer: &mut Decomposer<'_>, nodes: &[u32], inside: &Inside, list: &List) -> Part {
    let mut parts: Vec<Part> = nodes.iter().map(|&node| Part::new(Kind::Step(node))).collect();
    let mut row_of = vec![0; nodes.len()];
    // In a lane a row is as long as each step of it waits for the one before.
    let rows: Vec<Vec<Vec<usize>>> = list
        .lanes
        .iter()
        .map(|lane| {
            let mut rows: Vec<Vec<usize>> = Vec::new();
            for &node in lane {
                match rows.last_mut() {
                    Some(row) if row.last().is_some_and(|&last| inside.preds(node).any(|pred| pred == last)) => {
                        row.push(node);
                    }
                    _ => rows.push(vec![node]),
                }
                row_of[node] = rows.len();
            }
            rows
        })
        .collect();
    for node in 0..nodes.len() {
        for pred in inside.preds(node) {
            if list.lane_of[pred] != list.lane_of[node] {
                let edge = decomposer.new_token_edge();
                parts[pred].signals.push(edge);
                parts[node].awaits.push(edge);
            } else if row_of[pred] != row_of[node] {
                decomposer.guards[nodes[node] as usize].push(nodes[pred]);
            }
        }
    }
    let mut parts: Vec<Option<Part>> = parts.into_iter().map(Some).collect();
    let mut lanes = Vec::new();
    for rows in &rows {
        for pair in rows.windows(2) {
            let last = pair[0][pair[0].len() - 1];
            decomposer.waits.push(Wait { first: vec![nodes[last]], then: vec![nodes[pair[1][0]]] });
        }
        let rows = rows.iter().map(|row| Part::series(row.iter().filter_map(|&node| parts[node].take())));
        lanes.push(Part::rows(rows.collect::<Vec<_>>()));
    }
    decomposer.grow(decomposer.level() + 3, nodes[0]);
    Part::parallel(lanes)
}

/// Components dealt out to lanes.
struct Deal {
    components: Vec<Vec<u32>>,
    /// First and last steps of each component.
    ends: Vec<(Vec<u32>, Vec<u32>)>,
    lanes: Vec<Lane>,
    makespan: f64,
}

/// A lane: what it does one after the other, on how many places, and how long that takes.
#[derive(Debug, Clone, Default)]
struct Lane {
    places: usize,
    load: f64,
    components: Vec<usize>,
}

impl Deal {
    fn new(decomposer: &mut Decomposer<'_>, components: Vec<Vec<u32>>, places: usize) -> Self {
        let mut sizes: Vec<Size> = components.iter().map(|component| Size::new(decomposer, component)).collect();
        let ends = sizes.iter().zip(&components).map(|(size, component)| size.ends(component)).collect();
        let mut lanes = dealt(&mut sizes, places);
        lanes.iter_mut().for_each(|lane| lane.components.sort_unstable());
        lanes.sort_by_key(|lane| lane.components.first().copied());
        let makespan = makespan(&lanes);
        Self { components, ends, lanes, makespan }
    }

    fn part(&self, decomposer: &mut Decomposer<'_>) -> Part {
        let mut lanes = Vec::new();
        for lane in &self.lanes {
            for pair in lane.components.windows(2) {
                let (first, then) = (self.ends[pair[0]].1.clone(), self.ends[pair[1]].0.clone());
                decomposer.waits.push(Wait { first, then });
            }
            let components = lane.components.iter().map(|&component| self.components[component].clone());
            lanes.push(Part::rows(decomposer.parts_on(lane.places, components)));
        }
        Part::parallel(lanes)
    }
}

/// How long a component takes on how many places.
struct Size {
    inside: Inside,
    seconds: Vec<f64>,
    width: usize,
    work: f64,
    /// Its longest path.
    least: f64,
    on: HashMap<usize, f64>,
}

impl Size {
    fn new(decomposer: &mut Decomposer<'_>, nodes: &[u32]) -> Self {
        decomposer.mark(nodes);
        let inside = Inside::new(decomposer, nodes);
        let seconds = decomposer.seconds_of(nodes);
        let width = inside.width();
        let work = seconds.iter().sum();
        let least = if width == 1 { work } else { list::tails(&inside, &seconds).into_iter().fold(0.0, f64::max) };
        Self { inside, seconds, width, work, least, on: HashMap::new() }
    }

    /// First and last steps.
    fn ends(&self, nodes: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let of = |is_end: &dyn Fn(usize) -> bool| {
            nodes.iter().enumerate().filter(|&(at, _)| is_end(at)).map(|(_, &node)| node).collect()
        };
        (of(&|at| self.inside.preds(at).next().is_none()), of(&|at| self.inside.succs(at).next().is_none()))
    }

    fn on(&mut self, places: usize) -> f64 {
        if places == 1 {
            return self.work;
        }
        if places >= self.width {
            return self.least;
        }
        *self.on.entry(places).or_insert_with(|| list::schedule(&self.inside, &self.seconds, places).makespan)
    }

    /// The least number of places on which it is over in time.
    fn places_for(&mut self, time: f64, most: usize) -> Option<usize> {
        if self.on(most) > time {
            return None;
        }
        let (mut low, mut high) = (1, most.min(self.width));
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.on(middle) <= time { high = middle } else { low = middle + 1 }
        }
        Some(high)
    }
}

/// Lanes that are over early: a dual approximation for moldable tasks (Hochbaum, Shmoys 1987; Mounié, Rapine, Trystram 1999). For a time
/// that is tried each component gets as few places as it needs, and what needs the same is packed into lanes.
fn dealt(sizes: &mut [Size], places: usize) -> Vec<Lane> {
    let mut best = longest_first(sizes, places);
    if places == 1 || sizes.len().saturating_mul(places) > LARGE {
        return best;
    }
    let work: f64 = sizes.iter().map(|size| size.work).sum();
    let each: Vec<f64> = sizes.iter_mut().map(|size| size.on(places)).collect();
    #[expect(clippy::cast_precision_loss, reason = "a number of places")]
    let mut low = each.iter().copied().fold(work / places as f64, f64::max);
    // One lane that has all places is always possible.
    let mut high = each.iter().sum::<f64>();
    let mut time = low.min(high);
    for _ in 0..TRIES {
        match packed(sizes, places, time * (1.0 + NOTHING)) {
            Some(lanes) => {
                high = time;
                if makespan(&lanes) < makespan(&best) * (1.0 - NOTHING) {
                    best = lanes;
                }
            }
            None => low = time,
        }
        high = high.min(makespan(&best));
        if high - low <= 1e-3 * high {
            break;
        }
        time = f64::midpoint(low, high);
    }
    best
}

fn makespan(lanes: &[Lane]) -> f64 {
    lanes.iter().map(|lane| lane.load).fold(0.0, f64::max)
}

/// One place each, the longest first, always into the lane that is over first (Graham 1969).
fn longest_first(sizes: &mut [Size], places: usize) -> Vec<Lane> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&a, &b| sizes[b].work.total_cmp(&sizes[a].work).then(a.cmp(&b)));
    let mut lanes = vec![Lane { places: 1, ..Lane::default() }; places.min(sizes.len())];
    let mut first: BinaryHeap<_> = (0..lanes.len()).map(|lane| Reverse((Seconds(0.0), lane))).collect();
    for component in order {
        let Some(Reverse((_, at))) = first.pop() else { break };
        lanes[at].components.push(component);
        lanes[at].load += sizes[component].work;
        first.push(Reverse((Seconds(lanes[at].load), at)));
    }
    spread(sizes, &mut lanes, places);
    lanes
}

/// Gives places that are left to the lanes that are over last.
fn spread(sizes: &mut [Size], lanes: &mut [Lane], places: usize) {
    let mut left = places - lanes.iter().map(|lane| lane.places).sum::<usize>();
    while left > 0 {
        let Some(lane) = lanes.iter_mut().max_by(|a, b| a.load.total_cmp(&b.load)) else { return };
        let widest = lane.components.iter().map(|&component| sizes[component].width).max().unwrap_or(0);
        if widest <= lane.places {
            return;
        }
        // Many are not given one by one: each number of places is a schedule to compute.
        let more = (left / 4).clamp(1, widest - lane.places);
        lane.places += more;
        lane.load = lane.components.iter().map(|&component| sizes[component].on(lane.places)).sum();
        left -= more;
    }
}

/// Lanes that are all over in a time, if there are enough places for that.
fn packed(sizes: &mut [Size], places: usize, time: f64) -> Option<Vec<Lane>> {
    let mut needs = Vec::with_capacity(sizes.len());
    for (component, size) in sizes.iter_mut().enumerate() {
        let need = size.places_for(time, places)?;
        needs.push((need, size.on(need), component));
    }
    needs.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
    let (mut lanes, mut used): (Vec<Lane>, usize) = (Vec::new(), 0);
    for (need, _, component) in needs {
        let mut fit: Option<(usize, f64, usize)> = None;
        for (at, lane) in lanes.iter().enumerate().filter(|(_, lane)| lane.places >= need) {
            let load = lane.load + sizes[component].on(lane.places);
            // The narrowest lane, of those the fullest.
            if load <= time
                && fit.is_none_or(|(places, best, _)| lane.places < places || lane.places == places && load > best)
            {
                fit = Some((lane.places, load, at));
            }
        }
        if let Some((_, load, at)) = fit {
            lanes[at].load = load;
            lanes[at].components.push(component);
        } else if used + need <= places {
            used += need;
            lanes.push(Lane { places: need, load: sizes[component].on(need), components: vec![component] });
        } else {
            return None;
        }
    }
    spread(sizes, &mut lanes, places);
    Some(lanes)
}
