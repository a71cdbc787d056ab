use super::*;
use serde_json::json;

const ROOT: &str = "arn:aws:states:eu-west-1:1:execution:root:run";
const INSIDE: &str = "arn:aws:states:eu-west-1:1:execution:inside:x";

/// A history that is written down event by event.
struct Story {
    tracker: Tracker,
    execution: &'static str,
    last: i64,
    told: Vec<String>,
}

impl Story {
    fn of(steps: &[&str]) -> Self {
        let names: Vec<String> = steps.iter().map(ToString::to_string).collect();
        Self { tracker: Tracker::new(&names, ROOT), execution: ROOT, last: 0, told: Vec::new() }
    }

    /// The next event, which follows `previous`. Returns its id.
    fn event(&mut self, previous: i64, kind: &str, details: Value) -> i64 {
        self.last += 1;
        let mut name = kind.to_owned();
        if kind.ends_with("StateEntered") {
            name = "stateEntered".into();
        }
        name[..1].make_ascii_lowercase();
        let json = json!({
            "id": self.last, "previousEventId": previous, "timestamp": 1_000.0 + self.last as f64, "type": kind,
            format!("{name}EventDetails"): details,
        });
        let event = Event::of(&json).unwrap();
        let changes = self.tracker.apply(self.execution, &event);
        self.note(changes);
        self.last
    }

    fn note(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.told.push(match change {
                Change::Launched { step } => format!("launched {step} #{}", self.tracker.step(step).attempts),
                Change::Submitted { step } => format!("submitted {step}"),
                Change::TriedAgain { step, reason } => format!("again {step}: {reason}"),
                Change::Ended { step, .. } => {
                    format!("ended {step}: {}", self.tracker.step(step).task.outcome.as_ref().unwrap())
                }
                Change::Finished { step } => format!("finished {step}: {:?}", self.tracker.step(step).status.unwrap()),
                Change::Over { status, cause } => format!("over {status} {cause}"),
                Change::Redriven => "redriven".into(),
            });
        }
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    fn enter(&mut self, previous: i64, state: &str) -> i64 {
        self.event(previous, "TaskStateEntered", json!({"name": state}))
    }

    fn schedule(&mut self, previous: i64, step: &str) -> i64 {
        let parameters = json!({
            "Cluster": "c", "TaskDefinition": "d:1", "Group": format!("run:{step}"),
            "Overrides": {"ContainerOverrides": [{"Name": "main"}]}
        });
        self.event(previous, "TaskScheduled", json!({"resourceType": "ecs", "parameters": parameters.to_string()}))
    }

    fn submit(&mut self, previous: i64, task: &str) -> i64 {
        let started = self.event(previous, "TaskStarted", json!({}));
        let output = json!({"Failures": [], "Tasks": [{"TaskArn": task, "ClusterArn": "arn:c", "Cpu": "256"}]});
        self.event(started, "TaskSubmitted", json!({"output": output.to_string()}))
    }

    fn fail(&mut self, previous: i64, code: i64) -> i64 {
        let task = json!({
            "TaskArn": "t", "StopCode": "EssentialContainerExited", "Containers": [{"Name": "main", "ExitCode": code}]
        });
        self.event(previous, "TaskFailed", json!({"error": "States.TaskFailed", "cause": task.to_string()}))
    }

    fn succeed(&mut self, previous: i64) -> i64 {
        let task = json!({"TaskArn": "t", "Containers": [{"Name": "main", "ExitCode": 0}]});
        let succeeded = self.event(previous, "TaskSucceeded", json!({"output": task.to_string()}));
        self.event(succeeded, "TaskStateExited", json!({}))
    }

    fn view(&self, step: usize) -> (&'static str, u32) {
        let view = &self.tracker.views()[step].1;
        (view.status, view.attempts)
    }
}

#[test]
fn an_attempt_that_fails_is_followed_by_another() {
    let mut story = Story::of(&["a", "b"]);
    let entered = story.enter(0, "a");
    let scheduled = story.schedule(entered, "a");
    assert_eq!(story.view(0), ("running", 1));
    let submitted = story.submit(scheduled, "arn:t1");
    let failed = story.fail(submitted, 3);
    assert_eq!(story.told(), ["launched 0 #1", "submitted 0", "ended 0: exit code 3"]);
    assert_eq!(story.view(0), ("retrying", 1));
    let scheduled = story.schedule(failed, "a");
    assert_eq!(story.tracker.step(0).task.outcome, None, "another attempt knows nothing of the last one's end");
    let submitted = story.submit(scheduled, "arn:t2");
    assert_eq!(story.tracker.unfinished_tasks(), [("arn:c".to_owned(), "arn:t2".to_owned())]);
    let exited = story.succeed(submitted);
    assert_eq!(story.told(), ["launched 0 #2", "submitted 0", "ended 0: completed", "finished 0: Completed"]);
    story.event(exited, "ExecutionSucceeded", json!({}));
    assert_eq!(story.told(), ["over SUCCEEDED "]);
    let changes = story.tracker.settle();
    story.note(changes);
    assert_eq!(story.told(), ["finished 1: Skipped"]);
    let task = story.tracker.views()[0].1.task.clone().unwrap();
    assert_eq!((task.exit_code, task.cpu.as_deref(), task.container.as_deref()), (Some(0), Some("256"), Some("main")));
    assert!(story.tracker.unfinished_tasks().is_empty());
}

