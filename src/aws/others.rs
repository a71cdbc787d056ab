//! The tasks that an execution's own task starts: the isolated steps of a dynamic pipeline. Found by `startedBy`, shown as steps.
//!
//! They are in no history. Which step a task runs stands in its overrides. Nothing here decides how the run ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::definition::log_place_of;
use super::error::AwsError;
use super::logs::{Follow, Told, follow};
use super::outcome::TaskInfo;
use super::session::Session;
use super::tasks::StartedBy;
use crate::event::{AttemptDetails, Outcome, RunEvent, StepStatus, TaskDetails};
use crate::runner::{Notice, NoticeSender};

/// Between looks.
pub(super) const LOOKS: Duration = Duration::from_secs(3);
/// Variable of a task's overrides that names its step. See `orchestrator/container/isolated.py`.
const STEP_VARIABLE: &str = "ZENML_STEP_ENGINE_STEP";

/// The tasks of one run.
#[derive(Debug)]
pub(super) struct Others {
    session: Session,
    started: StartedBy,
    notices: NoticeSender,
    /// Whether logs are followed.
    logs: bool,
    told: Told,
    tasks: HashMap<String, Task>,
    steps: BTreeMap<Arc<str>, Step>,
    followers: JoinSet<(String, Vec<String>)>,
    looked_at: Option<Instant>,
    /// Tasks may not be listed.
    blind: bool,
}

#[derive(Debug)]
struct Task {
    step: Arc<str>,
    attempt: u32,
    info: TaskInfo,
    started: bool,
    over: bool,
    /// Tells its follower that the task has ended.
    ended: signal::Sender<bool>,
    followed: bool,
}

#[derive(Debug, Default)]
struct Step {
    attempts: u32,
    /// Of its newest attempt.
    outcome: Option<Outcome>,
    told: bool,
}

impl Others {
    pub(super) fn new(session: Session, started: StartedBy, notices: NoticeSender, logs: bool, told: Told) -> Self {
        Self {
            session,
            started,
            notices,
            logs,
            told,
            tasks: HashMap::new(),
            steps: BTreeMap::new(),
            followers: JoinSet::new(),
            looked_at: None,
            blind: false,
        }
    }

    /// How many run now.
    pub(super) fn running(&self) -> usize {
        self.tasks.values().filter(|task| task.started && !task.over).count()
    }

    /// How many there were.
    pub(super) fn attempts(&self) -> u32 {
        u32::try_from(self.tasks.len()).unwrap_or(u32::MAX)
    }

    /// Looks at all of them, if the last look was long enough ago. What cannot be seen now is seen later.
    pub(super) async fn look(&mut self, at_once: bool) {
        self.reap();
        if self.blind || (!at_once && self.looked_at.is_some_and(|at| at.elapsed() < LOOKS)) {
            return;
        }
        self.looked_at = Some(Instant::now());
        match self.described().await {
            Ok(mut tasks) => {
                tasks.sort_by(|one, other| time_of(one).total_cmp(&time_of(other)));
                for task in &tasks {
                    self.learn(task).await;
                }
            }
            // Whoever watches the execution tells that nobody answers.
            Err(error) if error.is_transient() || error.is_expired() => {}
            Err(error) => {
                self.warn(format!("steps in tasks of their own are not shown: {error}"));
                self.blind = true;
            }
        }
    }

    /// Tasks that were not seen to end.
    async fn described(&self) -> Result<Vec<Value>, AwsError> {
        let mut arns = self.session.list_tasks(&self.started, false).await?;
        // One may begin and end between two looks. Where ECS does not take both filters at once, it is not shown.
        arns.extend(self.session.list_tasks(&self.started, true).await.unwrap_or_default());
        // One that was running may be in neither answer.
        arns.extend(self.tasks.iter().filter(|(_, task)| !task.over).map(|(arn, _)| arn.clone()));
        arns.sort_unstable();
        arns.dedup();
        arns.retain(|arn| self.tasks.get(arn).is_none_or(|task| !task.over));
        self.session.describe_tasks(&self.started.cluster, &arns).await
    }

