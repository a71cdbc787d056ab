"""What the Step Functions orchestrator does inside the orchestration's task of a dynamic run: isolated steps are tasks.

They are started, looked at and stopped by the task role, with `boto3`: there is no native module in a step's image.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.logger import get_logger

from orchestrator import names
from orchestrator.container import isolated

if TYPE_CHECKING:
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import StepRunResponse

    from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator
    from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorSettings

logger = get_logger(__name__)

METADATA_TASK = "task_arn"
"""Where ZenML keeps the task of a step run."""

_UNFINISHED = (
    ExecutionStatus.INITIALIZING,
    ExecutionStatus.QUEUED,
    ExecutionStatus.PROVISIONING,
    ExecutionStatus.RUNNING,
)
_LOOKS_SECONDS = (1.0, 2.0, 3.0, 5.0)
"""Between looks at a step that is waited for; the last one from then on."""

_FRESH_SECONDS = 1.0
"""An answer of ECS is good for so long: a run may have many steps, and ZenML asks for each."""

_TASKS_OF_A_REQUEST = 100
"""ECS API reference, `DescribeTasks`."""


class Tasks:
    """The isolated tasks of this process, so that one request tells of many.

    Args:
        client: ECS client of boto3.
        cluster: Their cluster.
    """

    def __init__(self, client: Any, cluster: str) -> None:
        """Knows of none yet."""
        self.client = client
        self._cluster = cluster
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, Mapping[str, Any] | None]] = {}

    def describe(self, arn: str) -> Mapping[str, Any] | None:
        """Asks ECS about a task, and about the others that run.

        Args:
            arn: The task.

        Returns:
            What ECS says; none when it knows the task no longer, about an hour after its end, or not yet.
        """
        with self._lock:
            at, known = self._answers.get(arn, (0.0, None))
            if known is not None and (known["lastStatus"] == "STOPPED" or time.monotonic() - at < _FRESH_SECONDS):
                return known
            running = [each for each, (_, task) in self._answers.items() if task and task["lastStatus"] != "STOPPED"]
            asked = list(dict.fromkeys([arn, *running]))[:_TASKS_OF_A_REQUEST]
            answer = self.client.describe_tasks(cluster=self._cluster, tasks=asked)
            now, found = time.monotonic(), {task["taskArn"]: task for task in answer["tasks"]}
            self._answers.update({each: (now, found.get(each)) for each in asked})
            return found.get(arn)

    def note(self, task: Mapping[str, Any]) -> None:
        """Remembers a task that was just started.

        Args:
            task: What ECS said of it.
        """
        with self._lock:
            self._answers[task["taskArn"]] = (0.0, task)

    def stop(self, arn: str, reason: str) -> None:
        """Asks a task to end.

        Args:
            arn: The task.
            reason: Why.
        """
        self.client.stop_task(cluster=self._cluster, task=arn, reason=reason)


_connecting = threading.Lock()


def tasks_of(region: str, cluster: str) -> Tasks:
    """The isolated tasks of this process: ZenML makes several instances of a component.

    Args:
        region: Region.
        cluster: Their cluster.

    Returns:
        The same object each time.
    """
    # boto3 makes one client at a time.
    with _connecting:
        return _connect(region, cluster)


@functools.cache
def _connect(region: str, cluster: str) -> Tasks:
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 10}
    config = Config(retries=retries, connect_timeout=10, read_timeout=60, max_pool_connections=25)
    return Tasks(boto3.Session(region_name=region).client("ecs", config=config), cluster)


def submit(orchestrator: StepFunctionsOrchestrator, info: StepRunInfo) -> None:
    """Runs a step in a task of its own. Its token is where all tasks of the run find it.

    Args:
        orchestrator: The component.
        info: The step.

    Raises:
        RuntimeError: This is no orchestration of ours, the step asks for what was not known before the run began, or
            ECS could not place its task.
    """
    step, tasks = info.pipeline_step_name, _tasks(orchestrator)
    try:
        asked = _request(orchestrator, info)
    except ValueError as error:
        raise RuntimeError(f"Step `{step}` cannot run in a task of its own: {error}.") from None
    task = isolated.start(tasks.client, asked, orchestrator.config.infrastructure_retries)
    tasks.note(task)
    logger.info("Step `%s` is task %s.", step, task["taskArn"])
    try:
        _file(orchestrator, info.step_run, task["taskArn"])
    except BaseException:
        # Nobody could find it to follow or stop it, and the step's next attempt has another one.
        with contextlib.suppress(Exception):
            tasks.stop(task["taskArn"], isolated.STOPPED)
        raise


def status(orchestrator: StepFunctionsOrchestrator, step_run: StepRunResponse) -> ExecutionStatus:
    """Asks ECS where an isolated step stands.

    Args:
        orchestrator: The component.
        step_run: The step run.

    Returns:
        What became of its task.

    Raises:
        RuntimeError: It cannot be told; ZenML then goes by what the step said itself.
    """
    tasks, arn = _tasks(orchestrator), _task_of(step_run)
    task = tasks.describe(arn)
    if task is None:
        raise RuntimeError(f"ECS knows nothing of task {arn}.")
    limit = _settings(orchestrator, step_run).timeout_seconds
    if isolated.is_late(task, limit, datetime.now(timezone.utc)):
        tasks.stop(arn, f"{isolated.TIMED_OUT}={limit}")
    found, why = isolated.status_of(task, _definitions().container)
    if found in ("failed", "stopped"):
        told = Client().get_run_step(step_run.id, hydrate=False).status
        if told.is_successful:
            # It had reported before its process died.
            return told
    if why is not None:
        _publish_failure(orchestrator, step_run, task, why)
    return ExecutionStatus(found)


def wait(orchestrator: StepFunctionsOrchestrator, step_run: StepRunResponse) -> ExecutionStatus:
    """Waits for an isolated step.

    Args:
        orchestrator: The component.
        step_run: The step run.

    Returns:
        What became of its task; what ZenML knows while ECS cannot tell.
    """
    looks = 0
    while True:
        try:
            found = status(orchestrator, step_run)
        except Exception as error:
            logger.warning("Where step `%s` stands cannot be told: %s", step_run.name, error)
            found = Client().get_run_step(step_run.id, hydrate=False).status
        if found.is_finished or found == ExecutionStatus.RETRYING:
            return found
        time.sleep(_LOOKS_SECONDS[min(looks, len(_LOOKS_SECONDS) - 1)])
        looks += 1


def stop(orchestrator: StepFunctionsOrchestrator, step_run: StepRunResponse) -> None:
    """Stops an isolated step.

    Args:
        orchestrator: The component.
        step_run: The step run.
    """
    from zenml.orchestrators.publish_utils import publish_step_run_status_update

    if Client().get_run_step(step_run.id, hydrate=False).status in _UNFINISHED:
        # So that its end counts as stopped rather than as failed.
        publish_step_run_status_update(step_run.id, ExecutionStatus.STOPPING)
    _tasks(orchestrator).stop(_task_of(step_run), isolated.STOPPED)


def _settings(orchestrator: StepFunctionsOrchestrator, described: Any) -> StepFunctionsOrchestratorSettings:
    return cast("StepFunctionsOrchestratorSettings", orchestrator.get_settings(described))


def _tasks(orchestrator: StepFunctionsOrchestrator) -> Tasks:
    return tasks_of(orchestrator.config.region, orchestrator.config.ecs_cluster_arn)


def _definitions() -> isolated.Definitions:
    try:
        return isolated.Definitions.read(os.environ[isolated.ENV_DEFINITIONS])
    except KeyError:
        raise RuntimeError(
            f"{isolated.ENV_DEFINITIONS} is not set: this process is not the orchestration of a dynamic pipeline."
        ) from None


def _request(orchestrator: StepFunctionsOrchestrator, info: StepRunInfo) -> dict[str, Any]:
    from zenml.orchestrators.utils import get_step_entrypoint_command
    from zenml.step_operators.step_operator_entrypoint_configuration import StepOperatorEntrypointConfiguration

    definitions, settings = _definitions(), _settings(orchestrator, info)
    template = definitions.choose(info.config.template, _image(info))
    resources = isolated.resources_of(info.config.resource_settings)
    command, arguments = get_step_entrypoint_command(
        invocation_id=info.pipeline_step_name,
        config=info.config,
        entrypoint_config_class=StepOperatorEntrypointConfiguration,
        snapshot_id=info.snapshot.id,
        step_run_id=str(info.step_run_id),
    )
    return isolated.request(
        step_run_id=info.step_run_id,
        step=info.pipeline_step_name,
        definition=definitions.by_template[template].family,
        definitions=definitions,
        config=orchestrator.config,
        settings=settings,
        command=[*command, *map(str, arguments)],
        environment=_environment(orchestrator, info, definitions, template),
        size=isolated.task_size(resources, isolated.uses_fargate(settings)),
        gpus=resources["gpus"] or None,
        process=os.environ,
    )


def _image(info: StepRunInfo) -> str:
    from zenml.constants import ORCHESTRATOR_DOCKER_IMAGE_KEY

    if info.snapshot.build and not info.config.template and not info.config.docker_settings.skip_build:
        # The same without the warning that there is no template, which there need not be.
        return info.snapshot.build.get_image(component_key=ORCHESTRATOR_DOCKER_IMAGE_KEY)
    return info.get_image(key=ORCHESTRATOR_DOCKER_IMAGE_KEY)


def _environment(
    orchestrator: StepFunctionsOrchestrator, info: StepRunInfo, definitions: isolated.Definitions, template: str
) -> dict[str, str]:
    """Variables of a step that its task definition does not have."""
    from zenml.stack import Stack

    stack = Stack.from_model(info.snapshot.stack) if info.snapshot.stack else Client().active_stack
    wanted = isolated.user_environment(info.config, _settings(orchestrator, info), stack)
    known: isolated.UserEnvironment | None = None
    step = info.snapshot.step_configurations.get(template) if template else None
    if step is not None:
        known = isolated.user_environment(step.config, _settings(orchestrator, step), stack)
        if known.digest() != definitions.by_template[template].environment:
            # A child pipeline has a step of this name as well.
            known = None
    # The pipeline's own definition is that of this process.
    secrets: Mapping[str, str] = known.secrets if known else {} if template else os.environ
    plain = known.plain if known else {}
    if info.config.command is not None:
        # It runs without ZenML, which would give a step its secrets.
        wanted = replace(wanted, own_secrets=frozenset(wanted.secrets))
    isolated.refuse_unknown_secrets(wanted, secrets)
    return {name: value for name, value in wanted.plain.items() if plain.get(name) != value}


def _task_of(step_run: StepRunResponse) -> str:
    arn = step_run.run_metadata.get(METADATA_TASK)
    if arn is None:
        # Written after this object was read.
        arn = Client().get_run_step(step_run.id).run_metadata.get(METADATA_TASK)
    if arn is None:
        raise RuntimeError(f"ZenML does not know the task of step `{step_run.name}`.")
    return str(arn)


def _file(orchestrator: StepFunctionsOrchestrator, step_run: StepRunResponse, task_arn: str) -> None:
    from zenml.metadata.metadata_types import Uri
    from zenml.orchestrators.publish_utils import publish_step_run_metadata

    metadata: dict[str, Any] = {METADATA_TASK: task_arn}
    definitions, config = _definitions(), orchestrator.config
    place = definitions.log_stream(task_arn)
    if place:
        region = definitions.log.get("region") or config.region
        partition = (names.parse_arn(config.ecs_cluster_arn) or {}).get("partition", "aws")
        metadata["log_url"] = Uri(names.log_url(region, *place, partition=partition))
    publish_step_run_metadata(step_run.id, {orchestrator.id: metadata})
    # This object goes on to those who ask for the step's status.
    step_run.run_metadata.update(metadata)


def _publish_failure(
    orchestrator: StepFunctionsOrchestrator, step_run: StepRunResponse, task: Mapping[str, Any], why: str
) -> None:
    """Says why a task ended, if its step could not."""
    from zenml.models import ExceptionInfo
    from zenml.orchestrators.publish_utils import publish_step_run_metadata, publish_step_run_status_update

    if Client().get_run_step(step_run.id, hydrate=False).status not in _UNFINISHED:
        return
    message = f"Step `{step_run.name}` failed: {why} (task {task['taskArn']})"
    logger.error("%s", message)
    outcome = isolated.outcome_of(task, _definitions().container)
    metadata: dict[str, Any] = {"outcome": outcome["kind"]}
    if "code" in outcome:
        metadata["exit_code"] = outcome["code"]
    if task.get("stoppedReason"):
        metadata["stopped_reason"] = task["stoppedReason"]
    publish_step_run_metadata(step_run.id, {orchestrator.id: metadata})
    # The server makes `retrying` of it while the step has attempts left.
    publish_step_run_status_update(
        step_run.id, ExecutionStatus.FAILED, exception_info=ExceptionInfo(traceback=message, message=message)
    )
