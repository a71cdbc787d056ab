//! Owners that die at any moment, and others that go on: every step succeeds once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use step_engine::event::{AttemptDetails, Outcome, RunEvent, RunStatus, RunSummary, StepStatus};
use step_engine::plan::{Admission, Capacity, ExecutionMode, Plan, PlanSpec, RetrySpec, StepSpec};
use step_engine::runner::journal::{Entry, FILE_NAME, Header, Journal, VERSION, parse};
use step_engine::runner::replay::replay;
use step_engine::runner::{
    AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream, Notice, Resumption, Run, RunOver, StopForce,
    TakeOver, drive, notices, resume,
};
use step_engine::schedule::{CancelReason, Effect, Input, Verdict};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const HOST: Capacity = Capacity { cpu_millis: 4000, memory_bytes: 8 << 30, gpus: 0 };

/// How one attempt of a step goes, in milliseconds.
#[derive(Debug, Clone)]
struct Course {
    launch: u64,
    lasts: u64,
    outcome: Outcome,
}

/// A process that does not need its owner.
#[derive(Debug)]
struct Process {
    ends: Instant,
    outcome: Outcome,
    killed: watch::Sender<bool>,
}

/// What outlives owners: the processes, and a count of everything that was ever started.
#[derive(Default)]
struct World {
    courses: BTreeMap<String, Vec<Course>>,
    processes: Mutex<BTreeMap<(String, u32), Arc<Process>>>,
    /// Each start of a process.
    starts: Mutex<Vec<(String, u32)>>,
    taken_over: AtomicU32,
}

impl World {
    async fn follow(&self, id: &(String, u32), process: &Process, mut control: AttemptControl) -> Outcome {
        let mut killed = process.killed.subscribe();
        let outcome = tokio::select! {
            () = tokio::time::sleep_until(process.ends) => process.outcome.clone(),
            _ = killed.wait_for(|killed| *killed) => Outcome::Stopped,
            () = control.stop_requested(StopForce::Graceful) => {
                process.killed.send_replace(true);
                Outcome::Stopped
            }
        };
        self.processes.lock().unwrap().get(id).expect("it stays until its end is recorded");
        outcome
    }

    async fn settle(&self, id: &(String, u32), outcome: &Outcome, control: &AttemptControl, sink: &dyn AttemptSink) {
        sink.settled(outcome);
        control.recorded().await;
        self.processes.lock().unwrap().remove(id);
    }
}

impl Executor for World {
    async fn run(self: Arc<Self>, spec: AttemptSpec, control: AttemptControl, sink: Arc<dyn AttemptSink>) -> Outcome {
        let courses = &self.courses[&*spec.name];
        let course = &courses[(spec.attempt as usize - 1).min(courses.len() - 1)];
        tokio::time::sleep(Duration::from_millis(course.launch)).await;
        if control.stop_force().is_some() {
            return Outcome::Stopped;
        }
        let id = (spec.name.to_string(), spec.attempt);
        let process = Arc::new(Process {
            ends: Instant::now() + Duration::from_millis(course.lasts),
            outcome: course.outcome.clone(),
            killed: watch::channel(false).0,
        });
        self.starts.lock().unwrap().push(id.clone());
        let before = self.processes.lock().unwrap().insert(id.clone(), Arc::clone(&process));
        assert!(before.is_none(), "{id:?} runs twice at a time");
        // Its owner may die before it hears of it.
        tokio::time::sleep(Duration::from_millis(course.launch)).await;
        sink.started(AttemptDetails::default());
        sink.log(LogStream::Stdout, Bytes::from_static(b"hello\n"));
        let outcome = self.follow(&id, &process, control.clone()).await;
        self.settle(&id, &outcome, &control, &*sink).await;
        outcome
    }

    async fn take_over(self: Arc<Self>, left: TakeOver) {
        self.taken_over.fetch_add(1, Ordering::Relaxed);
        let claimed: BTreeSet<_> = left.attempts.iter().map(|left| (left.step.to_string(), left.attempt)).collect();
        self.processes.lock().unwrap().retain(|id, process| {
            assert!(claimed.contains(id) || process.ends <= Instant::now() || *process.killed.borrow(), "{id:?} runs");
            claimed.contains(id)
        });
    }

    async fn adopt(
        self: Arc<Self>,
        spec: AttemptSpec,
        control: AttemptControl,
        sink: Arc<dyn AttemptSink>,
    ) -> Option<Outcome> {
        let id = (spec.name.to_string(), spec.attempt);
        let process = self.processes.lock().unwrap().get(&id).cloned()?;
        sink.started(AttemptDetails::default());
        assert!(sink.log_again(6));
        sink.log(LogStream::Stdout, Bytes::from_static(b"hello\n"));
        let outcome = self.follow(&id, &process, control.clone()).await;
        self.settle(&id, &outcome, &control, &*sink).await;
        Some(outcome)
    }
}

