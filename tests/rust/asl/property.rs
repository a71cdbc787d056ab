//! Random DAGs x durations x failures x modes, executed by the interpreter.
//!
//! `STEP_ENGINE_ASL_CASES` sets the number of DAGs (default 10,000 in an optimised build, 600 else), `STEP_ENGINE_ASL_SEED` the first
//! seed. All of them: `cargo test --no-default-features --profile fast asl`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};
use step_engine::asl::{Compiled, Synchronization, compile, parse_cause};
use step_engine::plan::ExecutionMode;

use super::dags::{Dag, FAMILIES, Random, dag, plan};
use super::interpreter::{End, Interpreter, What, World};
use super::{definitions, options, root_arn, structure};

const MODES: [ExecutionMode; 3] =
    [ExecutionMode::FailFast, ExecutionMode::StopOnFailure, ExecutionMode::ContinueOnFailure];
const WAYS: [Synchronization; 3] = [Synchronization::Exact, Synchronization::Barrier, Synchronization::Auto];

pub struct Case {
    pub seed: u64,
    pub dag: Dag,
    pub milliseconds: Vec<u64>,
    pub fails: BTreeSet<usize>,
    pub mode: ExecutionMode,
    pub way: Synchronization,
    pub max_parallelism: Option<u32>,
    /// By step, how often it fails before it completes; none is none for all.
    pub retries: Vec<u32>,
}

pub fn case(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let family = FAMILIES[seed as usize % FAMILIES.len()];
    // Mostly small: that is where the odd shapes are. Every twentieth is large.
    let size = if random.chance(5) { random.range(60, 200) } else { random.range(1, 40) };
    let dag = dag(family, &mut random, size);
    let milliseconds: Vec<u64> =
        dag.iter().map(|_| if random.chance(10) { 0 } else { random.range(1, 900_000) as u64 }).collect();
    let rate = [0, 0, 3, 15][random.range(0, 3)];
    let fails = (0..dag.len()).filter(|_| random.chance(rate)).collect();
    let mode = MODES[random.range(0, 2)];
    let way = if random.chance(60) { Synchronization::Exact } else { WAYS[random.range(1, 2)] };
    Case { seed, dag, milliseconds, fails, mode, way, max_parallelism: None, retries: Vec::new() }
}

pub fn compiled(case: &Case, limits: Option<(u64, u64)>, recheck_seconds: u64) -> Compiled {
    let plan = plan(&case.dag, case.mode, Some(&case.milliseconds), case.max_parallelism, &case.retries);
    let mut options = options(case.way);
    options.recheck_seconds = recheck_seconds;
    if let Some((bytes, events)) = limits {
        options.limits.definition_bytes = bytes;
        options.limits.events = events;
    }
    compile(&plan, &options).unwrap_or_else(|error| panic!("seed {}: {error}", case.seed))
}

/// What must happen, from the DAG alone.
pub struct Oracle {
    pub start: Vec<Option<u64>>,
    pub first_failure: Option<u64>,
    pub makespan: u64,
}

pub fn oracle(case: &Case) -> Oracle {
    let mut start: Vec<Option<u64>> = Vec::new();
    let finish = |start: &[Option<u64>], at: usize| match start[at] {
        Some(begin) if !case.fails.contains(&at) => Some(begin + case.milliseconds[at]),
        _ => None,
    };
    for preds in &case.dag {
        let begin = preds.iter().try_fold(0, |latest, &pred| Some(finish(&start, pred)?.max(latest)));
        start.push(begin);
    }
    let ends = |at: usize| start[at].map(|begin| begin + case.milliseconds[at]);
    let first_failure = case.fails.iter().filter_map(|&at| ends(at)).min();
    let makespan = (0..case.dag.len()).filter_map(ends).max().unwrap_or(0);
    Oracle { start, first_failure, makespan }
}

pub struct Ran {
    pub end: End,
    pub now: u64,
    pub started: BTreeMap<usize, u64>,
    pub completed: BTreeMap<usize, u64>,
    pub failed: BTreeMap<usize, u64>,
    pub stopped: BTreeSet<usize>,
    pub transitions: u64,
    /// How many ran at once at the most.
    pub most: usize,
}

