"""From ZenML's snapshot to the plan and the containers that the core takes. Pure functions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zenml.config.resource_settings import ByteUnit
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration

from orchestrator.names import ENV_RUN_ID

if TYPE_CHECKING:
    from zenml.config.resource_settings import ResourceSettings
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineSnapshotResponse

    from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings

CONTAINER_PYTHON_PATH = "/opt/step-engine/python"
"""Where step containers find the `orchestrator` package."""

WORKER_ENTRYPOINT = ["python", "-m", "orchestrator.container.worker"]
"""Runs a warm worker in a step container."""


class TimedSettings(Protocol):
    """What both orchestrators' settings say of a step's time."""

    @property
    def timeout_seconds(self) -> float | None:
        """Longest time of an attempt."""

    @property
    def stop_grace_seconds(self) -> float | None:
        """Time between asking a container to stop and killing it."""


def build_plan(
    snapshot: PipelineSnapshotResponse,
    run_id: str,
    max_parallelism: int | None,
    step_settings: Mapping[str, TimedSettings],
    expected_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Builds the plan of a static pipeline.

    Args:
        snapshot: The snapshot, pruned of cached steps.
        run_id: The orchestrator's id of the run.
        max_parallelism: How many steps may run at once; none leaves it to the core.
        step_settings: Settings of every step.
        expected_seconds: Durations from earlier runs, for the order of ready steps.

    Returns:
        A `PlanSpec`, see `step_engine.DockerRun`.
    """
    configurations = snapshot.step_configurations
    return {
        "run_id": run_id,
        "pipeline": snapshot.pipeline_configuration.name,
        "execution_mode": snapshot.pipeline_configuration.execution_mode.value,
        "max_parallelism": max_parallelism,
        "steps": [
            {
                "name": name,
                # Upstreams that are not in the snapshot were cached or skipped for a replay: they are done.
                "upstream": [upstream for upstream in step.spec.upstream_steps if upstream in configurations],
                "resources": _resources(step.config.resource_settings),
                "retry": _retry(step),
                "timeout_seconds": step_settings[name].timeout_seconds,
                "stop_grace_seconds": step_settings[name].stop_grace_seconds,
                "expected_seconds": expected_seconds.get(name),
            }
            for name, step in configurations.items()
        ],
    }


def _resources(settings: ResourceSettings) -> dict[str, int]:
    memory_kb = settings.get_memory(ByteUnit.KB)
    return {
        "cpu_millis": round((settings.cpu_count or 0) * 1000),
        "memory_bytes": round((memory_kb or 0) * 1000),
        "gpus": settings.gpu_count or 0,
    }


def _retry(step: Step) -> dict[str, float]:
    retry = step.config.retry
    if retry is None:
        return {"max_retries": 0, "delay_seconds": 0, "backoff": 1}
    return {"max_retries": retry.max_retries, "delay_seconds": retry.delay, "backoff": retry.backoff}


def build_container(
    step_name: str,
    snapshot: PipelineSnapshotResponse,
    *,
    settings: LocalDockerOrchestratorSettings,
    environment: Mapping[str, str],
    image: str,
    image_reference: str,
    run_id: str,
    local_stores_path: str | None,
    default_user: str | None,
    same_machine: bool,
) -> dict[str, Any]:
    """Describes the container of a step.

    Args:
        step_name: Step name.
        snapshot: The snapshot.
        settings: Settings of the step.
        environment: What ZenML wants the step to see. Not changed.
        image: Pinned image id.
        image_reference: The image as people know it.
        run_id: The orchestrator's id of the run.
        local_stores_path: Path of ZenML's local stores, mounted at the identical path; none if no step needs them.
        default_user: User of containers whose settings name none.
        same_machine: Whether the engine can mount this package; else it is copied into the container.

    Returns:
        A container, see `step_engine.DockerRun`.
    """
    package = Path(__file__).resolve().parent
    user = settings.user or default_user
    own = {
        ENV_RUN_ID: run_id,
        # Makes ZenML rewrite a server's `localhost` to `host.docker.internal`.
        "ZENML_CONTAINER": "true",
        # A newer ZenML in the image must not migrate the host's database.
        "DISABLE_DATABASE_MIGRATION": "true",
    }
    if local_stores_path:
        own["ZENML_LOCAL_STORES_PATH"] = local_stores_path
    if user and not user.startswith("0"):
        # A user without an entry in the image's passwd has `/` for a home, which it cannot write.
        own["HOME"] = "/tmp"  # noqa: S108
    merged = {**own, **settings.environment, **environment, ENV_RUN_ID: run_id}
    merged["PYTHONPATH"] = ":".join(filter(None, [merged.get("PYTHONPATH"), CONTAINER_PYTHON_PATH]))
    volumes = [parse_volume(volume) for volume in settings.volumes]
    if local_stores_path:
        volumes.append({"source": local_stores_path, "target": local_stores_path, "read_only": False})
    ours = {"source": str(package), "target": f"{CONTAINER_PYTHON_PATH}/{package.name}"}
    if same_machine:
        volumes.append({**ours, "read_only": True})
    return {
        "image": image,
        "image_reference": image_reference,
        "pull_policy": "never" if image.startswith("sha256:") else settings.pull_policy,
        "entrypoint": StepEntrypointConfiguration.get_entrypoint_command(),
        "command": StepEntrypointConfiguration.get_entrypoint_arguments(step_name=step_name, snapshot_id=snapshot.id),
        "environment": merged,
        "volumes": volumes,
        "files": [] if same_machine else [ours],
        "user": user,
        "network": settings.network,
        "extra_hosts": {"host.docker.internal": "host-gateway", **settings.extra_hosts},
        "shm_size_bytes": parse_size(settings.shm_size),
        "labels": dict(settings.labels),
        "platform": settings.platform,
        "keep_containers": settings.keep_containers,
        "enforce_limits": settings.enforce_limits,
        "stop_grace_seconds": settings.stop_grace_seconds,
        "run_args": {name: value for name, value in settings.run_args.items() if name != "image"},
    }


