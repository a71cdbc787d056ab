"""Dynamic pipelines on Step Functions, in the client: the orchestration is the only step of a state machine.

Its task runs ZenML's runner and the inline steps, and starts a task for each isolated step (`aws_isolated_steps`). What
those are started from is registered here, so that the task role needs no right to register anything: a definition for
the pipeline, which the orchestration has as well, and one for each step in its `depends_on` that differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zenml.constants import ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL
from zenml.logger import get_logger
from zenml.utils.env_utils import get_runtime_environment

from orchestrator import aws_plan, aws_secrets
from orchestrator.aws_deployment import Deployment, keep_secrets
from orchestrator.container import isolated
from orchestrator.names import ENV_EXECUTION, ENV_RUN_ID, METADATA_EXECUTION
from orchestrator.plan import LEADER

if TYPE_CHECKING:
    from step_engine import AwsSession
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
    from zenml.orchestrators import SubmissionResult
    from zenml.stack import Stack

    from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator
    from orchestrator.my_aws_orchestrator_flavor import (
        StepFunctionsOrchestratorConfig,
        StepFunctionsOrchestratorSettings,
    )

logger = get_logger(__name__)

INPUT_RUN = "run_id"
INPUT_ORCHESTRATOR_RUN = "orchestrator_run_id"
"""Fields of the execution's input, beside those of every execution."""

GRACE_SECONDS = 30.0
"""What ECS leaves a container after SIGTERM if nothing else is said."""

MONITORING_SECONDS = "5"
"""ZenML looks at its isolated steps so often, unless the pipeline's environment says otherwise."""

_MARKERS = {
    "00000000-0000-0000-0000-000000000001": aws_plan.INPUT_SNAPSHOT,
    "00000000-0000-0000-0000-000000000002": INPUT_RUN,
}


@dataclass(frozen=True)
class Part:
    """What one task definition is made from.

    Attributes:
        image: Reference of the image.
        settings: Settings of the pipeline, or of a step in its `depends_on`.
        environment: Everything that its process is to see.
        user: The part of it that is not ZenML's.
        resources: What it asks for, see `isolated.resources_of`.
    """

    image: str
    settings: StepFunctionsOrchestratorSettings
    environment: aws_secrets.Environment
    user: isolated.UserEnvironment
    resources: Mapping[str, int]


def parts(
    snapshot: PipelineSnapshotResponse,
    *,
    environment: Mapping[str, str],
    settings: Callable[[Any], StepFunctionsOrchestratorSettings],
    image: Callable[[str | None], str],
    stack: Stack,
) -> dict[str, Part]:
    """Says what the task definitions of a run are made from.

    Args:
        snapshot: The snapshot.
        environment: What ZenML wants every process of the run to see. Not changed.
        settings: Reads the settings of the snapshot or a step.
        image: Gives the image of a step, or without one the pipeline's.
        stack: The stack.

    Returns:
        Parts by step of `depends_on`; that of the pipeline has the empty name.
    """

    def part(config: Any, own: StepFunctionsOrchestratorSettings, reference: str, asked: Mapping[str, int]) -> Part:
        complete = aws_plan.step_environment({**environment, **get_runtime_environment(config, stack)}, own)
        return Part(reference, own, complete, isolated.user_environment(config, own, stack), asked)

    nothing = {"cpu_millis": 0, "memory_bytes": 0, "gpus": 0}
    # The pipeline's resources are those of each step: what waits for steps must not have theirs.
    found = {"": part(snapshot.pipeline_configuration, settings(snapshot), image(None), nothing)}
    for name, step in snapshot.step_configurations.items():
        # An operator's own affair.
        if not step.config.step_operator:
            asked = isolated.resources_of(step.config.resource_settings)
            found[name] = part(step.config, settings(step), image(name), asked)
    return found


