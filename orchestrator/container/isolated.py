"""Isolated steps of a dynamic pipeline on AWS: what ECS is asked for, and what its answers mean. Pure functions.

It runs in the orchestration's task, where there is no native module. What it shares with the core is held together by
tests: the sizes that Fargate has (`src/asl/fargate.rs`) and how a task ended (`src/aws/outcome.rs`).
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator import aws_secrets
from orchestrator.container.begin import SECRET
from orchestrator.names import ENV_EXECUTION, ENV_RUN_ID

if TYPE_CHECKING:
    from orchestrator.my_aws_orchestrator_flavor import (
        StepFunctionsOrchestratorConfig,
        StepFunctionsOrchestratorSettings,
    )

ENV_DEFINITIONS = "ZENML_STEP_ENGINE_DEFINITIONS"
"""Tells the orchestration's task the task definitions of isolated steps, see `Definitions`."""

ENV_SECRET_LOCATION = "ZENML_STEP_ENGINE_SECRET_LOCATION"  # noqa: S105
"""Tells the orchestration's task where isolated ones find the run's secret."""

ENV_STEP = "ZENML_STEP_ENGINE_STEP"
"""Tells people, and who watches, which step a task runs."""

OVERRIDES_CHARACTERS = 8192
"""ECS API reference, `RunTask`: the most that all overrides of containers may have."""

# CPU units, smallest and largest memory in MiB, and its step; 0 where sizes double. See `src/asl/fargate.rs`.
_FARGATE = (
    (256, 512, 2_048, 0),
    (512, 1_024, 4_096, 1_024),
    (1_024, 2_048, 8_192, 1_024),
    (2_048, 4_096, 16_384, 1_024),
    (4_096, 8_192, 30_720, 1_024),
    (8_192, 16_384, 61_440, 4_096),
    (16_384, 32_768, 122_880, 8_192),
)
_MIB = 2**20

THROTTLED_RETRIES = 6
"""With pauses of 2 to 60 seconds: about two minutes."""

_NEVER_BEGAN = (
    "CannotPull",
    "CannotStartContainer",
    "CannotCreateContainer",
    "ResourceInitializationError",
    "CannotInspectContainer",
    "TaskFailedToStart",
    "Timeout waiting for network interface",
)
_SIGNALS = {130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}

TIMED_OUT = "step-engine: timeout_seconds"
STOPPED = "step-engine: stopped by the pipeline"
"""Why a task was stopped that took too long, or that its pipeline needs no longer."""


@dataclass(frozen=True)
class Definition:
    """A task definition that was registered before the run began.

    Attributes:
        family: Family and revision.
        image: Digest of the image's reference, see `digest`.
        environment: Digest of the variables beside ZenML's, which say whether they may be left out.
    """

    family: str
    image: str
    environment: str


@dataclass(frozen=True)
class Definitions:
    """The task definitions of a run's isolated steps.

    Attributes:
        container: The container that runs the step, the same in all of them.
        network_mode: Their network mode.
        log: `group`, `stream_prefix` and `region` of their logs in CloudWatch, if they have any.
        by_template: Those of the steps in the pipeline's `depends_on`, and the pipeline's own under the empty name.
    """

    container: str
    network_mode: str
    log: Mapping[str, str]
    by_template: Mapping[str, Definition]

    @classmethod
    def read(cls, text: str) -> Definitions:
        """Reads them from the environment of the orchestration's task.

        Args:
            text: The variable's value.

        Returns:
            The definitions.
        """
        container, network_mode, log, found = json.loads(text)
        return cls(container, network_mode, log, {name: Definition(*fields) for name, fields in found.items()})

    def text(self) -> str:
        """Writes them for the environment of the orchestration's task, where there is little room.

        Returns:
            The variable's value.
        """
        found = {name: [each.family, each.image, each.environment] for name, each in self.by_template.items()}
        return json.dumps(
            [self.container, self.network_mode, dict(self.log), found], sort_keys=True, separators=(",", ":")
        )

    def choose(self, template: str | None, image: str) -> str:
        """Finds the definition for a step.

        Args:
            template: The step of `depends_on` that it is one of, if it is.
            image: Reference of its image.

        Returns:
            The template whose definition it is; empty is the pipeline's own.

        Raises:
            ValueError: Neither has the step's image.
        """
        wanted = digest(image)
        # Not that of another step, which has that one's size, variables and secrets.
        for name in (template or "", ""):
            if name in self.by_template and self.by_template[name].image == wanted:
                return name
        raise ValueError("its image was not known before the run began; list the step in the pipeline's `depends_on`")

    def log_stream(self, task_arn: str) -> tuple[str, str] | None:
        """Where a task logs to.

        Args:
            task_arn: The task.

        Returns:
            Log group and stream; none when it is not known.
        """
        if "group" not in self.log or "stream_prefix" not in self.log:
            return None
        return self.log["group"], f"{self.log['stream_prefix']}/{self.container}/{task_arn.rsplit('/', 1)[-1]}"


