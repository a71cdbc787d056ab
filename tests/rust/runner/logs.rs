//! Logs: the file has every byte, the display never slows a step.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use step_engine::event::{AttemptDetails, Outcome, RunEvent};
use step_engine::runner::{
    AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream, Notice, Script, drive, notices,
};
use tokio::sync::mpsc;

use super::host::{exiting, lasting, simulated, stage};

const ONE: &str = r#"{"steps": [{"name": "a"}]}"#;

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("step-engine-logs-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says these pieces, each after a pause.
struct Talker(Vec<(Duration, LogStream, Bytes)>);

impl Executor for Talker {
    async fn run(self: Arc<Self>, _: AttemptSpec, _: AttemptControl, sink: Arc<dyn AttemptSink>) -> Outcome {
        sink.started(AttemptDetails::default());
        for (pause, stream, piece) in &self.0 {
            if !pause.is_zero() {
                tokio::time::sleep(*pause).await;
            }
            sink.log(*stream, piece.clone());
        }
        Outcome::Completed
    }
}

fn piece(milliseconds: u64, text: &'static str) -> (Duration, LogStream, Bytes) {
    (Duration::from_millis(milliseconds), LogStream::Stdout, Bytes::from_static(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_a_private_file_with_its_bytes() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("runs/one");
    let plan = r#"{"steps": [{"name": "a", "retry": {"max_retries": 1}}, {"name": "../b"}]}"#;
    let first = Script { output: b"bad \xff\r\nend".to_vec(), ..exiting(1) };
    let second = Script { output: b"good\n".to_vec(), ..lasting(1) };
    let report = stage(plan).logging_to(&directory).play(simulated([("a", vec![first, second])])).await;
    assert_eq!(std::fs::read(directory.join("a.1.log")).unwrap(), b"bad \xff\r\nend", "raw");
    assert_eq!(std::fs::read(directory.join("a.2.log")).unwrap(), b"good\n");
    assert_eq!(report.shown("a"), "bad \u{fffd}\nend\ngood\n");
    assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    let mut files = 0;
    for file in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        files += 1;
    }
    assert_eq!(files, 3, "the awkward name stays inside");
    let told: Vec<_> = report
        .events()
        .filter_map(|event| match event {
            RunEvent::AttemptStarted { details, .. } => details.log_path.clone(),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|path| std::path::Path::new(path).is_file()), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_log_directory_that_cannot_be_made_is_told_and_the_run_goes_on() {
    let scratch = Scratch::new();
    std::fs::write(scratch.0.join("file"), "").unwrap();
    let script = Script { output: b"shown\n".to_vec(), ..lasting(1) };
    let report = stage(ONE).logging_to(scratch.0.join("file/below")).play(simulated([("a", vec![script])])).await;
    assert!(report.warnings()[0].contains("cannot be created"), "{:?}", report.warnings());
    assert_eq!(report.shown("a"), "shown\n");
    assert_eq!(report.summary.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_line_is_shown_after_a_moment_of_silence() {
    let talker = Talker(vec![piece(0, "name? "), piece(5000, "Ada\n"), piece(0, "half"), piece(100, " line\n")]);
    let report = stage(ONE).play(Arc::new(talker)).await;
    let shown: Vec<_> = report
        .notices
        .iter()
        .filter_map(|(at, notice)| match notice {
            Notice::Log { text, .. } => Some((text.as_str(), at.as_secs_f64())),
            _ => None,
        })
        .collect();
    assert!(matches!(shown[0], ("name? \n", at) if at < 0.5), "{shown:?}");
    assert_eq!(report.shown("a"), "name? \nAda\nhalf line\n");
}

#[tokio::test(start_paused = true)]
async fn lines_wait_joined_by_stream_and_in_order() {
    let error = (Duration::ZERO, LogStream::Stderr, Bytes::from_static(b"oh\n"));
    let pieces = vec![piece(0, "1\n"), piece(0, "2\n"), error, piece(0, "3\n"), piece(0, "4\n")];
    let report = stage(ONE).play(Arc::new(Talker(pieces))).await;
    let texts: Vec<_> = report
        .notices
        .iter()
        .filter_map(|(_, notice)| match notice {
            Notice::Log { text, stream, .. } => Some((text.as_str(), *stream)),
            _ => None,
        })
        .collect();
    assert_eq!(texts, [("1\n2\n", LogStream::Stdout), ("oh\n", LogStream::Stderr), ("3\n4\n", LogStream::Stdout)]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lags_misses_lines_and_is_told_once_how_many() {
    let scratch = Scratch::new();
    let line = "x".repeat(99) + "\n";
    let block = Bytes::from(line.repeat(160));
    let talker = Talker(vec![(Duration::ZERO, LogStream::Stdout, block); 1000]);
    let (sender, receiver) = notices();
    let (_cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
    // Nobody listens until the run is over.
    drive(stage(ONE).logging_to(&scratch.0).run, Arc::new(talker), cancels, sender).await;
    let (mut shown, mut told) = (0, Vec::new());
    while let Some(notice) = receiver.try_recv() {
        match notice {
            Notice::Log { text, .. } => {
                assert!(text.ends_with('\n') && text.len() <= 64 * 1024);
                shown += text.lines().count();
            }
            Notice::Warning { message, .. } => told.push(message),
            _ => {}
        }
    }
    assert_eq!(told.len(), 1);
    let missed: usize = told[0].split(' ').next().unwrap().parse().unwrap();
    assert_eq!(shown + missed, 160_000);
    assert!((30_000..=42_000).contains(&shown), "4 MiB of 100-byte lines wait at most: {shown}");
    assert_eq!(std::fs::metadata(scratch.0.join("a.1.log")).unwrap().len(), 16_000_000, "the file is complete");
}
