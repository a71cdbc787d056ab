//! What a specification does to the container.

use std::sync::{Arc, Mutex};

use serde_json::json;
use step_engine::docker::{DockerError, DockerExecutor, PullObserver, RunIdentity, label, sweep};
use step_engine::event::Outcome;
use step_engine::plan::{Demand, StepIndex};
use step_engine::runner::{AttemptSpec, Executor as _, StopForce};

use super::fixture::{self, Fixture, Running};

#[tokio::test]
async fn environment_user_volume_and_working_directory() {
    let Some(fixture) = Fixture::new("settings").await else { return };
    let fields = json!({"environment": {"GREETING": "hello = world\n"}});
    assert_eq!(fixture.run(&["env", "GREETING"], fields).await.1.text(), "Ok(\"hello = world\\n\")\n");

    let (_, memory) = fixture.run(&["read", "/proc/self/status"], json!({"user": "1234:5678"})).await;
    let status = memory.text();
    assert!(status.contains("Uid:\t1234\t") && status.contains("Gid:\t5678\t"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");

    let directory = std::env::temp_dir().join(format!("step-engine-volume-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("file"), "from the host").unwrap();
    let volume =
        |read_only: bool| json!({"volumes": [{"source": directory, "target": "/data", "read_only": read_only}]});
    assert_eq!(fixture.run(&["read", "/data/file"], volume(true)).await.1.text(), "from the host");
    assert_eq!(fixture.run(&["write", "/data/new"], volume(true)).await.0, Outcome::Exited { code: 1 });
    assert_eq!(fixture.run(&["write", "/data/new"], volume(false)).await.0, Outcome::Completed);
    std::fs::remove_dir_all(directory).unwrap();

    let hosts = json!({"extra_hosts": {"host.docker.internal": "host-gateway"}, "run_args": {"extra_hosts": ["a.test:1.2.3.4"]}});
    let text = fixture.run(&["read", "/etc/hosts"], hosts).await.1.text();
    assert!(text.contains("host.docker.internal") && text.contains("1.2.3.4\ta.test"), "{text}");
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn directories_are_copied_into_the_container() {
    let Some(fixture) = Fixture::new("files").await else { return };
    let directory = std::env::temp_dir().join(format!("step-engine-copied-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("inner")).unwrap();
    std::fs::write(directory.join("inner/file"), "from here").unwrap();
    let warm = json!({"isolation": "container", "entrypoint": ["/probe"], "command": ["worker", "container"]});
    let fields = json!({"files": [{"source": directory, "target": "/opt/a/b"}], "user": "1234:5678", "warm": warm});
    let container = fixture.container(&["read", "/opt/a/b/inner/file"], fields.clone());
    let executor = fixture.executor_of([("read /opt/a/b/inner/file".to_owned(), container)], None);
    let running = Running::launch(executor.clone(), "read /opt/a/b/inner/file", 1, Demand::default());
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "from here"));
    let spec = AttemptSpec {
        step: StepIndex::new(0),
        name: "read /opt/a/b/inner/file".into(),
        attempt: 2,
        demand: Demand::default(),
    };
    executor.clone().prepare(spec.clone());
    let (_, memory) = Running::launch_spec(executor.clone(), spec, None).end().await;
    assert_eq!((memory.text().as_str(), memory.started().unwrap().warm), ("from here", true));
    std::fs::remove_dir_all(&directory).unwrap();
    // The archive is made once in a run; a new run misses the directory.
    let (outcome, _) = fixture.run(&["exit", "0"], fields).await;
    let Outcome::LaunchFailed { reason } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("step-engine-copied") && reason.contains("cannot be read"), "{reason}");
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn details_name_and_labels() {
    let Some(fixture) = Fixture::new("labels").await else { return };
    let fields = json!({"labels": {"team": "a", fixture::TEST_LABEL: "rust"}});
    let running = fixture.start(&["sleep", "60000"], fields, Demand::default());
    running.memory.until_ready().await;
    let details = running.memory.started().unwrap();
    let found = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (details.container_id.as_deref(), details.container_name.as_deref()),
        (Some(&*found[0].id), Some(&*found[0].name))
    );
    assert_eq!(details.image_id.as_deref(), Some(&*fixture.image));
    assert_eq!((found[0].step.as_str(), found[0].attempt, found[0].running), ("step", 1, true));
    assert!(found[0].name.starts_with("rust_tests-step-1-"), "{}", found[0].name);
    let raw = bollard::Docker::connect_with_defaults().unwrap().inspect_container(&found[0].id, None).await.unwrap();
    let config = raw.config.unwrap();
    let labels = config.labels.unwrap();
    assert_eq!((labels["team"].as_str(), labels[label::COMPONENT].as_str()), ("a", "c"));
    running.stop(StopForce::Kill);
    running.end().await;
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_name_that_is_taken_gets_a_suffix() {
    let Some(fixture) = Fixture::new("names").await else { return };
    let container = fixture.container(&["sleep", "60000"], json!({"name_hint": "same"}));
    let executor = fixture.executor_of([("a".to_owned(), container.clone()), ("b".to_owned(), container)], None);
    let both = ["a", "b"].map(|step| Running::launch(executor.clone(), step, 1, Demand::default()));
    for running in &both {
        running.memory.until_ready().await;
    }
    let mut names: Vec<_> =
        both.iter().map(|running| running.memory.started().unwrap().container_name.unwrap()).collect();
    names.sort();
    assert_eq!(names[1], format!("{}-2", names[0]));
    for running in both {
        running.stop(StopForce::Kill);
        running.end().await;
    }
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn containers_are_kept_by_policy() {
    let Some(fixture) = Fixture::new("keep").await else { return };
    for (policy, code, kept) in [
        ("never", "1", false),
        ("failed", "0", false),
        ("failed", "1", true),
        ("always", "0", true),
        ("always", "1", true),
    ] {
        fixture.run(&["exit", code], json!({"keep_containers": policy})).await;
        let found = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap();
        assert_eq!(found.len(), usize::from(kept), "{policy} {code}");
        if let Some(found) = found.first() {
            assert_eq!((found.exit_code, found.running), (code.parse().ok(), false));
        }
        assert!(sweep::remove(&fixture.engine, &fixture.run_id).await.unwrap().is_empty());
    }
    // A container that never started tells nothing and does not stay.
    fixture.run(&["exit", "0"], json!({"keep_containers": "always", "network": "no-such-network"})).await;
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn the_demand_limits_the_container() {
    let Some(fixture) = Fixture::new("limits").await else { return };
    let demand = Demand { cpu_millis: 500, memory_bytes: 64 << 20, gpus: 0 };
    let running = fixture.start(&["sleep", "60000"], json!({}), demand);
    running.memory.until_ready().await;
    let id = running.memory.started().unwrap().container_id.unwrap();
    let raw = bollard::Docker::connect_with_defaults().unwrap().inspect_container(&id, None).await.unwrap();
    let host = raw.host_config.unwrap();
    assert_eq!((host.nano_cpus, host.memory), (Some(500_000_000), Some(64 << 20)));
    assert_eq!(host.init, Some(true));
    running.stop(StopForce::Kill);
    running.end().await;
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn wrong_specifications_are_refused_before_anything_is_created() {
    let Some(fixture) = Fixture::new("refused").await else { return };
    let container =
        fixture.container(&["exit", "0"], json!({"run_args": {"memory": "4g"}, "environment": {"TOKEN": "hunter2"}}));
    let refused =
        DockerExecutor::new(fixture.engine.clone(), RunIdentity::default(), [("train".to_owned(), container)], None);
    let error = refused.err().unwrap();
    assert!(matches!(error, DockerError::InvalidSpec { .. }));
    let text = format!("{error} {error:?}");
    assert!(
        text.starts_with("step `train`, run_args.memory: is no argument of docker-py's run; supported are "),
        "{text}"
    );
    assert!(!text.contains("hunter2"));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn an_image_is_pinned_for_the_run() {
    let Some(fixture) = Fixture::new("pinned").await else { return };
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let tag = |tag: &str| {
        bollard::query_parameters::TagImageOptionsBuilder::new().repo("step-engine-test/pinned").tag(tag).build()
    };
    let version = format!("v{}", std::process::id());
    let name = format!("step-engine-test/pinned:{version}");
    let other = fixture::import_image(&["ENV OTHER=1"]).await;
    docker.tag_image(&fixture.image, Some(tag(&version))).await.unwrap();
    let executor = fixture.executor(fixture.container(&["env", "OTHER"], json!({"image": name})));
    let first = Running::launch(executor.clone(), "step", 1, Demand::default()).end().await;
    docker.tag_image(&other, Some(tag(&version))).await.unwrap();
    let second = Running::launch(executor, "step", 2, Demand::default()).end().await;
    let fresh = Running::launch(
        fixture.executor(fixture.container(&["env", "OTHER"], json!({"image": name}))),
        "step",
        3,
        Demand::default(),
    );
    let fresh = fresh.end().await;
    let untagged = bollard::query_parameters::RemoveImageOptionsBuilder::new().build();
    docker.remove_image(&name, Some(untagged), None).await.unwrap();
    fixture::remove_image(&other).await;
    assert_eq!((first.1.text(), second.1.text()), ("Err(NotPresent)\n".to_owned(), "Err(NotPresent)\n".to_owned()));
    assert_eq!(second.1.started().unwrap().image_id.as_deref(), Some(&*fixture.image));
    assert_eq!(fresh.1.text(), "Ok(\"1\")\n", "another run sees the new image");
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn steps_share_a_failing_pull_and_its_error_names_the_registry() {
    let Some(fixture) = Fixture::new("pull-error").await else { return };
    // Nothing listens on port 1 of the engine's host.
    let fields = json!({"image": "localhost:1/step-engine/none", "pull_policy": "missing"});
    let containers = ["a", "b", "c"].map(|step| (step.to_owned(), fixture.container(&["exit", "0"], fields.clone())));
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&reports);
    let observer: PullObserver = Arc::new(move |progress| seen.lock().unwrap().push(progress.to_string()));
    let executor = fixture.executor_of(containers, Some(observer));
    let running = ["a", "b", "c"].map(|step| Running::launch(executor.clone(), step, 1, Demand::default()));
    for running in running {
        let (outcome, _) = running.end().await;
        let Outcome::LaunchFailed { reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("failed to pull image `localhost:1/step-engine/none` from localhost:1"), "{reason}");
        assert!(reason.contains("connection to the registry"), "{reason}");
    }
    assert_eq!(*reports.lock().unwrap(), ["pulling image `localhost:1/step-engine/none`"]);
    fixture.leaves_nothing().await;
}
