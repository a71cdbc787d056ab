//! `isolation: process`: workers for many steps.

use serde_json::json;
use step_engine::docker::{RunIdentity, label};
use step_engine::plan::{Demand, Plan};
use step_engine::runner::StopForce;

use super::*;

const MEBIBYTE: u64 = 1 << 20;

async fn bench(test: &str, options: &[&str], steps: &[&str]) -> Option<Bench> {
    Bench::new(test, "process", options, json!({}), steps).await
}

impl Bench {
    /// Runs a step to its end in a worker, whether that was there or is made for it.
    async fn run_warm(&self, step: &str) -> (Outcome, String, Arc<super::super::fixture::Memory>) {
        let (outcome, memory) = self.launch(step).end().await;
        let details = memory.started().unwrap();
        assert!(details.go_to_started.is_some(), "{step}: {:?}", memory.warnings());
        (outcome, details.container_id.unwrap(), memory)
    }
}

#[tokio::test]
async fn steps_share_a_worker_one_after_the_other_and_nothing_else() {
    let steps = ["say one", "both 50", "frame", "exit 4", "say two", "say never"];
    let Some(bench) = bench("shared", &["say=3"], &steps).await else { return };
    bench.prepare("say one");
    bench.until_awake(1).await;
    let found = sweep::list(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap().remove(0);
    assert_eq!((found.step.as_str(), found.attempt, found.running), ("", 0, true));
    assert!(found.name.starts_with("rust_tests-worker-1-"), "{}", found.name);
    let labels = bench.inspect(&found.id).await.config.unwrap().labels.unwrap();
    assert!(!labels.contains_key(label::STEP) && labels[label::WORKER] == "1" && labels[label::COMPONENT] == "c");

    let (outcome, id, memory) = bench.run_warm("say one").await;
    assert_eq!((outcome, id.as_str()), (Outcome::Completed, found.id.as_str()));
    // The warm-up's output is the first step's, once.
    assert_eq!((memory.text().as_str(), memory.stderr().as_str()), ("www\nwarming\none\n", "warming, too\n"));
    let expected = |name: &str| (0..50).map(|line| format!("{name} {line}\n")).collect::<String>();
    let (_, id, memory) = bench.run_warm("both 50").await;
    assert_eq!((id.as_str(), memory.text(), memory.stderr()), (found.id.as_str(), expected("out"), expected("err")));
    let (outcome, _, memory) = bench.run_warm("frame").await;
    assert!(memory.text().ends_with("no newline\0step-eng") && memory.stderr() == "nor here", "{}", memory.text());
    assert_eq!(outcome, Outcome::Completed);
    let (outcome, _, memory) = bench.run_warm("exit 4").await;
    assert_eq!((outcome, memory.text(), memory.stderr()), (Outcome::Exited { code: 4 }, String::new(), String::new()));
    let (outcome, id, memory) = bench.run_warm("say two").await;
    assert_eq!((outcome, id.as_str(), memory.text().as_str()), (Outcome::Completed, found.id.as_str(), "two\n"));
    bench.ends().await;
}

#[tokio::test]
async fn an_unprepared_step_takes_an_idle_worker_or_has_one_made() {
    let steps = ["sleep 60000", "say one", "say two"];
    let Some(bench) = bench("shared-unprepared", &[], &steps).await else { return };
    let long = bench.launch("sleep 60000");
    long.memory.until_ready().await;
    let (_, second, _) = bench.run_warm("say one").await;
    assert_ne!(long.memory.started().unwrap().container_id.unwrap(), second);
    let (_, third, _) = bench.run_warm("say two").await;
    assert_eq!(third, second);
    long.stop(StopForce::Kill);
    let (outcome, memory) = long.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Stopped, "ready\n"));
    bench.ends().await;
}

#[tokio::test]
async fn workers_go_when_no_step_can_need_them_any_more() {
    let Some(bench) = bench("shared-last", &[], &["say one", "say two"]).await else { return };
    bench.prepare("say one");
    bench.run_warm("say one").await;
    bench.until_containers(1).await;
    bench.run_warm("say two").await;
    bench.until_containers(0).await;
    // A retry has a new one.
    bench.prepare("say two");
    bench.run_warm("say two").await;
    bench.until_containers(0).await;
    bench.ends().await;
}

