//! A tree that is too large for one machine gets machines inside: at series cuts and between branches.

use super::emit::{Shared, skipped_of_machine};
use super::options::MachineLimits;
use super::signal;
use super::task::{Scope, retriers};
use super::tree::{Kind, Part};
use super::{limits, tree};
use crate::plan::ExecutionMode;

/// What a part costs the machine that it stands in.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    bytes: u64,
    events: u64,
    depth: u32,
}

impl Weight {
    fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, events: self.events + other.events, depth: self.depth.max(other.depth) }
    }
}

/// Bytes of states around a step, from definitions as they come out; the true size is checked afterwards.
const BYTES_OF_WAITING: u64 = 2_000;
const BYTES_OF_TELLING: u64 = 2_300;
const BYTES_OF_WAITER: u64 = 60;
const BYTES_OF_STATUS: u64 = 700;
const NESTED: Weight = Weight { bytes: 1_100, events: limits::SYNC_EVENTS + limits::PLAIN_EVENTS, depth: 0 };

/// Token edges into a step, and out of one, for which a machine of its own has room: at most half of a machine's bytes and events.
pub fn edges_of_step(limits: MachineLimits) -> (usize, usize) {
    let (waiting, _) = signal::wait_cost(true);
    // From two on they are told by a `Map`.
    let (told_two, _) = signal::tell_cost(2);
    let number = |count: u64| usize::try_from(count / 2).unwrap_or(usize::MAX).max(1);
    let into = number((limits.definition_bytes / BYTES_OF_WAITING).min(limits.events / waiting));
    (into, number(2 * limits.events / told_two))
}

/// Puts parts into machines of their own until each machine keeps `share` of its limits.
pub fn split(part: Part, shared: &Shared<'_>, share: f64) -> Part {
    let limits = shared.options.limits;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a fraction of a limit"
    )]
    let part_of = |limit: u64| (limit as f64 * share) as u64;
    let splitter = Splitter {
        shared,
        limits,
        bytes: part_of(limits.definition_bytes),
        events: part_of(limits.events),
        tracks: shared.mode != ExecutionMode::FailFast,
    };
    splitter.part(part).0
}

struct Splitter<'a> {
    shared: &'a Shared<'a>,
    limits: MachineLimits,
    bytes: u64,
    events: u64,
    tracks: bool,
}

