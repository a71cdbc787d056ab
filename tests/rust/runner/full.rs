//! A disk without room: a file system of one mebibyte that is filled and freed while a run lasts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use step_engine::event::{AttemptDetails, Outcome, RunStatus};
use step_engine::runner::journal::{FILE_NAME, parse};
use step_engine::runner::replay::replay;
use step_engine::runner::{AttemptControl, AttemptSink, AttemptSpec, Executor, LogStream};

use super::host::{Report, stage};

const PLAN: &str = r#"{"steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}, {"name": "c", "upstream": ["b"]}]}"#;

/// A small file system of this test's own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this user may not mount one.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("step-engine-small-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        std::fs::remove_dir(&path).unwrap();
        eprintln!("left out: this user may not mount a file system");
        None
    }

    fn directory(&self) -> PathBuf {
        self.0.join("run")
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn fill(&self) {
        fill(&self.ballast());
    }
}

/// Writes a file until nothing more fits.
fn fill(ballast: &Path) {
    use std::io::Write as _;

    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(ballast).unwrap();
    while file.write(&[b'x'; 512]).is_ok() {}
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).output());
        drop(std::fs::remove_dir(&self.0));
    }
}

/// Steps that say as many bytes as they are told; the disk is full from the middle of step `a`, and may be freed later.
struct Talkers {
    ballast: PathBuf,
    /// Said by `a` on the full disk.
    bytes: usize,
    freed_after: Option<Duration>,
}

impl Executor for Talkers {
    async fn run(self: Arc<Self>, spec: AttemptSpec, _: AttemptControl, sink: Arc<dyn AttemptSink>) -> Outcome {
        // Longer than what the last page of the journal has left.
        sink.started(AttemptDetails { container_id: Some("x".repeat(8192)), ..AttemptDetails::default() });
        sink.log(LogStream::Stdout, Bytes::from_static(b"begin\n"));
        if &*spec.name == "a" {
            fill(&self.ballast);
            if let Some(after) = self.freed_after {
                let ballast = self.ballast.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    std::fs::remove_file(ballast).unwrap();
                });
            }
            for line in said(self.bytes) {
                sink.log(LogStream::Stdout, line);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        sink.log(LogStream::Stdout, Bytes::from_static(b"end\n"));
        Outcome::Completed
    }
}

/// Lines of 100 bytes that tell each other apart.
fn said(bytes: usize) -> impl Iterator<Item = Bytes> {
    (0..bytes / 100).map(|at| Bytes::from(format!("{at:099}\n")))
}

async fn play(disk: &SmallDisk, bytes: usize, freed_after: Option<u64>) -> Report {
    let freed_after = freed_after.map(Duration::from_secs);
    let talkers = Talkers { ballast: disk.ballast(), bytes, freed_after };
    stage(PLAN).with_journal(disk.directory(), PLAN).play(Arc::new(talkers)).await
}

fn replays_as_completed(directory: &Path) {
    let replayed = replay(&parse(&std::fs::read(directory.join(FILE_NAME)).unwrap()).unwrap()).unwrap();
    assert_eq!(replayed.summary.unwrap().status, RunStatus::Completed);
    assert!(replayed.in_flight.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_for_a_while_costs_nothing_but_time() {
    let Some(disk) = SmallDisk::new() else { return };
    let report = play(&disk, 50_000, Some(20)).await;
    assert_eq!((report.summary.status, report.took.as_secs()), (RunStatus::Completed, 22));
    replays_as_completed(&disk.directory());
    let all: Vec<u8> = said(50_000).flat_map(|line| line.to_vec()).collect();
    let whole = [b"begin\n".to_vec(), all, b"end\n".to_vec()].concat();
    assert_eq!(std::fs::read(disk.directory().join("a.1.log")).unwrap(), whole);
    assert_eq!(std::fs::read(disk.directory().join("c.1.log")).unwrap(), b"begin\nend\n");
    let warnings = report.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let place = format!("{} cannot be written: No space left", disk.directory().join("a.1.log").display());
    assert!(warnings[0].starts_with(&place) && warnings[0].contains("; 0 bytes are free there; "), "{warnings:?}");
    let place = format!("{} cannot be written: No space left", disk.directory().join(FILE_NAME).display());
    assert!(warnings[1].contains(&place) && warnings[1].ends_with("; 0 bytes are free there"), "{warnings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_had_to_drop_lines_says_how_many_bytes_once_there_is_room() {
    let Some(disk) = SmallDisk::new() else { return };
    // More than waits in memory, and than the file system has.
    let bytes = 1_200_000;
    drop(Command::new("mount").args(["-o", "remount,size=4m"]).arg(&disk.0).output());
    let report = play(&disk, bytes, Some(20)).await;
    assert_eq!(report.summary.status, RunStatus::Completed);
    replays_as_completed(&disk.directory());
    let log = String::from_utf8(std::fs::read(disk.directory().join("a.1.log")).unwrap()).unwrap();
    let (kept, rest) = log.split_once("\n[step-engine: ").unwrap();
    let (lost, rest) = rest.split_once(" bytes could not be kept, there was no room]\n").unwrap();
    assert_eq!(kept.len() + lost.parse::<usize>().unwrap() + rest.len(), bytes + "begin\nend\n".len());
    assert!(kept.len() >= 1 << 20, "{}", kept.len());
    assert_eq!(report.warnings().len(), 2, "{:?}", report.warnings());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stays_full_costs_the_journal_and_not_the_run() {
    let Some(disk) = SmallDisk::new() else { return };
    let report = play(&disk, 3_000_000, None).await;
    assert_eq!((report.summary.status, report.took.as_secs()), (RunStatus::Completed, 62));
    assert!(!disk.directory().join(FILE_NAME).exists(), "it would lack the end");
    let warnings = report.warnings();
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings[2].starts_with("the run goes on without a journal: "), "{warnings:?}");
    assert!(warnings[3].contains(" of the logs in ") && warnings[3].contains(" bytes for which"), "{warnings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_has_no_room_at_first_begins_when_there_is_some() {
    let Some(disk) = SmallDisk::new() else { return };
    std::fs::create_dir(disk.directory()).unwrap();
    disk.fill();
    let ballast = disk.ballast();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        std::fs::remove_file(ballast).unwrap();
    });
    let report = play(&disk, 100, Some(1)).await;
    assert_eq!((report.summary.status, report.took.as_secs()), (RunStatus::Completed, 8));
    replays_as_completed(&disk.directory());
}
