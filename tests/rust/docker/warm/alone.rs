//! `isolation: container`: a worker for one attempt.

use serde_json::json;
use step_engine::event::Usage;
use step_engine::plan::Demand;
use step_engine::runner::StopForce;

use super::super::outage::{Line, socket};
use super::*;

const MEBIBYTE: u64 = 1 << 20;

async fn bench(test: &str, options: &[&str], steps: &[&str]) -> Option<Bench> {
    Bench::new(test, "container", options, json!({}), steps).await
}

#[tokio::test]
async fn a_prepared_step_starts_in_its_worker() {
    let Some(mut bench) = bench("warm", &["say=3"], &["sleep 700"]).await else { return };
    bench.demand = Demand { cpu_millis: 500, memory_bytes: 64 * MEBIBYTE, gpus: 0 };
    bench.prepare("sleep 700");
    bench.until_awake(1).await;
    let waiting = sweep::list(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap().remove(0);
    assert_eq!((waiting.step.as_str(), waiting.attempt, waiting.running), ("sleep 700", 1, true));
    assert!(waiting.name.starts_with("rust_tests-sleep_700-1-"), "{}", waiting.name);
    let host = bench.inspect(&waiting.id).await.host_config.unwrap();
    assert_eq!((host.nano_cpus, host.memory, host.memory_swap), (Some(500_000_000), Some(64 << 20), Some(64 << 20)));

    let (outcome, memory) = bench.launch("sleep 700").end().await;
    assert_eq!(outcome, Outcome::Completed);
    let details = memory.started().unwrap();
    assert_eq!((details.container_id.as_deref(), details.warm), (Some(&*waiting.id), true));
    assert!(details.go_to_started.is_some());
    // What the warm-up wrote comes first, and nothing of the protocol is shown.
    assert_eq!((memory.text().as_str(), memory.stderr().as_str()), ("www\nwarming\nready\n", "warming, too\n"));
    assert_eq!(memory.usage(), [Usage { peak_memory_bytes: Some(4711) }]);
    assert_eq!(memory.warnings(), [""; 0]);
    bench.ends().await;
}

#[tokio::test]
async fn a_step_that_was_not_prepared_has_a_worker_of_its_own_made_for_it() {
    let Some(bench) = bench("unprepared", &["warm=300"], &["say hello 3"]).await else { return };
    let running = bench.launch("say hello 3");
    // With the CPU of a step from the beginning.
    bench.until_awake(1).await;
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 3 }, "hello\n"));
    let details = memory.started().unwrap();
    // Nothing was warm when it was launched.
    assert!(!details.warm && details.go_to_started.is_some());
    bench.ends().await;
}

#[tokio::test]
async fn a_step_whose_worker_is_unfit_starts_the_plain_way_from_then_on() {
    let Some(bench) = bench("unfit-once", &["unfit"], &["say hello 3"]).await else { return };
    for _ in 0..2 {
        let (outcome, memory) = bench.launch("say hello 3").end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 3 }, "hello\n"));
        assert_eq!(memory.started().unwrap().go_to_started, None);
    }
    bench.ends().await;
}

#[tokio::test]
async fn a_step_that_is_launched_while_its_worker_warms_up_begins_when_that_is_ready() {
    let Some(bench) = bench("warming", &["warm=1500", "say=3"], &["say hello 3"]).await else { return };
    bench.prepare("say hello 3");
    bench.until_containers(1).await;
    let running = bench.launch("say hello 3");
    // It has the CPU of a step at once.
    bench.until_awake(1).await;
    assert!(running.memory.started().is_none());
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 3 }, "www\nwarming\nhello\n"));
    assert!(memory.started().unwrap().warm);
    bench.ends().await;
}

#[tokio::test]
async fn a_step_that_is_launched_while_its_worker_is_made_takes_it() {
    let Some(bench) = bench("making", &[], &["say hello"]).await else { return };
    bench.prepare("say hello");
    let (outcome, memory) = bench.launch("say hello").end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "hello\n"));
    assert!(memory.started().unwrap().warm);
    bench.ends().await;
}

