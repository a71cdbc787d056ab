use bollard::models::{HostConfig, MountType, PortBinding};
use serde_json::{Value, json};

use super::*;

fn parse(arguments: Value) -> Result<RunArgs, DockerError> {
    RunArgs::parse(arguments.as_object().unwrap())
}

fn host(arguments: Value) -> HostConfig {
    parse(arguments).unwrap().host
}

/// A value that each name accepts: proves that every supported name is mapped and changes what is sent.
fn sample(name: &str) -> Value {
    match name {
        "cap_add"
        | "cap_drop"
        | "device_cgroup_rules"
        | "dns"
        | "dns_opt"
        | "dns_search"
        | "group_add"
        | "security_opt"
        | "volumes_from" => json!(["x"]),
        "devices" => json!(["/dev/null"]),
        "ulimits" => json!([{"name": "nofile", "soft": 1, "hard": 2}]),
        "device_requests" => json!([{"count": -1, "capabilities": [["gpu"]]}]),
        "device_read_bps" | "device_write_bps" | "device_read_iops" | "device_write_iops" => {
            json!([{"Path": "/dev/sda", "Rate": 5}])
        }
        "blkio_weight_device" => json!([{"Path": "/dev/sda", "Weight": 5}]),
        "mounts" => json!([{"Target": "/t", "Source": "/s", "Type": "bind", "ReadOnly": true}]),
        "cgroupns" => json!("host"),
        "environment" | "labels" | "sysctls" | "storage_opt" | "extra_hosts" | "tmpfs" | "links" => json!({"a": "b"}),
        "volumes" => json!({"/a": {"bind": "/b", "mode": "ro"}}),
        "ports" => json!({"80/tcp": 8080}),
        "healthcheck" => json!({"test": "true"}),
        "log_config" => json!({"type": "json-file"}),
        "network_disabled" | "init" | "oom_kill_disable" | "privileged" | "publish_all_ports" | "read_only" => {
            json!(true)
        }
        "mem_limit" | "mem_reservation" | "memswap_limit" | "shm_size" => json!("1g"),
        "blkio_weight" | "cpu_period" | "cpu_quota" | "cpu_rt_period" | "cpu_rt_runtime" | "cpu_shares"
        | "mem_swappiness" | "nano_cpus" | "oom_score_adj" | "pids_limit" => json!(7),
        _ => json!("text"),
    }
}

#[test]
fn every_supported_name_is_mapped() {
    for name in SUPPORTED {
        let parsed = parse(json!({*name: sample(name)})).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(parsed != RunArgs::default(), "{name} changes nothing");
    }
}

#[test]
fn null_is_not_given() {
    for name in SUPPORTED {
        assert!(parse(json!({*name: null})).unwrap() == RunArgs::default(), "{name}");
    }
}

#[test]
fn wrong_forms_are_refused_by_name_without_the_value() {
    for name in SUPPORTED {
        let error = parse(json!({*name: [[["hunter2"]]]})).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(&format!("run_args.{name}")) && !text.contains("hunter2"), "{name}: {text}");
    }
}

#[test]
fn refused_and_unknown_names_say_what_is_supported() {
    for (name, reason) in REFUSED {
        let error = parse(json!({*name: true})).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("mem_limit"), "{error}");
        assert!(!SUPPORTED.contains(name));
    }
    let error = parse(json!({"memory": "4g"})).unwrap_err().to_string();
    assert!(error.starts_with("run_args.memory: ") && error.contains("mem_limit"), "{error}");
}

#[test]
fn environment_and_labels_take_dicts_and_lists() {
    let dict = parse(json!({"environment": {"A": "1", "B": 2, "C": null}, "labels": {"x": "y"}})).unwrap();
    let list = parse(json!({"environment": ["A=1", "B=2", "C"], "labels": ["x"]})).unwrap();
    assert_eq!(dict.environment, list.environment);
    assert_eq!(dict.environment["C"], None);
    assert_eq!((dict.labels["x"].as_str(), list.labels["x"].as_str()), ("y", ""));
    assert_eq!(parse(json!({"environment": ["A=b=c"]})).unwrap().environment["A"], Some("b=c".to_owned()));
}

