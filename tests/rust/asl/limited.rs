//! `max_parallelism`: never more steps at once, whatever fails and however dependencies are kept; nothing else changes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Mutex;

use step_engine::asl::{Synchronization, compile};
use step_engine::plan::ExecutionMode;

use super::dags::{Dag, Random, name, plan};
use super::interpreter::End;
use super::property::{Case, case, cases, check, compiled, in_threads, oracle, run};
use super::{definitions, options, structure};

const WAYS: [Synchronization; 3] = [Synchronization::Exact, Synchronization::Barrier, Synchronization::Auto];

/// As in the property tests, with a limit; where nothing fails for good some steps fail before they complete.
fn limited(seed: u64) -> Case {
    let mut case = case(seed);
    let mut random = Random::new(seed + 11);
    case.way = WAYS[random.range(0, 2)];
    case.max_parallelism = Some(random.range(1, 6) as u32);
    if case.fails.is_empty() && random.chance(30) {
        case.retries = case.dag.iter().map(|_| if random.chance(20) { 2 } else { 0 }).collect();
    }
    case
}

/// Graham's list schedule, the longest remaining path first.
fn list_schedule(dag: &Dag, milliseconds: &[u64], places: usize) -> u64 {
    let mut tails = milliseconds.to_vec();
    for at in (0..dag.len()).rev() {
        for &pred in &dag[at] {
            tails[pred] = tails[pred].max(milliseconds[pred] + tails[at]);
        }
    }
    let mut succs = vec![BTreeSet::new(); dag.len()];
    let mut waiting = vec![0; dag.len()];
    for (at, preds) in dag.iter().enumerate() {
        for &pred in preds {
            waiting[at] += usize::from(succs[pred].insert(at));
        }
    }
    let mut ready: BinaryHeap<(u64, Reverse<usize>)> =
        (0..dag.len()).filter(|&at| waiting[at] == 0).map(|at| (tails[at], Reverse(at))).collect();
    let mut running = BinaryHeap::new();
    let mut now = 0;
    loop {
        while running.len() < places && !ready.is_empty() {
            let (_, Reverse(at)) = ready.pop().expect("one is ready");
            running.push(Reverse((now + milliseconds[at], at)));
        }
        let Some(&Reverse((end, _))) = running.peek() else { return now };
        now = end;
        // What ends at the same moment is over together.
        while running.peek().is_some_and(|&Reverse((end, _))| end == now) {
            let Some(Reverse((_, at))) = running.pop() else { break };
            for &succ in &succs[at] {
                waiting[succ] -= 1;
                if waiting[succ] == 0 {
                    ready.push((tails[succ], Reverse(succ)));
                }
            }
        }
    }
}

/// The largest antichain of a small DAG: steps less pairs of a matching in the transitive closure (Dilworth; Fulkerson 1956).
fn width(dag: &Dag) -> usize {
    fn augment(at: usize, before: &[BTreeSet<usize>], of: &mut [Option<usize>], seen: &mut BTreeSet<usize>) -> bool {
        before[at].iter().any(|&pred| {
            seen.insert(pred) && of[pred].is_none_or(|other| augment(other, before, of, seen)) && {
                of[pred] = Some(at);
                true
            }
        })
    }
    let mut before: Vec<BTreeSet<usize>> = Vec::new();
    for preds in dag {
        let all = preds.iter().flat_map(|&pred| before[pred].iter().copied().chain([pred])).collect();
        before.push(all);
    }
    let mut of = vec![None; dag.len()];
    dag.len() - (0..dag.len()).filter(|&at| augment(at, &before, &mut of, &mut BTreeSet::new())).count()
}

#[test]
fn never_more_than_allowed_run_at_once() {
    let reached = Mutex::new(0);
    in_threads(cases(), |seed| {
        let case = limited(seed);
        let places = case.max_parallelism.expect("a limit") as usize;
        let compiled = compiled(&case, None, 6_249_999);
        for machine in definitions(&compiled).values() {
            structure::check(machine);
        }
        let ran = run(&case, &compiled, None);
        assert!(ran.most <= places, "seed {seed}: {} at once, not {places}", ran.most);
        check(&case, &ran, true);
        *reached.lock().expect("no panic") += usize::from(ran.most == places);
        let report = &compiled.report;
        assert_eq!(report.width, Some(width(&case.dag)), "seed {seed}");
        if case.way == Synchronization::Barrier {
            assert!(report.token_edges.is_empty(), "seed {seed}");
        }
        if oracle(&case).first_failure.is_none() && case.retries.is_empty() {
            assert!(ran.now as f64 <= report.makespan_seconds * 1000.0 + 1e-3, "seed {seed}: {}", ran.now);
            assert!(ran.transitions <= report.transitions, "seed {seed}: {} > {}", ran.transitions, report.transitions);
        }
    });
    assert!(reached.into_inner().expect("no panic") as u64 > cases() / 2, "the limit is used");
}

