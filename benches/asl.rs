//! The compiler: time and definition size by number of steps; makespan of the ways to keep dependencies against exact.
//!
//! `cargo bench --no-default-features --bench asl`. Level barriers, the way of other compilers to Step Functions, stand here only, as the
//! peer to compare with.
#![expect(clippy::expect_used, clippy::type_complexity, reason = "a benchmark")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use step_engine::asl::{self, AslOptions, Synchronization};
use step_engine::plan::{ExecutionMode, Plan, PlanSpec, StepSpec};

use dags::{Dag, Random, ml};

#[path = "../tests/rust/asl/dags.rs"]
#[expect(dead_code, reason = "the families of the property test")]
mod dags;

/// Evenly between 0 and 1.
fn unit(random: &mut Random) -> f64 {
    random.next() as f64 / (1_u64 << 53) as f64
}

/// 35 s to start a task and a lognormal time to work, median 60 s (Box, Muller 1958).
fn task_seconds(random: &mut Random, sigma: f64) -> f64 {
    let (u, v) = (unit(random).max(1e-12), unit(random));
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    35.0 + (60.0_f64.ln() + sigma * normal).exp()
}

fn layered(random: &mut Random, depth: usize, width: usize, extra: usize) -> Dag {
    let mut preds: Dag = Vec::new();
    let mut last = 0..0;
    for _ in 0..depth {
        let before = preds.len();
        for _ in 0..random.range(1, width) {
            let mut of = Vec::new();
            if before > 0 {
                of.push(random.range(last.start, last.end - 1));
                for _ in 0..random.range(0, extra) {
                    of.push(random.range(0, before - 1));
                }
            }
            preds.push(of);
        }
        last = before..preds.len();
    }
    preds
}

/// `steps` steps in layers of up to 20, about four upstreams each.
fn large(steps: usize) -> Dag {
    let mut random = Random::new(42);
    let mut preds: Dag = Vec::new();
    while preds.len() < steps {
        let before = preds.len();
        let window = before.saturating_sub(60);
        for _ in 0..random.range(1, 20).min(steps - before) {
            preds.push(if before == 0 { vec![] } else { (0..4).map(|_| random.range(window, before - 1)).collect() });
        }
    }
    preds
}

fn plan(dag: &Dag, seconds: Option<&[f64]>) -> Plan {
    let steps = dag.iter().enumerate().map(|(at, upstream)| StepSpec {
        name: format!("step_{at}"),
        upstream: upstream.iter().map(|up| format!("step_{up}")).collect(),
        expected_seconds: seconds.map(|seconds| seconds[at]),
        ..StepSpec::default()
    });
    let spec = PlanSpec {
        run_id: String::new(),
        pipeline: "bench".into(),
        execution_mode: ExecutionMode::ContinueOnFailure,
        max_parallelism: None,
        steps: steps.collect(),
        leader: None,
    };
    Plan::new(spec).expect("a DAG")
}

fn options(synchronization: Synchronization) -> AslOptions {
    let mut options = AslOptions::from_json(
        r#"{"signals": {"bucket": "artifacts"}, "task": {"cluster": "pipelines", "task_definition": "zenml:1", "container": "main",
            "launch_type": "FARGATE", "network": {"subnets": ["subnet-1"], "security_groups": ["sg-1"]},
            "command": ["python", "-m", "zenml.step_operators.entrypoint", {"input": "snapshot_id"}]}}"#,
    )
    .expect("options");
    options.synchronization = synchronization;
    options
}

fn critical_path(dag: &Dag, seconds: &[f64]) -> f64 {
    let mut finish = vec![0.0_f64; dag.len()];
    for at in 0..dag.len() {
        finish[at] = seconds[at] + dag[at].iter().map(|&p| finish[p]).fold(0.0, f64::max);
    }
    finish.into_iter().fold(0.0, f64::max)
}

fn levels(dag: &Dag, seconds: &[f64]) -> f64 {
    let mut level = vec![0_usize; dag.len()];
    for at in 0..dag.len() {
        level[at] = dag[at].iter().map(|&p| level[p] + 1).max().unwrap_or(0);
    }
    let mut longest = vec![0.0_f64; dag.len()];
    for at in 0..dag.len() {
        longest[level[at]] = longest[level[at]].max(seconds[at]);
    }
    longest.iter().sum()
}

