//! Watches one execution: its history, its tasks and their logs become the events that a Docker run has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::definition::{LogPlace, log_place_of};
use super::error::AwsError;
use super::history::{Change, Kind, Tracker};
use super::logs::{Follow, Told, follow};
use super::others::{self, Others};
use super::outcome::TaskInfo;
use super::session::Session;
use super::silence::{PATIENCE, Silence};
use super::tasks::StartedBy;
use crate::event::{AttemptDetails, Failure, Outcome, RunEvent, RunStatus, RunSummary, StepStatus, TaskDetails};
use crate::plan::Plan;
use crate::runner::{Notice, NoticeSender};

/// Between looks at the history, right after something happened and when nothing did for long.
const BUSY: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(5);
/// Between looks at tasks that ECS has not started.
const TASK_LOOKS: Duration = Duration::from_secs(2);
/// A task that was given up may take so long to end: ECS waits up to 120 seconds between SIGTERM and SIGKILL.
const LAST_WORDS: Duration = Duration::from_secs(150);
/// How long a task definition is asked for while AWS does not answer or the credentials have expired.
const DEFINITION_PATIENCE: Duration = Duration::from_secs(120);

/// What to watch.
#[derive(Debug)]
pub struct Watch {
    /// Whom to ask.
    pub session: Session,
    /// ARN of the root execution.
    pub execution: String,
    /// The plan that it was compiled from.
    pub plan: Arc<Plan>,
    /// Whether logs are followed.
    pub logs: bool,
    /// Tasks that the execution's own task starts, to be shown as steps.
    pub others: Option<StartedBy>,
}

/// Watches until the execution is over and every log is complete, or until `cancelled` becomes true. The line is closed by the caller.
///
/// # Errors
/// [`AwsError`]: the execution does not exist, may not be read, or nobody answered for a quarter of an hour. It goes on.
pub async fn watch(watch: Watch, mut cancelled: signal::Receiver<bool>, notices: NoticeSender) -> Result<(), AwsError> {
    let history = Arc::new(Silence::of(watch.session.place("Step Functions"), Some(PATIENCE)));
    let tasks = Arc::new(Silence::of(watch.session.place("ECS"), None));
    let mut watcher = Watcher::new(watch, notices.clone(), Arc::clone(&history), Arc::clone(&tasks));
    let tell = |message| notices.send(Notice::Warning { step: Arc::from(""), message });
    let done = tokio::select! {
        done = watcher.run() => done,
        lost = history.lasts_too_long(tell) => Err(lost),
        lost = tasks.lasts_too_long(tell) => Err(lost),
        _ = cancelled.wait_for(|cancelled| *cancelled) => Ok(()),
    };
    // Ends whoever follows a log, so that nothing comes after the end.
    watcher.closers.shutdown().await;
    watcher.followers.shutdown().await;
    if let Some(others) = &mut watcher.others {
        others.shutdown().await;
    }
    done
}

/// An attempt that ECS has.
#[derive(Debug)]
struct Attempt {
    number: u32,
    started: bool,
    /// Tells its follower that the task has ended.
    ended: signal::Sender<bool>,
    followed: bool,
}

struct Watcher {
    watch: Watch,
    notices: NoticeSender,
    /// Of Step Functions.
    history_silence: Arc<Silence>,
    /// Of ECS, which tells details only.
    tasks_silence: Arc<Silence>,
    names: Vec<Arc<str>>,
    tracker: Tracker,
    others: Option<Others>,
    attempts: HashMap<usize, Attempt>,
    /// Tasks that ended while their logs are still read.
    ending: HashMap<(usize, u32), TaskInfo>,
    followers: JoinSet<(usize, u32, Vec<String>)>,
    /// Wait for the end of tasks that were given up, and give what ECS says of it.
    closers: JoinSet<(usize, u32, Option<Value>)>,
    told: Told,
    /// `DescribeTasks` is not allowed.
    blind: bool,
    looked_at_tasks: Option<Instant>,
    over: Option<&'static str>,
    first_failure: Option<Failure>,
    running: HashSet<usize>,
    summary: Figures,
}

/// Figures of the summary.
#[derive(Debug, Default)]
struct Figures {
    peak: usize,
    attempts: u32,
    longest_start: Option<Duration>,
}