fn index(step: &str) -> usize {
    step[1..].parse().expect("s and a number")
}

fn world<'a>(case: &'a Case, latency: Option<Random>) -> World<'a> {
    let mut latency = latency;
    World {
        task: Box::new(|step, attempt| {
            let at = index(step);
            let again = case.retries.get(at).is_some_and(|&retries| attempt < retries);
            let result = if again || case.fails.contains(&at) { Err("States.TaskFailed".to_owned()) } else { Ok(()) };
            (case.milliseconds[at], result)
        }),
        latency: Box::new(move || latency.as_mut().map_or(0, |random| random.range(0, 400) as u64)),
    }
}

/// `again`: a step may run twice, because the machine that it stands in was started again.
fn summary(case: &Case, interpreter: Interpreter<'_>, again: bool) -> Ran {
    let end = interpreter.end.clone().unwrap_or_else(|| panic!("seed {}: the execution hangs", case.seed));
    assert!(interpreter.largest_payload < 262_144, "payload of {}", interpreter.largest_payload);
    let mut ran = Ran {
        end,
        now: interpreter.now,
        started: BTreeMap::new(),
        completed: BTreeMap::new(),
        failed: BTreeMap::new(),
        stopped: BTreeSet::new(),
        transitions: interpreter.transitions,
        most: 0,
    };
    let mut running = 0;
    for trace in &interpreter.trace {
        let at = index(&trace.step);
        let seed = case.seed;
        if trace.what == What::Started {
            running += 1
        } else {
            running -= 1
        }
        ran.most = ran.most.max(running);
        match &trace.what {
            What::Started => {
                for pred in &case.dag[at] {
                    let done = ran.completed.get(pred);
                    assert!(
                        done.is_some_and(|&done| done <= trace.at),
                        "seed {seed}: {at} started before {pred} completed"
                    );
                }
                let second = ran.started.insert(at, trace.at).is_some();
                assert!(
                    again || !second || ran.stopped.contains(&at) || ran.failed.contains_key(&at),
                    "seed {seed}: {at} started twice: {:?}",
                    interpreter.trace.iter().filter(|t| index(&t.step) == at).collect::<Vec<_>>()
                );
            }
            What::Completed => {
                ran.failed.remove(&at);
                let second = ran.completed.insert(at, trace.at).is_some();
                assert!(again || !second, "seed {seed}: {at} completed twice");
            }
            What::Failed(_) => drop(ran.failed.insert(at, trace.at)),
            What::Stopped => drop(ran.stopped.insert(at)),
        }
    }
    ran
}

pub fn run(case: &Case, compiled: &Compiled, latency: Option<Random>) -> Ran {
    let definitions = definitions(compiled);
    let machines: HashMap<String, &Value> = definitions.iter().map(|(arn, value)| (arn.clone(), value)).collect();
    let root = machines[&root_arn(compiled)];
    let mut interpreter = Interpreter::new(machines, root, json!({"snapshot_id": "snapshot"}), world(case, latency));
    interpreter.run(None);
    if oracle(case).first_failure.is_none() && case.retries.is_empty() {
        let promised = |arn: Option<&str>| match arn {
            Some(arn) => compiled.machines.iter().find(|machine| arn.ends_with(&format!(":{}", machine.name))),
            None => Some(compiled.root()),
        };
        for (arn, events) in interpreter.histories() {
            let promised = promised(arn).expect("a machine").counts.events;
            assert!(events <= promised, "seed {}: {arn:?} has {events} events, not {promised}", case.seed);
        }
    }
    summary(case, interpreter, false)
}

/// Failed and skipped steps of an execution's end.
fn lists(ran: &Ran) -> (BTreeSet<usize>, BTreeSet<usize>) {
    match &ran.end {
        End::Succeeded(_) => Default::default(),
        End::Failed { error, cause } => {
            assert_eq!(error, "StepEngine.StepsFailed");
            let (failed, skipped) = parse_cause(cause).expect("a list");
            let all = failed.len() + skipped.len();
            let sets = (
                failed.iter().map(|s| index(s)).collect::<BTreeSet<_>>(),
                skipped.iter().map(|s| index(s)).collect::<BTreeSet<_>>(),
            );
            assert_eq!(sets.0.len() + sets.1.len(), all, "no step is listed twice: {cause}");
            sets
        }
    }
}

