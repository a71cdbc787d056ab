//! A registry of one image, spoken over plain HTTP: what the engine needs to pull, with a password.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use step_engine::docker::{ConnectOptions, Engine, PullObserver, Surroundings};
use step_engine::event::Outcome;
use step_engine::plan::Demand;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fixture::{self, Fixture, Running};

/// In standard base64 this password has `+` and `/` in it, and in the URL's alphabet it has not.
const PASSWORD: &str = "a>b?c~d>>>???~~~";

struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
    manifests_served: AtomicU32,
}

fn digest(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("sha256:{}", String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap())
}

fn image() -> Image {
    let layer = fixture::probe_archive();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {fixture::TEST_LABEL: "rust"}},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
    let config = serde_json::to_vec(&config).unwrap();
    let part = |kind: &str, bytes: &[u8]| -> Value {
        json!({"mediaType": kind, "size": bytes.len(), "digest": digest(bytes)})
    };
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": part("application/vnd.docker.container.image.v1+json", &config),
        "layers": [part("application/vnd.docker.image.rootfs.diff.tar.gzip", &layer)]});
    Image { manifest: serde_json::to_vec(&manifest).unwrap(), config, layer, manifests_served: AtomicU32::new(0) }
}

async fn serve(mut stream: TcpStream, image: Arc<Image>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let allowed = format!("authorization: Basic {}", STANDARD.encode(format!("me:{PASSWORD}")));
    let (status, headers, body): (&str, String, &[u8]) =
        if !head.lines().any(|line| line.eq_ignore_ascii_case(&allowed)) {
            ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"test\"\r\n".to_owned(), b"{}")
        } else if path == "/v2/" {
            ("200 OK", String::new(), b"{}")
        } else if path.contains("/manifests/") {
            if method == "GET" {
                image.manifests_served.fetch_add(1, Ordering::Relaxed);
            }
            let kind = "Content-Type: application/vnd.docker.distribution.manifest.v2+json\r\n";
            ("200 OK", format!("{kind}Docker-Content-Digest: {}\r\n", digest(&image.manifest)), &image.manifest)
        } else if path.ends_with(&digest(&image.config)) {
            ("200 OK", String::new(), &image.config)
        } else if path.ends_with(&digest(&image.layer)) {
            ("200 OK", String::new(), &image.layer)
        } else {
            ("404 Not Found", String::new(), b"{}")
        };
    let version = "Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n";
    let answer = format!("HTTP/1.1 {status}\r\n{version}{headers}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(answer.as_bytes()).await?;
    if method != "HEAD" {
        stream.write_all(body).await?;
    }
    stream.shutdown().await
}

async fn open(image: Arc<Image>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, Arc::clone(&image)));
        }
    });
    host
}

/// An engine seen through a `config.json` that holds the password for `host`.
async fn engine_with_login(host: &str, password: &str) -> Engine {
    let directory =
        std::env::temp_dir().join(format!("step-engine-login-{}-{}", std::process::id(), host.replace(':', "-")));
    std::fs::create_dir_all(&directory).unwrap();
    let auth = STANDARD.encode(format!("me:{password}"));
    std::fs::write(directory.join("config.json"), json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    let mut variables = vec![("DOCKER_CONFIG".to_owned(), directory.to_str().unwrap().to_owned())];
    variables.extend(std::env::var("DOCKER_HOST").ok().map(|value| ("DOCKER_HOST".to_owned(), value)));
    Engine::connect_from(Surroundings::new(variables), ConnectOptions::default()).await.unwrap()
}

#[tokio::test]
async fn steps_share_one_pull_from_a_registry_with_a_password() {
    let Some(fixture) = Fixture::new("registry").await else { return };
    if !fixture.engine.info().local {
        return; // a remote engine has another localhost
    }
    let image = Arc::new(image());
    let host = open(Arc::clone(&image)).await;
    let name = format!("{host}/step-engine/probe:1");
    let engine = engine_with_login(&host, PASSWORD).await;
    let fields = json!({"image": name, "pull_policy": "always"});
    let steps = ["a", "b", "c"];
    let containers = steps.map(|step| (step.to_owned(), fixture.container(&["say", step], fields.clone())));
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&reports);
    let observer: PullObserver = Arc::new(move |progress| seen.lock().unwrap().push(progress.to_string()));
    let executor = fixture.executor_on(engine, containers, Some(observer));
    let running = steps.map(|step| Running::launch(executor.clone(), step, 1, Demand::default()));
    let mut ended = Vec::new();
    for running in running {
        ended.push(running.end().await);
    }
    let served = image.manifests_served.load(Ordering::Relaxed);
    // A second run with the policy `missing` finds the image.
    let found = fixture.container(&["say", "again"], json!({"image": name, "pull_policy": "missing"}));
    let again = Running::launch(fixture.executor(found), "step", 1, Demand::default()).end().await;
    fixture::remove_image(&name).await;
    for ((outcome, memory), step) in ended.into_iter().zip(steps) {
        assert_eq!((outcome, memory.text()), (Outcome::Completed, format!("{step}\n")));
    }
    assert_eq!((again.0, served), (Outcome::Completed, image.manifests_served.load(Ordering::Relaxed)));
    assert_eq!(served, 1, "one pull for three steps");
    let reports = reports.lock().unwrap().clone();
    assert_eq!(reports.first(), Some(&format!("pulling image `{name}`")));
    assert_eq!(reports.last(), Some(&format!("pulled image `{name}`")));
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_wrong_or_missing_password_says_to_log_in() {
    let Some(fixture) = Fixture::new("login").await else { return };
    if !fixture.engine.info().local {
        return; // a remote engine has another localhost
    }
    let host = open(Arc::new(image())).await;
    let fields = json!({"image": format!("{host}/step-engine/probe:2"), "pull_policy": "missing"});
    let container = fixture.container(&["exit", "0"], fields);
    let wrong = engine_with_login(&host, "hunter2").await;
    for (engine, text) in [(fixture.engine.clone(), "no credentials for"), (wrong, "were not accepted")] {
        let executor = fixture.executor_on(engine, [("step".to_owned(), container.clone())], None);
        let (outcome, _) = Running::launch(executor, "step", 1, Demand::default()).end().await;
        let Outcome::LaunchFailed { reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains(text) && reason.contains(&format!("`docker login {host}`")), "{reason}");
        assert!(!reason.contains("hunter2"), "{reason}");
    }
    fixture.leaves_nothing().await;
}
