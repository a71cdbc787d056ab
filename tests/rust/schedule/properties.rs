//! Random DAGs, outcomes, interrupts and capacities in virtual time; every effect is checked as it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use step_engine::event::{AttemptDetails, Outcome, RunEvent, RunStatus, RunSummary, StepStatus};
use step_engine::plan::StepSpec;
use step_engine::plan::{
    Admission, Capacity, Demand, ExecutionMode, Plan, PlanSpec, ResourceSpec, RetrySpec, StepIndex,
};
use step_engine::schedule::{CancelReason, Effect, Input, ScheduleOptions, Scheduler, StopForce, Verdict};

const HOST: Capacity = Capacity { cpu_millis: 4000, memory_bytes: 4 << 30, gpus: 2 };

/// What every attempt of a step does.
#[derive(Debug, Clone)]
struct Behaviour {
    launch_ms: u64,
    run_ms: u64,
    /// By attempt, the last one for all later ones.
    outcomes: Vec<Outcome>,
    /// The weakest force that ends it; none ends it only by itself.
    yields_to: Option<StopForce>,
    may_retry: bool,
    /// Time between the end and the verdict.
    verdict_ms: u64,
}

#[derive(Debug, Clone)]
struct Scene {
    spec: PlanSpec,
    behaviours: Vec<Behaviour>,
    cancels: Vec<(u64, CancelReason)>,
    prepare: bool,
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Completed),
        2 => Just(Outcome::Exited { code: 1 }),
        1 => Just(Outcome::OutOfMemory),
        1 => Just(Outcome::Stopped),
        1 => Just(Outcome::Lost { reason: "gone".into() }),
    ];
    let yields_to =
        prop_oneof![5 => Just(Some(StopForce::Graceful)), 2 => Just(Some(StopForce::Kill)), 1 => Just(None)];
    (0..5_u64, 0..100_u64, prop::collection::vec(outcome, 1..4), yields_to, prop::bool::weighted(0.8), 0..3_u64)
        .prop_map(|(launch_ms, run_ms, outcomes, yields_to, may_retry, verdict_ms)| Behaviour {
            launch_ms,
            run_ms,
            outcomes,
            yields_to,
            may_retry,
            verdict_ms,
        })
}

fn step_spec(at: usize, demanding: bool) -> impl Strategy<Value = StepSpec> {
    let resources = (0..5_u64, 0..5_u64, 0..3_u32).prop_map(move |(cpu, memory, gpus)| match demanding {
        true => ResourceSpec { cpu_millis: cpu * 1000, memory_bytes: memory << 30, gpus },
        false => ResourceSpec::default(),
    });
    let upstream = prop::collection::vec(0..at.max(1), 0..=at.min(3));
    (upstream, resources, 0..3_u32, prop::option::weighted(0.2, 0.01..0.1), 0.0..0.05, prop::option::of(0.0..9.0))
        .prop_map(move |(upstream, resources, max_retries, timeout_seconds, delay_seconds, expected_seconds)| {
            StepSpec {
                name: format!("s{at}"),
                upstream: if at == 0 { vec![] } else { upstream.iter().map(|up| format!("s{up}")).collect() },
                resources,
                retry: RetrySpec { max_retries, delay_seconds, backoff: 2.0 },
                timeout_seconds,
                stop_grace_seconds: Some(0.02),
                expected_seconds,
                reference: None,
            }
        })
}

fn scene() -> impl Strategy<Value = Scene> {
    let mode = prop_oneof![
        2 => Just(ExecutionMode::ContinueOnFailure),
        1 => Just(ExecutionMode::StopOnFailure),
        1 => Just(ExecutionMode::FailFast),
    ];
    let reason = prop_oneof![
        1 => Just(CancelReason::StopOnFailure),
        1 => Just(CancelReason::FailFast),
        3 => Just(CancelReason::Interrupt),
        2 => Just(CancelReason::Kill),
        1 => Just(CancelReason::Abandon),
    ];
    let cancels = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec((0..300_u64, reason), 1..4)];
    (1..14_usize, any::<bool>(), any::<bool>()).prop_flat_map(move |(count, demanding, prepare)| {
        let steps: Vec<_> = (0..count).map(|at| step_spec(at, demanding)).collect();
        let behaviours = prop::collection::vec(behaviour(), count);
        (steps, behaviours, cancels.clone(), mode.clone(), 1..5_u32).prop_map(
            move |(steps, behaviours, cancels, execution_mode, max_parallelism)| Scene {
                spec: PlanSpec {
                    run_id: String::new(),
                    pipeline: String::new(),
                    execution_mode,
                    max_parallelism: Some(max_parallelism),
                    steps,
                    leader: None,
                },
                behaviours,
                cancels,
                prepare,
            },
        )
    })
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Started(StepIndex, u32),
    Over(StepIndex, u32),
    Judged(StepIndex, u32),
    Cancelled(CancelReason),
}

