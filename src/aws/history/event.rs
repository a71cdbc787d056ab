//! Events in the API's spelling, reduced to what matters for steps.

use serde_json::Value;

/// One event, as far as it matters here.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Counts from 1.
    pub id: i64,
    /// The event that led to this one; 0 for the first.
    pub previous: i64,
    /// Seconds since 1970.
    pub at: f64,
    /// What happened.
    pub kind: Kind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A state was entered.
    Entered {
        /// Its name.
        state: String,
    },
    /// A state was left.
    Exited,
    /// An integration is about to be called.
    Scheduled {
        /// `ecs`, `states`, `aws-sdk:s3`, …
        service: String,
        /// The request.
        parameters: Value,
    },
    /// The service took the job.
    Submitted {
        /// Its answer.
        output: Value,
    },
    /// The job was not taken.
    NotSubmitted {
        /// Name of the error.
        error: String,
        /// Its cause.
        cause: String,
    },
    /// The job completed.
    Succeeded {
        /// What it is now.
        output: Value,
    },
    /// The job failed or timed out.
    Failed {
        /// Name of the error.
        error: String,
        /// Its cause: the job's JSON, when there is one.
        cause: String,
    },
    /// The job was given up because something else ended.
    Aborted,
    /// The execution goes on after it had failed.
    Redriven,
    /// The execution ended.
    Over {
        /// As in `DescribeExecution`.
        status: &'static str,
        /// Name of the error.
        error: String,
        /// Its cause.
        cause: String,
    },
    /// Anything else.
    Other,
}

impl Event {
    /// Reads an event in the API's spelling; none when it has no id.
    #[must_use]
    pub fn of(json: &Value) -> Option<Self> {
        let kind = json["type"].as_str()?;
        let details = |name: &str| &json[format!("{name}EventDetails")];
        let failure = |name: &str| {
            let text = |field: &str| details(name)[field].as_str().unwrap_or_default().to_owned();
            (text("error"), text("cause"))
        };
        let parsed = |name: &str, field: &str| {
            let text = details(name)[field].as_str().unwrap_or_default();
            serde_json::from_str(text).unwrap_or_default()
        };
        let over = |status: &'static str, name: &str| {
            let (error, cause) = failure(name);
            Kind::Over { status, error, cause }
        };
        let kind = match kind {
            "TaskScheduled" => Kind::Scheduled {
                service: details("taskScheduled")["resourceType"].as_str().unwrap_or_default().to_owned(),
                parameters: parsed("taskScheduled", "parameters"),
            },
            "TaskSubmitted" => Kind::Submitted { output: parsed("taskSubmitted", "output") },
            "TaskSubmitFailed" => {
                let (error, cause) = failure("taskSubmitFailed");
                Kind::NotSubmitted { error, cause }
            }
            "TaskStartFailed" => {
                let (error, cause) = failure("taskStartFailed");
                Kind::NotSubmitted { error, cause }
            }
            "TaskSucceeded" => Kind::Succeeded { output: parsed("taskSucceeded", "output") },
            "TaskFailed" => {
                let (error, cause) = failure("taskFailed");
                Kind::Failed { error, cause }
            }
            "TaskTimedOut" => {
                let (error, cause) = failure("taskTimedOut");
                Kind::Failed { error: if error.is_empty() { "States.Timeout".into() } else { error }, cause }
            }
            "TaskStateAborted" => Kind::Aborted,
            "ExecutionRedriven" => Kind::Redriven,
            "ExecutionSucceeded" => over("SUCCEEDED", "executionSucceeded"),
            "ExecutionFailed" => over("FAILED", "executionFailed"),
            "ExecutionTimedOut" => over("TIMED_OUT", "executionTimedOut"),
            "ExecutionAborted" => over("ABORTED", "executionAborted"),
            entered if entered.ends_with("StateEntered") => {
                Kind::Entered { state: details("stateEntered")["name"].as_str().unwrap_or_default().to_owned() }
            }
            exited if exited.ends_with("StateExited") => Kind::Exited,
            _ => Kind::Other,
        };
        Some(Self {
            id: json["id"].as_i64()?,
            previous: json["previousEventId"].as_i64().unwrap_or_default(),
            at: json["timestamp"].as_f64().unwrap_or_default(),
            kind,
        })
    }
}
