//! What can keep a plan from becoming a state machine.

/// A plan that cannot be compiled, with what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AslError {
    /// A limit of the service is exceeded and splitting cannot help.
    #[error("{}{actual} {unit} exceed the limit of {limit} for {what}", place(step.as_deref()))]
    Limit {
        /// The step to blame, when one is.
        step: Option<String>,
        /// What is limited.
        what: &'static str,
        /// Unit of both numbers.
        unit: &'static str,
        /// The limit, see [`super::limits`].
        limit: u64,
        /// What the plan needs.
        actual: u64,
    },
    /// A setting that the plan needs is missing or wrong.
    #[error("{}{message}", place(step.as_deref()))]
    Option {
        /// The step to blame, when one is.
        step: Option<String>,
        /// Path of the setting in the options.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A step asks for what the launch type does not have.
    #[error("step `{step}` {message}")]
    Resources {
        /// The step.
        step: String,
        /// What it asks for and what exists.
        message: String,
    },
    /// There is nothing to run.
    #[error("the plan has no steps; a state machine needs at least one")]
    Empty,
}

fn place(step: Option<&str>) -> String {
    step.map(|step| format!("step `{step}`: ")).unwrap_or_default()
}

impl AslError {
    pub(crate) fn option(step: Option<&str>, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Option { step: step.map(Into::into), field: field.into(), message: message.into() }
    }
}
