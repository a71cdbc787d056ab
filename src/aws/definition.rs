//! PURE. A task definition that someone made, with what a step needs on top.
//!
//! Works on the API's JSON, so whatever the template has and this crate does not know is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::asl::content_hash;
use crate::plan::PlanError;

/// What to change. Everything that is left out stays as the template has it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overlay {
    /// The container that runs the step; the only essential one if left out.
    pub container_name: Option<String>,
    /// Its image.
    pub image: Option<String>,
    /// CPU units of the task; 1,024 are one CPU.
    pub cpu: Option<u64>,
    /// Memory of the task.
    pub memory_mib: Option<u64>,
    /// Merged over the container's environment.
    pub environment: BTreeMap<String, String>,
    /// Name to `valueFrom`, merged over the container's secrets.
    pub secrets: BTreeMap<String, String>,
    /// GPUs of the container.
    pub gpus: Option<u32>,
    /// Where it is to run: `FARGATE`, `EC2` or `EXTERNAL`. A template that names other places as well, or only those, is checked by
    /// their rules: by Fargate's it may have no GPU, and only some sizes.
    pub compatibility: Option<String>,
    /// Role of the step.
    pub task_role_arn: Option<String>,
    /// Role of the agent that pulls the image and reads secrets.
    pub execution_role_arn: Option<String>,
    /// Disk of the task.
    pub ephemeral_storage_gib: Option<u64>,
    /// Entry point of the container.
    pub entry_point: Option<Vec<String>>,
    /// Command of the container.
    pub command: Option<Vec<String>>,
    /// Time between asking it to stop and killing it.
    pub stop_timeout_seconds: Option<u64>,
    /// Whether the container's first process is an init that passes signals on: the kernel gives a first process no signal that
    /// it has no handler for.
    pub init_process: Option<bool>,
    /// Log configuration, in the API's spelling.
    pub log_configuration: Option<Value>,
    /// The same, for a template that has none.
    pub default_log_configuration: Option<Value>,
    /// Merged over the template's. No part of the content.
    pub tags: BTreeMap<String, String>,
}

/// Where a container logs to in CloudWatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogPlace {
    /// Log group.
    pub group: String,
    /// Its region; none is the task's.
    pub region: Option<String>,
    /// What streams begin with: `<prefix>/<container>/<task id>`.
    pub stream_prefix: Option<String>,
}

impl LogPlace {
    /// Stream of a task's container; none when the driver names it after the container's id.
    #[must_use]
    pub fn stream(&self, container: &str, task_arn: &str) -> Option<String> {
        let task = task_arn.rsplit('/').next()?;
        Some(format!("{}/{container}/{task}", self.stream_prefix.as_deref()?))
    }
}

/// A definition to register.
#[derive(Debug, Clone, PartialEq)]
pub struct Derived {
    /// Its family, which names its content.
    pub family: String,
    /// The request of `RegisterTaskDefinition`.
    pub request: Value,
    /// The container that runs the step.
    pub container_name: String,
    /// Where that logs to.
    pub log: Option<LogPlace>,
    /// `awsvpc`, `bridge`, `host`, `none`; empty for ECS's own default.
    pub network_mode: String,
}

/// Between the template's family and the hash.
pub(super) const MARK: &str = "-se-";
/// Tag of every derived definition: the family that it was derived from.
pub(super) const TEMPLATE_TAG: &str = "step-engine:template";

/// What `DescribeTaskDefinition` says beside what can be registered.
const OUTPUT_ONLY: [&str; 8] = [
    "taskDefinitionArn",
    "revision",
    "status",
    "requiresAttributes",
    "compatibilities",
    "registeredAt",
    "registeredBy",
    "deregisteredAt",
];
/// Service quotas of ECS: a task definition has at most 64 KiB.
const BYTES: usize = 65_536;
const HASH_CHARACTERS: usize = 16;
const FAMILY_CHARACTERS: usize = 255;