impl Watcher {
    fn new(watch: Watch, notices: NoticeSender, history_silence: Arc<Silence>, tasks_silence: Arc<Silence>) -> Self {
        let names: Vec<Arc<str>> = watch.plan.steps.iter().map(|step| Arc::clone(&step.name)).collect();
        let texts: Vec<String> = names.iter().map(ToString::to_string).collect();
        let told = Told::default();
        let others = watch
            .others
            .clone()
            .map(|started| Others::new(watch.session.clone(), started, notices.clone(), watch.logs, told.clone()));
        Self {
            tracker: Tracker::new(&texts, &watch.execution),
            others,
            watch,
            notices,
            history_silence,
            tasks_silence,
            names,
            attempts: HashMap::new(),
            ending: HashMap::new(),
            followers: JoinSet::new(),
            closers: JoinSet::new(),
            told,
            blind: false,
            looked_at_tasks: None,
            over: None,
            first_failure: None,
            running: HashSet::new(),
            summary: Figures::default(),
        }
    }

    async fn run(&mut self) -> Result<(), AwsError> {
        let steps = self.names.len();
        let max_parallelism =
            self.watch.plan.max_parallelism.unwrap_or_else(|| u32::try_from(steps).unwrap_or(u32::MAX));
        self.event(RunEvent::RunStarted { steps, max_parallelism });
        let mut last_news = Instant::now();
        loop {
            let looked = self.look().await;
            let complete = looked.is_ok();
            match looked {
                Ok(true) => last_news = Instant::now(),
                Ok(false) => {}
                Err(error) if error.is_transient() || error.is_expired() => {
                    self.history_silence.failed(error);
                    // It is not asked meanwhile.
                    self.tasks_silence.is_over();
                }
                Err(error) => return Err(error),
            }
            self.reap();
            if let Some(others) = &mut self.others {
                others.look(false).await;
                self.summary.peak = self.summary.peak.max(self.running.len() + others.running());
            }
            if self.over.is_some() && complete {
                break;
            }
            let quiet_for = last_news.elapsed();
            let wait = (BUSY + quiet_for / 20).clamp(BUSY, QUIET);
            let wait = if self.waits_for_start() { wait.min(TASK_LOOKS) } else { wait };
            let wait = if self.others.is_some() { wait.min(others::LOOKS) } else { wait };
            tokio::time::sleep(wait).await;
        }
        for change in self.tracker.settle() {
            self.on(change).await;
        }
        self.tasks_silence.is_over();
        while let Some(closed) = self.closers.join_next().await {
            self.task_is_over(closed.ok());
        }
        while let Some(ended) = self.followers.join_next().await {
            self.log_is_complete(ended.ok());
        }
        self.finish().await;
        Ok(())
    }

    /// One look at everything. Returns whether something happened.
    async fn look(&mut self) -> Result<bool, AwsError> {
        let mut news = false;
        let mut open = self.tracker.running();
        while let Some(execution) = open.pop() {
            self.history_silence.ask("GetExecutionHistory");
            let events = self.watch.session.new_events(&execution, self.tracker.last_id(&execution)).await;
            self.note_answer(&self.history_silence, "Step Functions", &events);
            let events = match events {
                Ok(events) => events,
                Err(error) if execution != self.watch.execution && !error.is_transient() && !error.is_expired() => {
                    self.warn("", format!("steps inside {execution} are not shown: {error}"));
                    self.tracker.forget(&execution);
                    continue;
                }
                Err(error) => return Err(error),
            };
            // An execution inside that ended right before its parent must be read to its end before the parent's end counts.
            if events.iter().any(|event| matches!(event.kind, Kind::Over { .. })) && execution == self.watch.execution {
                open.extend(self.tracker.running_nested());
            }
            for event in &events {
                news = true;
                for change in self.tracker.apply(&execution, event) {
                    self.on(change).await;
                }
            }
            open.extend(self.tracker.take_nested());
        }
        self.look_at_tasks().await;
        Ok(news)
    }

    fn waits_for_start(&self) -> bool {
        !self.blind && self.attempts.values().any(|attempt| !attempt.started)
    }