struct Running {
    attempt: u32,
    stop: Option<StopForce>,
    ends_at: u64,
    outcome: Outcome,
}

/// The outside of one run, and what it has seen of the scheduler.
struct World<'a> {
    scene: &'a Scene,
    plan: Arc<Plan>,
    admission: Admission,
    now: u64,
    agenda: BTreeSet<(u64, Happening)>,
    wake_at: Option<u64>,
    running: BTreeMap<StepIndex, Running>,
    attempts: BTreeMap<StepIndex, u32>,
    retrying: BTreeSet<StepIndex>,
    prepared: BTreeSet<StepIndex>,
    finished: BTreeMap<StepIndex, StepStatus>,
    stop_requested: bool,
    user_stopped: bool,
    summary: Option<RunSummary>,
    record: Vec<String>,
}

fn play(scene: &Scene) -> (RunSummary, Vec<String>) {
    let plan = Arc::new(Plan::new(scene.spec.clone()).unwrap());
    let admission = Admission::new(&plan, HOST).unwrap();
    let mut scheduler = Scheduler::new(Arc::clone(&plan), &admission, ScheduleOptions { prepare: scene.prepare });
    let mut world = World {
        agenda: scene.cancels.iter().map(|(at, reason)| (*at, Happening::Cancelled(*reason))).collect(),
        scene,
        plan,
        admission,
        now: 0,
        wake_at: None,
        running: BTreeMap::new(),
        attempts: BTreeMap::new(),
        retrying: BTreeSet::new(),
        prepared: BTreeSet::new(),
        finished: BTreeMap::new(),
        stop_requested: false,
        user_stopped: false,
        summary: None,
        record: Vec::new(),
    };
    let mut input = Some(Input::Start);
    for _ in 0..10_000 {
        if let Some(input) = input.take() {
            let effects = scheduler.handle(Duration::from_millis(world.now), input);
            world.see(effects);
        }
        if let Some(summary) = world.summary.clone() {
            world.check_the_end(&summary);
            assert!(scheduler.handle(Duration::from_secs(999), Input::Tick).is_empty(), "nothing after the end");
            return (summary, world.record);
        }
        input = world.next_input();
    }
    panic!("the run does not end: {:?}", world.record);
}

