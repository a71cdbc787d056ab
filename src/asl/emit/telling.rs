//! Token edges around a part: waiting before it, telling after it, and telling of what is skipped with it.

use super::super::Counts;
use super::super::limits::{self, INTRINSIC_CHARACTERS};
use super::super::names::Names;
use super::super::signal::{self, Ends, Status, Waiter};
use super::super::states::{Graph, ResultPath, Template, Then};
use super::super::task::Scope;
use super::super::tree::Part;
use super::{Emitter, Entry, Out, finished, not_completed};

impl Emitter<'_, '_> {
    /// Awaits a token edge, then enters a part.
    pub(super) fn wait(&mut self, edge: usize, entry: &Entry, out: &mut Out) -> String {
        let ends = &self.shared.ends[edge];
        let tracks = self.shared.tracks();
        let then = self.named(&entry.run, &ends.to, out);
        let otherwise = tracks.then(|| self.named(&entry.skip, &ends.to, out));
        let wanted = [
            format!("{}: first wait for {}", ends.to, ends.from),
            format!("{}: is {} over", ends.to, ends.from),
            format!("{}: wait for {}", ends.to, ends.from),
            format!("{}: longer wait for {}", ends.to, ends.from),
            format!("{}: did {} complete", ends.to, ends.from),
        ];
        let names = wanted.map(|name| self.names.take(&name));
        let (events, transitions) = signal::wait_cost(tracks);
        self.counts.add(events, transitions);
        let first = names[0].clone();
        let states = self.signals().map(|signals| signals.wait(ends, names, &then, otherwise.as_deref()));
        out.extend(states.into_iter().flatten().rev());
        first
    }

    /// Says that a part is over and tells who waits for it.
    pub(super) fn tell(
        &mut self,
        source: &str,
        edges: &[usize],
        status: Status,
        verb: &str,
        then: &Then,
        out: &mut Out,
    ) -> String {
        let mut tells = None;
        let after = if let [edge] = edges {
            let ends = &self.shared.ends[*edge];
            self.tell_one(Waiter::One(ends), &format!("{verb} {}", ends.to), source, status, then, out)
        } else {
            tells = Some(edges.iter().map(|&edge| Template::text(&self.shared.ends[edge].to)).collect());
            let mut states = Out::new();
            let waiter = Waiter::Item { from: source };
            self.tell_one(waiter, &format!("{verb} one"), source, status, &Then::End, &mut states);
            states.reverse();
            let state = signal::tell_each(status, signal::branch(states), then.clone());
            self.push(&format!("{source}: {verb} all"), state, (0, 0), out)
        };
        let (events, transitions) = signal::tell_cost(edges.len());
        let over = self.signals().map(|signals| signals.over(source, status, tells, Then::Next(after)));
        let name = self.names.take(&format!("{source}: over, {verb}"));
        self.counts.add(events, transitions);
        out.extend(over.map(|state| (name.clone(), state)));
        name
    }

    fn tell_one(
        &mut self,
        waiter: Waiter<'_>,
        what: &str,
        source: &str,
        status: Status,
        then: &Then,
        out: &mut Out,
    ) -> String {
        let label = format!("{source}: {what}");
        let counts = self.counts;
        let done = self.named(then, &label, out);
        // It takes the place of the second request, which is counted.
        self.counts = counts;
        let names = [self.names.take(&format!("{label}?")), self.names.take(&label)];
        let first = names[0].clone();
        let states = self.signals().map(|signals| signals.tell(waiter, names, status, done, then.clone()));
        out.extend(states.into_iter().flatten().rev());
        first
    }

    /// States that tell of token edges whose upstreams are all skipped. Returns where to enter.
    fn tell_skipped(&mut self, edges: &[usize], label: &str, then: Then, out: &mut Out) -> String {
        let skipped = Status::Fixed("skipped");
        let mut states = Out::new();
        let first = self.tell_one(Waiter::Pair, "tell one that it is skipped", label, skipped, &Then::End, &mut states);
        let over = self.signals().map(|signals| signals.pair_over(Then::Next(first)));
        let over_name = self.names.take(&format!("{label}: one is over, skipped"));
        states.extend(over.map(|state| (over_name, state)));
        states.reverse();
        let wanted =
            [format!("{label}: whom to tell that all are skipped"), format!("{label}: tell that all are skipped")];
        let names = wanted.map(|name| self.names.take(&name));
        let entry = names[0].clone();
        let pairs: Vec<&Ends> = edges.iter().map(|&edge| &self.shared.ends[edge]).collect();
        out.extend(signal::tell_pairs(&pairs, names, signal::branch(states), then).into_iter().rev());
        entry
    }

    /// A branch that starts a machine which tells for many. It runs only after a failure, so it should not weigh on this machine.
    fn skip_machine(&mut self, edges: &[usize], label: &str) -> Graph {
        let mut emitter = Emitter {
            shared: self.shared,
            scope: Scope::Nested,
            names: Names::default(),
            counts: Counts::default(),
            machines: &mut *self.machines,
        };
        let mut states = Out::new();
        emitter.tell_skipped(edges, label, Then::End, &mut states);
        states.reverse();
        let counts = Counts { events: limits::EXECUTION_EVENTS + signal::pairs_cost(edges.len()), transitions: 0 };
        let child = finished(self.shared, &signal::branch(states), Scope::Nested, (label, 0), counts);
        let state = self.start_machine(child, (None, ResultPath::Discard), Then::End);
        let name = self.names.take(&format!("{label}: machine that tells"));
        signal::branch(vec![(name, state)])
    }

    /// States that note every step of a part as skipped and tell whoever waits for one inside.
    pub(super) fn skipped(&mut self, part: &Part, label: &str, bad: &Then, out: &mut Out) -> Then {
        let counts = self.counts;
        let mut then = bad.clone();
        let mut edges = Vec::new();
        inner_signals(part, &mut edges);
        if edges.len() > limits::SKIPPED_INLINE {
            let chunks = edges.chunks(skipped_of_machine(self.shared.options.limits.events));
            let branches = chunks.map(|chunk| self.skip_machine(chunk, label)).collect();
            let state = signal::side_by_side(branches, then);
            then = Then::Next(self.push(&format!("{label}: tell that all are skipped"), state, (0, 0), out));
        } else if !edges.is_empty() {
            then = Then::Next(self.tell_skipped(&edges, label, then, out));
        }
        let mut lists = vec![String::new()];
        part.for_each_step(&mut |node| {
            let label = &self.shared.labels[node as usize];
            if lists.last().is_none_or(|list| list.len() + label.len() > INTRINSIC_CHARACTERS) {
                lists.push(String::new());
            }
            if let Some(list) = lists.last_mut() {
                if !list.is_empty() {
                    list.push(',');
                }
                list.push_str(label);
            }
        });
        for list in lists.iter().rev() {
            let state = not_completed(("skipped", list), then);
            then = Then::Next(self.push(&format!("{label}: all skipped"), state, (0, 0), out));
        }
        self.counts = counts;
        then
    }
}

/// Token edges that parts inside another signal.
fn inner_signals(part: &Part, edges: &mut Vec<usize>) {
    for child in part.children() {
        edges.extend(&child.signals);
        inner_signals(child, edges);
    }
}

/// Token edges for which one machine tells that their upstreams are skipped, such that it keeps its limit of events.
pub fn skipped_of_machine(events: u64) -> usize {
    let fits = |edges: &usize| limits::EXECUTION_EVENTS + signal::pairs_cost(*edges) <= events;
    (1..=limits::SKIPPED_OF_MACHINE).rev().find(fits).unwrap_or(1)
}