    /// Asks ECS which of the tasks that it took are running by now.
    async fn look_at_tasks(&mut self) {
        if !self.waits_for_start() {
            self.tasks_silence.is_over();
            return;
        }
        if self.looked_at_tasks.is_some_and(|at| at.elapsed() < TASK_LOOKS) {
            return;
        }
        self.looked_at_tasks = Some(Instant::now());
        let mut by_cluster: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
        for (&step, _) in self.attempts.iter().filter(|(_, attempt)| !attempt.started) {
            let task = &self.tracker.step(step).task;
            if let (Some(cluster), Some(arn)) = (&task.cluster, &task.arn) {
                by_cluster.entry(cluster.clone()).or_default().push((arn.clone(), step));
            }
        }
        for (cluster, tasks) in by_cluster {
            let arns: Vec<String> = tasks.iter().map(|(arn, _)| arn.clone()).collect();
            self.tasks_silence.ask("DescribeTasks");
            let described = self.watch.session.describe_tasks(&cluster, &arns).await;
            self.note_answer(&self.tasks_silence, "ECS", &described);
            let described = match described {
                Ok(described) => described,
                Err(error) if error.is_transient() || error.is_expired() => {
                    self.tasks_silence.failed(error);
                    continue;
                }
                Err(error) => {
                    self.warn("", format!("when tasks start is not shown: {error}"));
                    self.blind = true;
                    for (_, step) in tasks {
                        self.started(step).await;
                    }
                    continue;
                }
            };
            for (arn, step) in tasks {
                if let Some(task) = described.iter().find(|task| task["taskArn"] == arn.as_str()) {
                    self.tracker.task_mut(step).learn(task);
                    if !task["startedAt"].is_null() || task["lastStatus"] == "RUNNING" {
                        self.started(step).await;
                    }
                }
            }
        }
    }

    async fn on(&mut self, change: Change) {
        match change {
            Change::Launched { step } => {
                self.summary.attempts += 1;
                let attempt = self.tracker.step(step).attempts;
                self.event(RunEvent::AttemptLaunched { step: self.name(step), attempt });
            }
            Change::Submitted { step } => {
                let number = self.tracker.step(step).attempts;
                let (ended, _) = signal::channel(false);
                self.attempts.insert(step, Attempt { number, started: false, ended, followed: false });
                if self.blind {
                    self.started(step).await;
                }
            }
            Change::TriedAgain { step, reason } => {
                let message = format!("ECS did not take its task, Step Functions tries again: {reason}");
                self.warn(&self.name(step), message);
            }
            Change::Ended { step, error } => self.ended(step, &error).await,
            Change::Finished { step } => {
                let state = self.tracker.step(step);
                let (status, outcome) = (state.status, state.task.outcome.clone());
                let attempt = state.attempts;
                let Some(status) = status else { return };
                if status == StepStatus::Failed && self.first_failure.is_none() {
                    let outcome = outcome.clone().unwrap_or(Outcome::Lost { reason: "nothing is known of it".into() });
                    self.first_failure = Some(Failure { step: self.name(step), attempt, outcome });
                }
                let outcome = outcome.filter(|_| attempt > 0);
                self.event(RunEvent::StepFinished { step: self.name(step), status, outcome });
            }
            Change::Over { status, cause } => {
                self.over = Some(status);
                if status == "ABORTED" {
                    let reason = if cause.is_empty() { "the execution was stopped".into() } else { cause };
                    self.event(RunEvent::StopRequested { reason, stops_running: true });
                }
            }
            Change::Redriven => {
                self.over = None;
                self.first_failure = None;
            }
        }
    }

    /// A task's containers run: tells so, and follows its log.
    async fn started(&mut self, step: usize) {
        let Some(attempt) = self.attempts.get_mut(&step).filter(|attempt| !attempt.started) else { return };
        attempt.started = true;
        let number = attempt.number;
        self.running.insert(step);
        self.summary.peak = self.summary.peak.max(self.running.len());
        let state = self.tracker.step(step);
        if let Some(started) = state.task.started_at_unix_seconds {
            let took = Duration::try_from_secs_f64(started - state.launched_at).unwrap_or_default();
            self.summary.longest_start = self.summary.longest_start.max(Some(took));
        }
        let task = state.task.clone();
        let place = self.log_place(&task).await;
        let stream = place.as_ref().zip(task.container.as_deref().zip(task.arn.as_deref()));
        let stream = stream.and_then(|(place, (container, arn))| place.stream(container, arn));
        let details = AttemptDetails {
            task: Some(Box::new(TaskDetails {
                arn: task.arn.clone().unwrap_or_default(),
                cluster: task.cluster.unwrap_or_default(),
                task_definition: task.task_definition.unwrap_or_default(),
                container: task.container.unwrap_or_default(),
                log_group: place.as_ref().map(|place| place.group.clone()),
                log_stream: stream.clone(),
            })),
            ..AttemptDetails::default()
        };
        self.event(RunEvent::AttemptStarted { step: self.name(step), attempt: number, details });
        if !self.watch.logs {
            return;
        }
        let (Some(place), Some(stream)) = (place, stream) else { return };
        let Some(attempt) = self.attempts.get_mut(&step) else { return };
        attempt.followed = true;
        let what = Follow {
            session: self.watch.session.clone(),
            group: place.group,
            stream,
            region: place.region,
            step: Arc::clone(&self.names[step]),
            attempt: number,
            notices: self.notices.clone(),
            ended: attempt.ended.subscribe(),
            told: self.told.clone(),
        };
        self.followers.spawn(async move { (step, number, follow(what).await) });
    }

