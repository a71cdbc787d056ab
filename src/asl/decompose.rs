//! Reduced DAG -> tree. Components become `Parallel`, complete cuts become `Series`; what is neither is *prime*: it holds an induced
//! N (Valdes, Tarjan, Lawler 1982) and is handed to [`super::prime`] (token edges) or [`super::barrier`].
//!
//! Each level costs the nodes and edges of its part, so the cores that are not series-parallel stay as small as they are.

use super::barrier::{self, Wait};
use super::graph::Reduced;
use super::options::Synchronization;
use super::tree::{Kind, Part};
use super::width::Inside;
use super::{lanes, limits, prime};

/// What the decomposition yields.
#[derive(Debug)]
pub struct Decomposition {
    /// The tree.
    pub root: Part,
    /// Number of token edges.
    pub token_edges: usize,
    /// Waits that no dependency asks for.
    pub waits: Vec<Wait>,
    /// For each node the upstreams that only a barrier separates it from.
    pub guards: Vec<Vec<u32>>,
    /// Levels inside each other. Above the limit the tree is not complete.
    pub depth: u32,
    /// A node of the deepest level.
    pub deepest: u32,
}

/// How to decompose.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    pub synchronization: Synchronization,
    /// What `auto` may lose, in seconds.
    pub budget: f64,
    /// How many steps may run at once.
    pub places: usize,
    /// Whether there is a place for signals.
    pub signals: bool,
    /// Token edges into a step, and out of one, that a machine of its own has room for.
    pub edges_of_step: (usize, usize),
}

pub struct Decomposer<'a> {
    pub graph: &'a Reduced,
    pub seconds: &'a [f64],
    /// What is left of the budget, and the places of the present part; no limit where it is narrow enough.
    ways: Ways,
    /// Which part a node belongs to at the moment.
    part_of: Vec<u32>,
    parts: u32,
    pub token_edges: usize,
    pub waits: Vec<Wait>,
    pub guards: Vec<Vec<u32>>,
    level: u32,
    depth: u32,
    deepest: u32,
}

/// Decomposes the whole DAG. `seconds` are the expected durations.
pub fn decompose(graph: &Reduced, seconds: &[f64], ways: Ways) -> Decomposition {
    let count = graph.steps.len();
    let mut decomposer = Decomposer {
        graph,
        seconds,
        ways,
        part_of: vec![0; count],
        parts: 0,
        token_edges: 0,
        waits: Vec::new(),
        guards: vec![Vec::new(); count],
        level: 0,
        depth: 0,
        deepest: 0,
    };
    #[expect(clippy::cast_possible_truncation, reason = "positions of a plan fit in 32 bits")]
    let root = decomposer.part((0..count as u32).collect());
    let Decomposer { token_edges, waits, guards, depth, deepest, .. } = decomposer;
    Decomposition { root, token_edges, waits, guards, depth, deepest }
}

