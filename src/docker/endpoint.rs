//! Where the engine is, by the rules of the `docker` command: `DOCKER_HOST`, `DOCKER_CONTEXT`, the current context of the
//! configuration file, the default socket. Reads files, opens no connection.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::DockerError;

/// The surroundings that decide: variables and the home directory. Captured once, so that tests bring their own.
#[derive(Clone, Default)]
pub struct Surroundings {
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

impl Surroundings {
    /// Of this process.
    #[must_use]
    pub fn of_process() -> Self {
        const READ: &[&str] = &[
            "DOCKER_HOST",
            "DOCKER_TLS",
            "DOCKER_TLS_VERIFY",
            "DOCKER_CERT_PATH",
            "DOCKER_CONTEXT",
            "DOCKER_CONFIG",
            "XDG_RUNTIME_DIR",
            "HOME",
            "USERPROFILE",
        ];
        Self::new(READ.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))))
    }

    /// Of the given variables.
    #[must_use]
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { variables: variables.into_iter().collect() }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The directory of `config.json`.
    #[must_use]
    pub fn config_directory(&self) -> Option<PathBuf> {
        match self.get("DOCKER_CONFIG") {
            Some(directory) => Some(PathBuf::from(directory)),
            None => Some(Path::new(self.get("HOME").or_else(|| self.get("USERPROFILE"))?).join(".docker")),
        }
    }
}

/// An address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// How to get there.
    pub address: Address,
    /// Where this address was found, for messages: ``DOCKER_HOST``, ``context `desktop` ``.
    pub origin: String,
}

/// How to get to an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A named pipe of Windows.
    Pipe(String),
    /// TCP without encryption.
    Tcp(String),
    /// TCP with TLS; the directory holds `ca.pem`, `cert.pem` and `key.pem`.
    Tls {
        /// `host:port`.
        host: String,
        /// Where the certificates are.
        certificates: PathBuf,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Pipe(name) => write!(f, "npipe://{name}"),
            Self::Tcp(host) | Self::Tls { host, .. } => write!(f, "tcp://{host}"),
        }
    }
}

impl Address {
    /// Whether the engine shares this machine's file system, as far as its address tells.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Pipe(_) => true,
            Self::Tcp(host) | Self::Tls { host, .. } => {
                ["localhost:", "127.0.0.1:", "[::1]:"].iter().any(|local| host.starts_with(local))
            }
        }
    }
}

/// The addresses to try, in order. Only without any choice by the user is there more than one.
///
/// # Errors
/// [`DockerError::Configuration`] when what the user chose cannot be used; it is then never passed over.
pub fn candidates(around: &Surroundings, host: Option<&str>) -> Result<Vec<Endpoint>, DockerError> {
    if let Some(host) = host {
        return Ok(vec![with_tls_variables(around, host, "the given host")?]);
    }
    // As the CLI: DOCKER_HOST beats every context.
    if let Some(host) = around.get("DOCKER_HOST") {
        return Ok(vec![with_tls_variables(around, host, "DOCKER_HOST")?]);
    }
    let config = around.config_directory();
    let context = match around.get("DOCKER_CONTEXT") {
        Some(name) => Some(name.to_owned()),
        None => config.as_deref().map(current_context).transpose()?.flatten(),
    };
    if let Some(name) = context.filter(|name| name != "default") {
        let directory = config.unwrap_or_default().join("contexts");
        return Ok(vec![context_endpoint(&directory, &name)?]);
    }
    Ok(defaults(around))
}

#[cfg(unix)]
fn defaults(around: &Surroundings) -> Vec<Endpoint> {
    let default = |path: PathBuf| Endpoint { address: Address::Unix(path), origin: "the default socket".to_owned() };
    let rootless = around.get("XDG_RUNTIME_DIR").map(|directory| Path::new(directory).join("docker.sock"));
    [Some(PathBuf::from("/var/run/docker.sock")), rootless].into_iter().flatten().map(default).collect()
}

#[cfg(not(unix))]
fn defaults(_around: &Surroundings) -> Vec<Endpoint> {
    let address = Address::Pipe("//./pipe/docker_engine".to_owned());
    vec![Endpoint { address, origin: "the default named pipe".to_owned() }]
}

