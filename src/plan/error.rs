//! What can be wrong with a plan.

/// A plan that cannot be run, with the place that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", place(step.as_deref(), field))]
pub struct PlanError {
    /// Name of the step, when one is to blame.
    pub step: Option<String>,
    /// Path of the field, such as `steps[3].retry.delay_seconds`; empty when no field is to blame.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl PlanError {
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { step: None, field: field.into(), message: message.into() }
    }

    pub(crate) fn of_step(step: &str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { step: Some(step.to_owned()), field: field.into(), message: message.into() }
    }
}

fn place(step: Option<&str>, field: &str) -> String {
    match (step, field) {
        (None, "" | ".") => String::new(),
        (None, field) => format!("{field}: "),
        (Some(step), "") => format!("step `{step}`: "),
        (Some(step), field) => format!("step `{step}` ({field}): "),
    }
}
