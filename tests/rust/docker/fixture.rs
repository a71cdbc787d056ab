//! An engine, an image made here without a registry, a run of one's own, and a sink that remembers. Nothing of it stays.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use step_engine::docker::{ConnectOptions, ContainerSpec, DockerExecutor, Engine, PullObserver, RunIdentity, sweep};
use step_engine::event::{AttemptDetails, Outcome, Usage};
use step_engine::plan::{Demand, StepIndex};
use step_engine::runner::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream, StopForce};
use tokio::sync::watch;

/// Label of everything that these tests make.
pub(super) const TEST_LABEL: &str = "step-engine-test";

/// Whether the tests on an engine are left out on purpose.
pub(super) fn skipped() -> bool {
    std::env::var("STEP_ENGINE_SKIP_DOCKER").is_ok_and(|value| value == "1")
}

/// Starts a test: `let Some(fixture) = Fixture::new("name").await else { return };`.
pub(super) struct Fixture {
    pub(super) engine: Engine,
    pub(super) run_id: String,
    pub(super) image: String,
}

/// The image is shared by the tests that run at the same time; the last one removes it.
static IMAGE: tokio::sync::Mutex<(u32, String)> = tokio::sync::Mutex::const_new((0, String::new()));

impl Fixture {
    pub(super) async fn new(test: &str) -> Option<Self> {
        Self::with(test, ConnectOptions::default()).await
    }

    pub(super) async fn with(test: &str, options: ConnectOptions) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        if skipped() {
            return None;
        }
        let engine = Engine::connect(options).await.unwrap_or_else(|error| {
            panic!("these tests need a Docker engine, or STEP_ENGINE_SKIP_DOCKER=1 to leave them out: {error}")
        });
        let image = take_image(&engine).await;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Some(Self { engine, image, run_id: format!("{:x}{count:x}-test-{test}", std::process::id()) })
    }

    /// A container specification that runs the probe.
    pub(super) fn container(&self, command: &[&str], more: Value) -> ContainerSpec {
        let mut fields = json!({
            "image": self.image, "entrypoint": ["/probe"], "command": command, "pull_policy": "never",
            "labels": {TEST_LABEL: "rust"},
        });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(fields).unwrap()
    }

    pub(super) fn executor(&self, container: ContainerSpec) -> Arc<DockerExecutor> {
        self.executor_of([("step".to_owned(), container)], None)
    }

    pub(super) fn executor_of(
        &self,
        containers: impl IntoIterator<Item = (String, ContainerSpec)>,
        observer: Option<PullObserver>,
    ) -> Arc<DockerExecutor> {
        self.executor_on(self.engine.clone(), containers, observer)
    }

    pub(super) fn executor_on(
        &self,
        engine: Engine,
        containers: impl IntoIterator<Item = (String, ContainerSpec)>,
        observer: Option<PullObserver>,
    ) -> Arc<DockerExecutor> {
        let run =
            RunIdentity { run_id: self.run_id.clone(), pipeline: "rust tests".into(), component: Some("c".into()) };
        Arc::new(DockerExecutor::new(engine, run, containers, observer).unwrap())
    }

    /// Runs the probe to its end.
    pub(super) async fn run(&self, command: &[&str], more: Value) -> (Outcome, Arc<Memory>) {
        self.start(command, more, Demand::default()).end().await
    }

    pub(super) fn start(&self, command: &[&str], more: Value, demand: Demand) -> Running {
        Running::launch(self.executor(self.container(command, more)), "step", 1, demand)
    }

    /// Ends a test that went well: nothing may be left.
    pub(super) async fn leaves_nothing(self) {
        let left = sweep::list(&self.engine, &self.run_id).await.unwrap();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let (engine, run_id) = (self.engine.clone(), self.run_id.clone());
        // A runtime of its own: the test's may be the one that is going down.
        let cleanup = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                drop(sweep::remove(&engine, &run_id).await);
                give_image().await;
            });
        });
        drop(cleanup.join());
    }
}

fn client() -> bollard::Docker {
    bollard::Docker::connect_with_defaults().unwrap()
}

async fn take_image(engine: &Engine) -> String {
    let mut image = IMAGE.lock().await;
    if image.0 == 0 {
        assert_eq!(engine.info().os, "linux");
        image.1 = import_image(&[]).await;
    }
    image.0 += 1;
    image.1.clone()
}

async fn give_image() {
    let mut image = IMAGE.lock().await;
    image.0 -= 1;
    if image.0 == 0 {
        remove_image(&image.1).await;
    }
}

pub(super) async fn remove_image(image: &str) {
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    drop(client().remove_image(image, Some(options), None).await);
}

/// Imports a file system with the probe in it. Returns the image's id.
pub(super) async fn import_image(changes: &[&str]) -> String {
    let body = bollard::body_full(Bytes::from(probe_archive()));
    let label = format!("LABEL {TEST_LABEL}=rust");
    let changes = std::iter::once(label.as_str()).chain(changes.iter().copied()).collect::<Vec<_>>().join("\n");
    let options = CreateImageOptionsBuilder::new().from_src("-").changes(vec![changes]).build();
    let mut messages = client().create_image(Some(options), Some(body), None).boxed();
    let mut id = None;
    while let Some(message) = messages.next().await {
        id = message.unwrap().status.filter(|status| status.starts_with("sha256:")).or(id);
    }
    id.expect("the engine names the imported image")
}

