//! Plans a random DAG of 100,000 steps and 400,000 edges and drives it to its end in a pure loop.
//!
//! Prints CPU seconds of one whole run and the process's peak memory, then criterion's figures for smaller sizes.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::collections::BinaryHeap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group};
use step_engine::event::Outcome;
use step_engine::plan::{Admission, Capacity, Plan, PlanSpec, ResourceSpec, StepSpec};
use step_engine::schedule::{Effect, Input, ScheduleOptions, Scheduler, Verdict};

/// Small deterministic generator (splitmix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

fn random_spec(steps: usize, edges_per_step: usize) -> PlanSpec {
    let mut random = Random(7);
    let steps = (0..steps)
        .map(|at| StepSpec {
            name: format!("s{at}"),
            upstream: (0..edges_per_step.min(at))
                .map(|_| format!("s{}", at as u64 - 1 - random.below((at as u64).min(1000))))
                .collect(),
            resources: ResourceSpec {
                cpu_millis: 250 * (1 + random.below(8)),
                memory_bytes: (1 << 28) * (1 + random.below(8)),
                gpus: 0,
            },
            ..StepSpec::default()
        })
        .collect();
    PlanSpec {
        run_id: String::new(),
        pipeline: String::new(),
        execution_mode: Default::default(),
        max_parallelism: Some(64),
        steps,
        leader: None,
    }
}

/// Runs to the end; each attempt lasts as many milliseconds as its index says, modulo 97.
fn run(spec: PlanSpec) -> u32 {
    let plan = Arc::new(Plan::new(spec).unwrap());
    let capacity = Capacity { cpu_millis: 64_000, memory_bytes: 1 << 36, gpus: 0 };
    let admission = Admission::new(&plan, capacity).unwrap();
    let mut scheduler = Scheduler::new(plan, &admission, ScheduleOptions { prepare: true });
    let mut running = BinaryHeap::new();
    let mut input = Input::Start;
    let mut now = 0;
    loop {
        for effect in scheduler.handle(Duration::from_millis(now), input) {
            match effect {
                Effect::Launch { step, attempt } => {
                    running.push(std::cmp::Reverse((now + 1 + step.get() as u64 % 97, step, attempt)));
                }
                Effect::Finish(summary) => return summary.attempts,
                _ => {}
            }
        }
        let std::cmp::Reverse((at, step, attempt)) = running.pop().unwrap();
        now = at;
        input =
            Input::AttemptEnded { step, attempt, verdict: Verdict { outcome: Outcome::Completed, may_retry: false } };
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, in the kernel's fixed 1/100 s for user space.
    [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown").to_owned()
}

fn sizes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("run to the end");
    group.sample_size(10);
    for steps in [100, 1_000, 10_000] {
        let spec = random_spec(steps, 4);
        group.bench_function(steps.to_string(), |bencher| bencher.iter(|| black_box(run(spec.clone()))));
    }
    group.finish();
}

criterion_group!(benches, sizes);

fn main() {
    let spec = random_spec(100_000, 4);
    let before = cpu_seconds();
    let attempts = run(spec);
    println!("{attempts} steps planned and run: {:.2} s of CPU; {}", cpu_seconds() - before, peak_memory());
    benches();
}
