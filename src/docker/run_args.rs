//! PURE. The keyword names of docker-py's `containers.run`, as ZenML's `local_docker` takes them in `run_args`, become
//! fields of the Engine API or are refused by name.
//!
//! Every name that docker-py 7.1 takes stands in exactly one of [`SUPPORTED`] and [`REFUSED`].

mod forms;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bollard::models::{ContainerCreateBody, EndpointSettings, HostConfig, NetworkingConfig};
use serde_json::{Map, Value};

use super::error::DockerError;

/// The names that are mapped.
pub const SUPPORTED: &[&str] = &[
    "blkio_weight",
    "blkio_weight_device",
    "cap_add",
    "cap_drop",
    "cgroup_parent",
    "cgroupns",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpuset_cpus",
    "cpuset_mems",
    "device_cgroup_rules",
    "device_read_bps",
    "device_read_iops",
    "device_requests",
    "device_write_bps",
    "device_write_iops",
    "devices",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "environment",
    "extra_hosts",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "ipc_mode",
    "labels",
    "links",
    "log_config",
    "mac_address",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "mounts",
    "nano_cpus",
    "network",
    "network_disabled",
    "network_mode",
    "oom_kill_disable",
    "oom_score_adj",
    "pid_mode",
    "pids_limit",
    "platform",
    "ports",
    "privileged",
    "publish_all_ports",
    "read_only",
    "runtime",
    "security_opt",
    "shm_size",
    "stop_signal",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "ulimits",
    "user",
    "userns_mode",
    "uts_mode",
    "volume_driver",
    "volumes",
    "volumes_from",
    "working_dir",
];

/// The names that docker-py takes and this engine refuses, with the reason.
pub const REFUSED: &[(&str, &str)] = &[
    ("auto_remove", "use the setting `keep_containers`"),
    ("command", "the orchestrator sets what a step runs"),
    ("cpu_count", "it exists on Windows containers only; use the step's ResourceSettings"),
    ("cpu_percent", "it exists on Windows containers only; use the step's ResourceSettings"),
    ("detach", "the orchestrator waits for every step itself"),
    ("entrypoint", "the orchestrator sets what a step runs"),
    ("init_path", "engines since Docker 17.05 refuse it"),
    ("isolation", "it exists on Windows containers only"),
    ("kernel_memory", "engines since Docker 20.10 ignore it; use `mem_limit`"),
    ("lxc_conf", "no engine has LXC any more"),
    ("name", "every attempt has a container of its own with a name of its own"),
    ("networking_config", "use `network`"),
    ("remove", "use the setting `keep_containers`"),
    ("restart_policy", "use the step's retry configuration"),
    ("stderr", "both streams are always logged"),
    ("stdin_open", "steps have no standard input"),
    ("stdout", "both streams are always logged"),
    ("stream", "logs are always live"),
    ("tty", "a terminal would mix the two output streams"),
    ("use_config_proxy", "put the proxy variables into `environment`"),
    ("version", "the API version is negotiated"),
];

/// Run arguments in the Engine API's terms.
#[derive(Clone, Default, PartialEq)]
pub(super) struct RunArgs {
    /// Replaces the step's image.
    pub(super) image: Option<String>,
    /// `os/architecture[/variant]`.
    pub(super) platform: Option<String>,
    /// Merged under the step's; no value means that the engine removes the variable.
    pub(super) environment: BTreeMap<String, Option<String>>,
    /// Merged under the step's.
    pub(super) labels: BTreeMap<String, String>,
    /// Merged under the step's.
    pub(super) extra_hosts: BTreeMap<String, String>,
    /// Merged under the step's, by target.
    pub(super) volumes: Vec<forms::Volume>,
    /// Everything else.
    pub(super) body: ContainerCreateBody,
    /// Everything else.
    pub(super) host: HostConfig,
}

