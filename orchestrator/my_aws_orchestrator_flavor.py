"""The `aws_step_functions` flavor: settings, config, and which class implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from zenml.config.base_settings import BaseSettings
from zenml.models import ServiceConnectorRequirements
from zenml.orchestrators import BaseOrchestratorConfig, BaseOrchestratorFlavor
from zenml.utils.secret_utils import SecretField

if TYPE_CHECKING:
    from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator


class CapacityProvider(BaseModel):
    """One item of a capacity provider strategy."""

    name: str = Field(description="Name, such as `FARGATE_SPOT`.")
    weight: NonNegativeInt = Field(default=1, description="Share of the tasks beyond `base`.")
    base: NonNegativeInt = Field(default=0, description="Tasks that start here first.")


class StepFunctionsOrchestratorSettings(BaseSettings):
    """Settings of the Step Functions orchestrator: on the component, for a pipeline, or for a step.

    `synchronous`, `synchronization`, `auto_threshold`, `max_parallelism` and `execution_timeout_seconds` are settings
    of the whole run and are ignored on single steps.
    """

    synchronous: bool = Field(
        default=True, description="Watch the run to its end. If false, the client returns once it is started."
    )
    synchronization: Literal["exact", "barrier", "auto"] = Field(
        default="exact",
        description="How dependencies are kept that nested `Parallel` states cannot express. `exact` uses signals in "
        "the artifact bucket and waits for nothing else, `barrier` adds waits, `auto` does where they cost little.",
    )
    auto_threshold: float = Field(
        default=0.02, ge=0, le=1, description="With `auto`: share of the critical path that added waits may cost."
    )
    max_parallelism: PositiveInt | None = Field(
        default=None,
        description="How many steps of a run may run at the same time. What would be more waits for its turn, not for "
        "the success of what is before it. Static pipelines only. Default: as many as the dependencies allow.",
    )
    execution_timeout_seconds: PositiveInt | None = Field(
        default=None, le=31_536_000, description="The whole execution fails after so many seconds. Default: no limit."
    )
    timeout_seconds: PositiveInt | None = Field(
        default=None,
        le=31_536_000,
        description="Stop an attempt of the step so many seconds after it was requested, the start of its task "
        "included. Default: no limit.",
    )
    stop_grace_seconds: NonNegativeFloat | None = Field(
        default=None,
        le=120,
        description="Seconds between asking a container to stop (SIGTERM) and killing it. Default: the task "
        "definition's, or 30.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables beside those that ZenML sets, which win. Anyone who may read task "
        "definitions can read them, except those that are kept as secrets.",
    )
    secret_environment: list[str] = Field(
        default_factory=list,
        description="Names of environment variables whose values are secrets, beside those whose names say so "
        "(`…_TOKEN`, `…_SECRET`, `…_PASSWORD`, `…_KEY`).",
    )
    launch_type: Literal["FARGATE", "EC2", "EXTERNAL"] | None = Field(
        default=None, description="Where tasks run. Default: `FARGATE`, unless there is a capacity provider strategy."
    )
    capacity_provider_strategy: list[CapacityProvider] = Field(
        default_factory=list,
        description="Capacity providers instead of a launch type, such as "
        '`[{"name": "FARGATE_SPOT", "weight": 4}, {"name": "FARGATE", "weight": 1}]`.',
    )
    platform_version: str | None = Field(default=None, description="Fargate platform version. Default: `LATEST`.")
    assign_public_ip: bool = Field(
        default=False, description="Give tasks a public address: needed in subnets without a NAT gateway or endpoints."
    )
    ephemeral_storage: PositiveInt | None = Field(
        default=None, ge=21, le=200, description="GiB of a Fargate task's disk. Default: the template's, or 20."
    )
    task_role: str | None = Field(
        default=None, description="ARN of the role that the steps take. Default: the task definition's."
    )
    enable_execute_command: bool = Field(
        default=False, description="Let people open a shell in a running task with `aws ecs execute-command`."
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of task definitions and state machines.")


class StepFunctionsOrchestratorConfig(BaseOrchestratorConfig, StepFunctionsOrchestratorSettings):
    """Config of the Step Functions orchestrator: every setting can be given on the component as a default."""

    ecs_cluster_arn: str = Field(description="ARN of the ECS cluster in which the steps run.")
    ecs_task_definition_arn: str = Field(
        description="Task definition that the steps' own are derived from: ARN, `family:revision` or family."
    )
    execution_role: str = Field(
        description="ARN of the role with which ECS starts tasks: pulls images, writes logs, reads secrets."
    )
    subnet_ids: list[str] = Field(description="Subnets of the tasks, 1 to 16.", min_length=1, max_length=16)
    security_group_ids: list[str] = Field(
        default_factory=list, description="Security groups of the tasks, at most 5.", max_length=5
    )
    account_id: str = Field(description="AWS account, twelve digits.")
    region: str = Field(description="AWS region, such as `eu-central-1`.")

    state_machine_role: str | None = Field(
        default=None, description="ARN of the role that state machines take. Default: `execution_role`."
    )
    scheduler_role: str | None = Field(
        default=None,
        description="ARN of the role with which EventBridge Scheduler starts executions. Default: the state machines'.",
    )
    schedule_group: str | None = Field(default=None, description="EventBridge Scheduler group. Default: `default`.")
    schedule_timezone: str | None = Field(
        default=None, description="Time zone of cron expressions, such as `Europe/Berlin`. Default: UTC."
    )
    container_name: str | None = Field(
        default=None,
        description="Container of the task definition that runs the step. Default: the only essential one.",
    )
    log_group: str | None = Field(
        default=None,
        description="CloudWatch log group of the steps. Default: what the task definition says; if it says nothing, "
        "`/zenml/step-engine`, which is created.",
    )
    secrets_backend: Literal["none", "secretsmanager", "ssm"] = Field(
        default="secretsmanager",
        description="Where secrets of the runs are kept. With `none`, they stand in plain text in task definitions and "
        "in the inputs of executions.",
    )
    secrets_prefix: str = Field(
        default="zenml-step-engine",
        pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$",
        description="Names of all secrets begin with it and a slash.",
    )
    kms_key: str | None = Field(default=None, description="Key that encrypts secrets. Default: the service's own.")
    signals_prefix: str = Field(
        default="step-engine/signals",
        pattern=r"^[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*$",
        description="Prefix in the artifact bucket for signals between branches of an execution.",
    )
    infrastructure_retries: NonNegativeInt = Field(
        default=8, le=100, description="How often throttling and lack of capacity are waited for, per step."
    )
    state_machine_log_group_arn: str | None = Field(
        default=None,
        description="ARN of a log group to which Step Functions writes errors, without data. Default: none.",
    )
    keep_state_machines: PositiveInt = Field(
        default=5, description="How many of a pipeline's newest state machines stay when a new one is made."
    )
    keep_task_definitions: PositiveInt = Field(
        default=20, description="How many of the newest derived task definitions stay when a new one is made."
    )

    aws_access_key_id: str | None = SecretField(
        default=None, description="Access key, if there is no service connector. Default: the usual AWS chain."
    )
    aws_secret_access_key: str | None = SecretField(default=None, description="The access key's secret.")
    aws_session_token: str | None = SecretField(default=None, description="Session token of a temporary access key.")
    aws_profile: str | None = Field(default=None, description="Profile of the shared AWS files.")

    @property
    def is_remote(self) -> bool:
        """Whether the component runs elsewhere.

        Returns:
            True: steps need a ZenML server that they can reach.
        """
        return True

    @property
    def is_synchronous(self) -> bool:
        """Whether runs are watched to their end.

        Returns:
            The `synchronous` setting.
        """
        return self.synchronous

    @property
    def is_schedulable(self) -> bool:
        """Whether schedules are supported.

        Returns:
            True: EventBridge Scheduler starts the executions.
        """
        return True

    @property
    def handles_step_retries(self) -> bool:
        """Whether the orchestrator retries steps.

        Returns:
            True: the state machine starts another task, so that a killed container is retried as well.
        """
        return True


class StepFunctionsOrchestratorFlavor(BaseOrchestratorFlavor):
    """Every run an execution of AWS Step Functions, every step an ECS task."""

    @property
    def name(self) -> str:
        """Name of the flavor.

        Returns:
            `aws_step_functions`.
        """
        return "aws_step_functions"

    @property
    def display_name(self) -> str:
        """Name for people.

        Returns:
            The name.
        """
        return "AWS Step Functions"

    @property
    def service_connector_requirements(self) -> ServiceConnectorRequirements:
        """Which service connectors fit.

        Returns:
            Those that give plain AWS credentials.
        """
        # As the AWS integration's own flavors; its module needs boto3, which a flavor must not.
        return ServiceConnectorRequirements(connector_type="aws", resource_type="aws-generic")

    @property
    def config_class(self) -> type[StepFunctionsOrchestratorConfig]:
        """Config class.

        Returns:
            The class.
        """
        return StepFunctionsOrchestratorConfig

    @property
    def implementation_class(self) -> type[StepFunctionsOrchestrator]:
        """Implementation class.

        Returns:
            The class. Importing it must never raise ImportError, which ZenML would hide behind a KeyError.
        """
        from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator

        return StepFunctionsOrchestrator