def deploy(
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    given: Mapping[str, Part],
    *,
    config: StepFunctionsOrchestratorConfig,
    component_id: object,
) -> Deployment:
    """Makes everything that a run of a dynamic pipeline needs, except what is new for each run.

    Args:
        session: The session.
        snapshot: The snapshot.
        given: See `parts`.
        config: The component's config.
        component_id: Id of the component.

    Returns:
        The deployment.

    Raises:
        AwsError: AWS refused something.
        AslError: The orchestration cannot become a state machine.
        PlanError: A setting is wrong.
    """
    from step_engine import compile_asl
    from step_engine.errors import PlanError

    template = session.describe_task_definition(config.ecs_task_definition_arn)["taskDefinition"]
    # Before anything is made.
    sizes: dict[str, dict[str, int] | None] = {}
    for name, part in given.items():
        try:
            sizes[name] = isolated.task_size(part.resources, isolated.uses_fargate(part.settings)) or _size_of(template)
        except ValueError as error:
            raise PlanError(f"step `{name}` {error}", name) from None
    secrets = keep_secrets(session, config, {name: part.environment for name, part in given.items()}, component_id)
    made: dict[str, dict[str, Any]] = {}
    ensured: dict[str, dict[str, Any]] = {}
    for name, part in given.items():
        environment = part.environment
        overlay = aws_plan.overlay(
            image=part.image,
            settings=part.settings,
            config=config,
            environment=environment.plain | (environment.stable if config.secrets_backend == "none" else {}),
            secrets={key: secrets[key, value] for key, value in environment.stable.items() if (key, value) in secrets},
            # Always said, so that the container has no limit of its own in the way of another size.
            size=sizes[name],
            gpus=part.resources["gpus"],
            dynamic=True,
        )
        content = json.dumps(overlay, sort_keys=True)
        if content not in made:
            made[content] = session.ensure_task_definition(config.ecs_task_definition_arn, overlay)
        ensured[name] = made[content]
    own = ensured[""]
    definitions = isolated.Definitions(
        container=own["container_name"],
        network_mode=own.get("network_mode") or "",
        log={name: value for name, value in (own.get("log") or {}).items() if value},
        by_template={
            name: isolated.Definition(
                family=each["arn"].rsplit("/", 1)[-1],
                image=isolated.digest(given[name].image),
                environment=given[name].user.digest(),
            )
            for name, each in ensured.items()
            # A step that differs in nothing needs no word.
            if not name or each is not own
        },
    )
    plan = {"run_id": "", "pipeline": snapshot.pipeline_configuration.name, "steps": [{"name": LEADER}]}
    compiled = compile_asl(plan, _options(snapshot, config, given[""], own, definitions))
    deployed = session.deploy(
        compiled["machines"],
        role_arn=config.state_machine_role or config.execution_role,
        tags=given[""].settings.tags,
        log_group_arn=config.state_machine_log_group_arn,
    )
    return Deployment(
        machine_arn=deployed["arn"],
        plan=plan,
        run_secrets={key: value for part in given.values() for key, value in part.environment.run.items()},
        # Nobody knows before the run how many steps it will have.
        estimated_dollars=None,
        created=[*(each["arn"] for each in made.values() if each["created"]), *deployed["created"]],
    )


def _size_of(template: Mapping[str, Any]) -> dict[str, int] | None:
    try:
        return {"cpu_units": int(template["cpu"]), "memory_mib": int(template["memory"])}
    except (KeyError, TypeError, ValueError):
        return None


def _options(
    snapshot: PipelineSnapshotResponse,
    config: StepFunctionsOrchestratorConfig,
    own: Part,
    definition: Mapping[str, Any],
    definitions: isolated.Definitions,
) -> dict[str, Any]:
    """`AslOptions` of the orchestration's machine, see `step_engine.compile_asl`."""
    options = aws_plan.machine_options(snapshot, config, own.settings, [own.settings])
    task = aws_plan.task(config, own.settings, definition, command())
    environment: dict[str, Any] = {
        **aws_plan.run_environment(),
        # The execution's own name is another one when a run is resumed.
        ENV_RUN_ID: {"input": INPUT_ORCHESTRATOR_RUN},
        ENV_EXECUTION: {"execution": "id"},
        isolated.ENV_DEFINITIONS: definitions.text(),
        isolated.ENV_SECRET_LOCATION: {"input": aws_plan.INPUT_SECRET},
    }
    if ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL not in own.environment.plain:
        environment[ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL] = MONITORING_SECONDS
    return {
        **options,
        "task": {"cluster": config.ecs_cluster_arn},
        "steps": {LEADER: {**task, "environment": environment}},
    }


def command() -> list[str | dict[str, str]]:
    """The command of the orchestration's container. Snapshot and run come from the execution.

    Returns:
        Values of `AslOptions`.
    """
    # Only here, for it loads all of ZenML's runner.
    from zenml.pipelines.dynamic.entrypoint_configuration import DynamicPipelineEntrypointConfiguration

    snapshot, run = _MARKERS
    arguments = DynamicPipelineEntrypointConfiguration.get_entrypoint_arguments(snapshot_id=snapshot, run_id=run)
    full = [*DynamicPipelineEntrypointConfiguration.get_entrypoint_command(), *map(str, arguments)]
    return [{"input": _MARKERS[argument]} if argument in _MARKERS else argument for argument in full]


def execution_input(snapshot_id: object, secret: str, run_id: object, orchestrator_run_id: str) -> dict[str, str]:
    """What an execution is started with.

    Args:
        snapshot_id: The snapshot.
        secret: See `aws_secrets.secret_location`.
        run_id: The run in ZenML.
        orchestrator_run_id: The orchestrator's id of the run.

    Returns:
        The input.
    """
    return {
        **aws_plan.execution_input(snapshot_id, secret),
        INPUT_RUN: str(run_id),
        INPUT_ORCHESTRATOR_RUN: orchestrator_run_id,
    }


def execution_name(run: PipelineRunResponse) -> str:
    """Names the execution of a run. A run that is resumed needs another one, for AWS keeps names for 90 days.

    Args:
        run: The run.

    Returns:
        The run's id, followed by a number from the second execution on.
    """
    before = str(run.run_metadata.get(METADATA_EXECUTION) or "").rpartition(":")[2]
    if not before:
        return str(run.id)
    number = before.removeprefix(str(run.id)).removeprefix("-")
    return f"{run.id}-{int(number) + 1 if number.isdigit() else 2}"


