//! Random DAGs of named families. An own small generator, so that a seed gives the same DAG for ever.

use step_engine::plan::{ExecutionMode, Plan, PlanSpec, RetrySpec, StepSpec};

/// xorshift64* (Vigna 2016).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Upstreams of each step, in topological order.
pub type Dag = Vec<Vec<usize>>;

pub const FAMILIES: [&str; 8] = ["layered", "ml", "n", "w", "dense", "chain", "sparse", "bipartite"];

pub fn dag(family: &str, random: &mut Random, size: usize) -> Dag {
    let mut preds: Dag = Vec::new();
    match family {
        "layered" => {
            let mut layers: Vec<Vec<usize>> = Vec::new();
            while preds.len() < size {
                let width = random.range(1, 6);
                let mut layer = Vec::new();
                for _ in 0..width {
                    let mut of = Vec::new();
                    if let Some(last) = layers.last() {
                        of.push(last[random.range(0, last.len() - 1)]);
                        for _ in 0..random.range(0, 2) {
                            let any = &layers[random.range(0, layers.len() - 1)];
                            of.push(any[random.range(0, any.len() - 1)]);
                        }
                    }
                    layer.push(preds.len());
                    preds.push(of);
                }
                layers.push(layer);
            }
        }
        "ml" => preds = ml(random, (size / 8).max(1)),
        "n" => {
            for _ in 0..(size / 4).max(1) {
                let first = preds.len();
                let entry: Vec<usize> =
                    if first > 0 && random.chance(50) { vec![random.range(0, first - 1)] } else { vec![] };
                preds.extend([entry.clone(), entry, vec![first], vec![first, first + 1]]);
            }
        }
        "w" => {
            let width = (size / 2).max(2);
            for at in 0..width {
                preds.push(if at > 0 && random.chance(20) { vec![at - 1] } else { vec![] });
            }
            for at in 0..width {
                preds.push(if at + 1 < width { vec![at, at + 1] } else { vec![at] });
            }
        }
        "dense" => {
            for at in 0..size.min(40) {
                preds.push((0..at).filter(|_| random.chance(40)).collect());
            }
        }
        "chain" => {
            for at in 0..size {
                preds.push(if at > 0 && !random.chance(5) { vec![at - 1] } else { vec![] });
            }
        }
        "sparse" => {
            for at in 0..size {
                let count = random.range(0, 2).min(at);
                preds.push((0..count).map(|_| random.range(at.saturating_sub(12), at - 1)).collect());
            }
        }
        "bipartite" => {
            let (left, right) = ((size / 3).max(2), (size / 3).max(2));
            preds.extend((0..left).map(|_| vec![]));
            for at in 0..right {
                preds.push(if at == 0 { (1..left).collect() } else { (0..left).collect() });
            }
            preds.push((left..left + right).filter(|_| random.chance(70)).collect());
        }
        other => panic!("unknown family {other}"),
    }
    preds
}

/// Sources with a split each, models on some of them, one comparison.
pub fn ml(random: &mut Random, sources: usize) -> Dag {
    let mut preds: Dag = Vec::new();
    let mut features = Vec::new();
    for _ in 0..sources {
        let load = preds.len();
        preds.extend([vec![], vec![load], vec![load + 1], vec![load + 1]]);
        features.push(load + 2);
    }
    let mut evaluations = Vec::new();
    for _ in 0..random.range(2, 5) {
        let of = (0..random.range(1, 3)).map(|_| features[random.range(0, features.len() - 1)]).collect();
        let train = preds.len();
        preds.extend([of, vec![train]]);
        evaluations.push(train + 1);
    }
    let compare = preds.len();
    preds.extend([evaluations, vec![compare]]);
    preds
}

pub fn name(at: usize) -> String {
    format!("s{at:03}")
}

/// `retries` by step; none is none for all.
pub fn plan(
    dag: &Dag,
    mode: ExecutionMode,
    milliseconds: Option<&[u64]>,
    max_parallelism: Option<u32>,
    retries: &[u32],
) -> Plan {
    let steps = dag.iter().enumerate().map(|(at, upstream)| StepSpec {
        name: name(at),
        upstream: upstream.iter().map(|&up| name(up)).collect(),
        expected_seconds: milliseconds.map(|durations| durations[at] as f64 / 1000.0),
        retry: RetrySpec { max_retries: retries.get(at).copied().unwrap_or(0), ..RetrySpec::default() },
        ..StepSpec::default()
    });
    Plan::new(PlanSpec {
        run_id: String::new(),
        pipeline: "pipeline".into(),
        execution_mode: mode,
        max_parallelism,
        steps: steps.collect(),
        leader: None,
    })
    .expect("a DAG")
}
