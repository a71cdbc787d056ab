//! A host that listens, judges and remembers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use step_engine::event::{Outcome, RunEvent, RunSummary, StepStatus};
use step_engine::plan::{Admission, Capacity, Plan};
use step_engine::runner::journal::{self, Header};
use step_engine::runner::{Executor, Judgement, Notice, NoticeReceiver, Run, RunOver, Script, SimulatedExecutor};
use step_engine::runner::{drive, notices};
use step_engine::schedule::{CancelReason, Verdict};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What a host has seen of a run.
pub struct Report {
    pub summary: RunSummary,
    /// Each with the time since the beginning.
    pub notices: Vec<(Duration, Notice)>,
    /// Until `drive` returned.
    pub took: Duration,
}

impl Report {
    pub fn status(&self, step: &str) -> StepStatus {
        self.summary.steps.iter().find(|(name, _)| name == step).unwrap().1
    }

    pub fn events(&self) -> impl Iterator<Item = &RunEvent> {
        self.notices.iter().filter_map(|(_, notice)| match notice {
            Notice::Event(event) => Some(event),
            _ => None,
        })
    }

    pub fn warnings(&self) -> Vec<&str> {
        let warning = |notice: &'_ (Duration, Notice)| matches!(notice.1, Notice::Warning { .. });
        self.notices
            .iter()
            .filter(|notice| warning(notice))
            .map(|(_, notice)| match notice {
                Notice::Warning { message, .. } => message.as_str(),
                _ => "",
            })
            .collect()
    }

    /// Everything that was shown of a step.
    pub fn shown(&self, step: &str) -> String {
        let text = |notice: &Notice| match notice {
            Notice::Log { step: of, text, .. } if **of == *step => text.clone(),
            _ => String::new(),
        };
        self.notices.iter().map(|(_, notice)| text(notice)).collect()
    }

    pub fn outcomes(&self, step: &str) -> Vec<Outcome> {
        let of_step = |event: &RunEvent| match event {
            RunEvent::AttemptEnded { step: of, outcome, .. } if of == step => Some(outcome.clone()),
            _ => None,
        };
        self.events().filter_map(of_step).collect()
    }
}

/// A run to be driven.
pub struct Stage {
    pub run: Run,
    /// Second and reason.
    pub cancels: Vec<(f64, CancelReason)>,
}

const HOST: Capacity = Capacity { cpu_millis: 4000, memory_bytes: 8 << 30, gpus: 0 };

pub fn stage(plan: &str) -> Stage {
    let plan = Arc::new(Plan::from_json(plan).unwrap());
    let admission = Admission::new(&plan, HOST).unwrap();
    Stage { run: Run { plan, admission, prepare: false, log_directory: None, journal: None }, cancels: Vec::new() }
}

pub fn simulated<const N: usize>(scripts: [(&str, Vec<Script>); N]) -> Arc<SimulatedExecutor> {
    let scripts: HashMap<String, Vec<Script>> =
        scripts.into_iter().map(|(step, scripts)| (step.to_owned(), scripts)).collect();
    Arc::new(SimulatedExecutor::new(scripts))
}

pub fn lasting(seconds: u64) -> Script {
    Script { duration: Duration::from_secs(seconds), ..Script::default() }
}

pub fn exiting(code: i64) -> Script {
    Script { outcome: Outcome::Exited { code }, ..Script::default() }
}

impl Stage {
    pub fn cancelled_at(mut self, seconds: f64, reason: CancelReason) -> Self {
        self.cancels.push((seconds, reason));
        self
    }

    pub fn logging_to(mut self, directory: impl Into<PathBuf>) -> Self {
        self.run.log_directory = Some(directory.into());
        self
    }

    /// Keeps a journal beside the logs.
    pub fn with_journal(mut self, directory: impl Into<PathBuf>, plan: &str) -> Self {
        self.run.journal = Some(Header {
            version: journal::VERSION,
            plan: serde_json::from_str(plan).unwrap(),
            capacity: HOST,
            prepare: self.run.prepare,
            began_unix_nanos: 0,
        });
        self.logging_to(directory)
    }

    pub fn preparing(mut self) -> Self {
        self.run.prepare = true;
        self
    }

    /// Plays the run; every judgement is answered with its outcome, which may be retried.
    pub async fn play<E: Executor>(self, executor: Arc<E>) -> Report {
        self.judged(executor, |judgement| Verdict { outcome: judgement.outcome.clone(), may_retry: true }).await
    }

    pub async fn judged<E: Executor>(self, executor: Arc<E>, mut judge: impl FnMut(&Judgement) -> Verdict) -> Report {
        let (sender, receiver) = notices();
        let (cancel, cancels) = mpsc::unbounded_channel::<step_engine::schedule::CancelReason>();
        let begun = Instant::now();
        let orders = self.cancels;
        let canceller = tokio::spawn(async move {
            for (at, reason) in orders {
                tokio::time::sleep_until(begun + Duration::from_secs_f64(at)).await;
                let _ = cancel.send(reason);
            }
            // Keeps the line open as a host does.
            std::future::pending::<()>().await;
        });
        let driving = tokio::spawn(async move {
            let summary = drive(self.run, executor, cancels, sender).await;
            (summary, begun.elapsed())
        });
        let mut seen = Vec::new();
        loop {
            match next(&receiver) {
                Ok(Some(Notice::Judge(judgement))) => {
                    let verdict = judge(&judgement);
                    judgement.reply.send(verdict).unwrap();
                }
                Ok(Some(notice)) => seen.push((begun.elapsed(), notice)),
                Ok(None) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(RunOver) => break,
            }
        }
        canceller.abort();
        let (summary, took) = driving.await.unwrap();
        Report { summary, notices: seen, took }
    }
}

/// Never blocks: the test's only thread also runs the driver.
fn next(receiver: &NoticeReceiver) -> Result<Option<Notice>, RunOver> {
    receiver.recv_timeout(Duration::ZERO)
}
