//! What a step's container looks like, as Python writes it: one dict per step, unknown fields refused.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::error::DockerError;
use super::run_args;

/// The container of a step.
///
/// `run_args` takes docker-py's names (see [`run_args::SUPPORTED`]). For single values (`user`, `network`, `platform`,
/// `shm_size`, `working_dir`, `image`, limits) a run argument wins over the field of the same meaning, because only a user
/// writes one. Maps and lists (`environment`, `labels`, `volumes`, `extra_hosts`) are merged and the fields win.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// What to create from: a reference, or an image id that pins it.
    pub image: String,
    /// The reference that people know and that can be pulled, when `image` is an id.
    #[serde(default)]
    pub image_reference: Option<String>,
    /// When to pull.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint; empty leaves it.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment. Values appear in no message, label, log or debug output.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Host paths and named volumes.
    #[serde(default)]
    pub volumes: Vec<VolumeSpec>,
    /// User, or `uid:gid`; none is the image's.
    #[serde(default)]
    pub user: Option<String>,
    /// Network to attach to, or a mode such as `host`.
    #[serde(default)]
    pub network: Option<String>,
    /// Host name to address; the address may be `host-gateway`.
    #[serde(default)]
    pub extra_hosts: BTreeMap<String, String>,
    /// Size of `/dev/shm` in bytes.
    #[serde(default)]
    pub shm_size_bytes: Option<u64>,
    /// Labels beside the engine's own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `os/architecture[/variant]` of the image.
    #[serde(default)]
    pub platform: Option<String>,
    /// Which containers stay when their attempt is over.
    #[serde(default)]
    pub keep_containers: KeepContainers,
    /// Whether the demand of the step is a limit of the container, not only a matter of admission. GPUs always are.
    #[serde(default = "yes")]
    pub enforce_limits: bool,
    /// Time between SIGTERM and SIGKILL when nobody else asks for the SIGKILL; none waits for the runner's word. Also what
    /// `docker stop` then waits.
    #[serde(default, deserialize_with = "grace")]
    pub stop_grace_seconds: Option<f64>,
    /// Goes into the container's name in place of the step's name.
    #[serde(default)]
    pub name_hint: Option<String>,
    /// Working directory; none is the image's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// docker-py names, see [`run_args::SUPPORTED`].
    #[serde(default)]
    pub run_args: Map<String, Value>,
    /// Directories of this machine that are copied into the container before it starts.
    #[serde(default)]
    pub files: Vec<FilesSpec>,
    /// How a worker warms up for the step; none always starts it the plain way.
    #[serde(default)]
    pub warm: Option<WarmSpec>,
}

/// A warm worker: a container like the step's own that gets ready ahead of need and then runs the step when told to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmSpec {
    /// Whether a worker is for one attempt or for many.
    pub isolation: Isolation,
    /// Replaces the step's entrypoint.
    pub entrypoint: Vec<String>,
    /// Replaces the step's arguments.
    pub command: Vec<String>,
}

/// What steps that start warm share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nothing: every attempt has a container of its own.
    Container,
    /// A container, in which every attempt has a process of its own, with all steps whose containers are described alike.
    Process,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Absolute path on the engine's host, or the name of a volume.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Whether the container may not write.
    #[serde(default)]
    pub read_only: bool,
}

/// A directory that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSpec {
    /// Directory on this machine.
    pub source: PathBuf,
    /// Absolute path of the directory in the container; made when it does not exist.
    pub target: String,
}

/// When to pull an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// When the engine does not have it.
    #[default]
    Missing,
    /// Once in every run.
    Always,
    /// Never: an image that is not there is an error.
    Never,
}

/// Which containers stay when their attempt is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepContainers {
    /// None.
    #[default]
    Never,
    /// Those that neither completed nor were stopped.
    Failed,
    /// All that were started.
    Always,
}

impl ContainerSpec {
    /// A container of an image with nothing else said.
    #[must_use]
    pub fn of_image(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            image_reference: None,
            pull_policy: PullPolicy::default(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            environment: BTreeMap::new(),
            volumes: Vec::new(),
            user: None,
            network: None,
            extra_hosts: BTreeMap::new(),
            shm_size_bytes: None,
            labels: BTreeMap::new(),
            platform: None,
            keep_containers: KeepContainers::default(),
            enforce_limits: true,
            stop_grace_seconds: None,
            name_hint: None,
            working_dir: None,
            run_args: Map::new(),
            files: Vec::new(),
            warm: None,
        }
    }