#[test]
fn volumes_take_dicts_and_lists() {
    let volume = |source: &str, target: &str, mode: &str| Volume {
        source: source.to_owned(),
        target: target.to_owned(),
        mode: mode.to_owned(),
    };
    let parsed =
        parse(json!({"volumes": {"/a": {"bind": "/b", "ro": true}, "named": "/c", "/d": {"bind": "/e", "mode": "z",
        "propagation": "rshared"}}}))
        .unwrap();
    let mut found = parsed.volumes;
    found.sort_by(|a, b| a.target.cmp(&b.target));
    assert_eq!(found, [volume("/a", "/b", "ro"), volume("named", "/c", "rw"), volume("/d", "/e", "z,rshared")]);
    let parsed = parse(json!({"volumes": ["/a:/b", "/c:/d:ro"]})).unwrap();
    assert_eq!(parsed.volumes, [volume("/a", "/b", "rw"), volume("/c", "/d", "ro")]);
    for wrong in [json!(["/a"]), json!({"/a": {"mode": "ro"}}), json!({"/a": {"bind": "/b", "ro": true, "mode": "rw"}})]
    {
        parse(json!({"volumes": wrong})).unwrap_err();
    }
}

#[test]
fn ports_take_every_form() {
    let binding = |ip: Option<&str>, port: Option<&str>| PortBinding {
        host_ip: ip.map(str::to_owned),
        host_port: port.map(str::to_owned),
    };
    for (form, bindings) in [
        (json!(8080), vec![binding(None, Some("8080"))]),
        (json!(null), vec![binding(None, None)]),
        (json!(["127.0.0.1", 8080]), vec![binding(Some("127.0.0.1"), Some("8080"))]),
        (json!([1, 2]), vec![binding(None, Some("1")), binding(None, Some("2"))]),
        (
            json!([["127.0.0.1", 1], ["0.0.0.0"]]),
            vec![binding(Some("127.0.0.1"), Some("1")), binding(Some("0.0.0.0"), None)],
        ),
    ] {
        let ports = host(json!({"ports": {"80": form}})).port_bindings.unwrap();
        assert_eq!(ports["80/tcp"].as_ref().unwrap(), &bindings);
    }
    let parsed = parse(json!({"ports": {"53/udp": 53}})).unwrap();
    assert_eq!(parsed.body.exposed_ports.unwrap(), ["53/udp"]);
    parse(json!({"ports": {"http": 80}})).unwrap_err();
}

#[test]
fn structured_forms() {
    let host = host(json!({
        "devices": ["/dev/a", "/dev/b:/dev/c:r"],
        "device_requests": [{"Driver": "nvidia", "device_ids": ["0"], "capabilities": [["gpu"]]}],
        "ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
        "tmpfs": ["/run", "/tmp:size=1m"],
        "log_config": {"Type": "local", "config": {"max-size": "1m"}},
        "mounts": [{"Target": "/t", "Source": "/s", "Type": "bind", "ReadOnly": true}],
        "extra_hosts": ["a:1.2.3.4"],
        "links": {"db": "database", "cache": null},
        "volumes_from": "a, b",
        "group_add": [44, "video"],
        "mem_limit": "4g",
    }));
    let devices = host.devices.unwrap();
    assert_eq!(devices[0].path_in_container.as_deref(), Some("/dev/a"));
    assert_eq!(devices[1].cgroup_permissions.as_deref(), Some("r"));
    let request = &host.device_requests.unwrap()[0];
    assert_eq!(
        (request.driver.as_deref(), request.device_ids.as_deref()),
        (Some("nvidia"), Some(&["0".to_owned()][..]))
    );
    assert_eq!(host.ulimits.unwrap()[0].hard, Some(20));
    assert_eq!(host.tmpfs.unwrap()["/tmp"], "size=1m");
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("local"));
    assert_eq!(host.mounts.unwrap()[0].typ, Some(MountType::BIND));
    let mut links = host.links.unwrap();
    links.sort();
    assert_eq!(links, ["cache", "db:database"]);
    assert_eq!(host.volumes_from.unwrap(), ["a", "b"]);
    assert_eq!(host.group_add.unwrap(), ["44", "video"]);
    assert_eq!(host.memory, Some(4 << 30));
}

#[test]
fn healthcheck_text_is_a_shell_command() {
    let check = parse(json!({"healthcheck": {"test": "ls", "start_period": 5}})).unwrap().body.healthcheck.unwrap();
    assert_eq!(check.test.unwrap(), ["CMD-SHELL", "ls"]);
    assert_eq!(check.start_period, Some(5));
    let error = parse(json!({"healthcheck": {"tests": "ls"}})).unwrap_err().to_string();
    assert!(error.contains("`tests`"), "{error}");
}

#[test]
fn network_and_network_mode_exclude_each_other() {
    assert_eq!(host(json!({"network_mode": "host"})).network_mode.as_deref(), Some("host"));
    parse(json!({"network_mode": "host", "network": "a"})).unwrap_err();
}

#[test]
fn debug_shows_no_value() {
    let parsed = parse(json!({"environment": {"TOKEN": "hunter2"}})).unwrap();
    let debug = format!("{parsed:?}");
    assert!(debug.contains("TOKEN") && !debug.contains("hunter2"), "{debug}");
}
