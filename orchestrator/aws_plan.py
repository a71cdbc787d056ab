"""From ZenML's snapshot to what AWS is told: task definitions, options of the machine, input of the execution.

Pure functions. Nothing here depends on a run: whatever a run brings comes from its execution, so that another run of
the same pipeline finds its task definitions and its state machine as they are.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration

from orchestrator import aws_package, aws_secrets
from orchestrator.container import begin
from orchestrator.container.isolated import uses_fargate
from orchestrator.names import ENV_EXECUTION, ENV_RUN_ID, parse_arn

if TYPE_CHECKING:
    from zenml.models import PipelineSnapshotResponse

    from orchestrator.my_aws_orchestrator_flavor import (
        StepFunctionsOrchestratorConfig,
        StepFunctionsOrchestratorSettings,
    )

DEFAULT_LOG_GROUP = "/zenml/step-engine"

INPUT_SNAPSHOT = "snapshot_id"
INPUT_SECRET = "secret"  # noqa: S105
"""Fields of the execution's input."""

_MARKER = "00000000-0000-0000-0000-000000000000"


def check_config(config: StepFunctionsOrchestratorConfig) -> list[str]:
    """Finds what is wrong with a config without asking AWS.

    Args:
        config: The config.

    Returns:
        Sentences, one per mistake.
    """
    mistakes = []
    if not re.fullmatch(r"\d{12}", config.account_id):
        mistakes.append(f"account_id has twelve digits, got {config.account_id}.")
    roles = ("execution_role", "task_role", "state_machine_role", "scheduler_role")
    for name, service in [
        ("ecs_cluster_arn", "ecs"),
        ("ecs_task_definition_arn", "ecs"),
        *((role, "iam") for role in roles),
    ]:
        value = getattr(config, name)
        if value is None or (name == "ecs_task_definition_arn" and not value.startswith("arn:")):
            continue
        arn = parse_arn(value)
        if arn is None or arn["service"] != service:
            mistakes.append(f"{name} must be an ARN that begins with arn:aws:{service}:, got {value}.")
        elif arn["account"] != config.account_id and service == "ecs":
            mistakes.append(f"{name} is in account {arn['account']}, and account_id says {config.account_id}.")
        elif arn["region"] not in ("", config.region):
            mistakes.append(f"{name} is in region {arn['region']}, and region says {config.region}.")
    if (config.aws_access_key_id is None) != (config.aws_secret_access_key is None):
        mistakes.append("aws_access_key_id and aws_secret_access_key must be set both or not at all.")
    return mistakes


def pipeline_name(name: str) -> str:
    """Turns a pipeline's name into one for state machines.

    Args:
        name: The pipeline's name.

    Returns:
        1 to 60 letters, digits, `-` and `_`; a hash follows when it is deployed.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "pipeline"


def bucket_of(path: str) -> str | None:
    """Finds the bucket of an artifact store.

    Args:
        path: Path of the store.

    Returns:
        The bucket; none when it is not in S3.
    """
    parts = urlsplit(path)
    return parts.netloc or None if parts.scheme == "s3" else None


def step_environment(
    environment: Mapping[str, str], settings: StepFunctionsOrchestratorSettings, client: Mapping[str, str] | None = None
) -> aws_secrets.Environment:
    """Says what a step's container sees.

    Args:
        environment: What ZenML wants it to see. Not changed.
        settings: Settings of the step.
        client: Environment of this process; that of the system by default.

    Returns:
        The environment, by how it reaches the task.
    """
    client = os.environ if client is None else client
    # Who works with endpoints of their own needs them in the tasks as well.
    endpoints = {name: value for name, value in client.items() if name.startswith("AWS_ENDPOINT_URL")}
    merged = {**endpoints, **settings.environment, **environment}
    return aws_secrets.split_environment(merged, settings.secret_environment)


def overlay(
    *,
    image: str,
    settings: StepFunctionsOrchestratorSettings,
    config: StepFunctionsOrchestratorConfig,
    environment: Mapping[str, str],
    secrets: Mapping[str, str],
    size: Mapping[str, Any] | None,
    gpus: int,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Describes how a step's task definition differs from the template.

    Args:
        image: The step's image.
        settings: Settings of the step.
        config: The component's config.
        environment: Variables that anyone may read.
        secrets: Variables to `valueFrom`.
        size: `cpu_units` and `memory_mib`; none leaves the template's.
        gpus: GPUs of the container.
        dynamic: Whether it is for a dynamic pipeline.

    Returns:
        An overlay, see `step_engine.AwsSession.ensure_task_definition`.
    """
    logs = {
        "logDriver": "awslogs",
        "options": {
            "awslogs-group": config.log_group or DEFAULT_LOG_GROUP,
            "awslogs-region": config.region,
            "awslogs-stream-prefix": "step",
        },
    }
    if not config.log_group:
        logs["options"]["awslogs-create-group"] = "true"
    described: dict[str, Any] = {
        "container_name": config.container_name,
        "image": image,
        "environment": {**environment, begin.PACKAGE: aws_package.packed(dynamic)},
        "secrets": dict(secrets),
        "task_role_arn": settings.task_role,
        "execution_role_arn": config.execution_role,
        "ephemeral_storage_gib": settings.ephemeral_storage,
        # The container's program is in no image: it stands here, and the step's command in the override follows it.
        "entry_point": ["python", "-c", inspect.getsource(begin)],
        "stop_timeout_seconds": _stop_timeout(settings),
        "compatibility": _compatibility(settings),
        "log_configuration" if config.log_group else "default_log_configuration": logs,
        "tags": {**settings.tags, "step-engine": "task-definition"},
    }
    if size:
        described.update(cpu=size.get("cpu_units"), memory_mib=size.get("memory_mib"))
    if gpus:
        described["gpus"] = gpus
    if dynamic:
        # ZenML's program for isolated steps has no handler for SIGTERM.
        described["init_process"] = True
    return {name: value for name, value in described.items() if value is not None}


