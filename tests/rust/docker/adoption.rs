//! Owners that die while their containers run, and others that go on. An owner is a runtime; its end closes all connections.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use step_engine::docker::{ConnectOptions, ContainerSpec, DockerExecutor, Engine, RunIdentity, sweep};
use step_engine::event::{AttemptDetails, Outcome, RunStatus, RunSummary};
use step_engine::plan::{Admission, Demand, Plan, PlanSpec, StepIndex};
use step_engine::runner::journal::{FILE_NAME, Header, Journal, VERSION};
use step_engine::runner::replay::replay;
use step_engine::runner::{
    AttemptControl, AttemptSink, AttemptSpec, Executor as _, LeftAttempt, Notice, Resumption, Run, RunOver, StopForce,
    TakeOver, drive, notices, resume,
};
use step_engine::schedule::{CancelReason, Verdict};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::fixture::{Fixture, Memory};
use super::outage::{Line, socket};
use super::warm::small_log;

/// Somebody who drives a run and dies.
struct Owner {
    runtime: Option<Runtime>,
    run_id: String,
    containers: BTreeMap<String, ContainerSpec>,
    executor: Arc<DockerExecutor>,
}

impl Owner {
    async fn new(fixture: &Fixture, containers: &BTreeMap<String, ContainerSpec>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (run_id, containers) = (fixture.run_id.clone(), containers.clone());
        let of_run = (run_id.clone(), containers.clone());
        let executor = runtime.spawn(async move { executor(of_run.0, of_run.1).await }).await.unwrap();
        Self { runtime: Some(runtime), run_id, containers, executor }
    }

    fn launch(&self, spec: AttemptSpec) -> Arc<Memory> {
        let memory = Arc::new(Memory::default());
        let (stop, control) = AttemptControl::new();
        let running = Arc::clone(&self.executor).run(spec, control, Arc::clone(&memory) as Arc<dyn AttemptSink>);
        self.runtime.as_ref().unwrap().spawn(async move {
            let _stop = stop;
            running.await
        });
        memory
    }

    /// Dies. What it leaves is found by another one.
    fn die(mut self) -> (String, BTreeMap<String, ContainerSpec>) {
        self.runtime.take().unwrap().shutdown_background();
        (self.run_id.clone(), self.containers.clone())
    }
}

async fn executor(run_id: String, containers: BTreeMap<String, ContainerSpec>) -> Arc<DockerExecutor> {
    let engine = Engine::connect(ConnectOptions::default()).await.unwrap();
    let run = RunIdentity { run_id, pipeline: "rust tests".into(), component: None };
    Arc::new(DockerExecutor::new(engine, run, containers, None).unwrap())
}

fn spec(at: usize, name: &str) -> AttemptSpec {
    AttemptSpec { step: StepIndex::new(at), name: name.into(), attempt: 1, demand: Demand::default() }
}

fn left(name: &str) -> LeftAttempt {
    LeftAttempt { step: name.into(), attempt: 1, started: Some(AttemptDetails::default()) }
}

/// The next owner, which looks for these attempts.
async fn heir(died: (String, BTreeMap<String, ContainerSpec>), attempts: &[&str]) -> Arc<DockerExecutor> {
    let heir = executor(died.0, died.1).await;
    let attempts = attempts.iter().map(|name| left(name)).collect();
    Arc::clone(&heir).take_over(TakeOver { attempts, launched: Vec::new() }).await;
    heir
}

async fn adopt(heir: &Arc<DockerExecutor>, at: usize, name: &str) -> (Option<Outcome>, Arc<Memory>) {
    let (_stop, control) = AttemptControl::new();
    let memory = Arc::new(Memory::default());
    let sink = Arc::clone(&memory) as Arc<dyn AttemptSink>;
    (Arc::clone(heir).adopt(spec(at, name), control, sink).await, memory)
}

fn cold(fixture: &Fixture, steps: &[&str], more: &Value) -> BTreeMap<String, ContainerSpec> {
    let container = |step: &&str| {
        let command: Vec<&str> = step.split(' ').collect();
        ((*step).to_owned(), fixture.container(&command, more.clone()))
    };
    steps.iter().map(container).collect()
}