    async fn learn(&mut self, said: &Value) {
        let Some(arn) = said["taskArn"].as_str() else { return };
        if !self.tasks.contains_key(arn) {
            let Some((step, container)) = step_of(said) else { return };
            self.add(arn, step, container);
        }
        let Some(task) = self.tasks.get_mut(arn) else { return };
        task.info.learn(said);
        if task.info.started_at_unix_seconds.is_some() && !task.started {
            task.started = true;
            self.start(arn).await;
        }
        if said["lastStatus"] == "STOPPED" {
            self.end(arn, said);
        }
    }

    fn add(&mut self, arn: &str, step: &str, container: &str) {
        let step: Arc<str> = Arc::from(step);
        if !self.steps.contains_key(&step) {
            self.event(RunEvent::StepAdded { step: step.to_string() });
        }
        let known = self.steps.entry(Arc::clone(&step)).or_default();
        known.attempts += 1;
        (known.outcome, known.told) = (None, false);
        let attempt = known.attempts;
        let info = TaskInfo { container: Some(container.to_owned()), ..TaskInfo::default() };
        let (ended, _) = signal::channel(false);
        self.event(RunEvent::AttemptLaunched { step: step.to_string(), attempt });
        let task = Task { step, attempt, info, started: false, over: false, ended, followed: false };
        self.tasks.insert(arn.to_owned(), task);
    }

    /// A task's containers run: tells so, and follows its log.
    async fn start(&mut self, arn: &str) {
        let Some(task) = self.tasks.get(arn) else { return };
        let (step, attempt, info) = (Arc::clone(&task.step), task.attempt, task.info.clone());
        let definition = info.task_definition.clone().unwrap_or_default();
        let container = info.container.clone().unwrap_or_default();
        let place = match self.session.describe_task_definition(&definition).await {
            Ok(described) => log_place_of(&described["taskDefinition"], &container),
            Err(error) => {
                if self.logs && self.told.first_time(&definition) {
                    self.warn(format!("logs of tasks of {definition} are not shown: {error}"));
                }
                None
            }
        };
        let stream = place.as_ref().and_then(|place| place.stream(&container, arn));
        let details = AttemptDetails {
            task: Some(Box::new(TaskDetails {
                arn: arn.to_owned(),
                cluster: info.cluster.clone().unwrap_or_default(),
                task_definition: definition,
                container,
                log_group: place.as_ref().map(|place| place.group.clone()),
                log_stream: stream.clone(),
            })),
            ..AttemptDetails::default()
        };
        self.event(RunEvent::AttemptStarted { step: step.to_string(), attempt, details });
        let (Some(place), Some(stream), true) = (place, stream, self.logs) else { return };
        let Some(task) = self.tasks.get_mut(arn) else { return };
        task.followed = true;
        let what = Follow {
            session: self.session.clone(),
            group: place.group,
            stream,
            region: place.region,
            step,
            attempt,
            notices: self.notices.clone(),
            ended: task.ended.subscribe(),
            told: self.told.clone(),
        };
        let arn = arn.to_owned();
        self.followers.spawn(async move { (arn, follow(what).await) });
    }

    fn end(&mut self, arn: &str, said: &Value) {
        let Some(task) = self.tasks.get_mut(arn).filter(|task| !task.over) else { return };
        task.over = true;
        let succeeded = task.info.exit_code == Some(0);
        let outcome = task.info.judge(said, succeeded);
        task.info.outcome = Some(outcome.clone());
        let (step, attempt, followed) = (Arc::clone(&task.step), task.attempt, task.followed);
        let times = (task.info.submitted_at_unix_seconds, task.info.stopped_at_unix_seconds);
        let seconds = times.0.zip(times.1).map_or(0.0, |(from, to)| to - from);
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        // Fails only when the follower has given up.
        let _ = task.ended.send(true);
        self.event(RunEvent::AttemptEnded { step: step.to_string(), attempt, outcome: outcome.clone(), duration });
        if let Some(known) = self.steps.get_mut(&step) {
            known.outcome = Some(outcome.clone());
            // Whether another attempt follows one that failed is the orchestration's to say.
            known.told = outcome.is_completed();
        }
        if outcome.is_completed() {
            let status = StepStatus::Completed;
            self.event(RunEvent::StepFinished { step: step.to_string(), status, outcome: Some(outcome) });
        }
        if !followed {
            self.tell_end(arn, Vec::new());
        }
    }