/// The rules of the modes. `timed`: signals take no time and nothing waits in vain, so times are exact.
pub fn check(case: &Case, ran: &Ran, timed: bool) {
    let (seed, oracle) = (case.seed, oracle(case));
    let exact = timed && case.way == Synchronization::Exact && case.max_parallelism.is_none();
    let all = case.dag.len();
    let Some(first_failure) = oracle.first_failure else {
        assert!(matches!(ran.end, End::Succeeded(_)), "seed {seed}: {:?}", ran.end);
        assert_eq!(ran.completed.len(), all, "seed {seed}: every step completes");
        if exact {
            assert_eq!(ran.now, oracle.makespan, "seed {seed}: the makespan is the critical path");
            for (at, start) in &ran.started {
                assert_eq!(Some(*start), oracle.start[*at], "seed {seed}: {at} waits for its own upstreams only");
            }
        }
        return;
    };
    assert!(matches!(ran.end, End::Failed { .. }), "seed {seed}: a step failed and the execution succeeded");
    let failed: BTreeSet<usize> = ran.failed.keys().copied().collect();
    let ended_first = ran.failed.values().min().copied().expect("a step failed");
    if exact {
        assert_eq!(ended_first, first_failure, "seed {seed}");
        assert!(ran.started.iter().all(|(at, start)| Some(*start) == oracle.start[*at]), "seed {seed}: starts");
    }
    match case.mode {
        ExecutionMode::FailFast => {
            assert_eq!(failed.len(), 1, "seed {seed}: the first failure ends the run");
            assert_eq!(ran.now, ended_first, "seed {seed}: at once");
            let over = ran.completed.len() + 1 + ran.stopped.len();
            assert_eq!(over, ran.started.len(), "seed {seed}: what ran was stopped");
        }
        ExecutionMode::StopOnFailure => {
            assert!(ran.stopped.is_empty(), "seed {seed}: what runs finishes");
            assert_eq!(ran.completed.len() + failed.len(), ran.started.len(), "seed {seed}");
            let skipped: BTreeSet<usize> = (0..all).filter(|at| !ran.started.contains_key(at)).collect();
            assert_eq!(lists(ran), (failed, skipped), "seed {seed}");
            if timed {
                let late = ran.started.iter().find(|(_, start)| **start > ended_first);
                assert_eq!(late, None, "seed {seed}: nothing starts after {ended_first}");
            }
            if exact {
                let due = (0..all).filter(|&at| oracle.start[at].is_some_and(|start| start < first_failure));
                assert!(due.into_iter().all(|at| ran.started.contains_key(&at)), "seed {seed}: what was due ran");
            }
        }
        ExecutionMode::ContinueOnFailure => {
            assert!(ran.stopped.is_empty(), "seed {seed}: nothing is stopped");
            for at in 0..all {
                let runs = oracle.start[at].is_some();
                assert_eq!(ran.started.contains_key(&at), runs, "seed {seed}: {at} runs if its upstreams completed");
            }
            let fails: BTreeSet<usize> = case.fails.iter().copied().filter(|&at| oracle.start[at].is_some()).collect();
            let skipped: BTreeSet<usize> = (0..all).filter(|&at| oracle.start[at].is_none()).collect();
            assert_eq!(lists(ran), (fails, skipped), "seed {seed}");
            if exact {
                assert_eq!(ran.now, oracle.makespan, "seed {seed}");
            }
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

pub fn in_threads(cases: u64, work: impl Fn(u64) + Sync) {
    let first = setting("STEP_ENGINE_ASL_SEED", 0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || (first..first + cases).filter(|seed| seed % threads == thread).for_each(work));
        }
    });
}

pub fn cases() -> u64 {
    setting("STEP_ENGINE_ASL_CASES", if cfg!(debug_assertions) { 600 } else { 10_000 })
}

