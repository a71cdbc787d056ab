//! The connection to the engine breaks while workers warm up, wait, or run a step.

use serde_json::json;

use super::super::outage::{Cut, Line, socket};
use super::*;

async fn bench(name: &str, isolation: &str, options: &[&str], steps: &[&str]) -> Option<(Line, Bench)> {
    let fixture = Fixture::new(name).await?;
    let (line, engine) = Line::to(&socket(&fixture)?, &format!("{name}-{isolation}")).await;
    Some((line, Bench::on(fixture, engine, isolation, options, json!({}), steps)))
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test]
async fn a_worker_ends_with_its_connection_and_the_step_starts_cold() {
    for (isolation, options) in [("container", "warm=0"), ("container", "warm=60000"), ("process", "warm=0")] {
        let Some((mut line, bench)) = bench("warm-cut", isolation, &[options], &["say hello", "say never"]).await
        else {
            return;
        };
        bench.prepare("say hello");
        bench.until_containers(1).await;
        pause(500).await;
        let worker = sweep::list(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap().remove(0);
        line.cut().await;
        // Nobody has to remove it for that.
        let begin = Instant::now();
        while bench.inspect(&worker.id).await.state.unwrap().running == Some(true) {
            assert!(begin.elapsed() < Duration::from_secs(30), "the worker outlives its connection");
            pause(20).await;
        }
        assert_eq!(bench.inspect(&worker.id).await.state.unwrap().exit_code, Some(75));
        line.connect();
        let (outcome, memory) = bench.launch("say hello").end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "hello\n"));
        assert_ne!(memory.started().unwrap().container_id.unwrap(), worker.id);
        bench.ends().await;
    }
}

#[tokio::test]
async fn a_warm_step_survives_an_engine_that_is_away_for_a_while() {
    for isolation in ["container", "process"] {
        let Some((mut line, bench)) =
            bench("warm-outage", isolation, &[], &["graceful", "say next", "say never"]).await
        else {
            return;
        };
        bench.prepare("graceful");
        bench.until_awake(1).await;
        let running = bench.launch("graceful");
        running.memory.until_ready().await;
        line.cut().await;
        pause(1000).await;
        line.connect();
        pause(3000).await;
        running.stop(if isolation == "container" { StopForce::Graceful } else { StopForce::Kill });
        let (outcome, memory) = running.end().await;
        assert_eq!(outcome, Outcome::Stopped);
        assert_eq!(memory.text(), if isolation == "container" { "ready\nbye\n" } else { "ready\n" });
        let warned = memory.warnings().iter().any(|text| text.contains("some output may be missing"));
        assert!(warned, "{:?}", memory.warnings());
        // The connection that was lost tells a worker nothing any more.
        assert_eq!(bench.launch("say next").end().await.0, Outcome::Completed);
        bench.ends().await;
    }
}

#[tokio::test]
async fn the_end_of_a_warm_step_while_the_engine_is_away_is_seen_afterwards() {
    for isolation in ["container", "process"] {
        let Some((mut line, bench)) = bench("warm-away", isolation, &[], &["sleep 1500", "say never"]).await else {
            return;
        };
        bench.prepare("sleep 1500");
        bench.until_awake(1).await;
        let running = bench.launch("sleep 1500");
        running.memory.until_ready().await;
        line.cut().await;
        pause(3000).await;
        line.connect();
        assert_eq!(running.end().await.0, Outcome::Completed);
        bench.ends().await;
    }
}