#[tokio::test]
async fn no_worker_is_kept_for_a_step_that_starts_cold_for_its_gpu() {
    let Some(bench) = bench("shared-gpu", &[], &["say one", "say two"]).await else { return };
    bench.prepare("say one");
    bench.run_warm("say one").await;
    bench.until_containers(1).await;
    // More than any machine has: the step fails before it has a container.
    let spec = AttemptSpec { demand: Demand { gpus: 1000, ..Demand::default() }, ..bench.spec("say two", 1) };
    let (outcome, _) = Running::launch_spec(bench.executor.clone(), spec, None).end().await;
    assert!(matches!(outcome, Outcome::LaunchFailed { .. }), "{outcome:?}");
    bench.until_containers(0).await;
    bench.ends().await;
}

#[tokio::test]
async fn workers_are_shared_only_by_steps_whose_containers_are_alike() {
    let Some(fixture) = Fixture::new("keys").await else { return };
    let describe = |step: &str, more: Value| {
        let command: Vec<&str> = step.split(' ').collect();
        let mut fields = json!({"warm": warm("process", &[])});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (step.to_owned(), fixture.container(&command, fields))
    };
    let containers = [
        describe("say a", json!({"environment": {"A": "1"}, "name_hint": "x"})),
        describe("say b", json!({"environment": {"A": "1"}, "name_hint": "y"})),
        describe("say c", json!({"environment": {"A": "2"}})),
        describe("say d", json!({"environment": {"A": "1"}, "keep_containers": "failed"})),
        describe("say e", json!({"environment": {"A": "1"}})),
    ];
    let executor = fixture.executor_of(containers, None);
    let steps = ["say a", "say b", "say c", "say d", "say e"].map(str::to_owned).to_vec();
    let bench = Bench { fixture, executor, steps, demand: Demand::default() };
    let mut ids = Vec::new();
    for step in ["say a", "say b", "say c"] {
        ids.push(bench.run_warm(step).await.1);
    }
    assert!(ids[0] == ids[1] && ids[1] != ids[2], "{ids:?}");
    // A container of several steps is nobody's to keep.
    assert_eq!(bench.launch("say d").end().await.1.started().unwrap().go_to_started, None);
    bench.ends().await;
}

#[tokio::test]
async fn signals_reach_the_step_and_the_worker_lives_on() {
    let steps = ["graceful", "finish-on-term", "stubborn", "say last", "say never"];
    let Some(bench) = bench("shared-signals", &[], &steps).await else { return };
    let mut ids = Vec::new();
    for (step, force, outcome, text) in [
        ("graceful", StopForce::Graceful, Outcome::Stopped, "ready\nbye\n"),
        ("finish-on-term", StopForce::Graceful, Outcome::Completed, "ready\n"),
        ("stubborn", StopForce::Kill, Outcome::Stopped, "ready\n"),
    ] {
        let running = bench.launch(step);
        running.memory.until_ready().await;
        running.stop(force);
        let (ended, memory) = running.end().await;
        assert_eq!((ended, memory.text().as_str()), (outcome, text), "{step}");
        ids.push(memory.started().unwrap().container_id.unwrap());
    }
    ids.push(bench.run_warm("say last").await.1);
    ids.dedup();
    assert_eq!(ids.len(), 1);
    bench.ends().await;
}

#[tokio::test]
async fn a_worker_that_does_not_pass_the_kill_on_is_killed_with_its_step() {
    let Some(bench) = bench("shared-deaf", &["deaf"], &["stubborn", "say next", "say never"]).await else { return };
    let running = bench.launch("stubborn");
    running.memory.until_ready().await;
    let id = running.memory.started().unwrap().container_id.unwrap();
    running.stop(StopForce::Graceful);
    running.stop(StopForce::Kill);
    assert_eq!(running.end().await.0, Outcome::Stopped);
    assert_ne!(bench.run_warm("say next").await.1, id);
    bench.ends().await;
}

#[tokio::test]
async fn a_stop_at_any_moment_leaves_nothing() {
    for warm_up in ["warm=0", "warm=400"] {
        let Some(bench) = bench("shared-race", &[warm_up], &["sleep 60000", "say never"]).await else { return };
        for at in 0..12_u32 {
            let pauses = [u64::from(at % 4) * 120, u64::from(at / 4) * 100];
            let force = if at % 2 == 0 { StopForce::Graceful } else { StopForce::Kill };
            assert_eq!(bench.race("sleep 60000", at + 1, pauses, force).await, Outcome::Stopped, "round {at}");
        }
        bench.ends().await;
    }
}

