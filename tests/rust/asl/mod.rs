//! The compiler against an interpreter that does not know it.

mod dags;
mod errors;
mod extremes;
mod interpreter;
mod limited;
mod named;
mod property;
mod structure;

use std::collections::HashMap;

use serde_json::{Value, json};
use step_engine::asl::{AslOptions, Compiled, Synchronization};

pub fn options(synchronization: Synchronization) -> AslOptions {
    let text = json!({
        "signals": {"bucket": "bucket"},
        "task": {
            "cluster": "pipelines", "task_definition": "zenml:1", "container": "main", "launch_type": "FARGATE",
            "network": {"subnets": ["subnet-1"], "security_groups": ["sg-1"], "assign_public_ip": false},
            "command": ["python", "-m", "step", {"input": "snapshot_id"}, {"execution": "name"}]
        }
    });
    let mut options = AslOptions::from_json(&text.to_string()).expect("options");
    options.synchronization = synchronization;
    options
}

/// Definitions by ARN.
pub fn definitions(compiled: &Compiled) -> HashMap<String, Value> {
    let arn = |name: &str| format!("arn:aws:states:us-east-1:000000000000:stateMachine:{name}");
    let parse = |text: &str| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        serde::Deserialize::deserialize(&mut deserializer).expect("JSON")
    };
    compiled.machines.iter().map(|machine| (arn(&machine.name), parse(&machine.definition))).collect()
}

pub fn root_arn(compiled: &Compiled) -> String {
    format!("arn:aws:states:us-east-1:000000000000:stateMachine:{}", compiled.root().name)
}