def digest(content: object) -> str:
    """Shortens what is only to be compared. No secret may be in it.

    Args:
        content: Something that JSON can express.

    Returns:
        Twelve characters.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class UserEnvironment:
    """Variables of a step beside ZenML's own.

    Attributes:
        plain: Those that anyone may read.
        secrets: Those that nobody may.
        own_secrets: Names of those secrets that only the orchestrator's settings know. ZenML sets the others itself.
    """

    plain: Mapping[str, str]
    secrets: Mapping[str, str]
    own_secrets: frozenset[str]

    def digest(self) -> str:
        """Shortens it, without the values of secrets.

        Returns:
            Twelve characters.
        """
        return digest([dict(self.plain), sorted(self.secrets)])


def user_environment(config: Any, settings: StepFunctionsOrchestratorSettings, stack: Any) -> UserEnvironment:
    """Says what a step's process is to see beside what ZenML needs.

    Args:
        config: ZenML's configuration of the step or the pipeline.
        settings: The orchestrator's.
        stack: The stack.

    Returns:
        The variables, by who may read them.
    """
    from zenml.utils.env_utils import get_runtime_environment

    of_zenml = get_runtime_environment(config=config, stack=stack)
    parts = aws_secrets.split_environment({**settings.environment, **of_zenml}, settings.secret_environment)
    return UserEnvironment(parts.plain, parts.stable, frozenset(set(parts.stable) - set(of_zenml)))


def refuse_unknown_secrets(wanted: UserEnvironment, known: Mapping[str, str]) -> None:
    """Lets no secret into a request to ECS, where others could read it.

    Args:
        wanted: What the step is to see.
        known: Secrets that its task gets anyway.

    Raises:
        ValueError: One is missing. Its value does not stand in the message.
    """
    for name in sorted(wanted.own_secrets):
        if known.get(name) != wanted.secrets[name]:
            raise ValueError(
                f"its variable {name} is a secret that was not known before the run began, and must not stand in a "
                "request to ECS; give it to the pipeline or the component, list the step in the pipeline's "
                "`depends_on`, or use a secret of ZenML's"
            )


def uses_fargate(settings: StepFunctionsOrchestratorSettings) -> bool:
    """Tells whether a step runs on Fargate.

    Args:
        settings: Settings of the step.

    Returns:
        True for the launch type and for Fargate's capacity providers.
    """
    if settings.capacity_provider_strategy:
        return all(provider.name in ("FARGATE", "FARGATE_SPOT") for provider in settings.capacity_provider_strategy)
    return settings.launch_type in (None, "FARGATE")


def task_size(resources: Mapping[str, int], fargate: bool) -> dict[str, int] | None:
    """Says how big a step's task is.

    Args:
        resources: `cpu_millis`, `memory_bytes` and `gpus` that the step asks for.
        fargate: Whether it runs there; sizes are rounded up to those that Fargate has.

    Returns:
        `cpu_units` and `memory_mib`, as far as they are asked for; none when neither is and the template decides.

    Raises:
        ValueError: Fargate has no such size.
    """
    if fargate and resources["gpus"]:
        raise ValueError(
            f"asks for {resources['gpus']} GPUs and Fargate has none; set launch_type EC2 or a capacity provider with "
            "GPUs"
        )
    if not resources["cpu_millis"] and not resources["memory_bytes"]:
        return None
    # 1000 thousandths are 1024 units; what is left over needs the next unit.
    units, mib = -(-resources["cpu_millis"] * 1024 // 1000), -(-resources["memory_bytes"] // _MIB)
    if not fargate:
        return {name: value for name, value in (("cpu_units", units), ("memory_mib", mib)) if value}
    for cpu_units, smallest, largest, step in _FARGATE:
        size = smallest
        while size < mib and size < largest:
            size = size + step if step else size * 2
        if cpu_units >= units and size >= mib:
            return {"cpu_units": cpu_units, "memory_mib": size}
    raise ValueError(
        f"asks for {resources['cpu_millis']} thousandths of a CPU and {mib} MiB of memory, which no Fargate task has; "
        "lower its request or use launch_type EC2"
    )


def resources_of(settings: Any) -> dict[str, int]:
    """Reads what a step asks for.

    Args:
        settings: ZenML's `ResourceSettings`.

    Returns:
        `cpu_millis`, `memory_bytes` and `gpus`.
    """
    from zenml.config.resource_settings import ByteUnit

    memory_kb = settings.get_memory(ByteUnit.KB)
    return {
        "cpu_millis": round((settings.cpu_count or 0) * 1000),
        "memory_bytes": round((memory_kb or 0) * 1000),
        "gpus": settings.gpu_count or 0,
    }


def request(
    *,
    step_run_id: object,
    step: str,
    definition: str,
    definitions: Definitions,
    config: StepFunctionsOrchestratorConfig,
    settings: StepFunctionsOrchestratorSettings,
    command: Sequence[str],
    environment: Mapping[str, str],
    size: Mapping[str, int] | None,
    gpus: int | None,
    process: Mapping[str, str],
) -> dict[str, Any]:
    """Writes the request that runs an isolated step.

    Args:
        step_run_id: The step run: the same request is carried out once.
        step: Name of the step, for people.
        definition: `family:revision`.
        definitions: What is the same for all of them.
        config: The component's config.
        settings: Settings of the step.
        command: Program and arguments.
        environment: Variables that the definition does not have.
        size: `cpu_units` and `memory_mib`; none leaves the definition's.
        gpus: GPUs of the container; none leaves the definition's.
        process: Environment of the orchestration's process, which knows run, execution and secret.

    Returns:
        A request of ECS `RunTask`.

    Raises:
        ValueError: Its overrides are too long.
    """
    variables = {
        **environment,
        ENV_RUN_ID: process[ENV_RUN_ID],
        ENV_EXECUTION: process[ENV_EXECUTION],
        ENV_STEP: step,
        # Its location, not the secret.
        SECRET: process.get(ENV_SECRET_LOCATION, ""),
    }
    container: dict[str, Any] = {
        "name": definitions.container,
        "command": list(command),
        "environment": [{"name": name, "value": value} for name, value in sorted(variables.items())],
    }
    if gpus is not None:
        container["resourceRequirements"] = [{"type": "GPU", "value": str(gpus)}] if gpus else []
    spelling = {"cpu_units": "cpu", "memory_mib": "memory"}
    if size and not uses_fargate(settings):
        # On instances a template need not say how big its tasks are; then its container does.
        container.update({spelling[name]: value for name, value in size.items()})
    length = len(json.dumps([container], separators=(",", ":"), ensure_ascii=False))
    if length > OVERRIDES_CHARACTERS:
        raise ValueError(
            f"its environment and command have {length} characters, and ECS takes {OVERRIDES_CHARACTERS}; list the "
            "step in the pipeline's `depends_on`, so that they stand in a task definition of its own"
        )
    overrides: dict[str, Any] = {"containerOverrides": [container]}
    if size:
        overrides.update({spelling[name]: str(value) for name, value in size.items()})
    if settings.task_role:
        overrides["taskRoleArn"] = settings.task_role
    if settings.ephemeral_storage and uses_fargate(settings):
        overrides["ephemeralStorage"] = {"sizeInGiB": settings.ephemeral_storage}
    asked: dict[str, Any] = {
        "cluster": config.ecs_cluster_arn,
        "taskDefinition": definition,
        "count": 1,
        # The execution rather than the run: a run that is gone on with has another one, whose tasks are not this one's.
        "startedBy": process[ENV_EXECUTION].rpartition(":")[2],
        "clientToken": str(step_run_id),
        "overrides": overrides,
    }
    if settings.capacity_provider_strategy:
        asked["capacityProviderStrategy"] = [
            {"capacityProvider": provider.name, "weight": provider.weight, "base": provider.base}
            for provider in settings.capacity_provider_strategy
        ]
    else:
        asked["launchType"] = settings.launch_type or "FARGATE"
    if settings.platform_version:
        asked["platformVersion"] = settings.platform_version
    if settings.enable_execute_command:
        asked["enableExecuteCommand"] = True
    if (definitions.network_mode or "awsvpc") == "awsvpc":
        network: dict[str, Any] = {"subnets": config.subnet_ids, "securityGroups": config.security_group_ids}
        if uses_fargate(settings):
            # ECS refuses the field on instances.
            network["assignPublicIp"] = "ENABLED" if settings.assign_public_ip else "DISABLED"
        asked["networkConfiguration"] = {"awsvpcConfiguration": network}
    return asked


def start(
    client: Any, asked: Mapping[str, Any], retries: int, sleep: Callable[[float], object] = time.sleep
) -> dict[str, Any]:
    """Starts a task, and waits for capacity if there is none, or if ECS is asked too often.

    Args:
        client: ECS client of boto3, which retries what fails on the way by itself.
        asked: See `request`.
        retries: How often a lack of capacity is waited for, and how often again what is throttled.
        sleep: Waits so many seconds.

    Returns:
        The task.

    Raises:
        RuntimeError: ECS could not place it.
        botocore.exceptions.ClientError: ECS refused it.
    """
    attempt = refused = 0
    while True:
        # Another token, for the answer that nothing was started is an answer as well.
        token = f"{asked['clientToken']}-{attempt}" if attempt else asked["clientToken"]
        try:
            answer = client.run_task(**{**asked, "clientToken": token})
        except Exception as error:
            if refused >= max(retries, THROTTLED_RETRIES) or not _is_passing(error):
                raise
            # Steps of a map ask all at once. Not for secrets.
            sleep(min(2.0 * 2**refused, 60.0) * random.uniform(0.5, 1.0))  # noqa: S311
            refused += 1
            continue
        if answer["tasks"]:
            return answer["tasks"][0]
        if attempt >= retries:
            failure = (answer["failures"] or [{}])[0]
            why = " ".join(filter(None, (failure.get("reason"), failure.get("detail"))))
            raise RuntimeError(f"ECS could not place the task: {why or 'it gives no reason'}")
        sleep(min(2.0 * 2**attempt, 60.0))
        attempt += 1


def _is_passing(error: Exception) -> bool:
    """Throttling behind ECS, which it tells as a mistake of the caller. As in the core, `src/aws/error.rs`."""
    told: Mapping[str, Any] = getattr(error, "response", {}).get("Error", {})
    if told.get("Code") not in ("InvalidParameterException", "ClientException"):
        return False
    words = str(told.get("Message", "")).lower()
    return any(mark in words for mark in ("rate exceeded", "request limit exceeded", "throttl", "too many concurrent"))


def status_of(task: Mapping[str, Any], container: str) -> tuple[str, str | None]:
    """Says where an isolated step stands.

    Args:
        task: The task as `DescribeTasks` has it.
        container: The container that runs the step.

    Returns:
        `provisioning`, `running`, `completed`, `stopped` or `failed`, and in words why it failed.
    """
    if task.get("lastStatus") != "STOPPED":
        own = _own_container(task, container)
        if own.get("lastStatus") == "STOPPED" and own.get("exitCode") == 0 and not task.get("stoppedReason"):
            # The task takes tens of seconds more to let go of its network; nothing else can become of the step.
            return "completed", None
        return ("running" if task.get("startedAt") else "provisioning"), None
    outcome = outcome_of(task, container)
    if outcome["kind"] in ("completed", "stopped"):
        return outcome["kind"], None
    return "failed", describe(outcome)


def _own_container(task: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    return next((each for each in task.get("containers") or [] if each.get("name") == container), {})


def outcome_of(task: Mapping[str, Any], container: str) -> dict[str, Any]:
    """Judges a task that has ended, as the core judges those of Step Functions.

    Args:
        task: The task as `DescribeTasks` has it.
        container: The container that runs the step.

    Returns:
        `kind`, and `code` or `reason`.
    """
    own = _own_container(task, container)
    own_reason, stopped_reason = own.get("reason") or "", task.get("stoppedReason") or ""
    stop_code, code = task.get("stopCode") or "", own.get("exitCode")
    never_began = any(start in text for start in _NEVER_BEGAN for text in (stopped_reason, own_reason))
    outcome: dict[str, Any]
    if stopped_reason.startswith((TIMED_OUT, STOPPED)):
        outcome = {"kind": "timed_out" if stopped_reason.startswith(TIMED_OUT) else "stopped"}
    elif code == 0:
        # Whatever became of its sidecars, which ECS stops after it.
        outcome = {"kind": "completed"}
    elif "OutOfMemory" in own_reason or "OutOfMemory" in stopped_reason:
        outcome = {"kind": "out_of_memory"}
    elif stop_code == "TaskFailedToStart" or (code is None and never_began):
        outcome = {"kind": "launch_failed", "reason": stopped_reason or own_reason or "the task did not start"}
    elif stop_code in ("SpotInterruption", "TerminationNotice", "ServiceSchedulerInitiated"):
        outcome = {"kind": "lost", "reason": stopped_reason or "AWS took the machine back"}
    elif stop_code == "UserInitiated":
        why = stopped_reason or "no reason given"
        outcome = {"kind": "lost", "reason": f"the task was stopped from outside: {why}"}
    elif code is not None:
        outcome = {"kind": "exited", "code": code}
    else:
        outcome = {"kind": "lost", "reason": own_reason or stopped_reason or "ECS does not say why the task ended"}
    return outcome


def describe(outcome: Mapping[str, Any]) -> str:
    """Says in words how a task ended, as `step_engine.console.describe_outcome` does.

    Args:
        outcome: See `outcome_of`.

    Returns:
        A fragment such as `exit code 3` or `out of memory`.
    """
    kind = outcome["kind"]
    if kind == "exited":
        code = outcome["code"]
        return f"killed by {_SIGNALS[code]} (exit code {code})" if code in _SIGNALS else f"exit code {code}"
    if kind in ("launch_failed", "lost"):
        return f"{'could not start' if kind == 'launch_failed' else 'lost'}: {outcome['reason']}"
    return str(kind).replace("_", " ")


def is_late(task: Mapping[str, Any], timeout_seconds: int | None, now: datetime) -> bool:
    """Tells whether a task has taken too long.

    Args:
        task: The task as `DescribeTasks` has it.
        timeout_seconds: The step's setting.
        now: The time, with a time zone.

    Returns:
        True from so many seconds after its request on.
    """
    created = task.get("createdAt")
    if timeout_seconds is None or created is None or task.get("desiredStatus") == "STOPPED":
        return False
    return (now - created).total_seconds() > timeout_seconds