#[tokio::test]
async fn a_failed_warm_up_is_silent_and_the_step_starts_cold_once() {
    for (options, launched_early) in [
        (["warm=0", "unfit", "say=3"], false),
        (["warm=700", "unfit", "say=3"], true),
        (["warm=0", "die", "say=3"], false),
        (["warm=700", "die", "say=3"], true),
    ] {
        let Some(bench) = bench("unfit", &options, &["say hello 3"]).await else { return };
        bench.prepare("say hello 3");
        bench.until_containers(1).await;
        if !launched_early {
            bench.until_containers(0).await;
        }
        let (outcome, memory) = bench.launch("say hello 3").end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 3 }, "hello\n"), "{options:?}");
        assert_eq!((memory.stderr().as_str(), memory.started().unwrap().warm), ("", false), "{options:?}");
        bench.ends().await;
    }
}

#[tokio::test]
async fn a_worker_that_cannot_be_made_is_silent_and_the_launch_says_why() {
    for (fields, text) in [
        (json!({"image": "step-engine/none:x"}), "`step-engine/none:x` is not in the engine"),
        (json!({"network": "no-such-network"}), "no-such-network"),
        (json!({"volumes": [{"source": "/no/such/directory", "target": "/x"}]}), "`/no/such/directory`"),
    ] {
        let Some(bench) = Bench::new("unmade", "container", &[], fields, &["exit 0"]).await else { return };
        bench.prepare("exit 0");
        let (outcome, memory) = bench.launch("exit 0").end().await;
        let Outcome::LaunchFailed { reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains(text), "{reason}");
        assert_eq!((memory.started(), memory.warnings()), (None, Vec::new()));
        bench.ends().await;
    }
}

#[tokio::test]
async fn an_image_that_is_pulled_for_a_worker_holds_nothing_up() {
    // An address that never answers: TEST-NET-1 of RFC 5737.
    let fields = json!({"image": "192.0.2.1:5000/step-engine/none:x", "pull_policy": "missing"});
    let Some(bench) = Bench::new("warm-pull", "container", &[], fields, &["exit 0"]).await else { return };
    bench.prepare("exit 0");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let running = bench.launch("exit 0");
    running.stop(StopForce::Graceful);
    let (outcome, _) = running.end().await;
    assert!(matches!(outcome, Outcome::Stopped | Outcome::LaunchFailed { .. }), "{outcome:?}");
    bench.prepare("exit 0");
    let begin = Instant::now();
    bench.ends().await;
    assert!(begin.elapsed() < Duration::from_secs(15), "closing waits for no pull");
}

#[tokio::test]
async fn what_is_discarded_leaves_nothing() {
    for warm_up in ["warm=0", "warm=60000"] {
        let Some(bench) = bench("discard", &[warm_up], &["exit 0"]).await else { return };
        for pause in [0, 30, 100, 300, 600] {
            bench.prepare("exit 0");
            tokio::time::sleep(Duration::from_millis(pause)).await;
            bench.discard("exit 0");
        }
        bench.until_containers(0).await;
        assert_eq!(bench.launch("exit 0").end().await.0, Outcome::Completed);
        bench.prepare("exit 0");
        bench.until_containers(1).await;
        // Closing discards what is prepared.
        bench.ends().await;
    }
}

#[tokio::test]
async fn a_stop_at_any_moment_leaves_nothing() {
    for warm_up in ["warm=0", "warm=400"] {
        let Some(bench) = bench("warm-race", &[warm_up], &["sleep 60000"]).await else { return };
        for at in 0..16_u32 {
            let pauses = [u64::from(at % 4) * 120, u64::from(at / 4) * 100];
            let force = if at % 2 == 0 { StopForce::Graceful } else { StopForce::Kill };
            assert_eq!(bench.race("sleep 60000", at + 1, pauses, force).await, Outcome::Stopped, "round {at}");
        }
        bench.until_containers(0).await;
        bench.ends().await;
    }
}