    /// Where a task logs to. Says once per definition why its log is not shown.
    async fn log_place(&self, task: &TaskInfo) -> Option<LogPlace> {
        let (definition, container) = (task.task_definition.as_deref()?, task.container.as_deref()?);
        let begun = Instant::now();
        let described = loop {
            self.tasks_silence.ask("DescribeTaskDefinition");
            let described = self.watch.session.describe_task_definition(definition).await;
            self.note_answer(&self.tasks_silence, "ECS", &described);
            match described {
                // Nothing else can be asked for meanwhile either.
                Err(error) if begun.elapsed() < DEFINITION_PATIENCE && (error.is_transient() || error.is_expired()) => {
                    self.tasks_silence.failed(error);
                    tokio::time::sleep(QUIET).await;
                }
                described => break described,
            }
        };
        let why = match described {
            Ok(described) => match log_place_of(&described["taskDefinition"], container) {
                Some(place) if place.stream_prefix.is_some() => return Some(place),
                Some(_) => "its log configuration has no awslogs-stream-prefix, which names the streams".to_owned(),
                None => format!("its container `{container}` does not log to CloudWatch with the driver awslogs"),
            },
            Err(error) => error.to_string(),
        };
        if self.watch.logs && self.told.first_time(definition) {
            self.warn("", format!("logs of tasks of {definition} are not shown: {why}"));
        }
        None
    }

    async fn ended(&mut self, step: usize, error: &str) {
        // A task that ran between two looks.
        if self.tracker.step(step).task.started_at_unix_seconds.is_some() {
            self.started(step).await;
        }
        self.running.remove(&step);
        let state = self.tracker.step(step);
        let (number, task, over) = (state.attempts, state.task.clone(), state.is_over());
        let outcome = task.outcome.clone().unwrap_or(Outcome::Lost { reason: "nothing is known of it".into() });
        let duration = Duration::try_from_secs_f64(state.ended_at - state.launched_at).unwrap_or_default();
        let completed = outcome.is_completed();
        let stopped = outcome == Outcome::Stopped;
        self.event(RunEvent::AttemptEnded { step: self.name(step), attempt: number, outcome, duration });
        let retry = self.watch.plan.steps[step].retry;
        let counts = matches!(error, "States.TaskFailed" | "States.Timeout");
        if !completed && !stopped && counts && number <= retry.max_retries {
            let delay = retry.delay_before(number);
            self.event(RunEvent::RetryScheduled { step: self.name(step), attempt: number + 1, delay });
        }
        match self.attempts.remove(&step) {
            Some(attempt) if attempt.followed => {
                // Its follower tells when the log is complete.
                let place = task.cluster.clone().zip(task.arn.clone());
                self.ending.insert((step, number), task);
                match place {
                    Some((cluster, arn)) if !over && !self.blind => {
                        let session = self.watch.session.clone();
                        self.closers.spawn(async move {
                            let said = until_stopped(&session, &cluster, &arn).await;
                            let _ = attempt.ended.send(true);
                            (step, number, said)
                        });
                    }
                    // Fails only when the follower has given up.
                    _ => drop(attempt.ended.send(true)),
                }
            }
            _ => self.task_ended(step, number, &task, Vec::new()),
        }
    }

    /// Takes in closers and followers that are done; a task is over before its log is.
    fn reap(&mut self) {
        while let Some(closed) = self.closers.try_join_next() {
            self.task_is_over(closed.ok());
        }
        while let Some(ended) = self.followers.try_join_next() {
            self.log_is_complete(ended.ok());
        }
    }

    fn task_is_over(&mut self, closed: Option<(usize, u32, Option<Value>)>) {
        if let Some((step, attempt, Some(said))) = closed
            && let Some(task) = self.ending.get_mut(&(step, attempt))
        {
            task.learn(&said);
        }
    }

    fn log_is_complete(&mut self, ended: Option<(usize, u32, Vec<String>)>) {
        let Some((step, attempt, tail)) = ended else { return };
        if let Some(task) = self.ending.remove(&(step, attempt)) {
            self.task_ended(step, attempt, &task, tail);
        } else if let Some(running) = self.attempts.get_mut(&step).filter(|running| running.number == attempt) {
            // The log cannot be read; the task goes on.
            running.followed = false;
        }
    }

