//! What can go wrong with an engine. One sentence each, saying what to do; the cause is kept.
//!
//! No environment value and no credential ever stands in a message.

use std::error::Error as StdError;
use std::io;

use bollard::errors::Error as EngineError;

/// A failed operation on a Docker engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DockerError {
    /// Nothing answered at any of the places where the `docker` command would look.
    #[error("no Docker engine answers ({}); start Docker or set DOCKER_HOST", tried.join("; "))]
    NoEngine {
        /// Each place and what happened there.
        tried: Vec<String>,
    },
    /// The socket is there, but this user may not use it.
    #[error(
        "this user may not use the Docker socket {endpoint}; add the user to the group `docker` and log in again, \
         or use a rootless engine"
    )]
    PermissionDenied {
        /// The socket.
        endpoint: String,
    },
    /// The engine does not speak the API that is needed.
    #[error("the Docker engine at {endpoint} speaks API {found}, {needed} is needed; install Docker 20.10 or newer")]
    EngineTooOld {
        /// The engine.
        endpoint: String,
        /// Its newest API version.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// An address, a context or a configuration file of the `docker` command that cannot be used.
    #[error("{place}: {message}")]
    Configuration {
        /// The variable or the file.
        place: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A field of a container specification that cannot be used.
    #[error("{field}: {message}")]
    InvalidSpec {
        /// Path of the field, such as `run_args.ports`.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The image is not in the engine and may not be pulled.
    #[error("image `{image}` is not in the engine and the pull policy is `never`; build or pull it first")]
    ImageMissing {
        /// As the user knows it.
        image: String,
    },
    /// The image could not be pulled.
    #[error("failed to pull image `{image}` from {registry}: {message}{hint}")]
    PullFailed {
        /// As the user knows it.
        image: String,
        /// Host name of the registry.
        registry: String,
        /// What the engine said.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The engine refused an operation.
    #[error("failed to {operation}: {message}")]
    Refused {
        /// What was to be done, such as ``create the container of step `train` ``.
        operation: String,
        /// HTTP status code.
        status: u16,
        /// What the engine said.
        message: String,
    },
    /// The engine could not be asked, or its answer was not understood.
    #[error("failed to {operation}: {}", chain(source))]
    Engine {
        /// What was to be done.
        operation: String,
        /// The cause.
        #[source]
        source: Box<EngineError>,
    },
}

impl DockerError {
    /// Wraps an engine's error by what was to be done.
    pub(super) fn of(operation: impl Into<String>) -> impl FnOnce(EngineError) -> Self {
        let operation = operation.into();
        move |error| match error {
            EngineError::DockerResponseServerError { status_code, message } => {
                Self::Refused { operation, status: status_code, message: one_line(&message) }
            }
            other => Self::Engine { operation, source: Box::new(other) },
        }
    }

    pub(super) fn spec(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidSpec { field: field.into(), message: message.into() }
    }

    pub(super) fn configuration(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Configuration { place: place.into(), message: message.into() }
    }

    /// What was to be done, in a few words.
    #[must_use]
    pub fn operation(&self) -> &str {
        match self {
            Self::NoEngine { .. } | Self::PermissionDenied { .. } | Self::EngineTooOld { .. } => {
                "connect to the engine"
            }
            Self::Configuration { .. } => "read the configuration of the docker command",
            Self::InvalidSpec { .. } => "read the container specification",
            Self::ImageMissing { .. } | Self::PullFailed { .. } => "provide the image",
            Self::Refused { operation, .. } | Self::Engine { operation, .. } => operation,
        }
    }

    /// The engine's HTTP status code, when it answered.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Engine { source, .. } => engine_status(source),
            _ => None,
        }
    }

    /// Whether the engine has no room on its disk, which may pass.
    pub(super) fn is_engine_full(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if says_full(message))
    }

    /// Whether the engine could not be asked at all: it may be restarting.
    pub(super) fn is_engine_away(&self) -> bool {
        matches!(self, Self::Engine { source, .. } if is_away(source))
    }
}

/// Whether a text of the engine tells of a disk without room, by the kernel's words for it.
pub(super) fn says_full(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    lower.contains("no space left on device") || lower.contains("disk quota exceeded")
}

/// HTTP status code of an engine's answer.
fn engine_status(error: &EngineError) -> Option<u16> {
    match error {
        EngineError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Whether the connection failed rather than the operation.
pub(super) fn is_away(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::HyperLegacyError { .. }
            | EngineError::HyperResponseError { .. }
            | EngineError::IOError { .. }
            | EngineError::RequestTimeoutError
            | EngineError::SocketNotFoundError(_)
    )
}

/// The first I/O error among the causes.
pub(super) fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        at = error.source();
    }
    None
}

/// An error with its causes in one line; causes that the text before already says are left out.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        at = cause.source();
    }
    one_line(&text)
}

/// Engines answer with several lines at times; messages of ours are one.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
