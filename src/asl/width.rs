//! How many steps of a part can run at once: its width, the size of its largest antichain.
//!
//! By Dilworth that is the least number of paths that cover every node; paths may share nodes, so the reduced graph is enough and the
//! transitive closure is not needed. It is a flow of at least one through each node, which begins with paths taken greedily and is then
//! reduced by one as long as a path of the residual graph allows it.

use super::decompose::{Decomposer, Local};
use super::graph::Reduced;

/// The graph inside a part, by positions in it.
#[derive(Debug)]
pub struct Inside {
    /// Upstreams of each node, with the number of the edge.
    preds: Vec<Vec<(usize, usize)>>,
    /// Downstreams of each node, with the number of the edge.
    succs: Vec<Vec<(usize, usize)>>,
    edges: usize,
}

impl Inside {
    /// The graph inside the part that was marked last.
    pub fn new(decomposer: &Decomposer<'_>, nodes: &[u32]) -> Self {
        let local = Local::new(nodes);
        let mut inside = Self::without_edges(nodes.len());
        for (at, &node) in nodes.iter().enumerate() {
            decomposer.preds(node).for_each(|pred| inside.link(local.at(pred), at));
        }
        inside
    }

    /// The whole graph.
    pub fn whole(graph: &Reduced) -> Self {
        let mut inside = Self::without_edges(graph.preds.len());
        for (at, preds) in graph.preds.iter().enumerate() {
            preds.iter().for_each(|&pred| inside.link(pred as usize, at));
        }
        inside
    }

    fn without_edges(count: usize) -> Self {
        Self { preds: vec![Vec::new(); count], succs: vec![Vec::new(); count], edges: 0 }
    }

    fn link(&mut self, from: usize, to: usize) {
        self.preds[to].push((from, self.edges));
        self.succs[from].push((to, self.edges));
        self.edges += 1;
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.preds.len()
    }

    /// Upstreams of a node.
    pub fn preds(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.preds[node].iter().map(|&(pred, _)| pred)
    }

    /// Downstreams of a node.
    pub fn succs(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.succs[node].iter().map(|&(succ, _)| succ)
    }

    /// The width.
    pub fn width(&self) -> usize {
        Cover::new(self).least(self.widest_layer())
    }

    /// Whether the width is above a limit, which is often told without knowing it.
    pub fn exceeds(&self, limit: usize) -> bool {
        self.len() > limit && (self.widest_layer() > limit || Cover::new(self).least(limit) > limit)
    }

    /// Nodes with equally long paths before them, or behind them, are an antichain.
    fn widest_layer(&self) -> usize {
        let mut layers = vec![(0_usize, 0_usize); self.len() + 1];
        let (mut before, mut behind) = (vec![0_usize; self.len()], vec![0_usize; self.len()]);
        for node in 0..self.len() {
            before[node] = self.preds(node).map(|pred| before[pred] + 1).max().unwrap_or(0);
            layers[before[node]].0 += 1;
        }
        for node in (0..self.len()).rev() {
            behind[node] = self.succs(node).map(|succ| behind[succ] + 1).max().unwrap_or(0);
            layers[behind[node]].1 += 1;
        }
        layers.into_iter().map(|(a, b)| a.max(b)).max().unwrap_or(0)
    }
}

/// Paths that cover every node.
struct Cover<'a> {
    inside: &'a Inside,
    paths: usize,
    /// Paths through each node, at least one.
    through: Vec<usize>,
    /// Paths along each edge.
    along: Vec<usize>,
    /// Paths that begin and that end at each node.
    heads: Vec<usize>,
    tails: Vec<usize>,
}

/// A place where a path is missing: something has to come into a node, or to go out of it less than it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    Into(usize),
    OutOf(usize),
}