fn mean_and_p95(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    format!("{mean:.2} / {:.2}", values[values.len() * 95 / 100])
}

fn table(rows: &mut String) {
    let families: [(&str, fn(&mut Random) -> Dag); 4] = [
        ("layered, 6 x 4", |r| layered(r, 6, 4, 1)),
        ("layered, 8 x 6", |r| layered(r, 8, 6, 2)),
        ("ML-like, 3 sources", |r| ml(r, 3)),
        ("ML-like, 5 sources", |r| ml(r, 5)),
    ];
    for (name, family) in families {
        for sigma in [0.5, 1.0] {
            let mut random = Random::new(7);
            let mut columns: [Vec<f64>; 5] = Default::default();
            let (mut steps, mut edges) = (0, 0);
            for _ in 0..200 {
                let dag = family(&mut random);
                let seconds: Vec<f64> = dag.iter().map(|_| task_seconds(&mut random, sigma)).collect();
                let exact = critical_path(&dag, &seconds);
                columns[0].push(levels(&dag, &seconds) / exact);
                let known = plan(&dag, Some(&seconds));
                let ratio = |way| asl::compile(&known, &options(way)).expect("compiles").report;
                columns[1].push(ratio(Synchronization::Barrier).makespan_ratio);
                columns[2].push(ratio(Synchronization::Auto).makespan_ratio);
                let report = ratio(Synchronization::Exact);
                columns[3].push(report.makespan_ratio);
                columns[4].push(report.token_edges.len() as f64);
                steps += dag.len();
                edges += report.edges;
            }
            let tokens = columns[4].iter().sum::<f64>() / 200.0;
            let [levels, barrier, auto, exact, _] = columns.map(mean_and_p95);
            let (steps, edges) = (steps / 200, edges / 200);
            let _ = writeln!(
                rows,
                "| {name}, n≈{steps} | {sigma} | {levels} | {barrier} | {auto} | {exact} | {tokens:.1} of {edges} |"
            );
        }
    }
}

fn sizes(rows: &mut String) {
    for steps in [10, 100, 1_000, 10_000] {
        let plan = plan(&large(steps), None);
        for way in [Synchronization::Exact, Synchronization::Barrier] {
            let options = options(way);
            let mut best = f64::MAX;
            let mut compiled = None;
            for _ in 0..3 {
                #[expect(clippy::disallowed_methods, reason = "a benchmark reads a clock")]
                let begin = Instant::now();
                compiled = Some(asl::compile(&plan, &options).expect("compiles"));
                best = best.min(begin.elapsed().as_secs_f64() * 1e3);
            }
            let Some(compiled) = compiled else { continue };
            let bytes: usize = compiled.machines.iter().map(|machine| machine.definition.len()).sum();
            let report = &compiled.report;
            let _ = writeln!(
                rows,
                "| {steps} | {} | {way:?} | {best:.1} ms | {} kB in {} | {} | {:.4} $ |",
                plan.dag().edge_count(),
                bytes / 1000,
                compiled.machines.len(),
                report.token_edges.len(),
                report.dollars_per_run
            );
        }
    }
}

fn compile_times(criterion: &mut Criterion) {
    let mut rows = String::from(
        "\n| DAGs | sigma | levels | barrier | auto | exact | token edges |\n|---|---|---|---|---|---|---|\n",
    );
    table(&mut rows);
    rows.push_str(
        "\n| steps | edges | way | compile | definitions | token edges | per run |\n|---|---|---|---|---|---|---|\n",
    );
    sizes(&mut rows);
    eprintln!("{rows}");
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for steps in [10, 100, 1_000] {
        let plan = plan(&large(steps), None);
        for way in [Synchronization::Exact, Synchronization::Barrier] {
            let options = options(way);
            group.bench_with_input(
                BenchmarkId::new(format!("{way:?}").to_lowercase(), steps),
                &plan,
                |bencher, plan| {
                    bencher.iter(|| asl::compile(black_box(plan), &options));
                },
            );
        }
    }
    group.finish();
}

criterion_group!(benches, compile_times);
criterion_main!(benches);