def others(config: StepFunctionsOrchestratorConfig, run: PipelineRunResponse) -> dict[str, str] | None:
    """Says which tasks a run has beside those of its execution.

    Args:
        config: The component's config.
        run: The run.

    Returns:
        The argument `others` of `step_engine.AwsSession.stop`; none for static pipelines, which have no others.
    """
    if run.snapshot is None or not run.snapshot.is_dynamic:
        return None
    # As the orchestration names what it starts.
    name = str(run.run_metadata.get(METADATA_EXECUTION) or "").rpartition(":")[2]
    return {"cluster": config.ecs_cluster_arn, "name": name or str(run.id)}


def stop_others(session: AwsSession, execution_arn: str, tasks: dict[str, str]) -> None:
    """Stops what an orchestration that is over has left: it may have been killed.

    Args:
        session: The session.
        execution_arn: The execution.
        tasks: See `others`.
    """
    from step_engine.errors import AwsError

    try:
        # Without waiting: they get SIGTERM, and nobody needs them.
        stopped = session.stop(execution_arn, cause="the orchestration is over", grace_seconds=0.0, others=tasks)
    except AwsError as error:
        logger.warning("Whether isolated steps still run cannot be seen: %s", error)
        return
    if left := stopped["others"]:
        logger.warning("The orchestration left these tasks running, they are being stopped: %s", ", ".join(left))


def submit(
    orchestrator: StepFunctionsOrchestrator,
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    run: PipelineRunResponse,
    *,
    stack: Stack,
    environment: dict[str, str],
) -> SubmissionResult:
    """Runs a dynamic pipeline, or goes on with one.

    Args:
        orchestrator: The component.
        session: The session.
        snapshot: The snapshot.
        run: The run as ZenML created it, or one that is resumed.
        stack: The stack.
        environment: Environment of the orchestration. Not changed.

    Returns:
        The run's metadata, and how to watch it.

    Raises:
        RuntimeError: What is left of the run before cannot be stopped.
    """
    from orchestrator import aws_submission
    from orchestrator.dynamic_publishing import DynamicRunPublisher

    aws_submission.check(orchestrator)
    config, publisher = orchestrator.config, DynamicRunPublisher(run.id, orchestrator.id)
    orchestrator_run_id = run.orchestrator_run_id or str(run.id)
    name = execution_name(run)
    tasks = {"cluster": config.ecs_cluster_arn, "name": name}
    if run.orchestrator_run_id is not None:
        _set_aside(orchestrator, session, run)
        publisher.fail_unfinished()
    given = parts(
        snapshot,
        environment=environment,
        settings=lambda described: aws_submission.settings_of(orchestrator, described),
        image=lambda step: orchestrator.get_image(snapshot=snapshot, step_name=step),
        stack=stack,
    )
    deployment = deploy(session, snapshot, given, config=config, component_id=orchestrator.id)
    for arn in deployment.created:
        logger.info("Created %s", arn)
    return aws_submission.launch(
        orchestrator,
        session,
        snapshot,
        deployment,
        run=run,
        publisher=publisher,
        orchestrator_run_id=orchestrator_run_id,
        name=name,
        execution_input=lambda secret: execution_input(snapshot.id, secret, run.id, orchestrator_run_id),
        step_names=[LEADER],
        others=tasks,
        at_end=lambda arn: stop_others(session, arn, tasks),
    )


def seconds_to_end(config: StepFunctionsOrchestratorConfig) -> float:
    """Says how long tasks that are stopped are waited for.

    Args:
        config: The component's config.

    Returns:
        Their grace; at least what ECS leaves them, for one that gets no grace needs its time to end all the same.
    """
    return max(config.stop_grace_seconds or 0, GRACE_SECONDS)


def _set_aside(orchestrator: StepFunctionsOrchestrator, session: AwsSession, run: PipelineRunResponse) -> None:
    """Two orchestrations of a run must not be, and what a dead one left has nobody to ask."""
    from step_engine.errors import AwsError

    from orchestrator.aws_submission import forget_secret

    arn, config = str(run.run_metadata.get(METADATA_EXECUTION) or ""), orchestrator.config
    if not arn:
        return
    grace = seconds_to_end(config)
    try:
        tasks = others(config, run)
        stopped = session.stop(arn, cause="the run is resumed", grace_seconds=grace * 2, others=tasks)
        if left := stopped["left_running"]:
            raise RuntimeError(f"These tasks of the run are still stopping, try again: {', '.join(left)}")
    except AwsError as error:
        # AWS keeps executions for 90 days.
        if error.code != "ExecutionDoesNotExist":
            raise
    # Perhaps nobody watched to its end.
    forget_secret(config, session, aws_secrets.run_secret_name(config.secrets_prefix, arn.rpartition(":")[2]))
