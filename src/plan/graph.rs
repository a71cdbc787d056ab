//! The DAG in compressed adjacency lists: O(V + E) to build, no hashing once it stands.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{PlanError, StepSpec};

/// Position of a step in [`super::Plan::steps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepIndex(u32);

impl StepIndex {
    /// The index for a position.
    ///
    /// # Panics
    /// Above `u32::MAX`; [`Dag::new`] refuses such plans.
    #[must_use]
    #[expect(clippy::expect_used, reason = "documented panic, refused at construction of the DAG")]
    pub fn new(position: usize) -> Self {
        Self(u32::try_from(position).expect("step positions fit in 32 bits"))
    }

    /// The position.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Edges of a plan, both ways, deduplicated, without a cycle.
#[derive(Debug, Clone)]
pub struct Dag {
    upstream: Adjacency,
    downstream: Adjacency,
    order: Vec<StepIndex>,
}

#[derive(Debug, Clone)]
struct Adjacency {
    starts: Vec<usize>,
    targets: Vec<StepIndex>,
}

impl Adjacency {
    fn of(&self, index: StepIndex) -> &[StepIndex] {
        &self.targets[self.starts[index.get()]..self.starts[index.get() + 1]]
    }

    fn reversed(&self) -> Self {
        let count = self.starts.len() - 1;
        let mut starts = vec![0; count + 1];
        for target in &self.targets {
            starts[target.get() + 1] += 1;
        }
        for at in 0..count {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut targets = vec![StepIndex(0); self.targets.len()];
        for source in 0..count {
            for target in self.of(StepIndex::new(source)) {
                targets[next[target.get()]] = StepIndex::new(source);
                next[target.get()] += 1;
            }
        }
        Self { starts, targets }
    }
}

impl Dag {
    /// Resolves names to indices and checks names, upstreams and acyclicity.
    pub(super) fn new(steps: &[StepSpec]) -> Result<Self, PlanError> {
        if u32::try_from(steps.len()).is_err() {
            return Err(PlanError::field("steps", "has more than 4294967295 entries"));
        }
        let mut by_name: HashMap<&str, StepIndex> = HashMap::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            if step.name.is_empty() {
                return Err(PlanError::field(format!("steps[{at}].name"), "must not be empty"));
            }
            if let Some(first) = by_name.insert(&step.name, StepIndex::new(at)) {
                let message = format!("the name is taken by steps[{}] already", first.get());
                return Err(PlanError::of_step(&step.name, format!("steps[{at}].name"), message));
            }
        }
        let mut starts = Vec::with_capacity(steps.len() + 1);
        starts.push(0);
        let mut targets = Vec::new();
        // Marks which step last named an upstream, so that duplicates cost no set.
        let mut named_by = vec![usize::MAX; steps.len()];
        for (at, step) in steps.iter().enumerate() {
            for (position, name) in step.upstream.iter().enumerate() {
                let Some(&upstream) = by_name.get(name.as_str()) else {
                    let field = format!("steps[{at}].upstream[{position}]");
                    return Err(PlanError::of_step(&step.name, field, format!("there is no step `{name}`")));
                };
                if named_by[upstream.get()] != at {
                    named_by[upstream.get()] = at;
                    targets.push(upstream);
                }
            }
            starts.push(targets.len());
        }
        let upstream = Adjacency { starts, targets };
        let downstream = upstream.reversed();
        let order = topological_order(&upstream, &downstream);
        if order.len() < steps.len() {
            let cycle = find_cycle(&upstream, &order, steps.len());
            let names: Vec<&str> = cycle.iter().map(|index| steps[index.get()].name.as_str()).collect();
            let path = names.iter().chain(names.first()).map(|name| format!("`{name}`")).collect::<Vec<_>>();
            let message = format!("the steps wait for each other: {}", path.join(" -> "));
            return Err(PlanError::of_step(names.first().copied().unwrap_or_default(), "", message));
        }
        Ok(Self { upstream, downstream, order })
    }

    /// Adds a step without edges.
    pub(super) fn add(&mut self) -> Result<StepIndex, PlanError> {
        let index = u32::try_from(self.order.len())
            .map(StepIndex)
            .map_err(|_| PlanError::field("steps", "has more than 4294967295 entries"))?;
        for edges in [&mut self.upstream, &mut self.downstream] {
            edges.starts.push(edges.targets.len());
        }
        self.order.push(index);
        Ok(index)
    }

    /// Steps that must complete before this one.
    #[must_use]
    pub fn upstream(&self, index: StepIndex) -> &[StepIndex] {
        self.upstream.of(index)
    }

    /// Steps that wait for this one.
    #[must_use]
    pub fn downstream(&self, index: StepIndex) -> &[StepIndex] {
        self.downstream.of(index)
    }

    /// Every step after its upstreams; ties by declaration order.
    #[must_use]
    pub fn topological_order(&self) -> &[StepIndex] {
        &self.order
    }

    /// Number of distinct edges.
    #[must_use]
    pub fn edge_count(&self) -> usize {
        self.upstream.targets.len()
    }
}

/// Kahn's algorithm (Kahn 1962). The result misses every step on or below a cycle.
fn topological_order(upstream: &Adjacency, downstream: &Adjacency) -> Vec<StepIndex> {
    let count = upstream.starts.len() - 1;
    let mut waiting: Vec<usize> = (0..count).map(|at| upstream.of(StepIndex::new(at)).len()).collect();
    let mut order: Vec<StepIndex> = (0..count).filter(|&at| waiting[at] == 0).map(StepIndex::new).collect();
    let mut read = 0;
    while read < order.len() {
        for &next in downstream.of(order[read]) {
            waiting[next.get()] -= 1;
            if waiting[next.get()] == 0 {
                order.push(next);
            }
        }
        read += 1;
    }
    order
}

/// A cycle among the steps that a topological order left over, in edge direction (upstream first).
fn find_cycle(upstream: &Adjacency, order: &[StepIndex], count: usize) -> Vec<StepIndex> {
    let mut left_over = vec![true; count];
    for index in order {
        left_over[index.get()] = false;
    }
    // Every leftover step has a leftover upstream, so walking upstream must meet itself.
    let mut position = vec![usize::MAX; count];
    let mut path = Vec::new();
    let mut current = left_over.iter().position(|&left| left).map(StepIndex::new);
    while let Some(index) = current {
        if position[index.get()] != usize::MAX {
            let mut cycle = path.split_off(position[index.get()]);
            cycle.reverse();
            return cycle;
        }
        position[index.get()] = path.len();
        path.push(index);
        current = upstream.of(index).iter().copied().find(|up| left_over[up.get()]);
    }
    path
}
