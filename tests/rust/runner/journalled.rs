//! Driven runs and their journals.

use std::path::{Path, PathBuf};

use step_engine::event::{Outcome, RunStatus};
use step_engine::runner::journal::{FILE_NAME, parse};
use step_engine::runner::replay::replay;

use super::host::{exiting, lasting, simulated, stage};

const PLAN: &str = r#"{"pipeline": "p", "max_parallelism": 2, "execution_mode": "continue_on_failure", "steps": [
    {"name": "a"}, {"name": "b", "upstream": ["a"], "retry": {"max_retries": 2, "delay_seconds": 5}},
    {"name": "c", "upstream": ["a"]}, {"name": "d", "upstream": ["b", "c"]}]}"#;

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("step-engine-journalled-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn read(directory: &Path) -> Vec<u8> {
    std::fs::read(directory.join(FILE_NAME)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_journal_of_a_run_tells_what_its_host_was_told() {
    let directory = directory("told");
    let executor = simulated([("a", vec![lasting(3)]), ("b", vec![exiting(1), lasting(2)]), ("c", vec![exiting(9)])]);
    let report = stage(PLAN).with_journal(&directory, PLAN).play(executor).await;
    assert_eq!(report.summary.status, RunStatus::Failed);
    let replayed = replay(&parse(&read(&directory)).unwrap()).unwrap();
    let summary = replayed.summary.unwrap();
    assert_eq!((summary.status, &summary.steps), (report.summary.status, &report.summary.steps));
    assert!(replayed.in_flight.is_empty());
    // All but the end, which comes when everything is cleaned up.
    let told: Vec<_> = report.events().cloned().collect();
    assert_eq!(replayed.events, told[..told.len() - 1]);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_stands_in_the_journal_before_it_is_launched() {
    let directory = directory("before");
    let journal = directory.join(FILE_NAME);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    struct Looks(PathBuf, std::sync::Arc<std::sync::Mutex<Vec<bool>>>);
    impl step_engine::runner::Executor for Looks {
        async fn run(
            self: std::sync::Arc<Self>,
            spec: step_engine::runner::AttemptSpec,
            _control: step_engine::runner::AttemptControl,
            _sink: std::sync::Arc<dyn step_engine::runner::AttemptSink>,
        ) -> Outcome {
            let recorded = parse(&std::fs::read(&self.0).unwrap()).unwrap();
            let replayed = replay(&recorded).unwrap();
            self.1.lock().unwrap().push(replayed.in_flight.contains_key(&(spec.step, spec.attempt)));
            Outcome::Completed
        }
    }
    let executor = std::sync::Arc::new(Looks(journal, std::sync::Arc::clone(&seen)));
    let report = stage(PLAN).with_journal(&directory, PLAN).play(executor).await;
    assert_eq!(report.summary.status, RunStatus::Completed);
    assert_eq!(*seen.lock().unwrap(), [true; 4]);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_is_there_already_is_left_alone_and_the_run_goes_on() {
    let directory = directory("there");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(FILE_NAME), "somebody's").unwrap();
    let report = stage(PLAN).with_journal(&directory, PLAN).play(simulated([])).await;
    assert_eq!(report.summary.status, RunStatus::Completed);
    assert_eq!(read(&directory), b"somebody's");
    assert_eq!(report.warnings().len(), 1, "{:?}", report.warnings());
    std::fs::remove_dir_all(directory).unwrap();
}