/// Derives a definition. `described` is an answer of `DescribeTaskDefinition`.
///
/// # Errors
/// [`PlanError`], whose field is that of the overlay that does not fit the template.
pub fn derive(described: &Value, overlay: &Overlay) -> Result<Derived, PlanError> {
    let mut request = described["taskDefinition"].as_object().cloned().unwrap_or_default();
    request.retain(|field, _| !OUTPUT_ONLY.contains(&field.as_str()));
    let template_family = text(&request, "family").unwrap_or_default().to_owned();
    request.remove("family");

    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            request.insert(field.into(), value);
        }
    };
    set("cpu", overlay.cpu.map(|cpu| cpu.to_string().into()));
    set("memory", overlay.memory_mib.map(|memory| memory.to_string().into()));
    set("taskRoleArn", overlay.task_role_arn.clone().map(Value::from));
    set("executionRoleArn", overlay.execution_role_arn.clone().map(Value::from));
    set("ephemeralStorage", overlay.ephemeral_storage_gib.map(|size| json!({"sizeInGiB": size})));

    if let Some(place) = &overlay.compatibility
        && let Some(places) = request.get_mut("requiresCompatibilities").and_then(Value::as_array_mut)
        && !places.is_empty()
    {
        // Other places, such as managed instances, are the template's to know.
        places.retain(|listed| listed == "FARGATE" && place == "FARGATE" || listed != "FARGATE" && place != "FARGATE");
        if places.is_empty() {
            places.push(place.clone().into());
        }
    }

    let network_mode = text(&request, "networkMode").unwrap_or_default().to_owned();
    let containers = request.get_mut("containerDefinitions").and_then(Value::as_array_mut);
    let containers = containers.ok_or_else(|| wrong("container_name", "the template has no containers".into()))?;
    let at = choose(containers, overlay.container_name.as_deref())?;
    let container = containers
        .get_mut(at)
        .and_then(Value::as_object_mut)
        .ok_or_else(|| wrong("container_name", "the template's container is no object".into()))?;
    change(container, overlay);
    let container_name = text(container, "name").unwrap_or_default().to_owned();
    let log = log_place(container);

    let mut request = sorted(Value::Object(request));
    let hash = content_hash(request.to_string().as_bytes());
    let kept = template_family.len().min(FAMILY_CHARACTERS - MARK.len() - HASH_CHARACTERS);
    let family = format!("{}{MARK}{}", &template_family[..kept], &hash[..HASH_CHARACTERS]);
    request["family"] = family.clone().into();
    let tags = tags(&described["tags"], &template_family, overlay);
    request["tags"] = tags.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let bytes = request.to_string().len();
    if bytes > BYTES {
        let message = format!(
            "the task definition has {bytes} bytes and ECS takes {BYTES}; shorten the environment, or let the step read large \
             values from the artifact store or a secret"
        );
        return Err(wrong("environment", message));
    }
    Ok(Derived { family, request, container_name, log, network_mode })
}

/// Where a container of a described definition logs to in CloudWatch.
pub(super) fn log_place_of(definition: &Value, container: &str) -> Option<LogPlace> {
    let containers = definition["containerDefinitions"].as_array()?;
    containers
        .iter()
        .filter_map(Value::as_object)
        .find(|each| text(each, "name") == Some(container))
        .and_then(log_place)
}

fn wrong(field: &str, message: String) -> PlanError {
    PlanError { step: None, field: format!("overlay.{field}"), message }
}

fn text<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

fn choose(containers: &[Value], wanted: Option<&str>) -> Result<usize, PlanError> {
    let names = |all: &[&Value]| all.iter().filter_map(|c| c["name"].as_str()).collect::<Vec<_>>().join(", ");
    let all: Vec<&Value> = containers.iter().collect();
    if let Some(wanted) = wanted {
        return containers.iter().position(|container| container["name"] == wanted).ok_or_else(|| {
            wrong("container_name", format!("the template has no container `{wanted}`; it has {}", names(&all)))
        });
    }
    let is_essential = |container: &Value| container["essential"] != false;
    let essential: Vec<&Value> = containers.iter().filter(|container| is_essential(container)).collect();
    match essential.as_slice() {
        [_] => Ok(containers.iter().position(is_essential).unwrap_or_default()),
        [] => {
            Err(wrong("container_name", "the template has no essential container; name the one that runs steps".into()))
        }
        several => {
            let message = format!(
                "the template has several essential containers ({}); name the one that runs steps",
                names(several)
            );
            Err(wrong("container_name", message))
        }
    }
}

