//! Warm workers. The probe plays the worker; the name of a step is the command that it runs.

mod alone;
mod outage;
mod shared;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use step_engine::docker::{DockerExecutor, Engine, sweep};
use step_engine::event::Outcome;
use step_engine::plan::{Demand, StepIndex};
use step_engine::runner::conformance::{self, Behaviour, Workbench};
use step_engine::runner::{AttemptSpec, Executor as _, StopForce};

use super::fixture::{Fixture, Running};

/// Steps that may start warm.
struct Bench {
    fixture: Fixture,
    executor: Arc<DockerExecutor>,
    steps: Vec<String>,
    demand: Demand,
}

impl Bench {
    async fn new(test: &str, isolation: &str, options: &[&str], more: Value, steps: &[&str]) -> Option<Self> {
        let fixture = Fixture::new(test).await?;
        let engine = fixture.engine.clone();
        Some(Self::on(fixture, engine, isolation, options, more, steps))
    }

    fn on(fixture: Fixture, engine: Engine, isolation: &str, options: &[&str], more: Value, steps: &[&str]) -> Self {
        let mut fields = json!({"warm": warm(isolation, options)});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let containers = steps.iter().map(|step| {
            let command: Vec<&str> = step.split(' ').collect();
            ((*step).to_owned(), fixture.container(&command, fields.clone()))
        });
        let executor = fixture.executor_on(engine, containers, None);
        let steps = steps.iter().map(|step| (*step).to_owned()).collect();
        Self { fixture, executor, steps, demand: Demand::default() }
    }

    fn spec(&self, step: &str, attempt: u32) -> AttemptSpec {
        let at = self.steps.iter().position(|known| known == step).unwrap();
        AttemptSpec { step: StepIndex::new(at), name: step.into(), attempt, demand: self.demand }
    }

    fn prepare(&self, step: &str) {
        self.executor.clone().prepare(self.spec(step, 1));
    }

    /// Prepares an attempt, launches it after a while, and stops it after another.
    async fn race(&self, step: &str, attempt: u32, pauses: [u64; 2], force: StopForce) -> Outcome {
        self.executor.clone().prepare(self.spec(step, attempt));
        tokio::time::sleep(Duration::from_millis(pauses[0])).await;
        let running = Running::launch_spec(self.executor.clone(), self.spec(step, attempt), None);
        tokio::time::sleep(Duration::from_millis(pauses[1])).await;
        running.stop(force);
        running.end().await.0
    }

    fn discard(&self, step: &str) {
        self.executor.clone().discard(self.spec(step, 1).step);
    }

    fn launch(&self, step: &str) -> Running {
        self.launch_stopped(step, None)
    }

    fn launch_stopped(&self, step: &str, force: Option<StopForce>) -> Running {
        Running::launch_spec(self.executor.clone(), self.spec(step, 1), force)
    }

    /// Waits until so many containers of the run are awake, which a worker is once it is ready.
    async fn until_awake(&self, count: usize) {
        let docker = bollard::Docker::connect_with_defaults().unwrap();
        let waiting = async {
            loop {
                let mut awake = 0;
                for container in sweep::list(&self.fixture.engine, &self.fixture.run_id).await.unwrap() {
                    let Ok(found) = docker.inspect_container(&container.id, None).await else { continue };
                    awake += usize::from(found.host_config.unwrap().cpu_shares == Some(1024));
                }
                if awake == count {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the workers get ready");
    }

    /// Waits until the engine has so many containers of the run.
    async fn until_containers(&self, count: usize) {
        let begin = Instant::now();
        while sweep::list(&self.fixture.engine, &self.fixture.run_id).await.unwrap().len() != count {
            assert!(begin.elapsed() < Duration::from_secs(60), "waited in vain for {count} containers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn inspect(&self, id: &str) -> bollard::models::ContainerInspectResponse {
        bollard::Docker::connect_with_defaults().unwrap().inspect_container(id, None).await.unwrap()
    }

    async fn ends(self) {
        assert!(self.executor.close().await.is_empty());
        self.fixture.leaves_nothing().await;
    }
}

fn warm(isolation: &str, options: &[&str]) -> Value {
    let command: Vec<&str> = ["worker", isolation].into_iter().chain(options.iter().copied()).collect();
    json!({"isolation": isolation, "entrypoint": ["/probe"], "command": command})
}

/// Run arguments for a copy of the output that soon loses its beginning.
pub(super) fn small_log() -> Value {
    json!({"run_args": {"log_config": {"Type": "json-file", "Config": {"max-size": "20k", "max-file": "1"}}}})
}

/// The rules of every executor, for steps that were prepared.
struct Prepared {
    fixture: Fixture,
    isolation: &'static str,
    warm_up: &'static str,
}

impl Workbench for Prepared {
    type Executor = DockerExecutor;

    async fn executor(&self, behaviour: Behaviour) -> Arc<DockerExecutor> {
        let lines;
        let (command, more) = match behaviour {
            Behaviour::Print { lines: count } => {
                lines = format!("lines,{count}");
                (lines.as_str(), json!({}))
            }
            Behaviour::Exit { code } => {
                lines = format!("exit,{code}");
                (lines.as_str(), json!({}))
            }
            Behaviour::Wait => ("sleep,600000", json!({})),
            Behaviour::Insist => ("sleep,600000", json!({"run_args": {"stop_signal": "SIGWINCH"}})),
        };
        let mut fields = json!({"warm": warm(self.isolation, &[&format!("run={command}"), self.warm_up])});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let arguments: Vec<&str> = command.split(',').collect();
        let executor = self.fixture.executor(self.fixture.container(&arguments, fields));
        let spec = AttemptSpec { step: StepIndex::new(0), name: "step".into(), attempt: 1, demand: Demand::default() };
        executor.clone().prepare(spec);
        executor
    }
}

async fn keep_the_rules(isolation: &'static str) {
    for warm_up in ["warm=0", "warm=700", "unfit", "die"] {
        let Some(fixture) = Fixture::new("warm-conformance").await else { return };
        let prepared = Prepared { fixture, isolation, warm_up };
        conformance::all(&prepared).await;
        prepared.fixture.leaves_nothing().await;
    }
}

#[tokio::test]
async fn workers_for_one_attempt_keep_the_rules() {
    keep_the_rules("container").await;
}

#[tokio::test]
async fn shared_workers_keep_the_rules() {
    keep_the_rules("process").await;
}

#[tokio::test]
async fn workers_are_stopped_from_outside_as_steps_are() {
    for isolation in ["container", "process"] {
        let steps = ["graceful", "say hello"];
        let Some(bench) = Bench::new("warm-sweep", isolation, &[], json!({}), &steps).await else { return };
        bench.prepare("graceful");
        bench.until_awake(1).await;
        let running = bench.launch("graceful");
        running.memory.until_ready().await;
        bench.prepare("say hello");
        bench.until_awake(2).await;
        let grace = Duration::from_secs(60);
        let left =
            sweep::stop(&bench.fixture.engine, &bench.fixture.run_id, StopForce::Graceful, Some(grace)).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        // The worker of a shared step goes with the signal, and the step's process with the worker.
        let code = if isolation == "container" { 3 } else { 143 };
        assert_eq!(running.end().await.0, Outcome::Exited { code });
        assert_eq!(bench.launch("say hello").end().await.0, Outcome::Completed);
        bench.ends().await;
    }
}
