//! Finding an engine and asking what it is.

use step_engine::docker::{ConnectOptions, DockerError, Engine, Surroundings};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

/// Answers every request with the same status and JSON, on a socket.
fn fake_engine(name: &str, status: &'static str, answer: &'static str) -> String {
    let path = std::env::temp_dir().join(format!("step-engine-fake-{}-{name}.sock", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = "Content-Type: application/json\r\nConnection: close\r\n";
                let answer = format!("HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
                drop(stream.write_all(answer.as_bytes()).await);
            });
        }
    });
    format!("unix://{}", path.display())
}

#[tokio::test]
async fn an_engine_that_is_too_old_is_refused() {
    let host = fake_engine("old", "200 OK", r#"{"ApiVersion": "1.40", "Version": "19.03.15"}"#);
    let around = Surroundings::new([("DOCKER_HOST".to_owned(), host.clone())]);
    let error = Engine::connect_from(around, ConnectOptions::default()).await.unwrap_err();
    std::fs::remove_file(host.trim_start_matches("unix://")).unwrap();
    assert_eq!(
        error.to_string(),
        format!("the Docker engine at {host} speaks API 1.40, 1.41 is needed; install Docker 20.10 or newer")
    );
}

#[tokio::test]
async fn something_that_is_no_engine_is_an_error_that_names_it() {
    for (status, answer) in [("200 OK", r#"["hello"]"#), ("404 Not Found", "")] {
        let host = fake_engine("other", status, answer);
        let around = Surroundings::new([("DOCKER_HOST".to_owned(), host.clone())]);
        let error = Engine::connect_from(around, ConnectOptions::default()).await.unwrap_err().to_string();
        std::fs::remove_file(host.trim_start_matches("unix://")).unwrap();
        assert!(error.starts_with(&format!("DOCKER_HOST: {host} is no Docker engine that can be used (")), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
