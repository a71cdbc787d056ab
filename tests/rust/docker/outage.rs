//! The engine goes away and comes back, played by a socket between the executor and the engine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use step_engine::docker::{ConnectOptions, DockerExecutor, Engine, sweep};
use step_engine::event::Outcome;
use step_engine::plan::Demand;
use step_engine::runner::{Executor as _, StopForce};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::fixture::{Fixture, Running};

/// A socket that hands every connection on to the engine, until it is cut.
pub(super) struct Line {
    path: PathBuf,
    task: Option<JoinHandle<()>>,
    wire: Arc<Wire>,
}

/// What happens on the way.
#[derive(Default)]
struct Wire {
    engine: PathBuf,
    /// Requests whose first line has this in it are answered with an error.
    refused: Option<&'static str>,
    /// The first lines of the requests.
    asked: Mutex<Vec<String>>,
    /// Requests whose first line has this in it are answered as by an engine without room on its disk.
    full: Mutex<Option<&'static str>>,
    /// Answers to requests whose first line has this in it come so much later.
    slow: Mutex<Option<(&'static str, Duration)>>,
    /// So many connections are still to be cut by a request that looks at one container.
    cuts: AtomicU32,
    /// The next request whose first line has this in it cuts the line.
    trap: Mutex<Option<(&'static str, Cut)>>,
    trapped: Notify,
    /// Whether the engine is not to see that the line is cut, and what keeps its ends open.
    unseen: AtomicBool,
    kept: Mutex<Vec<std::os::unix::net::UnixStream>>,
}

/// When a request cuts the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Before the engine has it.
    Before,
    /// When the engine has done what it asks, before its answer arrives.
    After,
}

impl Line {
    pub(super) async fn to(engine: &str, name: &str) -> (Self, Engine) {
        Self::refusing(engine, name, None).await
    }

    pub(super) async fn refusing(engine: &str, name: &str, refused: Option<&'static str>) -> (Self, Engine) {
        let path = std::env::temp_dir().join(format!("step-engine-line-{}-{name}.sock", std::process::id()));
        let wire = Arc::new(Wire { engine: PathBuf::from(engine), refused, ..Wire::default() });
        let mut line = Self { path, task: None, wire };
        line.connect();
        let host = Some(format!("unix://{}", line.path.display()));
        let engine = Engine::connect(ConnectOptions { host, ..ConnectOptions::default() }).await.unwrap();
        (line, engine)
    }

    /// From now on, so many connections are cut when they ask for the state or the output of one container.
    pub(super) fn cut_lookers(&self, connections: u32) {
        self.wire.cuts.store(connections, Ordering::SeqCst);
    }

    /// The next request whose first line has this in it cuts the line.
    pub(super) fn set_trap(&self, request: &'static str, cut: Cut) {
        *self.wire.trap.lock().unwrap() = Some((request, cut));
    }

    /// From now on, the engine has no room for what a request with this in its first line asks, or has it again.
    pub(super) fn set_full(&self, request: Option<&'static str>) {
        *self.wire.full.lock().unwrap() = request;
    }

    /// From now on, the engine's answer to a request with this in its first line comes so much later.
    pub(super) fn set_slow(&self, request: &'static str, pause: Duration) {
        *self.wire.slow.lock().unwrap() = Some((request, pause));
    }

    /// How many requests had this in their first line.
    pub(super) fn asked(&self, request: &str) -> usize {
        self.wire.asked.lock().unwrap().iter().filter(|line| line.contains(request)).count()
    }

    /// From now on, the engine does not see that connections are cut, as one that leaves its containers running when it
    /// restarts: their inputs stay open.
    pub(super) fn cut_unseen(&self) {
        self.wire.unseen.store(true, Ordering::SeqCst);
    }

    /// Waits until the trap has cut the line.
    pub(super) async fn until_trapped(&mut self) {
        let task = self.task.take().unwrap();
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("the request comes").unwrap();
    }