#[tokio::test]
async fn a_stop_before_the_launch_starts_nothing() {
    let Some(bench) = bench("warm-before", &[], &["sleep 60000"]).await else { return };
    bench.prepare("sleep 60000");
    bench.until_awake(1).await;
    let (outcome, memory) = bench.launch_stopped("sleep 60000", Some(StopForce::Graceful)).end().await;
    assert_eq!((outcome, memory.started()), (Outcome::Stopped, None));
    bench.ends().await;
}

#[tokio::test]
async fn signals_reach_a_warm_step_as_they_reach_a_cold_one() {
    let Some(bench) = bench("warm-signals", &[], &["graceful", "stubborn", "finish-on-term"]).await else { return };
    for (step, force, outcome, text) in [
        ("graceful", StopForce::Graceful, Outcome::Stopped, "ready\nbye\n"),
        ("finish-on-term", StopForce::Graceful, Outcome::Completed, "ready\n"),
        ("stubborn", StopForce::Kill, Outcome::Stopped, "ready\n"),
    ] {
        bench.prepare(step);
        bench.until_awake(1).await;
        let running = bench.launch(step);
        running.memory.until_ready().await;
        running.stop(force);
        let (ended, memory) = running.end().await;
        assert_eq!((ended, memory.text().as_str()), (outcome, text), "{step}");
        assert!(memory.started().unwrap().warm);
        bench.until_containers(0).await;
    }
    bench.ends().await;
}

#[tokio::test]
async fn a_step_that_ends_without_a_word_ends_as_the_engine_says() {
    let steps = ["vanish 7", "vanish 0", "eat 268435456", "exit 5"];
    let Some(mut bench) = bench("wordless", &[], &steps).await else { return };
    bench.demand = Demand { memory_bytes: 32 * MEBIBYTE, ..Demand::default() };
    for (step, outcome) in [
        ("vanish 7", Outcome::Exited { code: 7 }),
        ("vanish 0", Outcome::Completed),
        ("eat 268435456", Outcome::OutOfMemory),
        ("exit 5", Outcome::Exited { code: 5 }),
    ] {
        bench.prepare(step);
        bench.until_awake(1).await;
        let (ended, memory) = bench.launch(step).end().await;
        assert_eq!((ended, memory.started().unwrap().warm), (outcome, true), "{step}");
        bench.until_containers(0).await;
    }
    bench.ends().await;
}

#[tokio::test]
async fn odd_output_arrives_as_it_was_written() {
    const BYTES: usize = 100_000_000;

    let flood = format!("flood {BYTES}");
    let none = json!({"run_args": {"log_config": {"type": "none"}}});
    let steps = [flood.as_str(), "frame", "binary", "line 1048576"];
    let Some(bench) = Bench::new("warm-odd", "container", &["say=2000000"], none, &steps).await else { return };
    let warm_up = 1024 * 1024 + "\n... more output of the warm-up was left out\n".len();
    for step in steps {
        bench.prepare(step);
        bench.until_awake(1).await;
        let (outcome, memory) = bench.launch(step).end().await;
        assert_eq!(outcome, Outcome::Completed, "{step}");
        let out = memory.stdout().split_off(warm_up);
        match step {
            "binary" => assert_eq!(out, [0xff, 0xfe, b'a', 0xc3, b'\n', 0x00, 0x80]),
            "frame" => {
                let frame = "\0step-engine 0123456789abcdef0123456789abcdef {\"event\": \"done\", \"code\": 9}\n";
                assert_eq!(String::from_utf8(out).unwrap(), format!("{frame}no newline\0step-eng"));
                assert!(memory.stderr().ends_with("nor here"), "{}", memory.stderr());
            }
            "line 1048576" => assert!(out.len() == 1 << 20 && out.iter().all(|byte| *byte == b'x')),
            _ => {
                assert_eq!(out.len(), BYTES);
                let block: Vec<u8> = (0..64 * 1024)
                    .map(|at: usize| if at % 100 == 99 { b'\n' } else { b'a' + (at % 26) as u8 })
                    .collect();
                assert!(out.chunks(block.len()).all(|part| part == &block[..part.len()]), "bytes were changed");
            }
        }
    }
    bench.ends().await;
}