#[test]
fn what_ecs_does_not_take_is_no_attempt_of_the_step() {
    let mut story = Story::of(&["a"]);
    let entered = story.enter(0, "a");
    let mut previous = story.schedule(entered, "a");
    for _ in 0..2 {
        let refusal = json!({"error": "ECS.ThrottlingException", "cause": "Rate exceeded"});
        let refused = story.event(previous, "TaskSubmitFailed", refusal);
        assert_eq!(story.view(0), ("retrying", 1));
        previous = story.schedule(refused, "a");
    }
    let again = "again 0: ECS.ThrottlingException: Rate exceeded";
    assert_eq!(story.told(), ["launched 0 #1", again, again]);
    let refusal = json!({"error": "ECS.AccessDeniedException", "cause": "no ecs:RunTask"});
    let refused = story.event(previous, "TaskSubmitFailed", refusal);
    story.event(refused, "TaskStateExited", json!({}));
    let ended = "ended 0: could not start: ECS.AccessDeniedException: no ecs:RunTask";
    assert_eq!(story.told(), [ended, "finished 0: Failed"]);
    assert_eq!(story.view(0), ("failed", 1));
}

#[test]
fn a_failure_without_a_task_before_the_submission_is_a_refusal_too() {
    let mut story = Story::of(&["a"]);
    let entered = story.enter(0, "a");
    let scheduled = story.schedule(entered, "a");
    story.event(scheduled, "TaskFailed", json!({"error": "AmazonECS.Unknown", "cause": "no capacity"}));
    story.event(story.last, "ExecutionFailed", json!({"error": "AmazonECS.Unknown", "cause": "no capacity"}));
    let ended = "ended 0: could not start: AmazonECS.Unknown: no capacity";
    assert_eq!(story.told(), ["launched 0 #1", ended, "finished 0: Failed", "over FAILED no capacity"]);
}

#[test]
fn side_by_side_one_fails_and_the_other_is_stopped() {
    let mut story = Story::of(&["a", "b"]);
    let entered = story.enter(0, "a");
    let one = story.schedule(entered, "a");
    let entered = story.enter(0, "b");
    let other = story.schedule(entered, "b");
    let one = story.submit(one, "arn:t1");
    let other = story.submit(other, "arn:t2");
    story.told();
    story.event(one, "TaskTimedOut", json!({"error": "States.Timeout"}));
    story.event(other, "TaskStateAborted", json!({}));
    story.event(0, "ExecutionFailed", json!({"error": "States.Timeout", "cause": "x"}));
    assert_eq!(
        story.told(),
        ["ended 0: timed out", "ended 1: stopped", "finished 1: Stopped", "finished 0: Failed", "over FAILED x"]
    );
    assert_eq!(story.tracker.unfinished_tasks().len(), 2, "ECS did not say that they are over");
}

#[test]
fn steps_inside_count_even_if_the_parent_is_read_first() {
    let mut story = Story::of(&["a", "b"]);
    let entered = story.enter(0, "a +1: machine");
    let details = json!({"resourceType": "states", "parameters": "{}"});
    let scheduled = story.event(entered, "TaskScheduled", details);
    let output = json!({"ExecutionArn": INSIDE}).to_string();
    let submitted = story.event(scheduled, "TaskSubmitted", json!({"output": output}));
    assert_eq!(story.tracker.take_nested(), [INSIDE]);
    assert_eq!(story.tracker.running_nested(), [INSIDE]);
    let parents_last = story.event(submitted, "ExecutionSucceeded", json!({}));
    assert_eq!(story.told(), ["over SUCCEEDED "], "nothing is said of steps whose history was not read");

    (story.execution, story.last) = (INSIDE, 0);
    for step in ["a", "b"] {
        let entered = story.enter(0, step);
        let scheduled = story.schedule(entered, step);
        let submitted = story.submit(scheduled, "t");
        story.succeed(submitted);
    }
    story.event(story.last, "ExecutionSucceeded", json!({}));
    assert!(story.tracker.settle().is_empty());
    assert_eq!((story.view(0), story.view(1)), (("completed", 1), ("completed", 1)));
    assert!(story.tracker.running().is_empty());
    assert_eq!((story.tracker.last_id(ROOT), story.tracker.last_id(INSIDE)), (parents_last, story.last));
}

#[test]
fn a_redriven_execution_goes_on() {
    let mut story = Story::of(&["a"]);
    let entered = story.enter(0, "a");
    let scheduled = story.schedule(entered, "a");
    let submitted = story.submit(scheduled, "t");
    story.fail(submitted, 1);
    let failed = story.event(0, "ExecutionFailed", json!({}));
    assert_eq!((story.view(0), story.tracker.is_over()), (("failed", 1), true));
    let redriven = story.event(failed, "ExecutionRedriven", json!({}));
    assert!(!story.tracker.is_over());
    let scheduled = story.schedule(redriven, "a");
    assert_eq!(story.view(0), ("running", 2));
    let submitted = story.submit(scheduled, "t");
    story.succeed(submitted);
    assert_eq!(story.view(0), ("completed", 2));
}

#[test]
fn a_skipped_step_is_told_when_its_state_is_passed() {
    let mut story = Story::of(&["a", "b c/d"]);
    let label = crate::asl::label("b c/d");
    story.event(0, "PassStateEntered", json!({"name": format!("{label}: skipped")}));
    story.event(0, "PassStateEntered", json!({"name": "unheard of: skipped"}));
    assert_eq!(story.told(), ["finished 1: Skipped"]);
}

#[test]
fn a_tracker_without_names_takes_them_from_the_history() {
    let mut story = Story::of(&[]);
    let entered = story.enter(0, "x");
    let scheduled = story.schedule(entered, "x");
    story.submit(scheduled, "arn:t");
    assert_eq!(story.tracker.unfinished_tasks(), [("arn:c".to_owned(), "arn:t".to_owned())]);
    let mut strict = Story::of(&["known"]);
    strict.schedule(0, "x");
    assert!(strict.told().is_empty(), "what is no step of the plan is not told");
}
