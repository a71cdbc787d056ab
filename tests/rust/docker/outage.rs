//! The engine goes away and comes back, played by a socket between the executor and the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use step_engine::docker::{ConnectOptions, Engine};
use step_engine::event::Outcome;
use step_engine::plan::Demand;
use step_engine::runner::{Executor as _, StopForce};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::fixture::{Fixture, Running};

/// A socket that hands every connection on to the engine, until it is cut.
pub(super) struct Line {
    path: PathBuf,
    engine: PathBuf,
    task: Option<JoinHandle<()>>,
    /// Requests whose first line has this in it are answered with an error.
    refused: Option<&'static str>,
    /// So many connections are still to be cut by a request that looks at one container.
    cuts: Arc<AtomicU32>,
}

impl Line {
    pub(super) async fn to(engine: &str, name: &str) -> (Self, Engine) {
        Self::refusing(engine, name, None).await
    }

    pub(super) async fn refusing(engine: &str, name: &str, refused: Option<&'static str>) -> (Self, Engine) {
        let path = std::env::temp_dir().join(format!("step-engine-line-{}-{name}.sock", std::process::id()));
        let mut line = Self { path, engine: PathBuf::from(engine), task: None, refused, cuts: Arc::default() };
        line.connect();
        let host = Some(format!("unix://{}", line.path.display()));
        let engine = Engine::connect(ConnectOptions { host, ..ConnectOptions::default() }).await.unwrap();
        (line, engine)
    }

    /// From now on, so many connections are cut when they ask for the state or the output of one container.
    pub(super) fn cut_lookers(&self, connections: u32) {
        self.cuts.store(connections, Ordering::SeqCst);
    }

    pub(super) fn connect(&mut self) {
        drop(std::fs::remove_file(&self.path));
        let listener = UnixListener::bind(&self.path).unwrap();
        let engine = Arc::new(self.engine.clone());
        let (refused, cuts) = (self.refused, Arc::clone(&self.cuts));
        self.task = Some(tokio::spawn(async move {
            // Dropped with this task, and with it every connection is cut.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let (engine, cuts) = (Arc::clone(&engine), Arc::clone(&cuts));
                connections.spawn(async move {
                    let far = UnixStream::connect(&*engine).await.unwrap();
                    drop(hand_on(near, far, refused, &cuts).await);
                });
            }
        }));
    }

    pub(super) async fn cut(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        drop(task.await);
        std::fs::remove_file(&self.path).unwrap();
    }
}

async fn hand_on(
    near: UnixStream,
    far: UnixStream,
    refused: Option<&'static str>,
    cuts: &AtomicU32,
) -> std::io::Result<()> {
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    // Dropped with this future, and with it the way back is cut.
    let mut back = tokio::task::JoinSet::new();
    back.spawn(async move {
        drop(tokio::io::copy(&mut from_far, &mut to_near).await);
        to_near
    });
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = from_near.read(&mut bytes).await?;
        let text = String::from_utf8_lossy(&bytes[..count]);
        let request = text.lines().next().filter(|line| line.ends_with("HTTP/1.1")).unwrap_or_default();
        let looks = request.contains("/logs?") || request.contains("/json") && !request.contains("/containers/json");
        let one_less = |left: u32| left.checked_sub(1);
        if looks && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return Ok(());
        }
        if refused.is_some_and(|part| request.contains(part)) {
            to_far.shutdown().await?;
            let Some(to_near) = back.join_next().await else { return Ok(()) };
            let mut to_near = to_near?;
            let answer = "{\"message\": \"no such controller\"}";
            let head = "HTTP/1.1 500 No\r\nConnection: close\r\nContent-Type: application/json";
            let length = answer.len();
            return to_near.write_all(format!("{head}\r\nContent-Length: {length}\r\n\r\n{answer}").as_bytes()).await;
        }
        if count == 0 {
            to_far.shutdown().await?;
            drop(back.join_next().await);
            return Ok(());
        }
        to_far.write_all(&bytes[..count]).await?;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

pub(super) fn socket(fixture: &Fixture) -> Option<String> {
    let path = fixture.engine.info().address.strip_prefix("unix://")?;
    Some(path.to_owned())
}

#[tokio::test]
async fn a_step_survives_an_engine_that_is_away_for_a_while() {
    let Some(fixture) = Fixture::new("outage").await else { return };
    let Some(socket) = socket(&fixture) else { return };
    let (mut line, engine) = Line::to(&socket, "survives").await;
    let container = fixture.container(&["graceful"], json!({}));
    let executor = fixture.executor_on(engine, [("step".to_owned(), container)], None);
    let running = Running::launch(executor.clone(), "step", 1, Demand::default());
    running.memory.until_ready().await;
    line.cut().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    line.connect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Waits again, and the output is followed again.
    running.stop(StopForce::Graceful);
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Stopped, "ready\nbye\n"));
    assert!(
        memory.warnings().iter().any(|text| text.contains("some output may be missing")),
        "{:?}",
        memory.warnings()
    );
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn an_exit_while_the_engine_is_away_is_seen_afterwards() {
    let Some(fixture) = Fixture::new("exit-away").await else { return };
    let Some(socket) = socket(&fixture) else { return };
    let (mut line, engine) = Line::to(&socket, "exit").await;
    let container = fixture.container(&["sleep", "1500"], json!({}));
    let executor = fixture.executor_on(engine, [("step".to_owned(), container)], None);
    let running = Running::launch(executor, "step", 1, Demand::default());
    running.memory.until_ready().await;
    line.cut().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    line.connect();
    assert_eq!(running.end().await.0, Outcome::Completed);
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_kill_while_the_engine_is_away_is_a_lost_container_not_a_failed_step() {
    let Some(fixture) = Fixture::new("killed-away").await else { return };
    let Some(socket) = socket(&fixture) else { return };
    let (mut line, engine) = Line::to(&socket, "killed").await;
    let container = fixture.container(&["stubborn"], json!({}));
    let executor = fixture.executor_on(engine, [("step".to_owned(), container)], None);
    let running = Running::launch(executor, "step", 1, Demand::default());
    running.memory.until_ready().await;
    line.cut().await;
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let id = running.memory.started().unwrap().container_id.unwrap();
    docker.kill_container(&id, None).await.unwrap();
    line.connect();
    let (outcome, _) = running.end().await;
    assert_eq!(
        outcome,
        Outcome::Lost { reason: "the engine restarted and the container ended with exit code 137".into() }
    );
    fixture.leaves_nothing().await;
}
