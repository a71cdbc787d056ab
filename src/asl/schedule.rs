//! Expected times of a tree with barriers and token edges, without running it.

use super::tree::{Kind, Part};

/// Makespan in expected seconds: when the tree is over if every step takes what is expected and signals take no time.
///
/// A token edge may point to a part that stands earlier in the tree, so times are found by repeated passes until nothing moves; each
/// pass settles at least one more edge of the longest chain of edges, and waiting follows the DAG, so it ends.
pub fn makespan(root: &Part, seconds: &[f64], token_edges: usize) -> f64 {
    let mut signalled = vec![0.0_f64; token_edges];
    loop {
        let before = signalled.clone();
        let end = pass(root, 0.0, seconds, &mut signalled);
        if signalled == before {
            return end;
        }
    }
}

fn pass(part: &Part, start: f64, seconds: &[f64], signalled: &mut [f64]) -> f64 {
    let begin = part.awaits.iter().map(|&edge| signalled[edge]).fold(start, f64::max);
    let end = match &part.kind {
        Kind::Step(node) => begin + seconds[*node as usize],
        Kind::Junction => begin,
        Kind::Parallel(parts) => parts.iter().map(|part| pass(part, begin, seconds, signalled)).fold(begin, f64::max),
        Kind::Series(_) | Kind::Barrier(..) | Kind::Nested(_) => {
            part.children().into_iter().fold(begin, |at, part| pass(part, at, seconds, signalled))
        }
    };
    for &edge in &part.signals {
        signalled[edge] = end;
    }
    end
}