#[test]
fn random_dags_keep_order_makespan_and_mode() {
    in_threads(cases(), |seed| {
        let case = case(seed);
        // No second look, so that transitions are those of the report.
        let compiled = compiled(&case, None, 6_249_999);
        for machine in definitions(&compiled).values() {
            structure::check(machine);
        }
        let ran = run(&case, &compiled, None);
        check(&case, &ran, true);
        let report = &compiled.report;
        if case.way == Synchronization::Barrier {
            assert!(report.token_edges.is_empty());
        }
        if oracle(&case).first_failure.is_none() {
            let promised = report.makespan_seconds * 1000.0;
            assert!(ran.now as f64 <= promised + 1e-3, "seed {seed}: {} > {promised}", ran.now);
            assert!(ran.transitions <= report.transitions, "seed {seed}: {} > {}", ran.transitions, report.transitions);
            if case.way == Synchronization::Auto {
                assert!(report.makespan_ratio <= 1.02 + 1e-9, "seed {seed}: {}", report.makespan_ratio);
            }
        }
    });
}

#[test]
fn slow_requests_change_no_outcome() {
    in_threads(cases() / 5, |seed| {
        let case = case(seed);
        let compiled = compiled(&case, None, 1_800);
        let ran = run(&case, &compiled, Some(Random::new(seed + 1)));
        check(&case, &ran, false);
    });
}

#[test]
fn nested_machines_change_no_outcome() {
    let nested = std::sync::atomic::AtomicU64::new(0);
    in_threads(cases() / 10, |seed| {
        let case = case(seed);
        let compiled = compiled(&case, Some((60_000, 400)), 1_800);
        for machine in &compiled.machines {
            assert!(machine.definition.len() <= 60_000 && machine.counts.events <= 400, "seed {seed}");
        }
        nested.fetch_add(u64::from(compiled.machines.len() > 1), std::sync::atomic::Ordering::Relaxed);
        for machine in definitions(&compiled).values() {
            structure::check(machine);
        }
        check(&case, &run(&case, &compiled, None), true);
    });
    assert!(nested.into_inner() >= cases() / 40, "the limits are small enough to split");
}

#[test]
fn a_redriven_execution_completes_and_finds_no_old_token() {
    let nested = std::sync::atomic::AtomicU64::new(0);
    in_threads(cases() / 5, |seed| {
        let mut case = case(seed);
        case.fails.clear();
        // A redrive starts the machines inside that had not succeeded from their beginning, see docs/step-functions.md.
        let compiled = compiled(&case, (seed % 3 == 0).then_some((200_000, 400)), 1_800);
        let inside = compiled.machines.len() > 1;
        nested.fetch_add(u64::from(inside), std::sync::atomic::Ordering::Relaxed);
        let definitions = definitions(&compiled);
        let machines: HashMap<String, &Value> = definitions.iter().map(|(arn, value)| (arn.clone(), value)).collect();
        let root = machines[&root_arn(&compiled)];
        let mut random = Random::new(seed + 7);
        let latency = random.chance(50).then(|| Random::new(seed + 9));
        let timed = latency.is_none();
        let mut interpreter = Interpreter::new(machines, root, json!({"snapshot_id": "x"}), world(&case, latency));
        let makespan = oracle(&case).makespan;
        let mut aborts = 0;
        for _ in 0..2 {
            let until = interpreter.now + random.range(0, makespan as usize) as u64;
            interpreter.run(Some(until));
            if interpreter.end.is_none() {
                interpreter.abort();
                interpreter.redrive();
                aborts += 1;
            }
        }
        interpreter.run(None);
        let ran = summary(&case, interpreter, inside);
        assert!(matches!(ran.end, End::Succeeded(_)), "seed {seed}: {:?}", ran.end);
        assert_eq!(ran.completed.len(), case.dag.len(), "seed {seed}");
        if timed && case.way == Synchronization::Exact {
            assert!(ran.now <= makespan * (aborts + 1), "seed {seed}: nothing waits for an old token");
        }
    });
    assert!(nested.into_inner() >= cases() / 60, "machines inside machines are redriven, too");
}