/// Wherever the cut falls, the step runs once, and its outcome is right or lost. It writes down each time that it runs.
#[tokio::test]
async fn a_cut_around_the_beginning_never_starts_a_step_twice() {
    let directory = std::env::temp_dir().join(format!("step-engine-runs-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for isolation in ["container", "process"] {
        for at in 0..10_u64 {
            let Some(fixture) = Fixture::new("warm-begin").await else { return };
            let Some(socket) = socket(&fixture) else { return };
            let (mut line, engine) = Line::to(&socket, &format!("begin-{isolation}-{at}")).await;
            let file = format!("/runs/{isolation}-{at}");
            let step = format!("append {file}");
            let volumes = json!({"volumes": [{"source": directory, "target": "/runs"}]});
            let bench = Bench::on(fixture, engine, isolation, &["warm=300"], volumes, &[&step, "say never"]);
            bench.prepare(&step);
            bench.until_containers(1).await;
            let running = bench.launch(&step);
            pause(at * 50).await;
            line.cut().await;
            // Shorter than anybody notices, or longer.
            pause(at % 2 * 300).await;
            line.connect();
            let (outcome, _) = running.end().await;
            let runs = std::fs::read(directory.join(format!("{isolation}-{at}"))).unwrap_or_default().len();
            match outcome {
                Outcome::Completed => assert_eq!(runs, 1, "cut {at} of {isolation}"),
                Outcome::Lost { .. } => assert!(runs <= 1, "cut {at} of {isolation}"),
                other => panic!("cut {at} of {isolation}: {other:?}"),
            }
            bench.ends().await;
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

/// A step that is launched while the engine is away has nobody to make its worker. It starts cold, once, and what could not be
/// made then is no reason to make none later.
#[tokio::test]
async fn a_step_that_is_launched_while_the_engine_is_away_starts_cold_once_it_is_back() {
    let steps = ["say a", "say b", "say c", "say d", "say never"];
    for isolation in ["container", "process"] {
        let Some((mut line, bench)) = bench("warm-launched", isolation, &[], &steps).await else { return };
        line.cut().await;
        let running: Vec<_> = steps[..3].iter().map(|step| bench.launch(step)).collect();
        pause(4000).await;
        line.connect();
        for (running, text) in running.into_iter().zip(["a\n", "b\n", "c\n"]) {
            let (outcome, memory) = running.end().await;
            assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, text), "{isolation}");
            assert_eq!(memory.started().unwrap().go_to_started, None, "{isolation}");
            let warnings = memory.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains("the engine is away"), "{isolation}: {warnings:?}");
        }
        // In a worker: also the step whose worker could not be made.
        for step in ["say d", "say a"] {
            let (outcome, memory) = bench.launch(step).end().await;
            assert_eq!(outcome, Outcome::Completed);
            assert!(memory.started().unwrap().go_to_started.is_some(), "{isolation} {step}");
        }
        bench.ends().await;
    }
}

/// Whatever the engine was asked for when it went away, nothing of the worker stays and its step runs.
#[tokio::test]
async fn an_engine_that_goes_away_while_a_worker_is_made_leaves_nothing_of_it() {
    for isolation in ["container", "process"] {
        for (request, cut) in [
            ("/containers/create", Cut::Before),
            ("/containers/create", Cut::After),
            ("/attach?", Cut::After),
            ("/start", Cut::Before),
            ("/start", Cut::After),
        ] {
            let Some((mut line, bench)) = bench("warm-made", isolation, &[], &["say hello", "say never"]).await else {
                return;
            };
            line.set_trap(request, cut);
            let running = bench.launch("say hello");
            line.until_trapped().await;
            pause(1500).await;
            line.connect();
            let (outcome, memory) = running.end().await;
            let text = memory.text();
            assert_eq!((outcome, text.as_str()), (Outcome::Completed, "hello\n"), "{isolation} {request} {cut:?}");
            bench.ends().await;
        }
    }
}

/// An engine that is away when it is asked for other limits is not one that does not change limits.
#[tokio::test]
async fn an_engine_that_goes_away_while_limits_are_set_is_asked_for_them_again() {
    for isolation in ["container", "process"] {
        let Some((mut line, bench)) = bench("warm-limit", isolation, &[], &["say a", "say b", "say never"]).await
        else {
            return;
        };
        line.set_trap("/update", Cut::Before);
        bench.prepare("say a");
        line.until_trapped().await;
        pause(1000).await;
        line.connect();
        let (outcome, memory) = bench.launch("say a").end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "a\n"), "{isolation}");
        let warnings = memory.warnings();
        assert!(!warnings.iter().any(|text| text.contains("limits")), "{isolation}: {warnings:?}");
        // Workers are made as before: with the shares of warming up, which are changed when they are ready.
        bench.prepare("say b");
        bench.until_awake(1).await;
        let (outcome, memory) = bench.launch("say b").end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "b\n"), "{isolation}");
        assert!(memory.started().unwrap().warm, "{isolation}");
        bench.ends().await;
    }
}

/// A worker that dies before it is greeted is no engine that is away: the step does without from then on.
#[tokio::test]
async fn a_worker_that_dies_before_it_is_greeted_is_not_made_again() {
    let Some(fixture) = Fixture::new("warm-greet").await else { return };
    let Some(socket) = socket(&fixture) else { return };
    let (line, engine) = Line::to(&socket, "warm-greet").await;
    // Its command is none of a worker.
    let fields = json!({"warm": {"isolation": "container", "entrypoint": ["/probe"], "command": ["exit", "1"]}});
    let step = ("say hello".to_owned(), fixture.container(&["say", "hello"], fields));
    let executor = fixture.executor_on(engine, [step], None);
    line.set_slow("/start", Duration::from_secs(2));
    for attempt in 1..3 {
        let spec =
            AttemptSpec { step: StepIndex::new(0), name: "say hello".into(), attempt, demand: Demand::default() };
        let (outcome, memory) = Running::launch_spec(executor.clone(), spec, None).end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "hello\n"));
    }
    assert_eq!(line.asked("/containers/create"), 3, "one worker, and a container for each attempt");
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}

/// The end of a step is found by its name where the engine's copy of the output has lost that of the steps before.
#[tokio::test]
async fn the_end_of_a_warm_step_is_found_in_a_copy_that_lost_its_beginning() {
    let Some(fixture) = Fixture::new("warm-rotated").await else { return };
    let Some(socket) = socket(&fixture) else { return };
    let (mut line, engine) = Line::to(&socket, "warm-rotated").await;
    let steps = ["both 2000", "sleep 1500", "say never"];
    let bench = Bench::on(fixture, engine, "process", &[], small_log(), &steps);
    line.cut_unseen();
    bench.prepare("both 2000");
    bench.until_awake(1).await;
    assert_eq!(bench.launch("both 2000").end().await.0, Outcome::Completed);
    let running = bench.launch("sleep 1500");
    running.memory.until_ready().await;
    line.cut().await;
    pause(3000).await;
    line.connect();
    assert_eq!(running.end().await.0, Outcome::Completed);
    bench.ends().await;
}

/// An engine that restarts and leaves its containers running leaves their inputs open, too. A shared worker whose step ended
/// meanwhile would wait for the next one forever, its word for the end being lost.
#[tokio::test]
async fn the_end_of_a_warm_step_is_seen_after_an_engine_that_left_the_workers_input_open() {
    for isolation in ["container", "process"] {
        // Over before the engine is back, and after.
        for step in ["sleep 1500", "sleep 5000"] {
            let Some((mut line, bench)) = bench("warm-open", isolation, &[], &[step, "say never"]).await else {
                return;
            };
            line.cut_unseen();
            bench.prepare(step);
            bench.until_awake(1).await;
            let running = bench.launch(step);
            running.memory.until_ready().await;
            line.cut().await;
            pause(3000).await;
            line.connect();
            assert_eq!(running.end().await.0, Outcome::Completed, "{isolation} {step}");
            bench.ends().await;
        }
    }
}