impl Splitter<'_> {
    fn fits(&self, weight: Weight) -> bool {
        weight.bytes <= self.bytes && weight.events <= self.events && weight.depth <= self.limits.depth
    }

    fn part(&self, part: Part) -> (Part, Weight) {
        let Part { awaits, signals, kind } = part;
        let own = self.own(&awaits, &signals);
        let (kind, weight) = match kind {
            Kind::Step(node) => (Kind::Step(node), self.step(node)),
            Kind::Junction => (Kind::Junction, Weight::default()),
            Kind::Nested(part) => (Kind::Nested(part), NESTED),
            Kind::Series(parts) => {
                let (parts, weight) = self.group(parts, own, usize::MAX, &|parts| Part::new(Kind::Series(parts)));
                (Kind::Series(parts), weight)
            }
            Kind::Parallel(parts) => {
                let mut own = own;
                own.events += limits::PARALLEL_EVENTS + limits::PLAIN_EVENTS;
                let make = |parts| Part::new(Kind::Parallel(parts));
                let (parts, mut weight) = self.group(parts, own, self.limits.branches, &make);
                weight.bytes += 300 + if self.tracks { BYTES_OF_STATUS + 50 * parts.len() as u64 } else { 0 };
                weight.depth += 1;
                (Kind::Parallel(parts), weight)
            }
            Kind::Barrier(rows) => {
                let count = rows.len() as u64;
                let make = |rows| Part::new(Kind::Barrier(rows));
                let (rows, mut weight) = self.group(rows, own, usize::MAX, &make);
                weight.bytes += BYTES_OF_STATUS * (count - 1);
                weight.events += limits::PLAIN_EVENTS * count;
                // In a row after a failure it stands in a branch of its own.
                weight.depth += u32::from(self.tracks);
                (Kind::Barrier(rows), weight)
            }
        };
        let mut weight = weight.and(own);
        let part = Part { awaits, signals, kind };
        if self.tracks && matches!(part.kind, Kind::Parallel(_) | Kind::Barrier(..) | Kind::Nested(_)) {
            weight.bytes += self.told_when_skipped(&part);
        }
        (part, weight)
    }

    /// Bytes of the states that tell of a part as a whole that it was skipped.
    fn told_when_skipped(&self, part: &Part) -> u64 {
        fn count(part: &Part) -> u64 {
            part.children().into_iter().map(|child| child.signals.len() as u64 + count(child)).sum()
        }
        let edges = count(part);
        if edges > limits::SKIPPED_INLINE as u64 {
            1_200 * edges.div_ceil(skipped_of_machine(self.limits.events) as u64)
        } else if edges > 0 {
            BYTES_OF_TELLING + 2 * BYTES_OF_WAITER * edges
        } else {
            0
        }
    }

    /// Weighs parts and, where they are too much together, puts runs of neighbours into machines of their own.
    fn group(
        &self,
        parts: Vec<Part>,
        own: Weight,
        width: usize,
        make: &dyn Fn(Vec<Part>) -> Part,
    ) -> (Vec<Part>, Weight) {
        let keeps_pairs = width == usize::MAX && parts.len() == 2;
        let mut weighed: Vec<(Part, Weight)> = parts
            .into_iter()
            .map(|part| {
                let (part, weight) = self.part(part);
                // One level is left for the `Parallel` around and one for signals.
                if weight.depth + 2 > self.limits.depth { nest(part) } else { (part, weight) }
            })
            .collect();
        let total = |parts: &[(Part, Weight)]| parts.iter().fold(own, |sum, (_, weight)| sum.and(*weight));
        while !self.fits(total(&weighed)) || weighed.len() > width {
            if weighed.len() <= 2 || keeps_pairs {
                // Nothing left to group: the heavier ones go out whole.
                let heaviest = weighed
                    .iter_mut()
                    .filter(|(part, _)| !matches!(part.kind, Kind::Nested(_)))
                    .max_by_key(|(_, weight)| weight.bytes + weight.events * 40);
                let Some(slot) = heaviest else { break };
                let part = std::mem::replace(&mut slot.0, Part::new(Kind::Junction));
                *slot = nest(part);
                continue;
            }
            let before = weighed.len();
            let too_wide = self.fits(total(&weighed));
            let target = weighed.len().div_ceil(if too_wide { width } else { weighed.len() }).max(2);
            let mut grouped: Vec<(Part, Weight)> = Vec::new();
            let mut run: Vec<Part> = Vec::new();
            let mut sum = own;
            let flush = |run: &mut Vec<Part>, sum: Weight, grouped: &mut Vec<(Part, Weight)>| {
                let parts = std::mem::take(run);
                match <[Part; 1]>::try_from(parts) {
                    Ok([only]) => grouped.push(nest(only)),
                    Err(parts) if parts.is_empty() => {}
                    Err(parts) if too_wide => {
                        let depth = sum.depth + 1;
                        grouped.push((make(parts), Weight { depth, ..sum }));
                    }
                    Err(parts) => grouped.push(nest(make(parts))),
                }
            };
            for (part, weight) in weighed {
                let next = sum.and(weight);
                let full = if too_wide { run.len() >= target } else { !self.fits(Weight { depth: 0, ..next }) };
                if full && !run.is_empty() {
                    flush(&mut run, sum, &mut grouped);
                    sum = own;
                }
                sum = sum.and(weight);
                run.push(part);
            }
            flush(&mut run, sum, &mut grouped);
            // Not even two calls of machines fit: the final check names who is to blame.
            let stuck = grouped.len() == before;
            weighed = grouped;
            if stuck {
                break;
            }
        }
        let weight = total(&weighed);
        let weight = Weight { bytes: weight.bytes - own.bytes, events: weight.events - own.events, ..weight };
        (weighed.into_iter().map(|(part, _)| part).collect(), weight)
    }

    fn own(&self, awaits: &[tree::TokenEdge], signals: &[tree::TokenEdge]) -> Weight {
        let (waiting, _) = signal::wait_cost(self.tracks);
        let (told, _) = if signals.is_empty() { (0, 0) } else { signal::tell_cost(signals.len()) };
        let factor = if self.tracks { 2 } else { 1 };
        let telling = if signals.is_empty() { 0 } else { BYTES_OF_TELLING + BYTES_OF_WAITER * signals.len() as u64 };
        Weight {
            bytes: BYTES_OF_WAITING * awaits.len() as u64 + factor * telling,
            events: waiting * awaits.len() as u64 + told,
            depth: u32::from(!signals.is_empty()),
        }
    }

    fn step(&self, node: u32) -> Weight {
        let at = node as usize;
        let label = &self.shared.labels[at];
        let parameters = self.shared.ready[at].parameters(label, Scope::Nested);
        let retry = retriers(&self.shared.steps[at].retry, self.shared.options.infrastructure_retries);
        let length = |json: Result<String, serde_json::Error>| json.map_or(0, |json| json.len() as u64);
        let size = length(serde_json::to_string(&parameters)) + length(serde_json::to_string(&retry));
        let stop = self.shared.mode == ExecutionMode::StopOnFailure && self.shared.asks_for_stop[at];
        let guards: u64 =
            self.shared.guards[at].iter().map(|&pred| 60 + self.shared.labels[pred as usize].len() as u64).sum();
        let around = 200 + 2 * label.len() as u64;
        let tracked = if self.tracks { BYTES_OF_STATUS + 4 * label.len() as u64 } else { 0 };
        Weight {
            bytes: size + around + tracked + guards + if stop { 1_200 } else { 0 },
            events: limits::SYNC_EVENTS + if stop { limits::REQUEST_EVENTS } else { 0 } + 2 * u64::from(guards > 0),
            depth: 0,
        }
    }
}

fn nest(part: Part) -> (Part, Weight) {
    if matches!(part.kind, Kind::Nested(_)) {
        return (part, NESTED);
    }
    (Part::new(Kind::Nested(Box::new(part))), NESTED)
}