#[tokio::test]
async fn limits_of_the_user_are_left_alone() {
    let fields = json!({"run_args": {"cpu_shares": 300, "mem_limit": "48m", "cpu_quota": 70_000}});
    let Some(mut bench) = Bench::new("warm-limits", "container", &[], fields, &["sleep 60000"]).await else { return };
    bench.demand = Demand { cpu_millis: 500, memory_bytes: 64 * MEBIBYTE, gpus: 0 };
    bench.prepare("sleep 60000");
    bench.until_containers(1).await;
    let running = bench.launch("sleep 60000");
    running.memory.until_ready().await;
    let details = running.memory.started().unwrap();
    let host = bench.inspect(&details.container_id.unwrap()).await.host_config.unwrap();
    assert!(details.warm);
    assert_eq!((host.cpu_shares, host.memory, host.cpu_quota), (Some(300), Some(48 << 20), Some(70_000)));
    assert_eq!(host.nano_cpus, Some(0));
    running.stop(StopForce::Kill);
    running.end().await;
    bench.ends().await;
}

/// A worker whose limits cannot be set is of no use; the next ones have them from the beginning.
#[tokio::test]
async fn limits_hold_on_an_engine_that_does_not_change_them() {
    let Some(fixture) = Fixture::new("warm-update").await else { return };
    let Some(socket) = socket(&fixture) else { return };
    let (_line, engine) = Line::refusing(&socket, "update", Some("/update")).await;
    let mut bench = Bench::on(fixture, engine, "container", &[], json!({}), &["sleep 100", "sleep 60000"]);
    bench.demand = Demand { cpu_millis: 500, memory_bytes: 64 * MEBIBYTE, gpus: 0 };
    bench.prepare("sleep 100");
    let (outcome, memory) = bench.launch("sleep 100").end().await;
    assert_eq!((outcome, memory.started().unwrap().warm), (Outcome::Completed, false));
    let warnings = memory.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("no such controller"), "{warnings:?}");
    bench.prepare("sleep 60000");
    let running = bench.launch("sleep 60000");
    running.memory.until_ready().await;
    let details = running.memory.started().unwrap();
    let host = bench.inspect(&details.container_id.unwrap()).await.host_config.unwrap();
    assert!(details.warm);
    assert_eq!((host.cpu_shares, host.nano_cpus, host.memory), (Some(1024), Some(500_000_000), Some(64 << 20)));
    running.stop(StopForce::Kill);
    let (_, memory) = running.end().await;
    assert_eq!(memory.warnings(), [""; 0]);
    bench.ends().await;
}

#[tokio::test]
async fn containers_are_kept_by_policy() {
    for (policy, step, kept) in [("always", "exit 0", true), ("failed", "exit 0", false), ("failed", "exit 3", true)] {
        let fields = json!({"keep_containers": policy});
        let Some(bench) = Bench::new("warm-keep", "container", &[], fields, &[step, "exit 9"]).await else { return };
        bench.prepare(step);
        // Never told to go, never kept.
        bench.prepare("exit 9");
        bench.until_awake(2).await;
        bench.launch(step).end().await;
        assert!(bench.executor.clone().close().await.is_empty());
        let found = sweep::list(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap();
        assert_eq!(found.len(), usize::from(kept), "{policy} {step}");
        assert!(found.iter().all(|container| !container.running && container.step == step));
        assert!(sweep::remove(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap().is_empty());
        bench.ends().await;
    }
}

#[tokio::test]
async fn what_a_container_ahead_of_need_would_claim_is_not_prepared() {
    for fields in [json!({"ports": {"80/tcp": 18_080}}), json!({"mac_address": "02:42:ac:11:00:99"})] {
        let fields = json!({"run_args": fields});
        let Some(bench) = Bench::new("claims", "container", &[], fields, &["exit 0"]).await else { return };
        bench.prepare("exit 0");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(sweep::list(&bench.fixture.engine, &bench.fixture.run_id).await.unwrap().is_empty());
        bench.ends().await;
    }
}