    /// Time between SIGTERM and SIGKILL.
    #[must_use]
    pub fn stop_grace(&self) -> Option<Duration> {
        self.stop_grace_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// The image as people know it.
    #[must_use]
    pub fn image_name(&self) -> &str {
        self.image_reference.as_deref().unwrap_or(&self.image)
    }

    /// Checks what can be checked without an engine, including `run_args`.
    ///
    /// # Errors
    /// [`DockerError::InvalidSpec`] with the path of the field.
    pub fn validate(&self) -> Result<(), DockerError> {
        if self.image.trim().is_empty() {
            return Err(DockerError::spec("image", "must name an image"));
        }
        // An engine repeats a malformed entry, value and all, in its error: it must not get one.
        if let Some(name) = self.environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            let name = name.split('=').next().unwrap_or_default().replace('\0', "\\0");
            return Err(DockerError::spec("environment", format!("`{name}` is not the name of a variable")));
        }
        if let Some((name, _)) = self.environment.iter().find(|(_, value)| value.contains('\0')) {
            return Err(DockerError::spec("environment", format!("the value of `{name}` has a NUL character in it")));
        }
        for (at, volume) in self.volumes.iter().enumerate() {
            if volume.source.is_empty() {
                return Err(DockerError::spec(format!("volumes[{at}].source"), "must be a path or a volume's name"));
            }
            if !volume.target.starts_with('/') {
                let message = format!("`{}` is not an absolute path in the container", volume.target);
                return Err(DockerError::spec(format!("volumes[{at}].target"), message));
            }
        }
        if let Some(at) = self.files.iter().position(|files| !files.target.starts_with('/')) {
            let message = format!("`{}` is not an absolute path in the container", self.files[at].target);
            return Err(DockerError::spec(format!("files[{at}].target"), message));
        }
        if self.warm.as_ref().is_some_and(|warm| warm.entrypoint.is_empty()) {
            return Err(DockerError::spec("warm.entrypoint", "must name the program of the warm worker"));
        }
        run_args::RunArgs::parse(&self.run_args).map(|_| ())
    }
}

impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of the environment and of run_args (which may hold an environment) are secrets: names only.
        f.debug_struct("ContainerSpec")
            .field("image", &self.image)
            .field("image_reference", &self.image_reference)
            .field("pull_policy", &self.pull_policy)
            .field("entrypoint", &self.entrypoint)
            .field("command", &self.command)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("volumes", &self.volumes)
            .field("user", &self.user)
            .field("network", &self.network)
            .field("labels", &self.labels)
            .field("keep_containers", &self.keep_containers)
            .field("run_args", &self.run_args.keys().collect::<Vec<_>>())
            .field("files", &self.files)
            .field("warm", &self.warm)
            .finish_non_exhaustive()
    }
}

fn yes() -> bool {
    true
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let seconds = Option::<f64>::deserialize(deserializer)?;
    if seconds.is_none_or(|seconds| (0.0..=86_400.0).contains(&seconds)) {
        Ok(seconds)
    } else {
        Err(serde::de::Error::custom("must be between 0 and 86400 seconds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<ContainerSpec, String> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| format!("{}: {}", error.path(), error.inner()))
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let spec = spec(r#"{"image": "a"}"#).unwrap();
        assert_eq!(spec.pull_policy, PullPolicy::Missing);
        assert_eq!(spec.keep_containers, KeepContainers::Never);
        assert!(spec.enforce_limits);
        assert_eq!(spec.stop_grace(), None);
        spec.validate().unwrap();
    }

    #[test]
    fn wrong_fields_are_named_by_path() {
        assert!(spec(r#"{"image": "a", "imagee": 1}"#).unwrap_err().contains("imagee"));
        let error = spec(r#"{"image": "a", "volumes": [{"source": "/a", "target": 3}]}"#).unwrap_err();
        assert!(error.starts_with("volumes[0].target: "), "{error}");
        let error = spec(r#"{"image": "a", "stop_grace_seconds": -1}"#).unwrap_err();
        assert!(error.starts_with("stop_grace_seconds: "), "{error}");
    }

    #[test]
    fn environment_values_are_in_no_text() {
        let json = r#"{"image": "a", "environment": {"TOKEN": "hunter2", "A=hunter2": "x"},
                       "run_args": {"environment": {"B": "hunter2"}}}"#;
        let spec = spec(json).unwrap();
        let debug = format!("{spec:?}");
        assert!(debug.contains("TOKEN"), "{debug}");
        let error = spec.validate().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        let mut without = spec;
        without.environment.remove("A=hunter2");
        assert!(!format!("{without:?}").contains("hunter2"));
    }
}