fn warm(fixture: &Fixture, steps: &[&str], isolation: &str, options: &[&str]) -> BTreeMap<String, ContainerSpec> {
    let command: Vec<&str> = ["worker", isolation].into_iter().chain(options.iter().copied()).collect();
    let warm = json!({"warm": {"isolation": isolation, "entrypoint": ["/probe"], "command": command}});
    cold(fixture, steps, &warm)
}

async fn until_running(fixture: &Fixture, count: usize) {
    let waiting = async {
        while sweep::list(&fixture.engine, &fixture.run_id).await.unwrap().iter().filter(|one| one.running).count()
            != count
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("so many containers run");
}

/// Waits until the engine's copy of the run's only worker has the end of a step and stays as it is. The engine reads the two outputs at
/// paces of their own, and with a greatest size what comes late takes the place of what was there.
async fn until_copied(fixture: &Fixture) {
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let id = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap().remove(0).id;
    let waiting = async {
        let mut before = String::new();
        loop {
            let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
            let mut copy = docker.logs(&id, Some(options));
            let mut text = String::new();
            while let Some(Ok(piece)) = copy.next().await {
                text.push_str(&String::from_utf8_lossy(&piece.into_bytes()));
            }
            let last = text.lines().last().unwrap_or_default();
            if text == before && last.contains("\"event\": \"done\"") {
                return;
            }
            before = text;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the copy has the end");
}

#[tokio::test]
async fn a_step_that_runs_is_followed_to_its_end() {
    let Some(fixture) = Fixture::new("adopt-running").await else { return };
    let owner = Owner::new(&fixture, &cold(&fixture, &["sleep 4000"], &json!({}))).await;
    owner.launch(spec(0, "sleep 4000")).until_ready().await;
    let heir = heir(owner.die(), &["sleep 4000"]).await;
    let (outcome, memory) = adopt(&heir, 0, "sleep 4000").await;
    assert_eq!((outcome, memory.text().as_str()), (Some(Outcome::Completed), "ready\n"));
    assert!(memory.started().unwrap().container_id.is_some());
    assert!(heir.close().await.is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn the_end_of_a_step_that_nobody_saw_is_read() {
    let Some(fixture) = Fixture::new("adopt-ended").await else { return };
    let owner = Owner::new(&fixture, &cold(&fixture, &["exit 7", "sleep 300"], &json!({}))).await;
    owner.launch(spec(1, "sleep 300")).until_ready().await;
    let died = owner.die();
    until_running(&fixture, 0).await;
    let heir = heir(died, &["exit 7", "sleep 300"]).await;
    assert_eq!(adopt(&heir, 1, "sleep 300").await.0, Some(Outcome::Completed));
    assert_eq!(adopt(&heir, 0, "exit 7").await.0, None, "it was never launched");
    assert!(heir.close().await.is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn an_adopted_step_is_stopped_as_any_other() {
    let Some(fixture) = Fixture::new("adopt-stop").await else { return };
    for (command, force) in [("graceful", StopForce::Graceful), ("stubborn", StopForce::Kill)] {
        let owner = Owner::new(&fixture, &cold(&fixture, &[command], &json!({}))).await;
        owner.launch(spec(0, command)).until_ready().await;
        let heir = heir(owner.die(), &[command]).await;
        let (stop, control) = AttemptControl::new();
        stop.send_replace(Some(force));
        let sink = Arc::new(Memory::default());
        let outcome = Arc::clone(&heir).adopt(spec(0, command), control, sink as Arc<dyn AttemptSink>).await;
        assert_eq!(outcome, Some(Outcome::Stopped), "{command}");
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn what_belongs_to_no_open_attempt_goes() {
    let Some(fixture) = Fixture::new("adopt-rest").await else { return };
    let kept = json!({"keep_containers": "always"});
    let mut containers = cold(&fixture, &["sleep 60000"], &json!({}));
    containers.extend(cold(&fixture, &["exit 3"], &kept));
    let owner = Owner::new(&fixture, &containers).await;
    owner.launch(spec(0, "sleep 60000")).until_ready().await;
    // Its end is on record, its container is to be kept.
    let running = owner.launch(spec(1, "exit 3"));
    running.until_settled().await;
    let heir = heir(owner.die(), &[]).await;
    let present = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
    assert_eq!(present.iter().map(|one| one.step.as_str()).collect::<Vec<_>>(), ["exit 3"]);
    assert!(heir.close().await.is_empty());
    sweep::remove(&fixture.engine, &fixture.run_id).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_waits_is_gone_before_anything_goes_on() {
    let Some(fixture) = Fixture::new("adopt-idle").await else { return };
    for (isolation, options) in
        [("container", &[][..]), ("process", &[]), ("container", &["warm=2000"]), ("process", &["warm=2000"])]
    {
        let owner = Owner::new(&fixture, &warm(&fixture, &["sleep 100"], isolation, options)).await;
        let spec = spec(0, "sleep 100");
        let (executor, prepared) = (Arc::clone(&owner.executor), spec.clone());
        owner.runtime.as_ref().unwrap().spawn(async move { executor.prepare(prepared) });
        until_running(&fixture, 1).await;
        let heir = heir(owner.die(), &["sleep 100"]).await;
        fixture_is_empty(&fixture).await;
        assert_eq!(adopt(&heir, 0, "sleep 100").await.0, None, "{isolation} {options:?}");
    }
    fixture.leaves_nothing().await;
}

async fn fixture_is_empty(fixture: &Fixture) {
    let present = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
    assert!(present.is_empty(), "{present:?}");
}

#[tokio::test]
async fn a_step_in_a_worker_is_followed_to_its_end() {
    let Some(fixture) = Fixture::new("adopt-warm").await else { return };
    for isolation in ["container", "process"] {
        let steps = ["say hello", "sleep 4000"];
        let owner = Owner::new(&fixture, &warm(&fixture, &steps, isolation, &[])).await;
        for (at, step) in steps.into_iter().enumerate() {
            let (executor, prepared) = (Arc::clone(&owner.executor), spec(at, step));
            owner.runtime.as_ref().unwrap().spawn(async move { executor.prepare(prepared) }).await.unwrap();
            let memory = owner.launch(spec(at, step));
            if at == 0 { memory.until_settled().await } else { memory.until_ready().await }
        }
        let died = owner.die();
        let heir = heir(died, &["sleep 4000"]).await;
        let (outcome, memory) = adopt(&heir, 1, "sleep 4000").await;
        let seen = (outcome, memory.text(), memory.warnings());
        assert_eq!(seen, (Some(Outcome::Completed), "ready\n".into(), Vec::new()), "{isolation}");
        assert!(memory.started().unwrap().warm);
        assert_eq!(memory.usage().len(), 1, "{isolation}");
        assert!(heir.close().await.is_empty());
    }
    fixture.leaves_nothing().await;
}

/// An heir whose first looks at each container fail.
async fn heir_on_a_bad_line(fixture: &Fixture, died: (String, BTreeMap<String, ContainerSpec>), step: &str) {
    let (line, engine) = Line::to(&socket(fixture).unwrap(), "heir").await;
    let run = RunIdentity { run_id: died.0, pipeline: "rust tests".into(), component: None };
    let heir = Arc::new(DockerExecutor::new(engine, run, died.1, None).unwrap());
    line.cut_lookers(3);
    Arc::clone(&heir).take_over(TakeOver { attempts: vec![left(step)], launched: Vec::new() }).await;
    let (outcome, memory) = adopt(&heir, 0, step).await;
    assert_eq!((outcome, memory.text().as_str()), (Some(Outcome::Completed), "ready\n"));
    assert!(heir.close().await.is_empty());
}

#[tokio::test]
async fn a_step_in_a_worker_is_not_taken_for_an_idle_one_while_the_engine_is_away() {
    let Some(fixture) = Fixture::new("adopt-away").await else { return };
    if socket(&fixture).is_none() {
        return;
    }
    for isolation in ["container", "process"] {
        let owner = Owner::new(&fixture, &warm(&fixture, &["sleep 6000"], isolation, &[])).await;
        owner.launch(spec(0, "sleep 6000")).until_ready().await;
        heir_on_a_bad_line(&fixture, owner.die(), "sleep 6000").await;
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn two_steps_are_read_out_of_the_worker_that_served_both() {
    let Some(fixture) = Fixture::new("adopt-two").await else { return };
    let steps = ["say hello", "sleep 700"];
    let owner = Owner::new(&fixture, &warm(&fixture, &steps, "process", &[])).await;
    owner.launch(spec(0, "say hello")).until_settled().await;
    owner.launch(spec(1, "sleep 700")).until_ready().await;
    let died = owner.die();
    until_running(&fixture, 0).await;
    // As if neither end had been recorded.
    let heir = heir(died, &steps).await;
    let (first, second) = tokio::join!(adopt(&heir, 0, "say hello"), adopt(&heir, 1, "sleep 700"));
    assert_eq!((first.0, first.1.text().as_str()), (Some(Outcome::Completed), "hello\n"));
    assert_eq!((second.0, second.1.text().as_str()), (Some(Outcome::Completed), "ready\n"));
    assert!(heir.close().await.is_empty());
    fixture.leaves_nothing().await;
}

/// Steps are known by their names, not by their number in a copy that has lost its beginning.
#[tokio::test]
async fn a_step_in_a_worker_is_found_in_a_copy_that_lost_its_beginning() {
    let Some(fixture) = Fixture::new("adopt-rotated").await else { return };
    let steps = ["both 2000", "sleep 4000"];
    let mut containers = warm(&fixture, &steps, "process", &[]);
    for container in containers.values_mut() {
        let arguments = small_log()["run_args"].as_object().unwrap().clone();
        container.run_args = arguments.into_iter().collect();
    }
    let owner = Owner::new(&fixture, &containers).await;
    owner.launch(spec(0, "both 2000")).until_settled().await;
    until_copied(&fixture).await;
    owner.launch(spec(1, "sleep 4000")).until_ready().await;
    let heir = heir(owner.die(), &["sleep 4000"]).await;
    let (outcome, memory) = adopt(&heir, 1, "sleep 4000").await;
    let seen = (outcome, memory.text(), memory.stderr(), memory.warnings());
    assert_eq!(seen, (Some(Outcome::Completed), "ready\n".into(), String::new(), Vec::new()));
    assert!(heir.close().await.is_empty());
    fixture.leaves_nothing().await;
}

/// A run whose steps each leave one byte in a file.
struct Chaos {
    fixture: Fixture,
    plan: PlanSpec,
    directory: PathBuf,
    containers: BTreeMap<String, ContainerSpec>,
}

impl Chaos {
    async fn new(isolation: Option<&str>, steps: usize) -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);

        let fixture = Fixture::new("chaos").await?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("step-engine-chaos-{}-{count}", std::process::id()));
        std::fs::create_dir_all(directory.join("marks")).unwrap();
        let name = |at: usize| format!("work {} /marks/{at}", 50 + (at * 379) % 600);
        let mut more = json!({"volumes": [{"source": directory.join("marks"), "target": "/marks"}]});
        if let Some(isolation) = isolation {
            more["warm"] = json!({"isolation": isolation, "entrypoint": ["/probe"], "command": ["worker", isolation]});
        }
        let names: Vec<String> = (0..steps).map(name).collect();
        let containers = cold(&fixture, &names.iter().map(String::as_str).collect::<Vec<_>>(), &more);
        let upstream =
            |at: usize| (0..at).filter(move |up| (at * 7 + up * 13).is_multiple_of(5)).map(|up| names[up].clone());
        let steps: Vec<Value> =
            (0..steps).map(|at| json!({"name": names[at], "upstream": upstream(at).collect::<Vec<_>>()})).collect();
        let plan = json!({"run_id": fixture.run_id, "pipeline": "chaos", "max_parallelism": 3, "steps": steps,
                          "execution_mode": "continue_on_failure"});
        Some(Self { fixture, plan: serde_json::from_value(plan).unwrap(), directory, containers })
    }

    fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Drives the run or goes on with it; dies after a while, if told to.
    async fn own(&self, lives: Option<Duration>) -> Option<RunSummary> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (run_id, containers) = (self.fixture.run_id.clone(), self.containers.clone());
        let (spec, directory) = (self.plan.clone(), self.run_directory());
        let (result, ended) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let executor = executor(run_id, containers).await;
            let summary = own(spec, &directory, executor).await;
            let _ = result.send(summary);
        });
        let summary = match lives {
            Some(lives) => tokio::time::timeout(lives, ended).await.ok(),
            None => Some(tokio::time::timeout(Duration::from_secs(120), ended).await.expect("the run ends")),
        };
        runtime.shutdown_background();
        summary.map(|summary| summary.unwrap())
    }

    async fn ends_well(self, summary: &RunSummary) {
        let journal = std::fs::read_to_string(self.run_directory().join(FILE_NAME)).unwrap();
        assert_eq!(summary.status, RunStatus::Completed, "{summary:?}\n{journal}");
        let marks = std::fs::read_dir(self.directory.join("marks")).unwrap();
        let marks: BTreeMap<String, u64> = marks
            .map(|mark| mark.unwrap())
            .map(|mark| (mark.file_name().into_string().unwrap(), mark.metadata().unwrap().len()))
            .collect();
        assert_eq!(marks, (0..self.plan.steps.len()).map(|at| (at.to_string(), 1)).collect(), "each once");
        std::fs::remove_dir_all(&self.directory).unwrap();
        self.fixture.leaves_nothing().await;
    }
}

async fn own(spec: PlanSpec, directory: &Path, executor: Arc<DockerExecutor>) -> RunSummary {
    let plan = Arc::new(Plan::new(spec.clone()).unwrap());
    let capacity = executor.engine().info().capacity();
    let admission = Admission::new(&plan, capacity).unwrap();
    let prepare = executor.can_prepare();
    let (sender, receiver) = notices();
    let (_cancel, cancels) = mpsc::unbounded_channel::<CancelReason>();
    std::thread::spawn(move || {
        loop {
            match receiver.recv_timeout(Duration::from_secs(1)) {
                Ok(Some(Notice::Judge(judgement))) => {
                    let verdict = Verdict { outcome: judgement.outcome.clone(), may_retry: true };
                    let _ = judgement.reply.send(verdict);
                }
                Ok(_) => {}
                Err(RunOver) => return,
            }
        }
    });
    let log_directory = Some(directory.to_owned());
    let run = Run { plan, admission, prepare, log_directory, journal: None };
    if directory.join(FILE_NAME).exists() {
        let (journal, recorded) = Journal::open(&directory.join(FILE_NAME)).unwrap();
        let left = replay(&recorded).unwrap();
        let resumption = Resumption { journal, now: left.at, left, completed: BTreeSet::new() };
        resume(run, resumption, executor, cancels, sender).await
    } else {
        let header = Header { version: VERSION, plan: spec, capacity, prepare, began_unix_nanos: 0 };
        drive(Run { journal: Some(header), ..run }, executor, cancels, sender).await
    }
}

async fn chaos(isolation: Option<&str>) {
    let runs = std::env::var("STEP_ENGINE_CHAOS_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_u64);
    for run in 0..runs {
        let Some(chaos) = Chaos::new(isolation, 8).await else { return };
        let mut ended = None;
        for death in 0..3 {
            // Spread evenly, and other moments in every run.
            let lives = Duration::from_millis(100 + (run * 977 + death * 613) % 1900);
            ended = chaos.own(Some(lives)).await;
            if ended.is_some() {
                break;
            }
        }
        let summary = match ended {
            Some(summary) => summary,
            None => chaos.own(None).await.unwrap(),
        };
        chaos.ends_well(&summary).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_succeeds_once_whenever_owners_die() {
    chaos(None).await;
    chaos(Some("container")).await;
    chaos(Some("process")).await;
}