#[tokio::test]
async fn a_damaged_worker_is_replaced_and_the_outcome_stands() {
    let steps = ["say one damage", "say two", "vanish 6 worker", "say three", "say never"];
    let Some(bench) = bench("damaged", &[], &steps).await else { return };
    let (outcome, first, memory) = bench.run_warm("say one damage").await;
    // The probe takes the word for an exit code that it cannot read.
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 101 }, "one\n"));
    let (outcome, second, _) = bench.run_warm("say two").await;
    assert_eq!(outcome, Outcome::Completed);
    assert_ne!(first, second);
    // The worker dies with its step and says nothing.
    let (outcome, third, _) = bench.run_warm("vanish 6 worker").await;
    assert_eq!((outcome, third.as_str()), (Outcome::Exited { code: 6 }, second.as_str()));
    let (outcome, fourth, _) = bench.run_warm("say three").await;
    assert_eq!(outcome, Outcome::Completed);
    assert_ne!(third, fourth);
    bench.until_containers(1).await;
    bench.ends().await;
}

#[tokio::test]
async fn limits_follow_the_step() {
    let steps = ["say small", "eat 268435456", "eat 134217728", "say never"];
    let Some(mut bench) = bench("shared-limits", &[], &steps).await else { return };
    bench.demand = Demand { memory_bytes: 64 * MEBIBYTE, cpu_millis: 700, gpus: 0 };
    bench.prepare("say small");
    let (_, first, _) = bench.run_warm("say small").await;
    let host = bench.inspect(&first).await.host_config.unwrap();
    assert_eq!((host.memory, host.nano_cpus, host.cpu_shares), (Some(64 << 20), Some(700_000_000), Some(1024)));
    bench.demand = Demand { memory_bytes: 48 * MEBIBYTE, ..Demand::default() };
    let (outcome, second, _) = bench.run_warm("eat 268435456").await;
    assert_eq!((outcome, second.as_str()), (Outcome::OutOfMemory, first.as_str()));
    // Its memory may be in shreds: the next step has another, and a limit that fits.
    bench.demand = Demand { memory_bytes: 300 * MEBIBYTE, ..Demand::default() };
    let (outcome, third, _) = bench.run_warm("eat 134217728").await;
    assert_eq!(outcome, Outcome::Completed);
    assert_ne!(third, second);
    bench.ends().await;
}

#[tokio::test]
async fn an_unfit_worker_makes_its_steps_start_cold() {
    for option in ["unfit", "die"] {
        let steps = ["say one", "say two", "say three", "say four", "say five"];
        let Some(bench) = bench("shared-unfit", &[option, "say=3"], &steps).await else { return };
        for step in steps {
            let (outcome, memory) = bench.launch(step).end().await;
            assert_eq!(outcome, Outcome::Completed);
            assert_eq!(memory.text(), format!("{}\n", &step[4..]));
            assert!(!memory.started().unwrap().warm);
        }
        bench.until_containers(0).await;
        // By now it is known that workers are of no use.
        bench.prepare("say one");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(sweep::list(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap().is_empty());
        bench.ends().await;
    }
}

/// A chain needs one worker, a fan as many as can run at once.
#[tokio::test]
async fn no_more_workers_are_made_than_the_plan_needs() {
    let Some(fixture) = Fixture::new("expecting").await else { return };
    let plan = json!({"steps": [
        {"name": "say root"}, {"name": "say next", "upstream": ["say root"]},
        {"name": "say after", "upstream": ["say next"]}, {"name": "say other", "upstream": ["say root"]},
    ]});
    let plan = Plan::from_json(&plan.to_string()).unwrap();
    let steps: Vec<String> = plan.steps.iter().map(|step| step.name.to_string()).collect();
    let containers = steps.iter().map(|step| {
        let command: Vec<&str> = step.split(' ').collect();
        (step.clone(), fixture.container(&command, json!({"warm": warm("process", &[])})))
    });
    let run = RunIdentity { run_id: fixture.run_id.clone(), ..RunIdentity::default() };
    let executor = DockerExecutor::new(fixture.engine.clone(), run, containers, None).unwrap().expecting(&plan, 2);
    let bench = Bench { executor: Arc::new(executor), steps, demand: Demand::default(), fixture };
    bench.prepare("say root");
    bench.prepare("say next");
    bench.prepare("say after");
    bench.until_awake(1).await;
    bench.until_containers(1).await;
    bench.prepare("say other");
    bench.until_awake(2).await;
    bench.discard("say other");
    bench.discard("say after");
    bench.until_containers(2).await;
    for step in ["say root", "say next", "say after", "say other"] {
        bench.run_warm(step).await;
    }
    bench.until_containers(0).await;
    bench.ends().await;
}