/// A file system with the probe as its only file.
pub(super) fn probe_archive() -> Vec<u8> {
    static PROBE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();

    let probe = PROBE.get_or_init(compile_probe);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(probe.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    archive.append_data(&mut header, "probe", probe.as_slice()).unwrap();
    archive.into_inner().unwrap()
}

fn compile_probe() -> Vec<u8> {
    let target = std::env::temp_dir().join(format!("step-engine-probe-{}", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rust/docker/probe.rs");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(&target)
        .arg(source)
        .output()
        .expect("rustc is needed to compile the test program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let program = std::fs::read(&target).unwrap();
    std::fs::remove_file(target).unwrap();
    program
}

/// Remembers what an attempt reported, and when.
#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<Remembered>,
    changed: tokio::sync::Notify,
}

#[derive(Default)]
struct Remembered {
    started: Option<(AttemptDetails, Instant)>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    settled: Vec<(Outcome, Instant)>,
    usage: Vec<Usage>,
    warnings: Vec<String>,
}

impl Memory {
    fn change(&self, change: impl FnOnce(&mut Remembered)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_waiters();
    }

    fn get<T>(&self, get: impl FnOnce(&Remembered) -> T) -> T {
        get(&self.state.lock().unwrap())
    }

    async fn until(&self, what: &str, mut is: impl FnMut(&Remembered) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if self.get(&mut is) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    pub(super) async fn until_ready(&self) {
        self.until("the step's first line", |state| state.stdout.starts_with(b"ready\n")).await;
    }

    pub(super) async fn until_settled(&self) {
        self.until("the outcome", |state| !state.settled.is_empty()).await;
    }

    pub(super) async fn until_warned(&self) {
        self.until("a warning", |state| !state.warnings.is_empty()).await;
    }

    pub(super) fn stdout(&self) -> Vec<u8> {
        self.get(|state| state.stdout.clone())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.stdout()).unwrap()
    }

    pub(super) fn stderr(&self) -> String {
        self.get(|state| String::from_utf8_lossy(&state.stderr).into_owned())
    }

    pub(super) fn started(&self) -> Option<AttemptDetails> {
        self.get(|state| state.started.as_ref().map(|(details, _)| details.clone()))
    }

    pub(super) fn started_at(&self) -> Instant {
        self.get(|state| state.started.as_ref().unwrap().1)
    }

    pub(super) fn usage(&self) -> Vec<Usage> {
        self.get(|state| state.usage.clone())
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.get(|state| state.warnings.clone())
    }

    pub(super) fn settled_at(&self) -> Instant {
        self.get(|state| state.settled[0].1)
    }
}

impl AttemptSink for Memory {
    fn started(&self, details: AttemptDetails) {
        self.change(|state| {
            assert!(state.stdout.is_empty() && state.stderr.is_empty(), "output before the start");
            assert!(state.started.replace((details, Instant::now())).is_none(), "started twice");
        });
    }

    fn log(&self, stream: LogStream, bytes: Bytes) {
        self.change(|state| {
            assert!(state.settled.is_empty(), "output after the outcome");
            match stream {
                LogStream::Stdout => state.stdout.extend_from_slice(&bytes),
                LogStream::Stderr => state.stderr.extend_from_slice(&bytes),
            }
        });
    }

    fn measured(&self, usage: Usage) {
        self.change(|state| state.usage.push(usage));
    }

    fn settled(&self, outcome: &Outcome) {
        self.change(|state| state.settled.push((outcome.clone(), Instant::now())));
    }

    fn warning(&self, message: String) {
        self.change(|state| state.warnings.push(message));
    }
}

/// An attempt that runs.
pub(super) struct Running {
    pub(super) memory: Arc<Memory>,
    pub(super) stop: watch::Sender<Option<StopForce>>,
    end: tokio::task::JoinHandle<Outcome>,
}

impl Running {
    pub(super) fn launch(executor: Arc<DockerExecutor>, step: &str, attempt: u32, demand: Demand) -> Self {
        Self::launch_stopped(executor, step, attempt, demand, None)
    }

    /// With a stop that was asked for before.
    pub(super) fn launch_stopped(
        executor: Arc<DockerExecutor>,
        step: &str,
        attempt: u32,
        demand: Demand,
        force: Option<StopForce>,
    ) -> Self {
        let spec = AttemptSpec { step: StepIndex::new(0), name: step.into(), attempt, demand };
        Self::launch_spec(executor, spec, force)
    }

    pub(super) fn launch_spec(executor: Arc<DockerExecutor>, spec: AttemptSpec, force: Option<StopForce>) -> Self {
        let (stop, control) = AttemptControl::new();
        stop.send_replace(force);
        let memory = Arc::new(Memory::default());
        let end = tokio::spawn(executor.run(spec, control, Arc::clone(&memory) as Arc<dyn AttemptSink>));
        Self { memory, stop, end }
    }

    pub(super) fn stop(&self, force: StopForce) {
        self.stop.send_replace(Some(force));
    }

    /// Drops the attempt's future, as a runner does that does not wait any longer.
    pub(super) fn abandon(self) {
        self.end.abort();
    }

    /// Waits for the end; what was settled must be what is returned, once.
    pub(super) async fn end(self) -> (Outcome, Arc<Memory>) {
        let ended = tokio::time::timeout(Duration::from_secs(120), self.end).await.expect("the attempt ends");
        let outcome = ended.unwrap();
        let settled =
            self.memory.get(|state| state.settled.iter().map(|(outcome, _)| outcome.clone()).collect::<Vec<_>>());
        assert_eq!(settled, std::slice::from_ref(&outcome));
        (outcome, self.memory)
    }
}