fn change(container: &mut Map<String, Value>, overlay: &Overlay) {
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            container.insert(field.into(), value);
        }
    };
    set("image", overlay.image.clone().map(Value::from));
    set("entryPoint", overlay.entry_point.clone().map(Value::from));
    set("command", overlay.command.clone().map(Value::from));
    set("stopTimeout", overlay.stop_timeout_seconds.map(Value::from));
    set("logConfiguration", overlay.log_configuration.clone());
    if !container.get("logConfiguration").is_some_and(Value::is_object)
        && let Some(default) = &overlay.default_log_configuration
    {
        container.insert("logConfiguration".into(), default.clone());
    }
    if let Some(init) = overlay.init_process {
        let mut parameters = container.get("linuxParameters").cloned().unwrap_or_else(|| json!({}));
        if let Some(fields) = parameters.as_object_mut() {
            fields.insert("initProcessEnabled".into(), init.into());
        }
        container.insert("linuxParameters".into(), parameters);
    }
    // The step may use all that its task is given: limits of the template's size would be wrong for another one.
    if overlay.cpu.is_some() {
        container.remove("cpu");
    }
    if overlay.memory_mib.is_some() {
        container.remove("memory");
        container.remove("memoryReservation");
    }
    if let Some(gpus) = overlay.gpus {
        let mut needs = container.get("resourceRequirements").and_then(Value::as_array).cloned().unwrap_or_default();
        needs.retain(|need| need["type"] != "GPU");
        if gpus > 0 {
            needs.push(json!({"type": "GPU", "value": gpus.to_string()}));
        }
        container.insert("resourceRequirements".into(), needs.into());
    }
    let mut environment = pairs(container.get("environment"), "value");
    let mut secrets = pairs(container.get("secrets"), "valueFrom");
    environment.retain(|name, _| !overlay.secrets.contains_key(name));
    secrets.retain(|name, _| !overlay.environment.contains_key(name));
    environment.extend(overlay.environment.clone());
    secrets.extend(overlay.secrets.clone());
    for (field, key, pairs) in [("environment", "value", environment), ("secrets", "valueFrom", secrets)] {
        let list: Vec<Value> = pairs.into_iter().map(|(name, value)| json!({"name": name, key: value})).collect();
        if list.is_empty() {
            container.remove(field);
        } else {
            container.insert(field.into(), list.into());
        }
    }
}

fn pairs(list: Option<&Value>, key: &str) -> BTreeMap<String, String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|pair| Some((pair["name"].as_str()?.to_owned(), pair[key].as_str()?.to_owned()))).collect()
}

fn log_place(container: &Map<String, Value>) -> Option<LogPlace> {
    let configuration = container.get("logConfiguration")?;
    if configuration["logDriver"] != "awslogs" {
        return None;
    }
    let option = |name: &str| configuration["options"][name].as_str().map(str::to_owned);
    Some(LogPlace {
        group: option("awslogs-group")?,
        region: option("awslogs-region"),
        stream_prefix: option("awslogs-stream-prefix"),
    })
}

fn tags(template: &Value, family: &str, overlay: &Overlay) -> BTreeMap<String, String> {
    let own = template.as_array().into_iter().flatten();
    let own = own.filter_map(|tag| Some((tag["key"].as_str()?.to_owned(), tag["value"].as_str()?.to_owned())));
    // Tags of AWS itself cannot be set by others.
    let mut tags: BTreeMap<String, String> = own.filter(|(key, _)| !key.starts_with("aws:")).collect();
    tags.extend(overlay.tags.clone());
    tags.insert(TEMPLATE_TAG.into(), family.chars().take(256).collect());
    tags
}