impl fmt::Debug for RunArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunArgs")
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl RunArgs {
    /// Maps every argument. `None` (JSON null) is docker-py's "not given" and is skipped.
    ///
    /// # Errors
    /// [`DockerError::InvalidSpec`] on `run_args.<name>`: unknown, refused, or of a wrong form.
    pub(super) fn parse(arguments: &Map<String, Value>) -> Result<Self, DockerError> {
        let mut parsed = Self::default();
        let mut mac_address = None;
        for (name, value) in arguments {
            let at = forms::At(name);
            if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| refused == name) {
                return Err(at.error(format!("is not supported: {reason}; supported are {}", SUPPORTED.join(", "))));
            }
            if !SUPPORTED.contains(&name.as_str()) {
                return Err(
                    at.error(format!("is no argument of docker-py's run; supported are {}", SUPPORTED.join(", ")))
                );
            }
            if !value.is_null() {
                parsed.set(at, name, value, &mut mac_address)?;
            }
        }
        if arguments.get("network").is_some_and(|v| !v.is_null())
            && arguments.get("network_mode").is_some_and(|v| !v.is_null())
        {
            return Err(forms::At("network_mode").error("stands beside `network`; give one of them"));
        }
        if let Some(mac) = mac_address {
            // The field moved from the container to its endpoint in API 1.44; the endpoint's works in both.
            let network = parsed.host.network_mode.clone().unwrap_or_else(|| "bridge".to_owned());
            let endpoint = EndpointSettings { mac_address: Some(mac), ..Default::default() };
            parsed.body.networking_config =
                Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(network, endpoint)])) });
        }
        Ok(parsed)
    }

    fn set(
        &mut self,
        at: forms::At<'_>,
        name: &str,
        value: &Value,
        mac: &mut Option<String>,
    ) -> Result<(), DockerError> {
        let (body, host) = (&mut self.body, &mut self.host);
        match name {
            "image" => self.image = Some(at.text(value)?),
            "platform" => self.platform = Some(at.text(value)?),
            "environment" => self.environment = at.environment(value)?,
            "labels" => self.labels = at.labels(value)?,
            "extra_hosts" => self.extra_hosts = at.extra_hosts(value)?,
            "volumes" => self.volumes = at.volumes(value)?,

            "domainname" => body.domainname = Some(at.text(value)?),
            "healthcheck" => body.healthcheck = Some(at.healthcheck(value)?),
            "hostname" => body.hostname = Some(at.text(value)?),
            "network_disabled" => body.network_disabled = Some(at.boolean(value)?),
            "stop_signal" => body.stop_signal = Some(at.text(value)?),
            "user" => body.user = Some(at.text_or_number(value)?),
            "working_dir" => body.working_dir = Some(at.text(value)?),
            "mac_address" => *mac = Some(at.text(value)?),
            "ports" => {
                let ports = at.ports(value)?;
                body.exposed_ports = Some(ports.keys().cloned().collect());
                host.port_bindings = Some(ports.into_iter().collect());
            }

            "blkio_weight" => host.blkio_weight = Some(at.number(value)?),
            "blkio_weight_device" => host.blkio_weight_device = Some(at.model_list(value)?),
            "cap_add" => host.cap_add = Some(at.texts(value)?),
            "cap_drop" => host.cap_drop = Some(at.texts(value)?),
            "cgroup_parent" => host.cgroup_parent = Some(at.text(value)?),
            "cgroupns" => host.cgroupns_mode = Some(at.model(value)?),
            "cpu_period" => host.cpu_period = Some(at.number(value)?),
            "cpu_quota" => host.cpu_quota = Some(at.number(value)?),
            "cpu_rt_period" => host.cpu_realtime_period = Some(at.number(value)?),
            "cpu_rt_runtime" => host.cpu_realtime_runtime = Some(at.number(value)?),
            "cpu_shares" => host.cpu_shares = Some(at.number(value)?),
            "cpuset_cpus" => host.cpuset_cpus = Some(at.text_or_number(value)?),
            "cpuset_mems" => host.cpuset_mems = Some(at.text_or_number(value)?),
            "device_cgroup_rules" => host.device_cgroup_rules = Some(at.texts(value)?),
            "device_read_bps" => host.blkio_device_read_bps = Some(at.model_list(value)?),
            "device_read_iops" => host.blkio_device_read_iops = Some(at.model_list(value)?),
            "device_write_bps" => host.blkio_device_write_bps = Some(at.model_list(value)?),
            "device_write_iops" => host.blkio_device_write_iops = Some(at.model_list(value)?),
            "device_requests" => host.device_requests = Some(at.device_requests(value)?),
            "devices" => host.devices = Some(at.devices(value)?),
            "dns" => host.dns = Some(at.texts(value)?),
            "dns_opt" => host.dns_options = Some(at.texts(value)?),
            "dns_search" => host.dns_search = Some(at.texts(value)?),
            "group_add" => host.group_add = Some(at.texts(value)?),
            "init" => host.init = Some(at.boolean(value)?),
            "ipc_mode" => host.ipc_mode = Some(at.text(value)?),
            "links" => host.links = Some(at.links(value)?),
            "log_config" => host.log_config = Some(at.log_config(value)?),
            "mem_limit" => host.memory = Some(at.bytes(value)?),
            "mem_reservation" => host.memory_reservation = Some(at.bytes(value)?),
            "mem_swappiness" => host.memory_swappiness = Some(at.number(value)?),
            "memswap_limit" => host.memory_swap = Some(at.bytes(value)?),
            "mounts" => host.mounts = Some(at.model_list(value)?),
            "nano_cpus" => host.nano_cpus = Some(at.number(value)?),
            "network" | "network_mode" => host.network_mode = Some(at.text(value)?),
            "oom_kill_disable" => host.oom_kill_disable = Some(at.boolean(value)?),
            "oom_score_adj" => host.oom_score_adj = Some(at.number(value)?),
            "pid_mode" => host.pid_mode = Some(at.text(value)?),
            "pids_limit" => host.pids_limit = Some(at.number(value)?),
            "privileged" => host.privileged = Some(at.boolean(value)?),
            "publish_all_ports" => host.publish_all_ports = Some(at.boolean(value)?),
            "read_only" => host.readonly_rootfs = Some(at.boolean(value)?),
            "runtime" => host.runtime = Some(at.text(value)?),
            "security_opt" => host.security_opt = Some(at.texts(value)?),
            "shm_size" => host.shm_size = Some(at.bytes(value)?),
            "storage_opt" => host.storage_opt = Some(at.text_map(value)?),
            "sysctls" => host.sysctls = Some(at.text_map(value)?),
            "tmpfs" => host.tmpfs = Some(at.tmpfs(value)?),
            "ulimits" => host.ulimits = Some(at.ulimits(value)?),
            "userns_mode" => host.userns_mode = Some(at.text(value)?),
            "uts_mode" => host.uts_mode = Some(at.text(value)?),
            "volume_driver" => host.volume_driver = Some(at.text(value)?),
            "volumes_from" => host.volumes_from = Some(at.texts_or_comma_separated(value)?),
            _ => return Err(at.error("is listed as supported and not mapped; please report this")),
        }
        Ok(())
    }
}

pub(super) use forms::Volume;

#[cfg(test)]
mod tests;