def plan_warm_starts(
    containers: Mapping[str, Mapping[str, Any]],
    snapshot: PipelineSnapshotResponse,
    step_settings: Mapping[str, LocalDockerOrchestratorSettings],
) -> dict[str, dict[str, Any]]:
    """Says how workers that are started ahead of need run the steps.

    Args:
        containers: Container of every step, see `build_container`.
        snapshot: The snapshot.
        step_settings: Settings of every step.

    Returns:
        The field `warm` of the containers of those steps that can start warm, see `step_engine.DockerRun`.
    """
    isolation = {name: _isolation(settings) for name, settings in step_settings.items()}
    groups: dict[str, list[str]] = {}
    for name, container in containers.items():
        if isolation[name] == "process":
            groups.setdefault(_shared_part(container), []).append(name)
    return {
        name: {
            "isolation": isolation[name],
            "entrypoint": WORKER_ENTRYPOINT,
            "command": _worker_command(
                snapshot.id,
                isolation[name],
                groups[_shared_part(container)] if isolation[name] == "process" else [name],
            ),
        }
        for name, container in containers.items()
        # What a command step runs is no Python of ours.
        if step_settings[name].warm_start and not getattr(snapshot.step_configurations[name].config, "command", None)
    }


def _isolation(settings: LocalDockerOrchestratorSettings) -> str:
    # A container that several steps used tells nothing about one of them, so kept ones are not shared.
    return "container" if settings.keep_containers != "never" else settings.isolation


def _shared_part(container: Mapping[str, Any]) -> str:
    """What must be equal for two steps to share a container."""
    own = ("command", "stop_grace_seconds")
    return json.dumps({key: value for key, value in container.items() if key not in own}, sort_keys=True, default=str)


def _worker_command(snapshot_id: object, isolation: str, names: list[str]) -> list[str]:
    steps = [argument for name in names for argument in ("--step_name", name)]
    return ["--snapshot_id", str(snapshot_id), "--isolation", isolation, *steps]


def default_user(engine: Mapping[str, Any]) -> str | None:
    """Whom step containers run as.

    Args:
        engine: `DockerEngine.info()`.

    Returns:
        The caller's `uid:gid`, so that files in the local stores stay theirs; `0:0` on a rootless engine, where root in
        the container is the caller; none (the image's user) where the client has no uids or the engine is elsewhere.
    """
    if sys.platform == "win32" or not engine["local"]:
        return None
    return "0:0" if engine["rootless"] else f"{os.getuid()}:{os.getgid()}"


def parse_volume(text: str) -> dict[str, Any]:
    """Reads `source:target[:ro|rw]`.

    Args:
        text: A mount as the `docker` command takes it.

    Returns:
        `source`, `target` and `read_only`.

    Raises:
        ValueError: It is not of that form.
    """
    parts = text.split(":")
    # A Windows source begins with a drive letter.
    if len(parts) > 2 and len(parts[0]) == 1 and parts[1].startswith(("\\", "/")):
        parts = [":".join(parts[:2]), *parts[2:]]
    if len(parts) not in (2, 3) or not all(parts) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise ValueError(f"the volume {text!r} is not of the form `source:target`, `source:target:ro` or `…:rw`.")
    return {"source": parts[0], "target": parts[1], "read_only": parts[2:] == ["ro"]}


def parse_size(size: str | int | None) -> int | None:
    """Reads a size as the `docker` command takes it: bytes, or with `b`, `k`, `m` or `g` (powers of 1024).

    Args:
        size: The size.

    Returns:
        Bytes.

    Raises:
        ValueError: It is not a size.
    """
    if size is None or isinstance(size, int):
        return size
    text = size.strip().lower().removesuffix("b")
    factors = {"k": 1024, "m": 1024**2, "g": 1024**3}
    number, factor = (text[:-1], factors[text[-1]]) if text and text[-1] in factors else (text, 1)
    if not number.isdigit():
        raise ValueError(f"the size {size!r} is not a number of bytes, or a number with k, m or g as in `512m`.")
    return int(number) * factor
