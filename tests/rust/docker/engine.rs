//! Finding an engine and asking what it is.

use step_engine::docker::{ConnectOptions, DockerError, Engine, Surroundings};

use super::fixture::{Fixture, skipped};

#[tokio::test]
async fn an_engine_says_what_it_is() {
    let options = ConnectOptions { gpu_ids: Some(vec!["0".into(), "1".into()]), ..ConnectOptions::default() };
    let Some(fixture) = Fixture::with("info", options).await else { return };
    let info = fixture.engine.info();
    assert!(info.cpus > 0 && info.memory_bytes > 1 << 26, "{info:?}");
    assert!(!info.server_version.is_empty() && info.api_version.starts_with("1."), "{info:?}");
    let capacity = info.capacity();
    assert_eq!((capacity.cpu_millis, capacity.memory_bytes, capacity.gpus), (info.cpus * 1000, info.memory_bytes, 2));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn no_engine_says_what_was_tried() {
    if skipped() {
        return;
    }
    for (host, text) in [
        ("unix:///no/such/docker.sock", "unix:///no/such/docker.sock from the given host: does not exist"),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1 from the given host: connection refused"),
    ] {
        let options = ConnectOptions { host: Some(host.into()), ..ConnectOptions::default() };
        let error = Engine::connect_from(Surroundings::new([]), options).await.unwrap_err();
        assert!(matches!(error, DockerError::NoEngine { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(text) && message.contains("set DOCKER_HOST"), "{message}");
    }
}
