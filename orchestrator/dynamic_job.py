"""What a dynamic pipeline is submitted as: the container of its orchestration, and what its owner needs beside it."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenml.constants import (
    ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_DELAY,
    ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL,
)

from orchestrator.container.control import ENV_SECRET, ENV_SOCKET
from orchestrator.control import DIRECTORY_NAME, SOCKET_NAME, secret_digest
from orchestrator.plan import LEADER, build_container, build_dynamic_plan

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

    from orchestrator.images import Pins
    from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings

CONTAINER_DIRECTORY = "/run/step-engine"
"""Where the orchestration container, and no other, has the directory of the control socket."""

_PACE = {
    # ZenML looks at its isolated steps every ten seconds, for it asks a cluster. Here a local process answers.
    ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL: "0.5",
    ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_DELAY: "0",
}


def dynamic_job(
    snapshot: PipelineSnapshotResponse,
    run: PipelineRunResponse,
    *,
    settings: LocalDockerOrchestratorSettings,
    environment: Mapping[str, str],
    image: str,
    pins: Pins,
    engine: Mapping[str, Any],
    local_stores_path: str | None,
    run_id: str,
    run_directory: str,
    user: str | None,
) -> dict[str, Any]:
    """Describes a dynamic run.

    Args:
        snapshot: The snapshot.
        run: The run in ZenML.
        settings: Settings of the pipeline.
        environment: What ZenML wants every process of the run to see.
        image: Reference of the pipeline's image.
        pins: The run's images.
        engine: `DockerEngine.info()`.
        local_stores_path: Path of ZenML's local stores; none if no step needs them.
        run_id: The orchestrator's id of the run.
        run_directory: The run's directory.
        user: User of containers whose settings name none, see `default_user`.

    Returns:
        `plan` and `containers`, see `step_engine.DockerRun`, and `dynamic`, see `DynamicSession`. It holds the run's
        secret and token: it goes through memory and pipes only.
    """
    # A socket is a file of this machine: an engine elsewhere cannot mount it.
    reachable = engine["local"] and hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")
    secret = secrets.token_urlsafe(32) if reachable else ""
    control = {ENV_SOCKET: f"{CONTAINER_DIRECTORY}/{SOCKET_NAME}", ENV_SECRET: secret} if reachable else {}
    pace = {name: value for name, value in _PACE.items() if name not in settings.environment}
    # Only here, for it loads all of ZenML's runner.
    from zenml.pipelines.dynamic.entrypoint_configuration import DynamicPipelineEntrypointConfiguration

    pinned = pins.pin(image, settings)
    container = build_container(
        LEADER,
        snapshot,
        settings=settings,
        environment={**pace, **environment, **control},
        image=pinned,
        image_reference=image,
        run_id=run_id,
        local_stores_path=local_stores_path,
        default_user=user,
        same_machine=engine["local"],
        process=(
            DynamicPipelineEntrypointConfiguration.get_entrypoint_command(),
            DynamicPipelineEntrypointConfiguration.get_entrypoint_arguments(snapshot_id=snapshot.id, run_id=run.id),
        ),
    )
    if reachable:
        source = str(Path(run_directory) / DIRECTORY_NAME)
        container["volumes"].append({"source": source, "target": CONTAINER_DIRECTORY, "read_only": True})
    return {
        "plan": build_dynamic_plan(snapshot, run_id, settings),
        "containers": {LEADER: container},
        "dynamic": {
            "snapshot_id": str(snapshot.id),
            "environment": dict(environment),
            "local_stores_path": local_stores_path,
            "default_user": user,
            "engine_id": engine["id"],
            "user": settings.run_args.get("user") or container["user"],
            "secret_digest": secret_digest(secret) if secret else "",
            "images": {**pins.known, image: pinned},
        },
    }