/// The same value with the fields of every object in order: equal content must give equal bytes, however AWS lists it.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().collect();
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Value {
        json!({
            "taskDefinition": {
                "taskDefinitionArn": "arn:aws:ecs:eu-west-1:1:task-definition/zenml:7", "family": "zenml", "revision": 7,
                "status": "ACTIVE", "compatibilities": ["EC2", "FARGATE"], "registeredAt": 1.7e9,
                "networkMode": "awsvpc", "cpu": "256", "memory": "512", "executionRoleArn": "exec",
                "volumes": [{"name": "efs", "efsVolumeConfiguration": {"fileSystemId": "fs-1"}}],
                "aFieldOfTomorrow": {"b": 1, "a": 2},
                "containerDefinitions": [
                    {"name": "proxy", "image": "envoy", "essential": false},
                    {"name": "main", "image": "old", "cpu": 256, "memory": 512, "memoryReservation": 256,
                     "linuxParameters": {"initProcessEnabled": true},
                     "environment": [{"name": "Z", "value": "1"}, {"name": "TOKEN", "value": "plain"}],
                     "secrets": [{"name": "KEPT", "valueFrom": "arn:k"}, {"name": "NOW_PLAIN", "valueFrom": "arn:p"}],
                     "logConfiguration": {"logDriver": "awslogs", "options": {
                         "awslogs-group": "/ecs/zenml", "awslogs-region": "eu-west-1", "awslogs-stream-prefix": "ecs"}}}
                ]
            },
            "tags": [{"key": "team", "value": "ml"}, {"key": "aws:cloudformation:stack-id", "value": "x"}]
        })
    }

    fn overlay() -> Overlay {
        serde_json::from_value(json!({
            "image": "repo@sha256:1", "cpu": 1024, "memory_mib": 4096, "gpus": 1,
            "environment": {"A": "2", "NOW_PLAIN": "3"}, "secrets": {"TOKEN": "arn:t"}, "tags": {"team": "data"}
        }))
        .unwrap()
    }

    #[test]
    fn a_template_is_checked_by_the_rules_of_the_place_where_it_runs() {
        let places = |template: &Value, place: &str| {
            let overlay = Overlay { compatibility: Some(place.into()), ..overlay() };
            derive(template, &overlay).unwrap().request.get("requiresCompatibilities").cloned()
        };
        let mut both = template();
        assert_eq!(places(&both, "EC2"), None, "a template that asks for no check gets none");
        for listed in [json!(["FARGATE"]), json!(["EC2", "FARGATE"])] {
            both["taskDefinition"]["requiresCompatibilities"] = listed;
            assert_eq!(places(&both, "EC2"), Some(json!(["EC2"])));
            assert_eq!(places(&both, "FARGATE"), Some(json!(["FARGATE"])));
        }
        both["taskDefinition"]["requiresCompatibilities"] = json!(["MANAGED_INSTANCES"]);
        assert_eq!(places(&both, "EC2"), Some(json!(["MANAGED_INSTANCES"])), "behind a capacity provider");
    }

    #[test]
    fn what_is_too_large_for_ecs_is_refused_before_it_is_asked() {
        let mut large = overlay();
        large.environment.insert("LARGE".into(), "x".repeat(BYTES));
        let error = derive(&template(), &large).unwrap_err();
        assert_eq!(error.field, "overlay.environment");
        assert!(error.message.contains("ECS takes 65536; shorten the environment"), "{}", error.message);
    }

    #[test]
    fn the_template_is_kept_and_the_overlay_wins() {
        let derived = derive(&template(), &overlay()).unwrap();
        let request = &derived.request;
        for gone in OUTPUT_ONLY {
            assert!(request.get(gone).is_none(), "{gone}");
        }
        assert_eq!(request["volumes"], template()["taskDefinition"]["volumes"]);
        assert_eq!(request["aFieldOfTomorrow"], json!({"a": 2, "b": 1}));
        assert_eq!((&request["cpu"], &request["memory"]), (&json!("1024"), &json!("4096")));
        assert_eq!(request["containerDefinitions"][0], json!({"name": "proxy", "image": "envoy", "essential": false}));
        assert_eq!(
            request["containerDefinitions"][1],
            json!({
                "name": "main", "image": "repo@sha256:1", "linuxParameters": {"initProcessEnabled": true},
                "environment": [{"name": "A", "value": "2"}, {"name": "NOW_PLAIN", "value": "3"}, {"name": "Z", "value": "1"}],
                "secrets": [{"name": "KEPT", "valueFrom": "arn:k"}, {"name": "TOKEN", "valueFrom": "arn:t"}],
                "resourceRequirements": [{"type": "GPU", "value": "1"}],
                "logConfiguration": template()["taskDefinition"]["containerDefinitions"][1]["logConfiguration"],
            })
        );
        assert_eq!(
            request["tags"],
            json!([{"key": TEMPLATE_TAG, "value": "zenml"}, {"key": "team", "value": "data"}]),
            "a tag of AWS itself cannot be registered"
        );
        assert_eq!((derived.container_name.as_str(), derived.network_mode.as_str()), ("main", "awsvpc"));
        let log = derived.log.unwrap();
        assert_eq!(log.stream("main", "arn:aws:ecs:eu-west-1:1:task/c/0a1b").unwrap(), "ecs/main/0a1b");
    }

    #[test]
    fn equal_content_has_one_family_and_another_content_another() {
        let first = derive(&template(), &overlay()).unwrap();
        assert!(first.family.starts_with("zenml-se-") && first.family.len() == "zenml-se-".len() + HASH_CHARACTERS);
        let mut reordered = template();
        let environment = &mut reordered["taskDefinition"]["containerDefinitions"][1]["environment"];
        environment.as_array_mut().unwrap().reverse();
        reordered["taskDefinition"]["revision"] = 9.into();
        let mut tagged = overlay();
        tagged.tags.insert("run".into(), "4".into());
        assert_eq!(derive(&reordered, &tagged).unwrap().family, first.family);
        for change in [
            json!({"image": "b"}),
            json!({"cpu": 512}),
            json!({"environment": {"A": "1"}}),
            json!({"task_role_arn": "r"}),
            json!({"secrets": {"S": "arn"}}),
            json!({"ephemeral_storage_gib": 30}),
            json!({"stop_timeout_seconds": 3}),
            json!({"init_process": false}),
        ] {
            let changed: Overlay = serde_json::from_value(change.clone()).unwrap();
            let plain = derive(&template(), &Overlay::default()).unwrap();
            assert_ne!(derive(&template(), &changed).unwrap().family, plain.family, "{change}");
        }
    }

    #[test]
    fn the_container_is_the_essential_one_or_the_named_one() {
        let message = |template: &Value, name: Option<&str>| {
            let overlay = Overlay { container_name: name.map(str::to_owned), ..Overlay::default() };
            derive(template, &overlay).map(|derived| derived.container_name).unwrap_or_else(|error| error.message)
        };
        assert_eq!(message(&template(), None), "main");
        assert_eq!(message(&template(), Some("proxy")), "proxy");
        assert_eq!(message(&template(), Some("x")), "the template has no container `x`; it has proxy, main");
        let mut both = template();
        both["taskDefinition"]["containerDefinitions"][0]["essential"] = true.into();
        let several = "the template has several essential containers (proxy, main); name the one that runs steps";
        assert_eq!(message(&both, None), several);
        assert_eq!(message(&json!({}), None), "the template has no containers");
    }

    #[test]
    fn an_init_process_leaves_the_other_parameters_of_linux_alone() {
        let mut both = template();
        both["taskDefinition"]["containerDefinitions"][1]["linuxParameters"] = json!({"maxSwap": 0});
        let overlay = Overlay { init_process: Some(true), ..Overlay::default() };
        let parameters = |template: &Value, overlay: &Overlay| {
            derive(template, overlay).unwrap().request["containerDefinitions"][1]["linuxParameters"].clone()
        };
        assert_eq!(parameters(&both, &overlay), json!({"maxSwap": 0, "initProcessEnabled": true}));
        assert_eq!(parameters(&both, &Overlay::default()), json!({"maxSwap": 0}));
        both["taskDefinition"]["containerDefinitions"][1].as_object_mut().unwrap().remove("linuxParameters");
        assert_eq!(parameters(&both, &overlay), json!({"initProcessEnabled": true}));
    }

    #[test]
    fn a_default_log_configuration_only_fills_a_gap() {
        let default =
            json!({"logDriver": "awslogs", "options": {"awslogs-group": "/new", "awslogs-stream-prefix": "p"}});
        let overlay = Overlay { default_log_configuration: Some(default.clone()), ..Overlay::default() };
        assert_eq!(derive(&template(), &overlay).unwrap().log.unwrap().group, "/ecs/zenml");
        let mut bare = template();
        bare["taskDefinition"]["containerDefinitions"][1].as_object_mut().unwrap().remove("logConfiguration");
        assert_eq!(derive(&bare, &overlay).unwrap().log.unwrap().group, "/new");
        let forced = Overlay { log_configuration: Some(default), ..Overlay::default() };
        assert_eq!(derive(&template(), &forced).unwrap().log.unwrap().group, "/new");
    }
}
