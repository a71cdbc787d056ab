"""Short ways to write machines for tests of the bench."""

from __future__ import annotations

import json
import uuid
from typing import Any

from bench_client import Bench
from conftest import Prerequisites


def step(
    given: Prerequisites, command: str, *, environment: list[dict[str, str]] | None = None, **more: Any
) -> dict[str, Any]:
    """A state that runs a shell command in a task and waits for it."""
    container = {"Name": "main", "Command": ["sh", "-c", command], "Environment": environment or []}
    network = {"Subnets": given.subnet_ids, "SecurityGroups": given.security_group_ids, "AssignPublicIp": "ENABLED"}
    parameters = {
        "Cluster": given.cluster_arn,
        "TaskDefinition": more.pop("definition", given.task_definition_arn),
        "LaunchType": "FARGATE",
        "NetworkConfiguration": {"AwsvpcConfiguration": network},
        "Overrides": {"ContainerOverrides": [container]},
    }
    state = {
        "Type": "Task",
        "Resource": "arn:aws:states:::ecs:runTask.sync",
        "Parameters": parameters,
        "ResultPath": None,
    }
    return {**state, **({} if "Next" in more else {"End": True}), **more}


def machine(**states: dict[str, Any]) -> dict[str, Any]:
    """A machine that starts with the first state."""
    return {"StartAt": next(iter(states)), "States": states}


def parallel(*branches: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A state that runs machines side by side."""
    state = {"Type": "Parallel", "Branches": list(branches), "ResultPath": None}
    return {**state, **({} if "Next" in more else {"End": True}), **more}


def start(bench: Bench, given: Prerequisites, definition: dict[str, Any], role: str = "") -> str:
    """Creates a machine and starts it.

    Returns:
        The execution's ARN.
    """
    states = bench.client("stepfunctions")
    name = f"machine-{uuid.uuid4().hex[:8]}"
    arn = states.create_state_machine(
        name=name, definition=json.dumps(definition), roleArn=role or given.state_machine_role
    )["stateMachineArn"]
    return states.start_execution(stateMachineArn=arn, name="run", input="{}")["executionArn"]