impl Decomposer<'_> {
    /// Decomposes a convex set of nodes, given in ascending order.
    pub fn part(&mut self, nodes: Vec<u32>) -> Part {
        if let [only] = nodes[..] {
            return Part::new(Kind::Step(only));
        }
        self.level += 1;
        self.grow(self.level, nodes[0]);
        let part = if self.level > limits::TREE_DEPTH { Part::new(Kind::Junction) } else { self.inner(nodes) };
        self.level -= 1;
        part
    }

    /// Notes how deep the tree is, counting levels below the present one, and a node that is so deep.
    pub fn grow(&mut self, depth: u32, node: u32) {
        if depth > self.depth {
            (self.depth, self.deepest) = (depth, node);
        }
    }

    /// Levels around the present part.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Parts that follow each other in a lane of so many places.
    pub fn parts_on(&mut self, places: usize, rows: impl Iterator<Item = Vec<u32>>) -> Vec<Part> {
        let before = std::mem::replace(&mut self.ways.places, places);
        self.level += 1;
        let parts = rows.map(|nodes| self.part(nodes)).collect();
        self.level -= 1;
        self.ways.places = before;
        parts
    }

    fn inner(&mut self, nodes: Vec<u32>) -> Part {
        self.mark(&nodes);
        if self.ways.places < nodes.len() && Inside::new(self, &nodes).exceeds(self.ways.places) {
            return self.too_wide(&nodes);
        }
        // What is inside is narrow enough, too.
        let places = std::mem::replace(&mut self.ways.places, usize::MAX);
        let part = self.narrow(&nodes);
        self.ways.places = places;
        part
    }

    fn narrow(&mut self, nodes: &[u32]) -> Part {
        let components = self.components(nodes);
        if components.len() > 1 {
            return Part::parallel(components.into_iter().map(|component| self.part(component)).collect::<Vec<_>>());
        }
        let pieces = self.cuts(nodes);
        if pieces.len() > 1 {
            return Part::series(pieces.into_iter().map(|piece| self.part(piece)).collect::<Vec<_>>());
        }
        match self.ways.synchronization {
            Synchronization::Exact => prime::with_tokens(self, nodes),
            Synchronization::Barrier => barrier::split(self, nodes),
            Synchronization::Auto => self.cheaper(nodes),
        }
    }

    fn too_wide(&mut self, nodes: &[u32]) -> Part {
        let components = self.components(nodes);
        if components.len() == 1 {
            let pieces = self.cuts(nodes);
            if pieces.len() > 1 {
                return Part::series(pieces.into_iter().map(|piece| self.part(piece)).collect::<Vec<_>>());
            }
        }
        lanes::lay(self, nodes, components)
    }

    /// A barrier when its expected loss fits the budget, else token edges.
    fn cheaper(&mut self, nodes: &[u32]) -> Part {
        let (critical_path, budget) = (self.critical_path(nodes), self.ways.budget);
        let part = self.unless_slower(nodes, critical_path, budget, |decomposer| barrier::split(decomposer, nodes));
        part.unwrap_or_else(|| prime::with_tokens(self, nodes))
    }

    /// A part without token edges, when it is expected to be over `allowed` seconds after `reference` at the latest.
    pub fn unless_slower(
        &mut self,
        nodes: &[u32],
        reference: f64,
        allowed: f64,
        make: impl FnOnce(&mut Self) -> Part,
    ) -> Option<Part> {
        let (waits, depth) = (self.waits.len(), (self.depth, self.deepest));
        let guards: Vec<usize> = nodes.iter().map(|&node| self.guards[node as usize].len()).collect();
        let way = std::mem::replace(&mut self.ways.synchronization, Synchronization::Barrier);
        let part = make(self);
        self.ways.synchronization = way;
        self.mark(nodes);
        let loss = barrier::makespan(&part, self.seconds) - reference;
        if loss <= allowed && self.depth <= limits::TREE_DEPTH {
            self.spend(loss);
            return Some(part);
        }
        self.waits.truncate(waits);
        (self.depth, self.deepest) = depth;
        for (&node, guards) in nodes.iter().zip(guards) {
            self.guards[node as usize].truncate(guards);
        }
        None
    }

    /// How to decompose the present part.
    pub fn ways(&self) -> Ways {
        self.ways
    }

    /// Takes seconds from what `auto` may lose.
    pub fn spend(&mut self, loss: f64) {
        self.ways.budget -= loss.max(0.0);
    }

    pub fn new_token_edge(&mut self) -> usize {
        self.token_edges += 1;
        self.token_edges - 1
    }

    /// Expected durations of nodes.
    pub fn seconds_of(&self, nodes: &[u32]) -> Vec<f64> {
        nodes.iter().map(|&node| self.seconds[node as usize]).collect()
    }

    /// Longest path inside the part, in expected seconds.
    pub fn critical_path(&self, nodes: &[u32]) -> f64 {
        barrier::earliest_finishes(self, nodes).into_iter().fold(0.0, f64::max)
    }

    pub fn mark(&mut self, nodes: &[u32]) {
        self.parts += 1;
        for &node in nodes {
            self.part_of[node as usize] = self.parts;
        }
    }

    /// Upstreams of a node inside the part that was marked last.
    pub fn preds(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let part = self.part_of[node as usize];
        self.graph.preds[node as usize].iter().copied().filter(move |&p| self.part_of[p as usize] == part)
    }

    /// Downstreams of a node inside the part that was marked last.
    pub fn succs(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let part = self.part_of[node as usize];
        self.graph.succs[node as usize].iter().copied().filter(move |&s| self.part_of[s as usize] == part)
    }

    /// Weakly connected components, by their first nodes.
    fn components(&self, nodes: &[u32]) -> Vec<Vec<u32>> {
        let local = Local::new(nodes);
        let mut component = vec![usize::MAX; nodes.len()];
        let mut sizes = Vec::new();
        let mut stack = Vec::new();
        for at in 0..nodes.len() {
            if component[at] != usize::MAX {
                continue;
            }
            let mut size = 0;
            component[at] = sizes.len();
            stack.push(at);
            while let Some(current) = stack.pop() {
                size += 1;
                for neighbour in self.preds(nodes[current]).chain(self.succs(nodes[current])) {
                    let neighbour = local.at(neighbour);
                    if component[neighbour] == usize::MAX {
                        component[neighbour] = sizes.len();
                        stack.push(neighbour);
                    }
                }
            }
            sizes.push(size);
        }
        let mut out: Vec<Vec<u32>> = sizes.into_iter().map(Vec::with_capacity).collect();
        for (at, &node) in nodes.iter().enumerate() {
            out[component[at]].push(node);
        }
        out
    }

    /// Splits where everything before precedes everything after: the crossing edges are then all those, and only those, from a sink
    /// of the front to a source of the back. Any topological order has the front as a prefix.
    fn cuts(&self, nodes: &[u32]) -> Vec<Vec<u32>> {
        let local = Local::new(nodes);
        let mut waiting: Vec<usize> = nodes.iter().map(|&node| self.preds(node).count()).collect();
        let mut is_sink = vec![true; nodes.len()];
        let mut sinks = 0_usize;
        let mut sources = waiting.iter().filter(|&&count| count == 0).count();
        let mut crossing = 0_usize;
        let mut pieces = Vec::new();
        let mut begin = 0;
        for (at, &node) in nodes.iter().enumerate() {
            crossing -= self.preds(node).count();
            for pred in self.preds(node) {
                sinks -= usize::from(std::mem::replace(&mut is_sink[local.at(pred)], false));
            }
            sinks += 1;
            sources -= 1;
            for succ in self.succs(node) {
                let succ = local.at(succ);
                waiting[succ] -= 1;
                sources += usize::from(waiting[succ] == 0);
                crossing += 1;
            }
            if at + 1 == nodes.len() || crossing != sinks * sources {
                continue;
            }
            let complete = (begin..=at).filter(|&front| is_sink[front]).all(|front| {
                let mut ends = 0;
                self.succs(nodes[front]).all(|succ| {
                    ends += 1;
                    local.at(succ) > at && waiting[local.at(succ)] == 0
                }) && ends == sources
            });
            if complete {
                pieces.push(nodes[begin..=at].to_vec());
                begin = at + 1;
            }
        }
        pieces.push(nodes[begin..].to_vec());
        pieces
    }
}

/// Positions of nodes inside an ascending list.
pub struct Local<'a>(&'a [u32]);

impl<'a> Local<'a> {
    pub fn new(nodes: &'a [u32]) -> Self {
        Self(nodes)
    }

    /// Position of a node that is in the list.
    pub fn at(&self, node: u32) -> usize {
        let first = self.0[0];
        let guess = (node - first) as usize;
        // Parts are mostly contiguous.
        if self.0.get(guess) == Some(&node) { guess } else { self.0.partition_point(|&other| other < node) }
    }
}