#[test]
fn slow_requests_and_nested_machines_keep_the_limit() {
    in_threads(cases() / 5, |seed| {
        let case = limited(seed);
        let places = case.max_parallelism.expect("a limit") as usize;
        let small = (seed % 2 == 0).then_some((60_000, 400));
        let compiled = compiled(&case, small, 1_800);
        for machine in definitions(&compiled).values() {
            structure::check(machine);
        }
        let latency = (seed % 4 < 2).then(|| Random::new(seed + 1));
        let timed = latency.is_none();
        let ran = run(&case, &compiled, latency);
        assert!(ran.most <= places, "seed {seed}: {} at once, not {places}", ran.most);
        check(&case, &ran, timed);
    });
}

#[test]
fn a_limit_that_cannot_be_reached_changes_no_byte() {
    in_threads(cases() / 5, |seed| {
        let mut case = case(seed);
        let without = compiled(&case, None, 1_800);
        let width = width(&case.dag) as u32;
        for limit in [width, width + 1, u32::MAX] {
            case.max_parallelism = Some(limit);
            assert_eq!(compiled(&case, None, 1_800).machines, without.machines, "seed {seed}: {limit}");
        }
    });
}

/// Against the list schedule, and against what no schedule is below. Printed with `--nocapture`.
#[test]
#[expect(clippy::print_stdout, reason = "a measurement for the documentation")]
fn lanes_are_about_as_good_as_a_list_schedule() {
    for (way, mean, worst) in [
        (Synchronization::Exact, 1.0, 1.000_001),
        (Synchronization::Auto, 1.02, 1.1),
        (Synchronization::Barrier, 1.2, 2.0),
    ] {
        let ratios = Mutex::new(Vec::new());
        let tokens = Mutex::new(0);
        in_threads(cases(), |seed| {
            let mut case = limited(seed);
            (case.way, case.mode) = (way, ExecutionMode::ContinueOnFailure);
            case.fails.clear();
            case.retries.clear();
            let places = case.max_parallelism.expect("a limit") as usize;
            let compiled = compiled(&case, None, 6_249_999);
            if compiled.report.width.is_some_and(|width| width <= places) {
                return;
            }
            let ran = run(&case, &compiled, None);
            assert!(matches!(ran.end, End::Succeeded(_)), "seed {seed}");
            let list = list_schedule(&case.dag, &case.milliseconds, places).max(1);
            ratios.lock().expect("no panic").push((ran.now.max(1) as f64 / list as f64, seed));
            *tokens.lock().expect("no panic") += compiled.report.token_edges.len();
        });
        let mut ratios = ratios.into_inner().expect("no panic");
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = ratios.len();
        let average = ratios.iter().map(|(ratio, _)| ratio).sum::<f64>() / count as f64;
        let (p95, last) = (ratios[count * 95 / 100].0, ratios[count - 1]);
        println!(
            "{way:?}: {count} DAGs, mean {average:.4}, p95 {p95:.3}, worst {:.3} (seed {}), {:.1} token edges",
            last.0,
            last.1,
            tokens.into_inner().expect("no panic") as f64 / count as f64
        );
        assert!(average <= mean && last.0 <= worst, "{way:?}: mean {average}, worst {last:?}");
    }
}

fn shape(count: usize, length: usize, limit: u32, way: Synchronization) -> step_engine::asl::Compiled {
    let dag: Dag = (0..count * length).map(|at| if at % length == 0 { vec![] } else { vec![at - 1] }).collect();
    compile(&plan(&dag, ExecutionMode::ContinueOnFailure, None, Some(limit), &[]), &options(way)).expect("compiles")
}

#[test]
fn equal_branches_are_dealt_out_evenly() {
    for way in WAYS {
        for (count, length, limit, seconds) in [(16, 1, 4, 4.0), (40, 3, 8, 15.0), (6, 1, 2, 3.0), (7, 2, 1, 14.0)] {
            let compiled = shape(count, length, limit, way);
            let report = &compiled.report;
            assert!(report.token_edges.is_empty(), "{count} x {length}, {way:?}");
            assert!((report.makespan_seconds - seconds).abs() < 1e-9, "{way:?}: {}", report.makespan_seconds);
            assert_eq!((report.max_parallelism, report.width), (Some(limit), Some(count)));
            assert_eq!(report.added_waits.len(), count - limit as usize, "one for each that does not begin a lane");
            // No state is there for a wait: a failure in a lane is nobody's upstream.
            let root = &definitions(&compiled)[&super::root_arn(&compiled)];
            assert!(!root.to_string().contains("barrier before"));
            let branches =
                &root["States"].as_object().expect("states").values().find(|state| state["Type"] == "Parallel");
            let branches = branches.map_or(1, |state| state["Branches"].as_array().expect("branches").len());
            assert_eq!(branches, limit as usize);
        }
    }
    let wait = &shape(16, 1, 4, Synchronization::Exact).report.added_waits[0];
    assert_eq!((&wait.first, &wait.then, wait.pairs), (&vec![name(0)], &vec![name(4)], 1));
}