    /// Takes in followers that are done; a task is over before its log is.
    fn reap(&mut self) {
        while let Some(done) = self.followers.try_join_next() {
            if let Ok((arn, tail)) = done {
                self.log_is_complete(&arn, tail);
            }
        }
    }

    fn log_is_complete(&mut self, arn: &str, tail: Vec<String>) {
        match self.tasks.get_mut(arn) {
            Some(task) if task.over => self.tell_end(arn, tail),
            // The log cannot be read; the task goes on.
            Some(task) => task.followed = false,
            None => {}
        }
    }

    fn tell_end(&self, arn: &str, log_tail: Vec<String>) {
        let Some(task) = self.tasks.get(arn) else { return };
        let mut value = serde_json::to_value(&task.info).unwrap_or_else(|_| json!({}));
        for (field, its) in [
            ("kind", json!("task_ended")),
            ("step", json!(&*task.step)),
            ("attempt", json!(task.attempt)),
            ("log_tail", json!(log_tail)),
        ] {
            value[field] = its;
        }
        self.notices.send(Notice::Details(value));
    }

    /// The execution is over. Reads the logs of what has ended to their end, and gives how the steps ended.
    pub(super) async fn finish(&mut self) -> Vec<(String, StepStatus)> {
        self.look(true).await;
        for task in self.tasks.values().filter(|task| !task.over) {
            // Its follower has nothing more to wait for.
            let _ = task.ended.send(true);
        }
        while let Some(done) = self.followers.join_next().await {
            if let Ok((arn, tail)) = done {
                self.log_is_complete(&arn, tail);
            }
        }
        let steps = std::mem::take(&mut self.steps);
        let ended = steps.into_iter().map(|(name, step)| {
            let status = match &step.outcome {
                Some(Outcome::Completed) => StepStatus::Completed,
                None | Some(Outcome::Stopped) => StepStatus::Stopped,
                Some(_) => StepStatus::Failed,
            };
            if !step.told {
                self.event(RunEvent::StepFinished { step: name.to_string(), status, outcome: step.outcome });
            }
            (name.to_string(), status)
        });
        ended.collect()
    }

    /// Ends all followers, so that nothing comes after the end.
    pub(super) async fn shutdown(&mut self) {
        self.followers.shutdown().await;
    }

    fn event(&self, event: RunEvent) {
        self.notices.send(Notice::Event(event));
    }

    fn warn(&self, message: String) {
        self.notices.send(Notice::Warning { step: Arc::from(""), message });
    }
}

/// The step that a task runs, and its container: the one whose overrides name a step.
fn step_of(task: &Value) -> Option<(&str, &str)> {
    let containers = task["overrides"]["containerOverrides"].as_array()?;
    containers.iter().find_map(|container| {
        let environment = container["environment"].as_array()?;
        let variable = environment.iter().find(|variable| variable["name"] == STEP_VARIABLE)?;
        Some((variable["value"].as_str()?, container["name"].as_str()?))
    })
}

fn time_of(task: &Value) -> f64 {
    let mut info = TaskInfo::default();
    info.learn(task);
    info.submitted_at_unix_seconds.unwrap_or(f64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_says_which_step_it_runs() {
        let task = json!({"overrides": {"containerOverrides": [
            {"name": "proxy", "environment": [{"name": "A", "value": "b"}]},
            {"name": "main", "environment": [{"name": STEP_VARIABLE, "value": "map:train:0"}]},
        ]}});
        assert_eq!(step_of(&task), Some(("map:train:0", "main")));
        // The orchestration's own task, should it be among them.
        assert_eq!(step_of(&json!({"overrides": {"containerOverrides": [{"name": "main"}]}})), None);
        assert_eq!(step_of(&json!({})), None);
    }
}