/// A run and where it is kept.
struct Case {
    spec: PlanSpec,
    world: Arc<World>,
    directory: PathBuf,
}

fn directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);

    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("step-engine-resumed-{}-{count}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

impl Case {
    fn new(spec: PlanSpec, courses: BTreeMap<String, Vec<Course>>) -> Self {
        Self { spec, world: Arc::new(World { courses, ..World::default() }), directory: directory() }
    }

    fn journal(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// Drives the run, or goes on with it, until it ends or the owner is killed.
    async fn own(&self, lives: Option<Duration>, stopped: Option<CancelReason>) -> Option<RunSummary> {
        let plan = Arc::new(Plan::new(self.spec.clone()).unwrap());
        let admission = Admission::new(&plan, HOST).unwrap();
        let directory = Some(self.directory.clone());
        let (sender, receiver) = notices();
        let (cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
        if let Some(reason) = stopped {
            cancel.send(reason).unwrap();
        }
        let world = Arc::clone(&self.world);
        let run = Run { plan, admission, prepare: false, log_directory: directory, journal: None };
        let driving = if self.journal().exists() {
            let (journal, recorded) = Journal::open(&self.journal()).unwrap();
            let left = replay(&recorded).unwrap();
            let now = left.at;
            let resumption = Resumption { journal, left, now, completed: BTreeSet::new() };
            tokio::spawn(resume(run, resumption, world, cancels, sender))
        } else {
            let header = Header {
                version: VERSION,
                plan: self.spec.clone(),
                capacity: HOST,
                prepare: false,
                began_unix_nanos: 0,
            };
            tokio::spawn(drive(Run { journal: Some(header), ..run }, world, cancels, sender))
        };
        let death = lives.map(|lives| Instant::now() + lives);
        loop {
            match receiver.recv_timeout(Duration::ZERO) {
                Ok(Some(Notice::Judge(judgement))) => {
                    let verdict = Verdict { outcome: judgement.outcome.clone(), may_retry: true };
                    let _ = judgement.reply.send(verdict);
                }
                Ok(Some(_)) => {}
                Ok(None) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(RunOver) => break,
            }
            if death.is_some_and(|death| Instant::now() >= death) {
                driving.abort();
                assert!(driving.await.is_err() || death.is_some());
                return None;
            }
        }
        drop(cancel);
        Some(driving.await.unwrap())
    }

    /// An owner that wrote down what ended, and died before it did what follows.
    fn write_without_doing(&self) {
        let (mut journal, recorded) = Journal::open(&self.journal()).unwrap();
        let mut left = replay(&recorded).unwrap();
        let ended = left.in_flight.keys().copied().find(|&(step, attempt)| {
            let id = (left.plan.step(step).name.to_string(), attempt);
            let processes = self.world.processes.lock().unwrap();
            processes.get(&id).is_some_and(|process| {
                process.ends <= Instant::now() && process.outcome.is_completed() && !*process.killed.borrow()
            })
        });
        let Some((step, attempt)) = ended else { return };
        let input =
            Input::AttemptEnded { step, attempt, verdict: Verdict { outcome: Outcome::Completed, may_retry: false } };
        let effects = left.scheduler.handle(left.at, input.clone());
        let launched = effects.iter().filter_map(|effect| match effect {
            Effect::Launch { step, attempt } => Some((*step, *attempt)),
            _ => None,
        });
        journal.append(&Entry::new(left.at, input, launched.collect())).unwrap();
    }

    /// A machine that lost its power: what was not synchronized is gone.
    fn lose_what_was_not_synchronized(&self) {
        let bytes = std::fs::read(self.journal()).unwrap();
        let recorded = parse(&bytes).unwrap();
        if recorded.entries.last().is_some_and(|entry| matches!(entry.input, Input::AttemptStarted { .. })) {
            let last = bytes[..bytes.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap();
            std::fs::write(self.journal(), &bytes[..=last]).unwrap();
        }
    }

    fn successes(&self, step: &str) -> usize {
        let starts = self.world.starts.lock().unwrap();
        let courses = &self.world.courses[step];
        let of_step = starts.iter().filter(|(of, _)| of == step);
        of_step
            .filter(|(_, attempt)| courses[(*attempt as usize - 1).min(courses.len() - 1)].outcome.is_completed())
            .count()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn course(launch: u64, lasts: u64, outcome: Outcome) -> Course {
    Course { launch, lasts, outcome }
}

fn spec(json: &str) -> PlanSpec {
    serde_json::from_str(json).unwrap()
}

fn log(directory: &Path, step: &str) -> String {
    std::fs::read_to_string(directory.join(format!("{step}.1.log"))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_step_that_ran_through_its_owners_death_is_adopted() {
    let completes = || vec![course(5, 1000, Outcome::Completed)];
    let plan = spec(r#"{"pipeline": "p", "steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}]}"#);
    let case = Case::new(plan, BTreeMap::from([("a".into(), completes()), ("b".into(), completes())]));
    assert!(case.own(Some(Duration::from_millis(500)), None).await.is_none());
    assert_eq!(case.world.processes.lock().unwrap().len(), 1);
    let summary = case.own(None, None).await.unwrap();
    assert_eq!((summary.status, summary.attempts), (RunStatus::Completed, 2));
    assert_eq!(*case.world.starts.lock().unwrap(), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    assert_eq!(case.world.taken_over.load(Ordering::Relaxed), 1);
    assert_eq!(log(&case.directory, "a"), "hello\n", "kept once");
    let replayed = replay(&parse(&std::fs::read(case.journal()).unwrap()).unwrap()).unwrap();
    assert_eq!(replayed.summary.unwrap().status, RunStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn time_without_an_owner_uses_up_no_timeout() {
    let plan = spec(r#"{"pipeline": "p", "steps": [{"name": "a", "timeout_seconds": 2}]}"#);
    let case = Case::new(plan, BTreeMap::from([("a".into(), vec![course(0, 1500, Outcome::Completed)])]));
    assert!(case.own(Some(Duration::from_millis(1000)), None).await.is_none());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(case.own(None, None).await.unwrap().status, RunStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_was_never_given_is_asked_for_again_with_what_the_step_said() {
    let plan = spec(r#"{"pipeline": "p", "steps": [{"name": "a", "retry": {"max_retries": 1}}]}"#);
    let fails_once = vec![course(0, 10, Outcome::Exited { code: 3 }), course(0, 10, Outcome::Completed)];
    let case = Case::new(plan, BTreeMap::from([("a".into(), fails_once)]));
    assert!(case.own(Some(Duration::from_millis(5)), None).await.is_none());
    tokio::time::sleep(Duration::from_millis(20)).await;
    {
        let (mut journal, recorded) = Journal::open(&case.journal()).unwrap();
        let left = replay(&recorded).unwrap();
        let (&(step, attempt), _) = left.in_flight.first_key_value().unwrap();
        let over = Input::AttemptOver { step, attempt, outcome: Outcome::Exited { code: 3 } };
        journal.append(&Entry::new(left.at, over, Vec::new())).unwrap();
    }
    let summary = case.own(None, None).await.unwrap();
    assert_eq!((summary.status, summary.attempts), (RunStatus::Completed, 2));
    assert_eq!(case.world.starts.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_vanished_without_its_owner_is_lost_or_known_to_have_completed() {
    let plan = r#"{"pipeline": "p", "steps": [{"name": "a"}]}"#;
    for (completed, status) in [(true, RunStatus::Completed), (false, RunStatus::Failed)] {
        let case = Case::new(spec(plan), BTreeMap::from([("a".into(), vec![course(0, 500, Outcome::Completed)])]));
        assert!(case.own(Some(Duration::from_millis(100)), None).await.is_none());
        case.world.processes.lock().unwrap().clear();
        let (journal, recorded) = Journal::open(&case.journal()).unwrap();
        let left = replay(&recorded).unwrap();
        let run = Run {
            plan: Arc::clone(&left.plan),
            admission: left.admission.clone(),
            prepare: false,
            log_directory: Some(case.directory.clone()),
            journal: None,
        };
        let known = completed.then(|| "a".to_owned()).into_iter().collect();
        let resumption = Resumption { journal, now: left.at, left, completed: known };
        let (sender, _receiver) = notices();
        let (_cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
        let driving = tokio::spawn(resume(run, resumption, Arc::clone(&case.world), cancels, sender));
        drop(_receiver);
        assert_eq!(driving.await.unwrap().status, status);
        assert_eq!(case.world.starts.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_under_way_is_gone_on_with() {
    let plan = spec(r#"{"pipeline": "p", "steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}]}"#);
    let lasts = || vec![course(0, 60_000, Outcome::Completed)];
    let case = Case::new(plan, BTreeMap::from([("a".into(), lasts()), ("b".into(), lasts())]));
    assert!(case.own(Some(Duration::from_millis(100)), None).await.is_none());
    {
        let (mut journal, recorded) = Journal::open(&case.journal()).unwrap();
        let left = replay(&recorded).unwrap();
        let cancel = Input::Cancel { reason: CancelReason::Interrupt };
        journal.append(&Entry::new(left.at, cancel, Vec::new())).unwrap();
    }
    let summary = case.own(None, None).await.unwrap();
    assert_eq!(summary.status, RunStatus::Stopped);
    assert_eq!(summary.steps, [("a".to_owned(), StepStatus::Stopped), ("b".to_owned(), StepStatus::Skipped)]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ended_before_its_owner_died_is_only_tidied_up() {
    let plan = spec(r#"{"pipeline": "p", "steps": [{"name": "a"}]}"#);
    let case = Case::new(plan, BTreeMap::from([("a".into(), vec![course(0, 10, Outcome::Completed)])]));
    let first = case.own(None, None).await.unwrap();
    let before = std::fs::read(case.journal()).unwrap();
    let second = case.own(None, None).await.unwrap();
    assert_eq!((first.status, first.steps), (second.status, second.steps));
    assert_eq!(std::fs::read(case.journal()).unwrap(), before);
}

/// A DAG whose steps fail a few times before they succeed, with as many retries.
fn cases() -> impl Strategy<Value = (PlanSpec, BTreeMap<String, Vec<Course>>)> {
    let step = |at: usize| {
        let upstream = prop::collection::vec(0..at.max(1), 0..=at.min(3));
        let failures = prop_oneof![3 => Just(0_u32), 1 => 1..3_u32];
        (upstream, failures, 0..30_u64, 0..200_u64).prop_map(move |(upstream, failures, launch, lasts)| {
            let step = StepSpec {
                name: format!("s{at}"),
                upstream: if at == 0 { vec![] } else { upstream.iter().map(|up| format!("s{up}")).collect() },
                retry: RetrySpec { max_retries: failures, delay_seconds: 0.02, backoff: 1.0 },
                ..StepSpec::default()
            };
            let fails = (0..failures).map(|_| course(launch, lasts, Outcome::Exited { code: 1 }));
            (step, fails.chain([course(launch, lasts, Outcome::Completed)]).collect::<Vec<_>>())
        })
    };
    (1..10_usize, 1..5_u32).prop_flat_map(move |(count, max_parallelism)| {
        (0..count).map(step).collect::<Vec<_>>().prop_map(move |steps| {
            let courses = steps.iter().map(|(step, courses)| (step.name.clone(), courses.clone())).collect();
            let plan = PlanSpec {
                run_id: "r".into(),
                pipeline: "p".into(),
                max_parallelism: Some(max_parallelism),
                steps: steps.into_iter().map(|(step, _)| step).collect(),
                execution_mode: ExecutionMode::ContinueOnFailure,
                leader: None,
            };
            (plan, courses)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whenever owners die, and whatever of the journal's last line was done or reached the disk: in the end every step has
    /// succeeded, once, and nothing is left.
    #[test]
    fn every_step_succeeds_once(
        (plan, courses) in cases(),
        deaths in prop::collection::vec((0..400_u64, 0..300_u64, 0..3_u8), 0..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let case = Case::new(plan, courses);
            let mut ended = None;
            for (lives, pause, how) in deaths {
                ended = case.own(Some(Duration::from_millis(lives)), None).await;
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if case.journal().exists() {
                    match how {
                        0 => {}
                        1 => case.write_without_doing(),
                        _ => case.lose_what_was_not_synchronized(),
                    }
                }
            }
            let summary = match ended {
                Some(summary) => summary,
                None => case.own(None, None).await.unwrap(),
            };
            assert_eq!(summary.status, RunStatus::Completed, "{summary:?}");
            for step in &case.spec.steps {
                assert_eq!(case.successes(&step.name), 1, "{}", step.name);
            }
            let starts = case.world.starts.lock().unwrap().clone();
            assert_eq!(starts.iter().collect::<BTreeSet<_>>().len(), starts.len(), "an attempt was started twice");
            assert!(case.world.processes.lock().unwrap().is_empty());
            let replayed = replay(&parse(&std::fs::read(case.journal()).unwrap()).unwrap()).unwrap();
            assert_eq!(replayed.summary.map(|summary| summary.status), Some(RunStatus::Completed));
            let begun = replayed.events.iter().filter(|event| matches!(event, RunEvent::RunStarted { .. })).count();
            assert_eq!(begun, 1);
        });
    }
}
