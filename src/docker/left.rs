//! What an engine has of a container that was asked for in vain, and its removal.

use super::container::{Container, Place};
use super::engine::{Engine, patiently};
use super::error::DockerError;
use super::sweep;

/// What the engine has of a container.
pub(super) enum Left {
    Nothing,
    /// One, if the request for it arrived.
    Perhaps,
    Container(Container),
}

impl Left {
    /// Removes it, also when the engine comes back only later; `warm` says whether it is a warm worker's.
    ///
    /// # Errors
    /// It stays. With its name, where that is known; a sweep by labels finds the others.
    pub(super) async fn clear(
        self,
        engine: &Engine,
        place: Place<'_>,
        warm: bool,
    ) -> Result<(), (Option<String>, DockerError)> {
        match self {
            Self::Nothing => Ok(()),
            Self::Container(container) => container.remove().await.map_err(|error| (Some(container.name), error)),
            Self::Perhaps => patiently(|| sweep::remove_of(engine, place, warm)).await.map_err(|error| (None, error)),
        }
    }
}