/// How a lack was moved from one place to another.
#[derive(Debug, Clone, Copy)]
enum Move {
    /// One path more along an edge.
    Along(usize, Lack),
    /// One less.
    NotAlong(usize, Lack),
    /// One path more through a node.
    Through(usize, Lack),
    /// One less.
    NotThrough(usize, Lack),
    /// Here it began.
    Begin,
}

impl<'a> Cover<'a> {
    fn new(inside: &'a Inside) -> Self {
        let count = inside.len();
        let mut cover = Self {
            inside,
            paths: 0,
            through: vec![1; count],
            along: vec![0; inside.edges],
            heads: vec![0; count],
            tails: vec![1; count],
        };
        for node in 0..count {
            // Of the paths that end before the node the one with the fewest other ways to go on.
            let free = inside.preds[node].iter().filter(|&&(pred, _)| cover.tails[pred] > 0);
            match free.min_by_key(|&&(pred, _)| inside.succs[pred].len()) {
                Some(&(pred, edge)) => {
                    cover.tails[pred] = 0;
                    cover.along[edge] = 1;
                }
                None => {
                    cover.heads[node] = 1;
                    cover.paths += 1;
                }
            }
        }
        cover
    }

    /// The least number of paths, or the first that is not above `enough`.
    fn least(mut self, enough: usize) -> usize {
        loop {
            // What a search has seen in vain is in vain until a whole round is over (Hopcroft, Karp 1973).
            let mut seen = vec![None; 2 * self.inside.len()];
            let before = self.paths;
            for node in 0..self.inside.len() {
                while self.paths > enough && self.heads[node] > 0 && self.drop_path(node, &mut seen) {}
            }
            if self.paths <= enough || self.paths == before {
                return self.paths;
            }
        }
    }

    /// Lets the paths be one less: the one that begins at a node is led into another one that ends.
    fn drop_path(&mut self, head: usize, seen: &mut [Option<Move>]) -> bool {
        let slot = |lack: Lack| match lack {
            Lack::Into(node) => 2 * node,
            Lack::OutOf(node) => 2 * node + 1,
        };
        if seen[slot(Lack::Into(head))].is_some() {
            return false;
        }
        seen[slot(Lack::Into(head))] = Some(Move::Begin);
        let mut stack = vec![Lack::Into(head)];
        while let Some(lack) = stack.pop() {
            let mut visit = |to: Lack, how: Move| {
                if seen[slot(to)].is_none() {
                    seen[slot(to)] = Some(how);
                    stack.push(to);
                }
            };
            match lack {
                Lack::Into(node) => {
                    if self.through[node] > 1 {
                        visit(Lack::OutOf(node), Move::NotThrough(node, lack));
                    }
                    for &(pred, edge) in &self.inside.preds[node] {
                        visit(Lack::OutOf(pred), Move::Along(edge, lack));
                    }
                }
                Lack::OutOf(node) if self.tails[node] > 0 => {
                    self.tails[node] -= 1;
                    self.heads[head] -= 1;
                    self.paths -= 1;
                    self.apply(lack, seen, slot);
                    return true;
                }
                Lack::OutOf(node) => {
                    visit(Lack::Into(node), Move::Through(node, lack));
                    for &(succ, edge) in self.inside.succs[node].iter().filter(|&&(_, edge)| self.along[edge] > 0) {
                        visit(Lack::Into(succ), Move::NotAlong(edge, lack));
                    }
                }
            }
        }
        false
    }

    fn apply(&mut self, end: Lack, seen: &[Option<Move>], slot: impl Fn(Lack) -> usize) {
        let mut at = end;
        while let Some(how) = seen[slot(at)] {
            at = match how {
                Move::Along(edge, from) => {
                    self.along[edge] += 1;
                    from
                }
                Move::NotAlong(edge, from) => {
                    self.along[edge] -= 1;
                    from
                }
                Move::Through(node, from) => {
                    self.through[node] += 1;
                    from
                }
                Move::NotThrough(node, from) => {
                    self.through[node] -= 1;
                    from
                }
                Move::Begin => return,
            };
        }
    }
}