fn with_tls_variables(around: &Surroundings, host: &str, origin: &str) -> Result<Endpoint, DockerError> {
    let verify = around.get("DOCKER_TLS_VERIFY").is_some();
    if !verify && around.get("DOCKER_TLS").is_some() {
        let message = "TLS without verification is not supported; set DOCKER_TLS_VERIFY=1";
        return Err(DockerError::configuration("DOCKER_TLS", message));
    }
    let certificates = verify
        .then(|| {
            around.get("DOCKER_CERT_PATH").map(PathBuf::from).or_else(|| around.config_directory()).ok_or_else(|| {
                DockerError::configuration(
                    "DOCKER_TLS_VERIFY",
                    "set DOCKER_CERT_PATH to the directory with the certificates",
                )
            })
        })
        .transpose()?;
    Ok(Endpoint { address: address(host, certificates, origin)?, origin: origin.to_owned() })
}

/// `unix:///path`, `npipe:////./pipe/name`, `tcp://host:port`, `http(s)://host:port`, `host:port`.
fn address(host: &str, certificates: Option<PathBuf>, origin: &str) -> Result<Address, DockerError> {
    let (scheme, rest) = host.split_once("://").unwrap_or(("tcp", host));
    let wrong = |message: String| Err(DockerError::configuration(origin, message));
    match scheme {
        "unix" if cfg!(unix) => match rest {
            "" => Ok(Address::Unix(PathBuf::from("/var/run/docker.sock"))),
            path => Ok(Address::Unix(PathBuf::from(path))),
        },
        "npipe" if cfg!(windows) => Ok(Address::Pipe(rest.to_owned())),
        "unix" | "npipe" => wrong(format!("`{scheme}` addresses do not exist on this system; use tcp://host:port")),
        "tcp" | "http" | "https" => {
            let rest = rest.trim_end_matches('/');
            let tls = certificates.is_some() || scheme == "https";
            let host = match (rest, tls) {
                ("", _) => return wrong(format!("`{scheme}://` names no host; use tcp://host:port")),
                (rest, _) if has_port(rest) => rest.to_owned(),
                (rest, true) => format!("{rest}:2376"),
                (rest, false) => format!("{rest}:2375"),
            };
            match (tls, certificates) {
                (false, _) => Ok(Address::Tcp(host)),
                (true, Some(certificates)) => Ok(Address::Tls { host, certificates }),
                (true, None) => wrong("https needs certificates; set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH".to_owned()),
            }
        }
        "ssh" => wrong(
            "ssh:// is not supported; forward the socket with `ssh -nNT -L /path/docker.sock:/var/run/docker.sock host` \
             and set DOCKER_HOST=unix:///path/docker.sock"
                .to_owned(),
        ),
        other => wrong(format!("the scheme `{other}` is not known; use unix://, npipe:// or tcp://")),
    }
}

fn has_port(host: &str) -> bool {
    // The colons of a bracketed IPv6 address are not ports.
    host.rsplit(']').next().is_some_and(|tail| tail.contains(':'))
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(rename = "currentContext", default)]
    current_context: Option<String>,
}

