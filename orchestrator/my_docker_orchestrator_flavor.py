"""The `my_docker` flavor: settings, config, and which class implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig, BaseOrchestratorFlavor

if TYPE_CHECKING:
    from orchestrator.my_docker_orchestrator import LocalDockerOrchestrator


class LocalDockerOrchestratorSettings(BaseSettings):
    """Settings of the Docker orchestrator: on the component, for a pipeline, or for a step.

    `synchronous` and `max_parallelism` are settings of the whole run and are ignored on single steps.
    """

    synchronous: bool = Field(
        default=True,
        description="Wait for the run's end. If false, a background process drives the run and the client returns.",
    )
    max_parallelism: PositiveInt | None = Field(
        default=None, description="How many steps may run at the same time. Default: the engine's CPU count."
    )
    timeout_seconds: PositiveFloat | None = Field(
        default=None, description="Stop an attempt of the step that has run for so many seconds. Default: no limit."
    )
    stop_grace_seconds: NonNegativeFloat = Field(
        default=10.0, le=86400, description="Seconds between asking a container to stop (SIGTERM) and killing it."
    )
    pull_policy: Literal["missing", "always", "never"] = Field(
        default="missing", description="When to pull the step's image: `missing`, `always` or `never`."
    )
    keep_containers: Literal["never", "failed", "always"] = Field(
        default="never", description="Which containers stay for inspection: `never`, `failed` or `always`."
    )
    network: str | None = Field(default=None, description="Docker network, or a mode such as `host` or `none`.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables beside those that ZenML sets, which win."
    )
    volumes: list[str] = Field(
        default_factory=list,
        description="Mounts as `source:target` or `source:target:ro`; the source is an absolute path or a volume.",
    )
    extra_hosts: dict[str, str] = Field(default_factory=dict, description="Host names and their addresses.")
    user: str | None = Field(
        default=None, description="`uid` or `uid:gid` of the container. Default: the caller's (root if rootless)."
    )
    shm_size: str | int | None = Field(
        default=None, description="Size of /dev/shm in bytes, or with a unit as in `512m` or `2g`."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the step's container.")
    platform: str | None = Field(default=None, description="Platform of the image, such as `linux/arm64`.")
    enforce_limits: bool = Field(
        default=True, description="Make CPU and memory requests limits of the container, not only of admission."
    )
    warm_start: bool = Field(
        default=True,
        description="Start the container ahead of need and import what the step will, so that it begins at once.",
    )
    isolation: Literal["container", "process"] = Field(
        default="container",
        description="With `container`, every step has a container of its own. With `process`, steps whose containers "
        "would be equal share one, each in a process of its own: faster, with the container's files shared.",
    )
    run_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Keywords of docker-py's `containers.run`, as ZenML's `local_docker` takes them.",
    )


class LocalDockerOrchestratorConfig(BaseOrchestratorConfig, LocalDockerOrchestratorSettings):
    """Config of the Docker orchestrator: every setting can be given on the component as a default."""

    @property
    def is_local(self) -> bool:
        """Whether the component runs locally.

        Returns:
            True: step containers use the local stores.
        """
        return True

    @property
    def is_synchronous(self) -> bool:
        """Whether runs are synchronous.

        Returns:
            The `synchronous` setting.
        """
        return self.synchronous

    @property
    def is_schedulable(self) -> bool:
        """Whether schedules are supported.

        Returns:
            False: nothing of ours is alive to start a run later. ZenML refuses a schedule with a clear error.
        """
        return False

    @property
    def handles_step_retries(self) -> bool:
        """Whether the orchestrator retries steps.

        Returns:
            True: containers are restarted, so that a killed container is retried as well.
        """
        return True


class LocalDockerOrchestratorFlavor(BaseOrchestratorFlavor):
    """Every step of a pipeline in a Docker container on one host, in parallel."""

    @property
    def name(self) -> str:
        """Name of the flavor.

        Returns:
            `my_docker`.
        """
        return "my_docker"

    @property
    def config_class(self) -> type[LocalDockerOrchestratorConfig]:
        """Config class.

        Returns:
            The class.
        """
        return LocalDockerOrchestratorConfig

    @property
    def implementation_class(self) -> type[LocalDockerOrchestrator]:
        """Implementation class.

        Returns:
            The class. Importing it must never raise ImportError, which ZenML would hide behind a KeyError.
        """
        from orchestrator.my_docker_orchestrator import LocalDockerOrchestrator

        return LocalDockerOrchestrator
