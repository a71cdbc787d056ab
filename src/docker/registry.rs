//! Registry credentials as the `docker` command has them: `config.json` with `auths`, `credHelpers`, `credsStore`.
//!
//! Credentials are read for one pull and dropped. They are in no message, log or debug output.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::error::DockerError;

/// The key of Docker Hub in configuration files and helpers, as history left it.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Helpers may ask a keychain that asks the user, or a cloud; they must not hang a run.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// Host name of the registry that a reference names.
pub(super) fn registry_of(reference: &str) -> &str {
    match reference.split_once('/') {
        // Docker's rule: the first part is a host only if it could not be a user's name.
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Clone, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Credentials for the registry of `reference`, if there are any.
///
/// # Errors
/// [`DockerError::Configuration`] when the file cannot be read or a helper fails otherwise than by having nothing.
pub(super) async fn credentials(
    directory: Option<&Path>,
    reference: &str,
) -> Result<Option<DockerCredentials>, DockerError> {
    let Some(path) = directory.map(|directory| directory.join("config.json")) else { return Ok(None) };
    let Ok(text) = tokio::fs::read(&path).await else { return Ok(None) };
    // serde's message would repeat a wrong value, which may be a secret: only the place is told.
    let config: ConfigFile = serde_json::from_slice(&text).map_err(|error| {
        let message = format!("is not the JSON that the docker command writes (line {})", error.line());
        DockerError::configuration(path.display().to_string(), message)
    })?;
    let host = registry_of(reference);
    let key = if host == "docker.io" { HUB_KEY } else { host };
    let helper = config.cred_helpers.get(key).or_else(|| config.cred_helpers.get(host)).or(config.creds_store.as_ref());
    if let Some(helper) = helper.filter(|helper| !helper.is_empty())
        && let Some(found) = ask_helper(helper, key).await?
    {
        return Ok(Some(found));
    }
    let entry = config
        .auths
        .get(key)
        .or_else(|| config.auths.iter().find(|(written, _)| host_of(written) == host_of(key)).map(|(_, entry)| entry));
    Ok(entry.and_then(|entry| from_entry(entry, key)))
}

/// `https://ghcr.io/v1/` and `ghcr.io` are the same registry.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn from_entry(entry: &AuthEntry, key: &str) -> Option<DockerCredentials> {
    let decoded = entry
        .auth
        .as_deref()
        .and_then(|auth| STANDARD.decode(auth.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| {
            text.split_once(':').map(|(user, word)| (user.to_owned(), word.trim_end_matches('\0').to_owned()))
        });
    let (username, password) = match decoded {
        Some((user, word)) => (Some(user), Some(word)),
        None => (entry.username.clone(), entry.password.clone()),
    };
    let tokens = (entry.identitytoken.clone(), entry.registrytoken.clone());
    if username.is_none() && tokens == (None, None) {
        return None; // what `docker login` leaves behind when a helper keeps the secret
    }
    Some(DockerCredentials {
        username,
        // With an identity token the password is a leftover that registries refuse.
        password: if tokens.0.is_some() { None } else { password },
        serveraddress: Some(key.to_owned()),
        identitytoken: tokens.0,
        registrytoken: tokens.1,
        ..Default::default()
    })
}

/// The protocol of `docker-credential-<name> get`: the server on standard input, JSON on standard output.
async fn ask_helper(name: &str, server: &str) -> Result<Option<DockerCredentials>, DockerError> {
    let program = format!("docker-credential-{name}");
    let failed = |message: String| DockerError::configuration(program.clone(), message);
    if name.contains(['/', '\\']) {
        return Err(failed("is not the name of a credential helper".to_owned()));
    }
    let run = async {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read is not an error: what it answers counts.
            drop(stdin.write_all(server.as_bytes()).await);
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| failed(format!("did not answer for {server} within {} s", HELPER_TIMEOUT.as_secs())))?
        .map_err(|error| failed(format!("could not be run ({error}); install it or remove it from config.json")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return if said.contains("credentials not found") || said.contains("no credentials server URL") {
            Ok(None)
        } else {
            Err(failed(format!("failed for {server} ({}); run `docker login {server}`", output.status)))
        };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed(format!("gave no valid answer for {server}")))?;
    let serveraddress = Some(server.to_owned());
    Ok(Some(if answer.username == "<token>" {
        DockerCredentials { identitytoken: Some(answer.secret), serveraddress, ..Default::default() }
    } else {
        DockerCredentials {
            username: Some(answer.username),
            password: Some(answer.secret),
            serveraddress,
            ..Default::default()
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_told_from_users() {
        for (reference, registry) in [
            ("busybox", "docker.io"),
            ("user/image:tag", "docker.io"),
            ("ghcr.io/user/image", "ghcr.io"),
            ("localhost/image", "localhost"),
            ("localhost:5000/image", "localhost:5000"),
            ("123.dkr.ecr.eu-west-1.amazonaws.com/image@sha256:0", "123.dkr.ecr.eu-west-1.amazonaws.com"),
        ] {
            assert_eq!(registry_of(reference), registry);
        }
    }

    async fn with_config(name: &str, config: &str, reference: &str) -> Result<Option<DockerCredentials>, DockerError> {
        let directory = std::env::temp_dir().join(format!("step-engine-auth-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.json"), config).unwrap();
        let found = credentials(Some(&directory), reference).await;
        std::fs::remove_dir_all(directory).unwrap();
        found
    }

    #[tokio::test]
    async fn auths_are_decoded() {
        let auth = STANDARD.encode("me:pass:word");
        let config = format!(r#"{{"auths": {{"https://ghcr.io/v1/": {{"auth": "{auth}"}}}}}}"#);
        let found = with_config("decoded", &config, "ghcr.io/a/b").await.unwrap().unwrap();
        assert_eq!((found.username.as_deref(), found.password.as_deref()), (Some("me"), Some("pass:word")));
        assert!(with_config("other", &config, "quay.io/a/b").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn hub_and_identity_tokens() {
        let config = format!(r#"{{"auths": {{"{HUB_KEY}": {{"auth": "bWU6", "identitytoken": "t"}}}}}}"#);
        let found = with_config("hub", &config, "busybox").await.unwrap().unwrap();
        assert_eq!((found.identitytoken.as_deref(), found.password), (Some("t"), None));
    }

    #[tokio::test]
    async fn an_empty_entry_is_no_credentials() {
        assert!(with_config("empty", r#"{"auths": {"ghcr.io": {}}}"#, "ghcr.io/a").await.unwrap().is_none());
        assert!(credentials(Some(Path::new("/nonexistent")), "a").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_broken_file_is_named_without_its_secrets() {
        let error = with_config("broken", r#"{"auths": {"a.b": {"auth": 5, "password": "hunter2"}}}"#, "a.b/c")
            .await
            .unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("config.json") && !text.contains("hunter2"), "{text}");
    }

    #[tokio::test]
    async fn a_missing_helper_is_a_clear_error() {
        let config = r#"{"credHelpers": {"ghcr.io": "step-engine-no-such-helper"}}"#;
        let error = with_config("helper", config, "ghcr.io/a").await.unwrap_err().to_string();
        assert!(error.starts_with("docker-credential-step-engine-no-such-helper: could not be run"), "{error}");
        assert!(with_config("unused", config, "quay.io/a").await.unwrap().is_none());
    }
}