def _stop_timeout(settings: StepFunctionsOrchestratorSettings) -> int | None:
    if settings.stop_grace_seconds is None:
        return None
    # Fargate takes 2 to 120 seconds (API reference, `ContainerDefinition`).
    return max(round(settings.stop_grace_seconds), 2 if uses_fargate(settings) else 0)


def _compatibility(settings: StepFunctionsOrchestratorSettings) -> str:
    if uses_fargate(settings):
        return "FARGATE"
    return settings.launch_type if settings.launch_type and not settings.capacity_provider_strategy else "EC2"


def command(step_name: str) -> list[str | dict[str, str]]:
    """The command of a step's container. Its snapshot comes from the execution.

    Args:
        step_name: Step name.

    Returns:
        Values of `AslOptions`.
    """
    arguments = StepEntrypointConfiguration.get_entrypoint_arguments(step_name=step_name, snapshot_id=_MARKER)
    full = [*StepEntrypointConfiguration.get_entrypoint_command(), *arguments]
    return [{"input": INPUT_SNAPSHOT} if argument == _MARKER else str(argument) for argument in full]


def asl_options(
    snapshot: PipelineSnapshotResponse,
    *,
    config: StepFunctionsOrchestratorConfig,
    settings: StepFunctionsOrchestratorSettings,
    step_settings: Mapping[str, StepFunctionsOrchestratorSettings],
    task_definitions: Mapping[str, Mapping[str, Any]],
    bucket: str | None,
) -> dict[str, Any]:
    """Says how the pipeline becomes a state machine.

    Args:
        snapshot: The snapshot, pruned of cached steps.
        config: The component's config.
        settings: Settings of the pipeline.
        step_settings: Settings of every step.
        task_definitions: `arn`, `container_name` and `network_mode` of every step's task definition.
        bucket: Bucket of the artifact store, for signals; none if it is not in S3.

    Returns:
        `AslOptions`, see `step_engine.compile_asl`.
    """
    options = machine_options(snapshot, config, settings, step_settings.values())
    options["synchronization"] = settings.synchronization
    options["auto_threshold"] = settings.auto_threshold
    options["task"] = {"cluster": config.ecs_cluster_arn, "environment": run_environment()}
    options["steps"] = {
        name: task(config, step_settings[name], task_definitions[name], command(name))
        for name in snapshot.step_configurations
    }
    if bucket:
        options["signals"] = {"bucket": bucket, "prefix": config.signals_prefix}
    return options


def machine_options(
    snapshot: PipelineSnapshotResponse,
    config: StepFunctionsOrchestratorConfig,
    settings: StepFunctionsOrchestratorSettings,
    step_settings: Iterable[StepFunctionsOrchestratorSettings],
) -> dict[str, Any]:
    """Says what does not depend on the machine's steps.

    Args:
        snapshot: The snapshot.
        config: The component's config.
        settings: Settings of the pipeline.
        step_settings: Settings of the steps that the machine runs.

    Returns:
        Some of `AslOptions`, see `step_engine.compile_asl`.
    """
    cluster = parse_arn(config.ecs_cluster_arn) or {}
    roles = [config.execution_role, *(step.task_role for step in step_settings)]
    return {
        "name": pipeline_name(snapshot.pipeline_configuration.name),
        "timeout_seconds": settings.execution_timeout_seconds,
        "infrastructure_retries": config.infrastructure_retries,
        "account": {"partition": cluster.get("partition", "aws"), "region": config.region, "id": config.account_id},
        "pass_roles": sorted({role for role in roles if role}),
    }