impl World<'_> {
    fn see(&mut self, effects: Vec<Effect>) {
        let failed_before = self.ended_badly();
        for effect in effects {
            assert!(self.summary.is_none(), "Finish is the last effect");
            self.record.push(format!("{} {effect:?}", self.now));
            match effect {
                Effect::Launch { step, attempt } => self.launch(step, attempt),
                Effect::Stop { step, attempt, force } => self.stop(step, attempt, force),
                Effect::Prepare { step } => {
                    assert!(self.scene.prepare && !self.stop_requested);
                    assert!(!self.running.contains_key(&step) && !self.finished.contains_key(&step));
                    assert!(self.prepared.insert(step), "prepared twice");
                }
                Effect::Discard { step } => assert!(self.prepared.remove(&step), "discarded without being prepared"),
                Effect::WakeAt { at } => self.wake_at = Some(u64::try_from(at.as_nanos().div_ceil(1_000_000)).unwrap()),
                Effect::Emit(event) => self.event(event),
                Effect::Finish(summary) => self.summary = Some(summary),
            }
            self.check_capacity();
        }
        let mode = self.scene.spec.execution_mode;
        if self.ended_badly() && !failed_before && mode != ExecutionMode::ContinueOnFailure {
            assert!(self.stop_requested, "the mode acts on the first failure");
        }
        if self.stop_requested && mode == ExecutionMode::FailFast && self.ended_badly() {
            assert!(self.running.iter().all(|(step, running)| running.stop.is_some() || self.is_over(*step)));
        }
        self.check_no_slot_idles();
    }

    fn launch(&mut self, step: StepIndex, attempt: u32) {
        assert!(!self.stop_requested, "nothing starts after a stop");
        assert!(!self.finished.contains_key(&step), "it is finished");
        for up in self.plan.dag().upstream(step) {
            assert_eq!(self.finished.get(up), Some(&StepStatus::Completed), "before its upstream");
        }
        assert_eq!(self.attempts.insert(step, attempt).unwrap_or(0) + 1, attempt, "attempts count from 1");
        self.prepared.remove(&step);
        self.retrying.remove(&step);
        let behaviour = &self.scene.behaviours[step.get()];
        let last = behaviour.outcomes.len() - 1;
        let outcome = behaviour.outcomes[last.min(attempt as usize - 1)].clone();
        let starts_at = self.now + behaviour.launch_ms;
        let ends_at = starts_at + behaviour.run_ms;
        self.agenda.insert((starts_at, Happening::Started(step, attempt)));
        self.agenda.insert((ends_at, Happening::Over(step, attempt)));
        let before = self.running.insert(step, Running { attempt, stop: None, ends_at, outcome });
        assert!(before.is_none(), "two attempts of a step at once");
    }

    fn stop(&mut self, step: StepIndex, attempt: u32, force: StopForce) {
        let behaviour = &self.scene.behaviours[step.get()];
        assert!(!self.is_over(step), "too late");
        let running = self.running.get_mut(&step).expect("only what runs is stopped");
        assert_eq!(running.attempt, attempt);
        assert!(running.stop < Some(force), "repeated only with a greater force");
        running.stop = Some(force);
        if behaviour.yields_to.is_some_and(|weakest| force >= weakest) && self.now + 1 < running.ends_at {
            self.agenda.remove(&(running.ends_at, Happening::Over(step, attempt)));
            running.ends_at = self.now + 1;
            running.outcome = Outcome::Stopped;
            self.agenda.insert((running.ends_at, Happening::Over(step, attempt)));
        }
    }

    fn is_over(&self, step: StepIndex) -> bool {
        self.agenda.iter().any(|(_, happening)| matches!(happening, Happening::Judged(over, _) if *over == step))
    }

    fn event(&mut self, event: RunEvent) {
        match event {
            RunEvent::AttemptEnded { step, attempt, .. } => {
                let ended = self.running.remove(&self.index(&step)).expect("it was running");
                assert_eq!(ended.attempt, attempt);
            }
            RunEvent::RetryScheduled { step, .. } => {
                assert!(!self.stop_requested);
                self.retrying.insert(self.index(&step));
            }
            RunEvent::StepFinished { step, status, .. } => {
                let step = self.index(&step);
                assert!(!self.running.contains_key(&step), "its attempt has ended");
                assert_eq!(self.finished.insert(step, status), None, "one final status");
                self.retrying.remove(&step);
            }
            RunEvent::StopRequested { .. } => self.stop_requested = true,
            RunEvent::StepAdded { .. } => panic!("nobody leads these runs"),
            RunEvent::AttemptMeasured { .. } | RunEvent::RunFinished { .. } => panic!("left to the runner"),
            RunEvent::RunStarted { .. } | RunEvent::AttemptLaunched { .. } | RunEvent::AttemptStarted { .. } => {}
        }
    }

    fn index(&self, name: &str) -> StepIndex {
        StepIndex::new(name[1..].parse().unwrap())
    }

    fn ended_badly(&self) -> bool {
        let bad = |status: &StepStatus| matches!(status, StepStatus::Failed | StepStatus::Stopped);
        self.finished.values().any(bad)
    }

    fn check_capacity(&self) {
        let sum = |steps: &mut dyn Iterator<Item = &StepIndex>| {
            steps.fold(Demand::default(), |sum, step| {
                let demand = self.admission.demands[step.get()];
                Demand {
                    cpu_millis: sum.cpu_millis + demand.cpu_millis,
                    memory_bytes: sum.memory_bytes + demand.memory_bytes,
                    gpus: sum.gpus + demand.gpus,
                }
            })
        };
        let running = sum(&mut self.running.keys());
        assert!(running.cpu_millis <= HOST.cpu_millis && running.gpus <= HOST.gpus, "over capacity");
        assert!(
            running.memory_bytes + sum(&mut self.prepared.iter()).memory_bytes <= HOST.memory_bytes,
            "out of memory"
        );
        assert!(self.running.len() <= self.admission.max_parallelism as usize);
        assert!(self.prepared.len() <= self.admission.max_parallelism as usize);
    }

    /// When no step asks for anything, every slot is used as long as a step is ready.
    fn check_no_slot_idles(&self) {
        let modest = self.admission.demands.iter().all(|demand| *demand == Demand::default());
        if !modest || self.stop_requested || self.running.len() == self.admission.max_parallelism as usize {
            return;
        }
        let completed = |step: &StepIndex| self.finished.get(step) == Some(&StepStatus::Completed);
        for step in (0..self.plan.len()).map(StepIndex::new) {
            let waits = self.running.contains_key(&step) || self.retrying.contains(&step);
            let ready = !waits && !self.finished.contains_key(&step);
            assert!(!(ready && self.plan.dag().upstream(step).iter().all(completed)), "step {step:?} could run");
        }
    }

    fn next_input(&mut self) -> Option<Input> {
        let next = self.agenda.first().map(|(at, _)| *at);
        let wake = self.wake_at.filter(|wake| next.is_none_or(|next| *wake < next));
        if let Some(wake) = wake {
            self.wake_at = None;
            self.now = self.now.max(wake);
            return Some(Input::Tick);
        }
        let (at, happening) = self.agenda.pop_first().expect("something must happen until the run ends");
        self.now = self.now.max(at);
        match happening {
            Happening::Started(step, attempt) => {
                Some(Input::AttemptStarted { step, attempt, details: AttemptDetails::default() })
            }
            Happening::Over(step, attempt) => {
                let behaviour = &self.scene.behaviours[step.get()];
                let running = self.running.get(&step).filter(|running| running.attempt == attempt)?;
                self.agenda.insert((self.now + behaviour.verdict_ms, Happening::Judged(step, attempt)));
                Some(Input::AttemptOver { step, attempt, outcome: running.outcome.clone() })
            }
            Happening::Judged(step, attempt) => {
                let may_retry = self.scene.behaviours[step.get()].may_retry;
                let running = self.running.get(&step).filter(|running| running.attempt == attempt)?;
                let verdict = Verdict { outcome: running.outcome.clone(), may_retry };
                Some(Input::AttemptEnded { step, attempt, verdict })
            }
            Happening::Cancelled(reason) => {
                self.user_stopped |= reason >= CancelReason::Interrupt;
                Some(Input::Cancel { reason })
            }
        }
    }

    fn check_the_end(&self, summary: &RunSummary) {
        assert!(self.prepared.is_empty(), "everything prepared was used or given back");
        assert!(self.running.is_empty());
        let told: Vec<_> = self.finished.iter().map(|(step, status)| (format!("s{}", step.get()), *status)).collect();
        assert_eq!(summary.steps, told, "each step exactly one final status");
        let any = |wanted| summary.steps.iter().any(|(_, status)| *status == wanted);
        let expected = match () {
            () if summary.steps.iter().all(|(_, status)| *status == StepStatus::Completed) => RunStatus::Completed,
            () if self.user_stopped || !any(StepStatus::Failed) => RunStatus::Stopped,
            () => RunStatus::Failed,
        };
        assert_eq!(summary.status, expected);
        assert_eq!(summary.first_failure.is_some(), any(StepStatus::Failed));
        for (step, status) in &self.finished {
            let upstream_completed =
                self.plan.dag().upstream(*step).iter().all(|up| self.finished[up] == StepStatus::Completed);
            match status {
                StepStatus::Skipped => {
                    assert!(!self.attempts.contains_key(step));
                    assert!(self.stop_requested || !upstream_completed, "skipped for a reason");
                }
                _ => assert!(self.attempts.contains_key(step) && upstream_completed),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn every_run_keeps_the_rules_and_ends(scene in scene()) {
        let first = play(&scene);
        let second = play(&scene);
        prop_assert_eq!(first, second, "the same inputs give the same effects");
    }

    #[test]
    fn preparing_changes_no_decision(scene in scene()) {
        let without = play(&Scene { prepare: false, ..scene.clone() });
        let with = play(&Scene { prepare: true, ..scene });
        let decisions = |record: &[String]| -> Vec<String> {
            record.iter().filter(|line| !line.contains("Prepare") && !line.contains("Discard")).cloned().collect()
        };
        prop_assert_eq!(decisions(&without.1), decisions(&with.1));
    }
}
