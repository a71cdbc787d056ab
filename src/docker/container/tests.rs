use bollard::models::HostConfig;
use serde_json::{Value, json};

use super::*;
use crate::plan::Demand;

fn spec(fields: Value) -> ContainerSpec {
    let mut all = json!({"image": "an-image"});
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn run() -> RunIdentity {
    RunIdentity { run_id: "1234-5678-9abc".into(), pipeline: "my pipeline".into(), component: Some("c".into()) }
}

fn of<'a>(step: &'a str, attempt: u32, run: &'a RunIdentity) -> Place<'a> {
    Place { run, owner: Owner::Attempt { step, attempt } }
}

fn describe(fields: Value, demand: Demand) -> ContainerCreateBody {
    let (spec, run) = (spec(fields), run());
    let arguments = RunArgs::parse(&spec.run_args).unwrap();
    let limits = Limits::of(&spec, &arguments.host, demand);
    body(of("train", 2, &run), &spec, arguments, "sha256:0", (limits, Shares::Default), None)
}

fn host(fields: Value) -> HostConfig {
    describe(fields, Demand { cpu_millis: 1500, memory_bytes: 1 << 30, gpus: 0 }).host_config.unwrap()
}

#[test]
fn names_are_readable_and_allowed() {
    let run = run();
    assert_eq!(of("train", 1, &run).name(None), "my_pipeline-train-1-12345678");
    assert_eq!(of("träin/é", 3, &run).name(Some("-hint-")), "my_pipeline-hint-3-12345678");
    let odd = RunIdentity { run_id: "…".into(), pipeline: "…".into(), component: None };
    assert_eq!(of("s", 1, &odd).name(None), "s-1");
    let long = "x".repeat(500);
    assert!(of(&long, 1, &run).name(None).len() < 128);
}

#[test]
fn labels_of_ours_cannot_be_replaced() {
    let fields = json!({
        "labels": {"step-engine.run": "x", "step-engine.warm": "1", "team": "a"},
        "run_args": {"labels": {"step-engine.keep": "always", "team": "b", "more": "c"}}
    });
    let labels = describe(fields, Demand::default()).labels.unwrap();
    assert!(!labels.contains_key(label::WARM) && !labels.contains_key(label::KEEP), "{labels:?}");
    assert_eq!(labels[label::RUN], "1234-5678-9abc");
    assert_eq!((labels[label::STEP].as_str(), labels[label::ATTEMPT].as_str()), ("train", "2"));
    assert_eq!((labels["team"].as_str(), labels["more"].as_str(), labels[label::COMPONENT].as_str()), ("a", "c", "c"));
}

#[test]
fn environment_of_the_step_wins() {
    let fields = json!({"environment": {"A": "1"}, "run_args": {"environment": {"A": "2", "B": "3", "C": null}}});
    assert_eq!(describe(fields, Demand::default()).env.unwrap(), ["A=1", "B=3", "C"]);
}

#[test]
fn single_run_arguments_win() {
    let fields = json!({"user": "1:1", "network": "a", "shm_size_bytes": 5, "working_dir": "/a",
        "run_args": {"user": 0, "network_mode": "host", "shm_size": "1k", "working_dir": "/b"}});
    let body = describe(fields, Demand::default());
    let host = body.host_config.unwrap();
    assert_eq!((body.user.as_deref(), body.working_dir.as_deref()), (Some("0"), Some("/b")));
    assert_eq!((host.network_mode.as_deref(), host.shm_size), (Some("host"), Some(1024)));
}

#[test]
fn the_demand_is_the_limit_unless_told_otherwise() {
    let limits = host(json!({}));
    assert_eq!(
        (limits.nano_cpus, limits.memory, limits.memory_swap),
        (Some(1_500_000_000), Some(1 << 30), Some(1 << 30))
    );
    let limits = host(json!({"enforce_limits": false}));
    assert_eq!((limits.nano_cpus, limits.memory, limits.memory_swap), (None, None, None));
    let limits = host(json!({"run_args": {"mem_limit": "2g", "cpu_quota": 1000}}));
    assert_eq!((limits.nano_cpus, limits.memory, limits.memory_swap), (None, Some(2 << 30), None));
    let none = describe(json!({}), Demand::default()).host_config.unwrap();
    assert_eq!((none.nano_cpus, none.memory), (None, None));
}

#[test]
fn nothing_is_mounted_or_granted_unasked() {
    let host = host(json!({}));
    assert!(host.binds.unwrap_or_default().is_empty() && host.mounts.unwrap_or_default().is_empty());
    assert!(host.cap_add.unwrap_or_default().is_empty() && host.devices.unwrap_or_default().is_empty());
    assert!(!host.privileged.unwrap_or_default());
}

#[test]
fn privileges_cannot_grow_by_default() {
    assert_eq!(host(json!({})).security_opt.unwrap(), ["no-new-privileges"]);
    let own = json!({"run_args": {"security_opt": ["no-new-privileges:false"]}});
    assert_eq!(host(own).security_opt.unwrap(), ["no-new-privileges:false"]);
    let other = json!({"run_args": {"security_opt": ["seccomp=unconfined"]}});
    assert_eq!(host(other).security_opt.unwrap(), ["seccomp=unconfined", "no-new-privileges"]);
    assert_eq!(host(json!({"run_args": {"privileged": true}})).security_opt, None);
    assert_eq!(host(json!({})).init, Some(true));
}

#[test]
fn volumes_are_mounts_by_target() {
    let host = host(json!({
        "volumes": [{"source": "/a", "target": "/x", "read_only": true}, {"source": "named", "target": "/n"}],
        "run_args": {"volumes": {"/b": "/x", "/c": {"bind": "/z", "mode": "ro,z"}}, "volume_driver": "nfs"},
    }));
    let mounts = host.mounts.unwrap();
    let of = |target: &str| mounts.iter().find(|mount| mount.target.as_deref() == Some(target)).unwrap();
    assert_eq!(mounts.len(), 2);
    assert_eq!(
        (of("/x").source.as_deref(), of("/x").read_only, of("/x").typ),
        (Some("/a"), Some(true), Some(MountType::BIND))
    );
    assert_eq!(of("/n").typ, Some(MountType::VOLUME));
    let driver = of("/n").volume_options.as_ref().unwrap().driver_config.as_ref().unwrap();
    assert_eq!(driver.name.as_deref(), Some("nfs"));
    assert_eq!(host.binds.unwrap(), ["/c:/z:ro,z"]);
}

#[test]
fn hosts_are_left_out_in_a_shared_network() {
    let hosts = json!({"extra_hosts": {"host.docker.internal": "host-gateway"}});
    assert_eq!(host(hosts).extra_hosts.unwrap(), ["host.docker.internal:host-gateway"]);
    let shared = json!({"extra_hosts": {"a": "1.1.1.1"}, "network": "container:db"});
    assert_eq!(host(shared).extra_hosts, None);
}

#[test]
fn a_missing_source_is_explained() {
    let error = DockerError::Refused {
        operation: "create the container of step `train`".into(),
        status: 400,
        message: r#"invalid mount config for type "bind": bind source path does not exist: /gone"#.into(),
    };
    let text = explain_create(error, Owner::Attempt { step: "train", attempt: 1 }).to_string();
    assert!(text.contains("the volume source `/gone` does not exist on the engine's host"), "{text}");
}
