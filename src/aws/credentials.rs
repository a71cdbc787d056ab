//! Credentials that the host pushes, and renews while a run is watched.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use serde::Deserialize;

use super::unix_seconds;

/// An access key, temporary or not.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Its id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// Belongs to temporary keys.
    #[serde(default)]
    pub session_token: Option<String>,
    /// When temporary keys end.
    #[serde(default)]
    pub expires_at_unix_seconds: Option<f64>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("expires_at_unix_seconds", &self.expires_at_unix_seconds).finish_non_exhaustive()
    }
}

impl Keys {
    fn expiry(&self) -> Option<SystemTime> {
        let seconds = Duration::try_from_secs_f64(self.expires_at_unix_seconds?).ok()?;
        UNIX_EPOCH.checked_add(seconds)
    }
}

/// Hands out the newest keys. Nothing is cached behind it, so new ones count from the next request on.
#[derive(Debug, Clone)]
pub(super) struct Pushed(Arc<RwLock<Keys>>);

impl Pushed {
    pub(super) fn new(keys: Keys) -> Self {
        Self(Arc::new(RwLock::new(keys)))
    }

    pub(super) fn set(&self, keys: Keys) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Seconds until the keys end, negative afterwards.
    pub(super) fn expire_in_seconds(&self) -> Option<f64> {
        let end = self.0.read().unwrap_or_else(PoisonError::into_inner).expires_at_unix_seconds?;
        Some(end - unix_seconds())
    }
}

impl ProvideCredentials for Pushed {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let expiry = keys.expiry();
        let credentials: provider::Result =
            Ok(Credentials::new(keys.access_key_id, keys.secret_access_key, keys.session_token, expiry, "step-engine"));
        future::ProvideCredentials::ready(credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(id: &str) -> Keys {
        Keys {
            access_key_id: id.into(),
            secret_access_key: "hidden-secret".into(),
            session_token: Some("hidden-token".into()),
            expires_at_unix_seconds: Some(4e9),
        }
    }

    #[tokio::test]
    async fn new_keys_count_at_once_and_are_never_shown() {
        let pushed = Pushed::new(keys("one"));
        let other_hand = pushed.clone();
        assert_eq!(pushed.provide_credentials().await.unwrap().access_key_id(), "one");
        other_hand.set(keys("two"));
        let now = pushed.provide_credentials().await.unwrap();
        assert_eq!((now.access_key_id(), now.session_token()), ("two", Some("hidden-token")));
        assert!(!format!("{pushed:?}").contains("hidden"));
        assert!(pushed.expire_in_seconds().unwrap() > 1e9);
    }
}
