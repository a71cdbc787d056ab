//! The series-parallel tree with what it cannot express.

/// A dependency that the tree does not express: `from` signals, `to` waits. Numbered from 0.
pub type TokenEdge = usize;

/// A part of the pipeline that begins at one point and ends at one point.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Token edges to wait for before it begins.
    pub awaits: Vec<TokenEdge>,
    /// Token edges to signal once it is over.
    pub signals: Vec<TokenEdge>,
    /// What it is.
    pub kind: Kind,
}

/// What a [`Part`] is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A step: its node.
    Step(u32),
    /// Nothing but a point where several steps wait for the same several steps.
    Junction,
    /// One after the other; everything in a part depends on everything in the parts before it.
    Series(Vec<Part>),
    /// Side by side.
    Parallel(Vec<Part>),
    /// One after the other although not everything depends on everything before it: a step is skipped for its own upstreams only.
    Barrier(Vec<Part>),
    /// A machine of its own.
    Nested(Box<Part>),
}

impl Part {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { awaits: Vec::new(), signals: Vec::new(), kind }
    }

    /// Parts in a row, flattened.
    pub(crate) fn series(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat: Vec<Self> = Vec::new();
        for part in parts {
            match part {
                Self { awaits, signals, kind: Kind::Series(mut inner) } => {
                    // Waiting before a row is waiting before its first part; signalling likewise.
                    if let Some(first) = inner.first_mut() {
                        first.awaits.splice(0..0, awaits);
                    }
                    if let Some(last) = inner.last_mut() {
                        last.signals.extend(signals);
                    }
                    flat.extend(inner);
                }
                Self { ref awaits, ref signals, kind: Kind::Junction } if awaits.is_empty() && signals.is_empty() => {}
                other => flat.push(other),
            }
        }
        Self::whole(flat, Kind::Series)
    }

    /// Parts side by side, flattened.
    pub(crate) fn parallel(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat: Vec<Self> = Vec::new();
        for part in parts {
            match part {
                Self { awaits, signals, kind: Kind::Parallel(inner) } if awaits.is_empty() && signals.is_empty() => {
                    flat.extend(inner);
                }
                Self { ref awaits, ref signals, kind: Kind::Junction } if awaits.is_empty() && signals.is_empty() => {}
                other => flat.push(other),
            }
        }
        Self::whole(flat, Kind::Parallel)
    }

    /// Rows of a lane, flattened.
    pub(crate) fn rows(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat: Vec<Self> = Vec::new();
        for part in parts {
            match part {
                Self { awaits, signals, kind: Kind::Barrier(inner) } if awaits.is_empty() && signals.is_empty() => {
                    flat.extend(inner);
                }
                other => flat.push(other),
            }
        }
        Self::whole(flat, Kind::Barrier)
    }

    /// Several parts as one of a kind; one is itself, none is a junction.
    fn whole(mut parts: Vec<Self>, kind: fn(Vec<Self>) -> Kind) -> Self {
        match parts.len() {
            0 => Self::new(Kind::Junction),
            1 => parts.remove(0),
            _ => Self::new(kind(parts)),
        }
    }

    /// The parts directly inside.
    pub(crate) fn children(&self) -> Vec<&Self> {
        match &self.kind {
            Kind::Step(_) | Kind::Junction => Vec::new(),
            Kind::Series(parts) | Kind::Parallel(parts) | Kind::Barrier(parts) => parts.iter().collect(),
            Kind::Nested(part) => vec![part],
        }
    }

    /// Calls back for every step inside, in order.
    pub(crate) fn for_each_step(&self, visit: &mut impl FnMut(u32)) {
        if let Kind::Step(node) = self.kind {
            visit(node);
        }
        for child in self.children() {
            child.for_each_step(visit);
        }
    }

    /// The first step inside, for names.
    pub(crate) fn first_step(&self) -> Option<u32> {
        match self.kind {
            Kind::Step(node) => Some(node),
            _ => self.children().iter().find_map(|child| child.first_step()),
        }
    }

    /// Number of steps inside.
    pub(crate) fn count_steps(&self) -> usize {
        let mut count = 0;
        self.for_each_step(&mut |_| count += 1);
        count
    }
}