/// Independent chains, and the same behind a step that all of them wait for, beside one that an end of them waits for: no component is
/// dealt out, no cut is complete.
#[test]
fn chains_stay_in_their_lanes() {
    let edges = |dag: &Dag, milliseconds: Option<&[u64]>, limit| {
        let plan = plan(dag, ExecutionMode::ContinueOnFailure, milliseconds, Some(limit), &[]);
        let report = compile(&plan, &options(Synchronization::Exact)).expect("compiles").report;
        (report.token_edges.len(), report.makespan_seconds)
    };
    let chains = |count: usize, length: usize| -> Dag {
        (0..count * length).map(|at| if at % length == 0 { vec![] } else { vec![at - 1] }).collect()
    };
    let tied = |count: usize, length: usize| -> Dag {
        let mut dag: Dag = vec![vec![]];
        dag.extend((0..count * length).map(|at| if at % length == 0 { vec![0] } else { vec![at] }));
        dag.extend([vec![], vec![1, count * length + 1]]);
        dag
    };
    let (count, seconds) = edges(&chains(250, 40), None, 8);
    assert!(count <= 20 && (seconds - 1250.0).abs() < 1e-6, "{count} edges, {seconds} s");
    // Seven of eight chains begin in another lane than the step that they wait for.
    let (count, seconds) = edges(&tied(250, 40), None, 8);
    assert!(count <= 240 && (seconds - 1252.0).abs() < 1e-6, "{count} edges, {seconds} s");
    // Six steps on two places in three seconds: the third chain has to be cut.
    let (count, seconds) = edges(&chains(3, 2), None, 2);
    assert!(count <= 1 && (seconds - 3.0).abs() < 1e-6, "{count} edges, {seconds} s");
}

fn barriers(dag: &Dag, fails: &[usize], max_parallelism: Option<u32>) -> Case {
    Case {
        seed: 0,
        milliseconds: vec![1000; dag.len()],
        dag: dag.clone(),
        fails: fails.iter().copied().collect(),
        mode: ExecutionMode::ContinueOnFailure,
        way: Synchronization::Barrier,
        max_parallelism,
        retries: Vec::new(),
    }
}

/// 0, 1 -> 2, 3 is an N, and so is 4, 5 -> 6, 7, which 8 waits for. 2 is nobody's upstream, and before the barrier.
#[test]
fn a_row_behind_a_barrier_is_skipped_for_its_own_upstreams_only() {
    let dag: Dag = vec![vec![], vec![], vec![0], vec![0, 1], vec![3], vec![3], vec![4], vec![4, 5], vec![6, 7]];
    for limit in [None, Some(3), Some(2)] {
        for fails in [&[2][..], &[2, 5], &[5], &[6], &[2, 3]] {
            let case = barriers(&dag, fails, limit);
            let ran = run(&case, &compiled(&case, None, 6_249_999), None);
            check(&case, &ran, true);
        }
    }
    let case = barriers(&dag, &[2], None);
    let compiled = compiled(&case, None, 6_249_999);
    let definition = definitions(&compiled)[&super::root_arn(&compiled)].to_string();
    assert!(definition.contains("add to what was before"), "the row of a barrier and 8 is behind a barrier");
}

/// What did not complete stands in a payload at most twice, however many barriers pass it on. Without that these are 557 and 377 kB.
#[test]
fn payloads_do_not_grow_with_the_number_of_barriers() {
    // Three strands that change places have no cut, so they are barriers inside barriers. What hangs on their first step fails.
    let (length, loose) = (500, 800);
    let mut braid: Dag = vec![vec![]; 3];
    braid.extend((3..3 * length).map(|at| vec![at - 3, if at % 3 == 2 { at - 5 } else { at - 2 }]));
    braid.extend((0..loose).map(|_| vec![0]));
    let fails: Vec<usize> = (3 * length..3 * length + loose).collect();
    for limit in [None, Some(2)] {
        let case = barriers(&braid, &fails, limit);
        check(&case, &run(&case, &compiled(&case, None, 6_249_999), None), true);
    }
}

/// Steps that thousands wait for, or that wait for thousands, beside one that is nobody's: no machine has room for so many token edges.
#[test]
fn wide_forks_and_joins_compile_beside_something_else() {
    let mut random = Random::new(5);
    let width = 2_000;
    let fork: Dag = [vec![vec![], vec![]], vec![vec![1]; width]].concat();
    let join: Dag = [vec![vec![]; width + 1], vec![(1..=width).collect()]].concat();
    for dag in [fork, join] {
        let mut case = barriers(&dag, &[], Some(8));
        case.milliseconds = dag.iter().map(|_| random.range(1_000, 100_000) as u64).collect();
        for way in WAYS {
            case.way = way;
            let compiled = compiled(&case, None, 6_249_999);
            let ran = run(&case, &compiled, None);
            assert!(ran.most <= 8, "{way:?}: {}", ran.most);
            check(&case, &ran, true);
            let list = list_schedule(&dag, &case.milliseconds, 8) as f64;
            assert!(ran.now as f64 <= 1.05 * list, "{way:?}: {} ms, not {list}", ran.now);
        }
    }
}