def run_environment() -> dict[str, Any]:
    """What a task is told of its run.

    Returns:
        Values of `AslOptions` by variable.
    """
    return {
        ENV_RUN_ID: {"execution": "name"},
        ENV_EXECUTION: {"execution": "id"},
        aws_secrets.ENV_RUN_SECRET: {"input": INPUT_SECRET},
    }


def task(
    config: StepFunctionsOrchestratorConfig,
    settings: StepFunctionsOrchestratorSettings,
    definition: Mapping[str, Any],
    arguments: list[str | dict[str, str]],
) -> dict[str, Any]:
    """Says how a step becomes a task.

    Args:
        config: The component's config.
        settings: Settings of the step.
        definition: `arn`, `container_name` and `network_mode` of its task definition.
        arguments: Its command, as values of `AslOptions`.

    Returns:
        `TaskSettings` of `AslOptions`.
    """
    described: dict[str, Any] = {
        "task_definition": definition["arn"],
        "container": definition["container_name"],
        "command": arguments,
        "platform_version": settings.platform_version,
        "enable_execute_command": settings.enable_execute_command or None,
    }
    if settings.capacity_provider_strategy:
        described["capacity_providers"] = [provider.model_dump() for provider in settings.capacity_provider_strategy]
    else:
        described["launch_type"] = settings.launch_type or "FARGATE"
    if definition.get("network_mode", "awsvpc") == "awsvpc":
        described["network"] = {
            "subnets": config.subnet_ids,
            "security_groups": config.security_group_ids,
            # ECS refuses the field on instances.
            "assign_public_ip": settings.assign_public_ip and uses_fargate(settings),
        }
    return described


def steady_seconds(
    seconds: Mapping[str, float], synchronization: str, max_parallelism: int | None = None
) -> dict[str, float]:
    """Rounds durations of earlier runs, which would make another machine after each run.

    Args:
        seconds: Durations.
        synchronization: How the machine is made; only added waits depend on durations.
        max_parallelism: How many steps may run at once. A limit adds waits.

    Returns:
        Powers of two, or nothing.
    """
    if synchronization == "exact" and max_parallelism is None:
        return {}
    return {name: 2.0 ** max(round(value).bit_length(), 1) for name, value in seconds.items()}


def execution_input(snapshot_id: object, secret: str) -> dict[str, str]:
    """What an execution is started with.

    Args:
        snapshot_id: The snapshot.
        secret: See `aws_secrets.secret_location`.

    Returns:
        The input.
    """
    return {INPUT_SNAPSHOT: str(snapshot_id), INPUT_SECRET: secret}


def task_size(resources: Mapping[str, Any], fargate: Mapping[str, Any] | None) -> dict[str, int] | None:
    """Says how big a step's task is.

    Args:
        resources: What the step asks for, as in the plan.
        fargate: The Fargate size that holds it; none where the step does not run there.

    Returns:
        `cpu_units` and `memory_mib`; none when the step asks for nothing and the template decides.
    """
    if not resources["cpu_millis"] and not resources["memory_bytes"]:
        return None
    if fargate is not None:
        return {"cpu_units": fargate["cpu_units"], "memory_mib": fargate["memory_mib"]}
    size = {
        "cpu_units": -(-resources["cpu_millis"] * 1024 // 1000),
        "memory_mib": -(-resources["memory_bytes"] // 2**20),
    }
    return {name: value for name, value in size.items() if value}


def billed_sizes(
    steps: Iterable[Mapping[str, Any]], sizes: Iterable[Mapping[str, Any]], template: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """Says how big the tasks of a run on Fargate are.

    Args:
        steps: Steps of the plan.
        sizes: Fargate's sizes for what they ask for, from the compile report.
        template: The task definition that decides where a step asks for nothing, in the API's spelling.

    Returns:
        `step`, `cpu_units` and `memory_mib` of each; none when the template does not say.
    """
    by_step = {size["step"]: size for size in sizes}
    billed = []
    for step in steps:
        size = task_size(step["resources"], by_step[step["name"]])
        if size is None:
            try:
                size = {"cpu_units": int(template["cpu"]), "memory_mib": int(template["memory"])}
            except (KeyError, TypeError, ValueError):
                return None
        billed.append({"step": step["name"], **size})
    return billed