fn current_context(directory: &Path) -> Result<Option<String>, DockerError> {
    let path = directory.join("config.json");
    let Ok(text) = fs::read(&path) else { return Ok(None) };
    let file: ConfigFile = serde_json::from_slice(&text).map_err(|error| {
        DockerError::configuration(path.display().to_string(), format!("is no valid JSON ({error})"))
    })?;
    Ok(file.current_context.filter(|name| !name.is_empty()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContextFile {
    name: String,
    endpoints: BTreeMap<String, ContextEndpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContextEndpoint {
    #[serde(default)]
    host: String,
    #[serde(rename = "SkipTLSVerify", default)]
    skip_tls_verify: bool,
}

/// The directory of a context is the hash of its name; the file in it says the name, so nothing has to be hashed.
fn context_endpoint(contexts: &Path, name: &str) -> Result<Endpoint, DockerError> {
    let origin = format!("context `{name}`");
    let entries = fs::read_dir(contexts.join("meta")).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(text) = fs::read(entry.path().join("meta.json")) else { continue };
        let Ok(file) = serde_json::from_slice::<ContextFile>(&text) else { continue };
        if file.name != name {
            continue;
        }
        let Some(endpoint) = file.endpoints.get("docker").filter(|endpoint| !endpoint.host.is_empty()) else {
            return Err(DockerError::configuration(
                origin,
                "has no Docker endpoint; choose another with `docker context use`",
            ));
        };
        if endpoint.skip_tls_verify {
            return Err(DockerError::configuration(origin, "skips the verification of TLS, which is not supported"));
        }
        let certificates = contexts.join("tls").join(entry.file_name()).join("docker");
        let certificates = certificates.is_dir().then_some(certificates);
        return Ok(Endpoint { address: address(&endpoint.host, certificates, &origin)?, origin });
    }
    Err(DockerError::configuration(origin, "does not exist; see `docker context ls`"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn around(variables: &[(&str, &str)]) -> Surroundings {
        Surroundings::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
    fn found(variables: &[(&str, &str)]) -> Vec<String> {
        candidates(&around(variables), None).unwrap().iter().map(|found| found.address.to_string()).collect()
    }

    #[test]
    fn default_sockets_come_last() {
        assert_eq!(
            found(&[("XDG_RUNTIME_DIR", "/run/user/7")]),
            ["unix:///var/run/docker.sock", "unix:///run/user/7/docker.sock"]
        );
    }

    #[test]
    fn docker_host_takes_every_form() {
        for (host, address) in [
            ("unix:///a/b.sock", "unix:///a/b.sock"),
            ("tcp://h:1", "tcp://h:1"),
            ("tcp://h", "tcp://h:2375"),
            ("h:1", "tcp://h:1"),
            ("http://h:1/", "tcp://h:1"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
        ] {
            assert_eq!(found(&[("DOCKER_HOST", host)]), [address]);
        }
        for host in ["ssh://h", "ftp://h", "npipe:////./pipe/x", "https://h", "tcp://"] {
            let error = candidates(&around(&[("DOCKER_HOST", host)]), None).unwrap_err().to_string();
            assert!(error.starts_with("DOCKER_HOST: "), "{error}");
        }
    }

    #[test]
    fn tls_variables_apply_to_docker_host() {
        let found = candidates(
            &around(&[("DOCKER_HOST", "tcp://h"), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", "/certs")]),
            None,
        );
        let address = Address::Tls { host: "h:2376".to_owned(), certificates: PathBuf::from("/certs") };
        assert_eq!(found.unwrap()[0].address, address);
        candidates(&around(&[("DOCKER_HOST", "tcp://h"), ("DOCKER_TLS", "1")]), None).unwrap_err();
    }

    #[test]
    fn contexts_are_followed_with_their_certificates() {
        let directory = std::env::temp_dir().join(format!("step-engine-contexts-{}", std::process::id()));
        let meta = directory.join("contexts/meta/abc");
        let tls = directory.join("contexts/tls/abc/docker");
        fs::create_dir_all(&meta).unwrap();
        fs::create_dir_all(&tls).unwrap();
        fs::write(directory.join("config.json"), r#"{"currentContext": "far", "auths": {}}"#).unwrap();
        fs::write(
            meta.join("meta.json"),
            r#"{"Name": "far", "Metadata": {}, "Endpoints": {"docker": {"Host": "tcp://h:1",
            "SkipTLSVerify": false}}}"#,
        )
        .unwrap();
        let config = directory.to_str().unwrap();
        let endpoint = candidates(&around(&[("DOCKER_CONFIG", config)]), None).unwrap().remove(0);
        assert_eq!(endpoint.origin, "context `far`");
        assert_eq!(endpoint.address, Address::Tls { host: "h:1".to_owned(), certificates: tls });
        // A variable beats the file, `default` means the socket, DOCKER_HOST beats all.
        assert_eq!(found(&[("DOCKER_CONFIG", config), ("DOCKER_CONTEXT", "default")]), ["unix:///var/run/docker.sock"]);
        let error = candidates(&around(&[("DOCKER_CONFIG", config), ("DOCKER_CONTEXT", "gone")]), None).unwrap_err();
        assert!(error.to_string().contains("context `gone`: does not exist"), "{error}");
        let both = [("DOCKER_CONFIG", config), ("DOCKER_CONTEXT", "far"), ("DOCKER_HOST", "unix:///x")];
        assert_eq!(found(&both), ["unix:///x"]);
        fs::remove_dir_all(directory).unwrap();
    }
}
