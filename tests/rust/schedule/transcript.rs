//! A scheduler whose effects are short lines of text.

use std::sync::Arc;
use std::time::Duration;

use step_engine::event::{AttemptDetails, Outcome, RunEvent, RunSummary, StepStatus};
use step_engine::plan::{Admission, Capacity, Plan, StepIndex};
use step_engine::schedule::{CancelReason, Effect, Input, ScheduleOptions, Scheduler, StopForce, Verdict};

pub const HOST: Capacity = Capacity { cpu_millis: 4000, memory_bytes: 8_000_000_000, gpus: 1 };

/// Plays one run.
pub struct Transcript {
    scheduler: Scheduler,
    now: Duration,
    pub summary: Option<RunSummary>,
}

impl Transcript {
    /// `steps` are JSON objects; the run's other fields stand in `rest` as `"key": value, `.
    pub fn new(rest: &str, steps: &str) -> Self {
        Self::with(rest, steps, ScheduleOptions::default())
    }

    pub fn preparing(rest: &str, steps: &str) -> Self {
        Self::with(rest, steps, ScheduleOptions { prepare: true })
    }

    fn with(rest: &str, steps: &str, options: ScheduleOptions) -> Self {
        let plan = Arc::new(Plan::from_json(&format!(r#"{{{rest} "steps": [{steps}]}}"#)).unwrap());
        let admission = Admission::new(&plan, HOST).unwrap();
        let scheduler = Scheduler::new(plan, &admission, options);
        Self { scheduler, now: Duration::ZERO, summary: None }
    }

    pub fn step(&self, name: &str) -> StepIndex {
        self.scheduler.plan().position(name).unwrap()
    }

    pub fn input(&mut self, input: Input) -> Vec<String> {
        let effects = self.scheduler.handle(self.now, input);
        effects.into_iter().filter_map(|effect| self.line(effect)).collect()
    }

    pub fn start(&mut self) -> Vec<String> {
        self.input(Input::Start)
    }

    pub fn started(&mut self, step: &str, attempt: u32) -> Vec<String> {
        let step = self.step(step);
        self.input(Input::AttemptStarted { step, attempt, details: AttemptDetails::default() })
    }

    pub fn ended(&mut self, step: &str, attempt: u32, outcome: Outcome) -> Vec<String> {
        let step = self.step(step);
        self.input(Input::AttemptEnded { step, attempt, verdict: Verdict { outcome, may_retry: true } })
    }

    pub fn completed(&mut self, step: &str) -> Vec<String> {
        self.ended(step, 1, Outcome::Completed)
    }

    pub fn failed(&mut self, step: &str, attempt: u32) -> Vec<String> {
        self.ended(step, attempt, Outcome::Exited { code: 1 })
    }

    /// `step` is a JSON object.
    pub fn requested(&mut self, step: &str) -> Vec<String> {
        self.input(Input::StepRequested { spec: serde_json::from_str(step).unwrap() })
    }

    pub fn dropped(&mut self, step: &str) -> Vec<String> {
        let step = self.step(step);
        self.input(Input::StepDropped { step })
    }

    pub fn cancel(&mut self, reason: CancelReason) -> Vec<String> {
        self.input(Input::Cancel { reason })
    }

    /// Lets time pass up to this second and sends a tick.
    pub fn at(&mut self, seconds: u64) -> Vec<String> {
        self.now = Duration::from_secs(seconds);
        self.input(Input::Tick)
    }

    /// Lets time pass without telling.
    pub fn silently_at(&mut self, seconds: u64) {
        self.now = Duration::from_secs(seconds);
    }

    /// Launch events repeat the effect and are left out.
    fn line(&mut self, effect: Effect) -> Option<String> {
        let name = |step: StepIndex| self.scheduler.plan().step(step).name.to_string();
        Some(match effect {
            Effect::Prepare { step } => format!("prepare {}", name(step)),
            Effect::Discard { step } => format!("discard {}", name(step)),
            Effect::Launch { step, attempt } => format!("launch {} {attempt}", name(step)),
            Effect::Stop { step, attempt, force: StopForce::Graceful } => format!("stop {} {attempt}", name(step)),
            Effect::Stop { step, attempt, force: StopForce::Kill } => format!("kill {} {attempt}", name(step)),
            Effect::WakeAt { at } => format!("wake at {}", at.as_secs_f64()),
            Effect::Emit(RunEvent::AttemptLaunched { .. } | RunEvent::RunStarted { .. }) => return None,
            Effect::Emit(RunEvent::AttemptStarted { step, attempt, .. }) => format!("started {step} {attempt}"),
            Effect::Emit(RunEvent::AttemptEnded { step, attempt, outcome, duration }) => {
                format!("ended {step} {attempt}: {outcome} after {}", duration.as_secs_f64())
            }
            Effect::Emit(RunEvent::RetryScheduled { step, attempt, delay }) => {
                format!("retry {step} {attempt} in {}", delay.as_secs_f64())
            }
            Effect::Emit(RunEvent::StepFinished { step, status, .. }) => format!("{step} {}", status_word(status)),
            Effect::Emit(RunEvent::StepAdded { step }) => format!("added {step}"),
            Effect::Emit(RunEvent::StopRequested { .. }) => "stopping".to_owned(),
            Effect::Emit(RunEvent::AttemptMeasured { .. } | RunEvent::RunFinished { .. }) => {
                panic!("left to the runner")
            }
            Effect::Finish(summary) => {
                let line = format!("run {:?}", summary.status).to_lowercase();
                self.summary = Some(summary);
                line
            }
        })
    }
}

fn status_word(status: StepStatus) -> &'static str {
    match status {
        StepStatus::Completed => "completed",
        StepStatus::Failed => "failed",
        StepStatus::Stopped => "stopped",
        StepStatus::Skipped => "skipped",
    }
}
