//! What the executor adds to a step. Figures, not tests: `cargo test docker::measure -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;
use step_engine::docker::DockerExecutor;
use step_engine::event::{AttemptDetails, Outcome, RunStatus};
use step_engine::plan::StepIndex;
use step_engine::plan::{Admission, Demand, Plan};
use step_engine::runner::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream, Run, drive, notices};

use super::fixture::Fixture;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, run by hand"]
#[expect(clippy::print_stdout, reason = "the figures are the purpose")]
async fn latencies() {
    const ROUNDS: usize = 40;

    let Some(fixture) = Fixture::new("measure").await else { return };
    let mut columns = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let (outcome, memory) = fixture.start(&["clock"], json!({}), Demand::default()).end().await;
        let end = Instant::now();
        assert_eq!(outcome, Outcome::Completed);
        let exited = Duration::from_nanos(memory.text().trim().parse().unwrap());
        let settled = memory.settled_at();
        let since_exit = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().saturating_sub(exited) - end.elapsed();
        let row = [memory.started_at() - begin, since_exit - (end - settled), settled - begin, end - settled];
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    for (name, mut values) in
        ["launch to started", "exit to settled", "launch to settled", "removal"].into_iter().zip(columns)
    {
        values.sort();
        println!("{name:20} median {:?}, 95th percentile {:?}", values[ROUNDS / 2], values[ROUNDS * 95 / 100]);
    }
    fixture.leaves_nothing().await;
}

/// When what happened to a step.
#[derive(Debug, Clone, Default)]
struct Times {
    started: Option<(SystemTime, AttemptDetails)>,
    text: Vec<u8>,
    settled: Option<SystemTime>,
}

impl Times {
    fn went(&self) -> SystemTime {
        let (started, details) = self.started.as_ref().unwrap();
        *started - details.go_to_started.unwrap()
    }

    /// When the step ended, by its own clock.
    fn ended(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(String::from_utf8_lossy(&self.text).trim().parse().unwrap())
    }
}

/// A Docker executor whose attempts are watched.
struct Watched {
    inner: Arc<DockerExecutor>,
    times: Arc<Mutex<BTreeMap<usize, Times>>>,
}

struct Watcher {
    step: usize,
    inner: Arc<dyn AttemptSink>,
    times: Arc<Mutex<BTreeMap<usize, Times>>>,
}

impl Watcher {
    fn note(&self, note: impl FnOnce(&mut Times)) {
        note(self.times.lock().unwrap().entry(self.step).or_default());
    }
}

impl AttemptSink for Watcher {
    fn started(&self, details: AttemptDetails) {
        self.note(|times| times.started = Some((SystemTime::now(), details.clone())));
        self.inner.started(details);
    }

    fn log(&self, stream: LogStream, bytes: Bytes) {
        self.note(|times| times.text.extend_from_slice(&bytes));
        self.inner.log(stream, bytes);
    }

    fn settled(&self, outcome: &Outcome) {
        self.note(|times| times.settled = Some(SystemTime::now()));
        self.inner.settled(outcome);
    }

    fn warning(&self, message: String) {
        self.inner.warning(message);
    }
}

impl Executor for Watched {
    async fn run(self: Arc<Self>, spec: AttemptSpec, control: AttemptControl, sink: Arc<dyn AttemptSink>) -> Outcome {
        let watcher = Watcher { step: spec.step.get(), inner: sink, times: Arc::clone(&self.times) };
        Arc::clone(&self.inner).run(spec, control, Arc::new(watcher)).await
    }

    fn prepare(self: Arc<Self>, spec: AttemptSpec) {
        Arc::clone(&self.inner).prepare(spec);
    }

    fn discard(self: Arc<Self>, step: StepIndex) {
        Arc::clone(&self.inner).discard(step);
    }

    async fn close(self: Arc<Self>) -> Vec<String> {
        Arc::clone(&self.inner).close().await
    }
}

/// A chain of short steps in warm workers, driven as a run is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, run by hand"]
async fn warm_latencies() {
    const STEPS: usize = 111;

    for isolation in ["container", "process"] {
        let Some(fixture) = Fixture::new("measure-warm").await else { return };
        let name = |at: usize| format!("clock {at} 700");
        let steps: Vec<_> = (0..STEPS)
            .map(|at| json!({"name": name(at), "upstream": if at > 0 { vec![name(at - 1)] } else { vec![] }}))
            .collect();
        let plan = Plan::from_json(&json!({"steps": steps, "max_parallelism": 2}).to_string()).unwrap();
        let warm = json!({"isolation": isolation, "entrypoint": ["/probe"], "command": ["worker", isolation]});
        let container = fixture.container(&["clock", "0", "700"], json!({"warm": warm}));
        let containers = (0..STEPS).map(|at| (name(at), container.clone()));
        let run = step_engine::docker::RunIdentity { run_id: fixture.run_id.clone(), ..Default::default() };
        let executor = DockerExecutor::new(fixture.engine.clone(), run, containers, None).unwrap().expecting(&plan, 2);
        let times = Arc::new(Mutex::new(BTreeMap::new()));
        let watched = Arc::new(Watched { inner: Arc::new(executor), times: Arc::clone(&times) });
        let admission = Admission::new(&plan, fixture.engine.info().capacity()).unwrap();
        let run = Run { plan: Arc::new(plan), admission, prepare: true, log_directory: None, journal: None };
        let (sender, receiver) = notices();
        // Nobody listens: what is waited for is answered by dropping it.
        drop(receiver);
        let (_cancels, inbox) = tokio::sync::mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
        let summary = drive(run, watched, inbox, sender).await;
        assert_eq!(summary.status, RunStatus::Completed);
        let times: Vec<Times> = times.lock().unwrap().values().cloned().collect();
        let pairs = times.windows(2).filter(|pair| pair.iter().all(|times| times.started.as_ref().unwrap().1.warm));
        let mut columns = [const { Vec::new() }; 4];
        for pair in pairs {
            let (above, below) = (&pair[0], &pair[1]);
            let since = |later: SystemTime, earlier: SystemTime| later.duration_since(earlier).unwrap_or_default();
            let row = [
                since(below.went(), above.ended()),
                since(below.went(), above.settled.unwrap()),
                below.started.as_ref().unwrap().1.go_to_started.unwrap(),
                since(below.settled.unwrap(), below.ended()),
            ];
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        say(isolation, &mut columns);
        fixture.leaves_nothing().await;
    }
}

#[expect(clippy::print_stdout, reason = "the figures are the purpose")]
fn say(isolation: &str, columns: &mut [Vec<Duration>; 4]) {
    let names =
        ["end of a step to the go of its child", "settled to the go of its child", "go to started", "end to settled"];
    for (name, values) in names.into_iter().zip(columns) {
        values.sort();
        let count = values.len();
        let (median, last) = (values[count / 2], values[count * 99 / 100]);
        println!("{isolation}: {name:36} median {median:?}, 99th percentile {last:?} of {count}");
    }
}