    pub(super) fn connect(&mut self) {
        drop(std::fs::remove_file(&self.path));
        let listener = UnixListener::bind(&self.path).unwrap();
        let wire = Arc::clone(&self.wire);
        self.task = Some(tokio::spawn(async move {
            // Dropped with this task, and with it every connection is cut.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let near = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = wire.trapped.notified() => return,
                };
                let wire = Arc::clone(&wire);
                connections.spawn(async move {
                    let far = UnixStream::connect(&wire.engine).await.unwrap();
                    drop(hand_on(near, far, &wire).await);
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

async fn hand_on(near: UnixStream, far: UnixStream, wire: &Arc<Wire>) -> std::io::Result<()> {
    let far = far.into_std()?;
    if wire.unseen.load(Ordering::SeqCst) {
        wire.kept.lock().unwrap().push(far.try_clone()?);
    }
    let far = UnixStream::from_std(far)?;
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let is_trapped = Arc::new(AtomicBool::new(false));
    let pause = Arc::new(Mutex::new(Duration::ZERO));
    // Dropped with this future, and with it the way back is cut.
    let mut back = tokio::task::JoinSet::new();
    let (own_wire, trapped, own_pause) = (Arc::clone(wire), Arc::clone(&is_trapped), Arc::clone(&pause));
    back.spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count) = from_far.read(&mut bytes).await
            && count > 0
        {
            if trapped.load(Ordering::SeqCst) {
                own_wire.trapped.notify_one();
                std::future::pending::<()>().await;
            }
            let pause = std::mem::take(&mut *own_pause.lock().unwrap());
            tokio::time::sleep(pause).await;
            if to_near.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
        to_near
    });
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = tokio::select! {
            count = from_near.read(&mut bytes) => count?,
            // The engine hangs up.
            _ = back.join_next() => return Ok(()),
        };
        let text = String::from_utf8_lossy(&bytes[..count]);
        let request = text.lines().next().filter(|line| line.ends_with("HTTP/1.1")).unwrap_or_default();
        let looks = request.contains("/logs?") || request.contains("/json") && !request.contains("/containers/json");
        let one_less = |left: u32| left.checked_sub(1);
        if looks && wire.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return Ok(());
        }
        let trap = wire.trap.lock().unwrap().take_if(|(part, _)| request.contains(*part));
        match trap {
            Some((_, Cut::Before)) => {
                wire.trapped.notify_one();
                std::future::pending::<()>().await;
            }
            Some((_, Cut::After)) => is_trapped.store(true, Ordering::SeqCst),
            None => {}
        }
        if !request.is_empty() {
            wire.asked.lock().unwrap().push(request.to_owned());
        }
        if let Some((part, later)) = *wire.slow.lock().unwrap()
            && request.contains(part)
        {
            *pause.lock().unwrap() = later;
        }
        let is_full = wire.full.lock().unwrap().is_some_and(|part| request.contains(part));
        if is_full || wire.refused.is_some_and(|part| request.contains(part)) {
            to_far.shutdown().await?;
            let Some(to_near) = back.join_next().await else { return Ok(()) };
            let mut to_near = to_near?;
            let answer = match is_full {
                true => "{\"message\": \"write /var/lib/docker/x: no space left on device\"}",
                false => "{\"message\": \"no such controller\"}",
            };
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

/// A step that runs `command`, on an engine behind a line.
async fn behind_a_line(test: &str, command: &[&str]) -> Option<(Fixture, Line, Arc<DockerExecutor>)> {
    let fixture = Fixture::new(test).await?;
    let (line, engine) = Line::to(&socket(&fixture)?, test).await;
    let container = fixture.container(command, json!({}));
    let executor = fixture.executor_on(engine, [("step".to_owned(), container)], None);
    Some((fixture, line, executor))
}

pub(super) fn socket(fixture: &Fixture) -> Option<String> {
    let path = fixture.engine.info().address.strip_prefix("unix://")?;
    Some(path.to_owned())
}

#[tokio::test]
async fn a_step_survives_an_engine_that_is_away_for_a_while() {
    let Some((fixture, mut line, executor)) = behind_a_line("outage", &["graceful"]).await else { return };
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
    let Some((fixture, mut line, executor)) = behind_a_line("exit-away", &["sleep", "1500"]).await else { return };
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
    let Some((fixture, mut line, executor)) = behind_a_line("killed-away", &["stubborn"]).await else { return };
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

/// What the user is told of an engine that is away when a step is to start.
fn told_of_waiting(warnings: &[String]) -> usize {
    warnings.iter().filter(|text| text.contains("the engine is away, the step waits for it: ")).count()
}

#[tokio::test]
async fn a_step_that_is_launched_while_the_engine_is_away_starts_once_it_is_back() {
    let Some((fixture, mut line, executor)) = behind_a_line("launched-away", &["say", "hello", "3"]).await else {
        return;
    };
    line.cut().await;
    let running = Running::launch(executor.clone(), "step", 1, Demand::default());
    // Longer than one request is tried again.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(told_of_waiting(&running.memory.warnings()), 1, "{:?}", running.memory.warnings());
    line.connect();
    let (outcome, memory) = running.end().await;
    assert_eq!((outcome, memory.text().as_str()), (Outcome::Exited { code: 3 }, "hello\n"));
    assert_eq!(memory.warnings().len(), 1, "{:?}", memory.warnings());
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}

/// It is waited for, and nothing of the tries in vain stays.
#[tokio::test]
async fn a_step_that_is_launched_while_the_disk_of_the_engine_is_full_starts_once_it_has_room() {
    for (at, request) in ["/containers/create", "/start"].into_iter().enumerate() {
        let Some((fixture, line, executor)) = behind_a_line(&format!("full-{at}"), &["say", "hello"]).await else {
            return;
        };
        line.set_full(Some(request));
        let running = Running::launch(executor.clone(), "step", 1, Demand::default());
        running.memory.until_warned().await;
        // Longer than a launch is tried again on an engine that goes away.
        tokio::time::sleep(Duration::from_secs(15)).await;
        line.set_full(None);
        let (outcome, memory) = running.end().await;
        assert_eq!((outcome, memory.text().as_str()), (Outcome::Completed, "hello\n"), "{request}");
        let warnings = memory.warnings();
        assert!(warnings[0].starts_with("the disk of the engine is full, the step waits for room: "), "{warnings:?}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(executor.close().await.is_empty());
        fixture.leaves_nothing().await;
    }
}

/// Whatever the engine was asked for when it went away, and whether it did that, the step runs once and all of it is seen.
#[tokio::test]
async fn an_engine_that_goes_away_at_any_point_of_a_launch_starts_the_step_once() {
    let directory = std::env::temp_dir().join(format!("step-engine-launches-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("file"), "x").unwrap();
    for (at, request) in ["/images/", "/containers/create", "/archive?", "/attach?", "/start"].into_iter().enumerate() {
        for cut in [Cut::Before, Cut::After] {
            let Some(fixture) = Fixture::new("launch-cut").await else { return };
            let Some(socket) = socket(&fixture) else { return };
            let (mut line, engine) = Line::to(&socket, &format!("launch-{at}-{cut:?}")).await;
            let file = format!("{at}-{cut:?}");
            let fields = json!({
                "volumes": [{"source": directory, "target": "/runs"}],
                "files": [{"source": directory, "target": "/copied"}],
            });
            let container = fixture.container(&["work", "300", &format!("/runs/{file}")], fields);
            let executor = fixture.executor_on(engine, [("step".to_owned(), container)], None);
            line.set_trap(request, cut);
            let running = Running::launch(executor.clone(), "step", 1, Demand::default());
            line.until_trapped().await;
            // The step may end meanwhile.
            tokio::time::sleep(Duration::from_secs(2)).await;
            line.connect();
            let (outcome, memory) = running.end().await;
            let seen = (outcome, memory.text(), memory.stderr());
            assert_eq!(seen, (Outcome::Completed, "ready\ndone\n".into(), "at work\n".into()), "{request} {cut:?}");
            assert_eq!(std::fs::read(directory.join(file)).unwrap(), b"x", "{request} {cut:?}");
            // A start that happened is nothing to wait for.
            let waited = usize::from((request, cut) != ("/start", Cut::After));
            assert_eq!(told_of_waiting(&memory.warnings()), waited, "{request} {cut:?}: {:?}", memory.warnings());
            assert!(executor.close().await.is_empty());
            fixture.leaves_nothing().await;
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

/// The answer to a start was lost, and the process ended with the engine, which is back before anybody asks.
#[tokio::test]
async fn a_start_whose_container_ended_with_the_engine_is_lost_not_a_failed_step() {
    let Some((fixture, mut line, executor)) = behind_a_line("start-killed", &["stubborn"]).await else { return };
    line.set_trap("/start", Cut::After);
    let running = Running::launch(executor, "step", 1, Demand::default());
    line.until_trapped().await;
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let found = sweep::list(&fixture.engine, &fixture.run_id).await.unwrap().remove(0);
    docker.kill_container(&found.id, None).await.unwrap();
    line.connect();
    let (outcome, _) = running.end().await;
    assert_eq!(
        outcome,
        Outcome::Lost { reason: "the engine restarted and the container ended with exit code 137".into() }
    );
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_step_that_waits_for_the_engine_can_be_stopped_and_leaves_nothing() {
    for (at, trap) in [None, Some(Cut::Before), Some(Cut::After)].into_iter().enumerate() {
        let Some(fixture) = Fixture::new("stop-away").await else { return };
        let Some(socket) = socket(&fixture) else { return };
        let (mut line, engine) = Line::to(&socket, &format!("stop-{at}")).await;
        let container = fixture.container(&["sleep", "60000"], json!({}));
        let executor = fixture.executor_on(engine, [("step".to_owned(), container)], None);
        match trap {
            Some(cut) => line.set_trap("/containers/create", cut),
            None => line.cut().await,
        }
        let running = Running::launch(executor.clone(), "step", 1, Demand::default());
        if trap.is_some() {
            line.until_trapped().await;
        }
        running.memory.until_warned().await;
        let begin = Instant::now();
        running.stop(StopForce::Graceful);
        running.memory.until_settled().await;
        // The engine is still away, and would be waited for for a minute.
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        line.connect();
        let (outcome, memory) = running.end().await;
        assert_eq!((outcome, memory.started()), (Outcome::Stopped, None));
        assert!(executor.close().await.is_empty());
        fixture.leaves_nothing().await;
    }
}

#[tokio::test]
async fn a_kill_does_not_wait_for_what_became_of_an_unanswered_start() {
    let Some((fixture, mut line, executor)) = behind_a_line("kill-start", &["sleep", "60000"]).await else { return };
    line.set_trap("/start", Cut::After);
    let running = Running::launch(executor.clone(), "step", 1, Demand::default());
    line.until_trapped().await;
    let begin = Instant::now();
    running.stop(StopForce::Kill);
    running.memory.until_settled().await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    line.connect();
    let (outcome, _) = running.end().await;
    assert_eq!(outcome, Outcome::Stopped);
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}

#[tokio::test]
async fn a_container_that_appears_after_its_creation_was_given_up_goes_with_the_run() {
    let Some(fixture) = Fixture::new("late").await else { return };
    let container = fixture.container(&["sleep", "0"], json!({}));
    let executor = fixture.executor(container);
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let body = bollard::models::ContainerCreateBody {
        image: Some(fixture.image.clone()),
        cmd: Some(vec!["sleep".to_owned(), "0".to_owned()]),
        labels: Some([("step-engine.run".to_owned(), fixture.run_id.clone())].into()),
        ..Default::default()
    };
    docker.create_container(None, body).await.unwrap();
    assert!(executor.close().await.is_empty());
    fixture.leaves_nothing().await;
}