    fn task_ended(&self, step: usize, attempt: u32, task: &TaskInfo, log_tail: Vec<String>) {
        let mut value = serde_json::to_value(task).unwrap_or_else(|_| json!({}));
        for (field, its) in [
            ("kind", json!("task_ended")),
            ("step", json!(&*self.names[step])),
            ("attempt", json!(attempt)),
            ("log_tail", json!(log_tail)),
        ] {
            value[field] = its;
        }
        self.notices.send(Notice::Details(value));
    }

    async fn finish(&mut self) {
        let mut times = (0.0, None);
        let mut steps = self.tracker.statuses();
        if let Some(others) = &mut self.others {
            steps.extend(others.finish().await);
            self.summary.attempts += others.attempts();
        }
        match self.watch.session.describe_execution(&self.watch.execution).await {
            Ok(execution) => {
                times = (execution.started_at_unix_seconds, execution.stopped_at_unix_seconds);
                let mut value = serde_json::to_value(&execution).unwrap_or_else(|_| json!({}));
                if let Value::Object(fields) = &mut value {
                    fields.remove("input");
                    fields.remove("output");
                    fields.insert("kind".into(), "execution_ended".into());
                }
                self.notices.send(Notice::Details(value));
            }
            Err(error) => self.warn("", format!("why the execution ended is not shown: {error}")),
        }
        let status = match self.over {
            Some("SUCCEEDED") => RunStatus::Completed,
            Some("ABORTED") => RunStatus::Stopped,
            _ => RunStatus::Failed,
        };
        let seconds = times.1.map_or(0.0, |end: f64| end - times.0);
        let summary = RunSummary {
            status,
            steps,
            first_failure: self.first_failure.take(),
            left_running: Vec::new(),
            duration: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            peak_parallelism: u32::try_from(self.summary.peak).unwrap_or(u32::MAX),
            attempts: self.summary.attempts,
            warm_starts: 0,
            longest_start: self.summary.longest_start,
        };
        self.event(RunEvent::RunFinished { summary });
    }

    /// Ends a silence, if this is an answer; a refusal is one as well.
    fn note_answer<T>(&self, silence: &Silence, service: &str, answer: &Result<T, AwsError>) {
        let missing = answer.as_ref().is_err_and(|error| error.is_transient() || error.is_expired());
        if !missing && silence.is_over() {
            self.warn("", format!("{service} answers again."));
        }
    }

    fn name(&self, step: usize) -> String {
        self.names[step].to_string()
    }

    fn event(&self, event: RunEvent) {
        self.notices.send(Notice::Event(event));
    }

    fn warn(&self, step: &str, message: String) {
        self.notices.send(Notice::Warning { step: Arc::from(step), message });
    }
}

/// Waits until ECS says that a task is over; gives what it says then.
async fn until_stopped(session: &Session, cluster: &str, arn: &str) -> Option<Value> {
    let begun = Instant::now();
    while begun.elapsed() < LAST_WORDS {
        tokio::time::sleep(TASK_LOOKS).await;
        match session.describe_tasks(cluster, &[arn.to_owned()]).await {
            Ok(mut tasks) => match tasks.pop() {
                Some(task) if task["lastStatus"] != "STOPPED" => {}
                over => return over,
            },
            Err(error) if error.is_transient() || error.is_expired() => {}
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use aws_config::retry::RetryConfig;
    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_sts::config::Credentials;

    use super::*;
    use crate::runner::notices;

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_endpoint_keeps_quiet_tells_so_and_ends() {
        // Connections are taken in by the system, nobody ever reads from them.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .endpoint_url(&endpoint)
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .retry_config(RetryConfig::standard().with_max_attempts(8))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .load()
            .await;
        let plan = serde_json::from_value(json!({"steps": [{"name": "a"}]})).unwrap();
        let what = Watch {
            session: Session::of(config, "eu-west-1".into(), None),
            execution: "arn:aws:states:eu-west-1:1:execution:m:run".into(),
            plan: Arc::new(Plan::new(plan).unwrap()),
            logs: true,
            others: None,
        };
        let (sender, receiver) = notices();
        let (_cancel, cancelled) = signal::channel(false);
        let begun = Instant::now();
        let error = watch(what, cancelled, sender).await.unwrap_err();
        assert!((899..=902).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains(&format!("no answer from Step Functions at {endpoint} for 15 minutes")));
        let mut told = Vec::new();
        while let Some(notice) = receiver.try_recv() {
            if let Notice::Warning { step, message } = notice {
                assert!(step.is_empty());
                told.push(message);
            }
        }
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[0].contains("for 30 seconds. The execution goes on by itself"), "{told:?}");
    }
}
