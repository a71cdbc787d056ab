"""From a snapshot to a state machine that stands ready: secrets, task definitions, machines.

What exists already is found by its content and made only once, so that another run of an unchanged pipeline makes
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zenml.logger import get_logger

from orchestrator import aws_cost, aws_plan, aws_secrets
from orchestrator.plan import build_plan

if TYPE_CHECKING:
    from step_engine import AwsSession
    from zenml.models import PipelineSnapshotResponse

    from orchestrator.my_aws_orchestrator_flavor import (
        StepFunctionsOrchestratorConfig,
        StepFunctionsOrchestratorSettings,
    )

logger = get_logger(__name__)


@dataclass
class Deployment:
    """A pipeline that can be started.

    Attributes:
        machine_arn: The root machine.
        plan: What it was compiled from.
        run_secrets: Environment that is new for each run.
        estimated_dollars: Price of a run, none when it does not run on Fargate.
        created: ARNs of machines and task definitions that were made.
    """

    machine_arn: str
    plan: dict[str, Any]
    run_secrets: dict[str, str]
    estimated_dollars: float | None
    created: list[str]


def deploy(
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    *,
    config: StepFunctionsOrchestratorConfig,
    settings: StepFunctionsOrchestratorSettings,
    step_settings: Mapping[str, StepFunctionsOrchestratorSettings],
    step_environments: Mapping[str, Mapping[str, str]],
    image: Callable[[str], str],
    bucket: str | None,
    component_id: object,
    expected_seconds: Mapping[str, float],
) -> Deployment:
    """Makes everything that a run of a pipeline needs, except what is new for each run.

    Args:
        session: The session.
        snapshot: The snapshot, pruned of cached steps.
        config: The component's config.
        settings: Settings of the pipeline.
        step_settings: Settings of every step.
        step_environments: Environment of every step. Not changed.
        image: Gives a step's image.
        bucket: Bucket of the artifact store; none if it is not in S3.
        component_id: Id of the component.
        expected_seconds: Durations of earlier runs.

    Returns:
        The deployment.

    Raises:
        AwsError: AWS refused something.
        AslError: The pipeline cannot become a state machine.
        PlanError: A setting is wrong.
    """
    from step_engine import compile_asl

    durations = aws_plan.steady_seconds(expected_seconds, settings.synchronization, settings.max_parallelism)
    # The plan must not know the run: equal pipelines make equal machines.
    plan = build_plan(snapshot, "", settings.max_parallelism, step_settings, durations)

    def options(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return aws_plan.asl_options(
            snapshot,
            config=config,
            settings=settings,
            step_settings=step_settings,
            task_definitions=definitions,
            bucket=bucket,
        )

    # Compiled once before anything is made, for the sizes of the tasks and for what is wrong with the pipeline.
    unknown = {"arn": "unknown", "container_name": config.container_name or "unknown"}
    draft = compile_asl(plan, options(dict.fromkeys(snapshot.step_configurations, unknown)))["report"]
    sizes = {size["step"]: size for size in draft["sizes"]}
    environments = {
        name: aws_plan.step_environment(step_environments[name], step_settings[name])
        for name in snapshot.step_configurations
    }
    secrets = keep_secrets(session, config, environments, component_id)
    definitions: dict[str, dict[str, Any]] = {}
    known: dict[str, dict[str, Any]] = {}
    for step in plan["steps"]:
        name, environment = step["name"], environments[step["name"]]
        overlay = aws_plan.overlay(
            image=image(name),
            settings=step_settings[name],
            config=config,
            environment=environment.plain | (environment.stable if config.secrets_backend == "none" else {}),
            secrets={key: secrets[key, value] for key, value in environment.stable.items() if (key, value) in secrets},
            size=aws_plan.task_size(step["resources"], sizes.get(name)),
            gpus=step["resources"]["gpus"],
        )
        content = json.dumps(overlay, sort_keys=True)
        if content not in known:
            known[content] = session.ensure_task_definition(config.ecs_task_definition_arn, overlay)
        definitions[name] = known[content]
    compiled = compile_asl(plan, options(definitions))
    deployed = session.deploy(
        compiled["machines"],
        role_arn=config.state_machine_role or config.execution_role,
        tags=settings.tags,
        log_group_arn=config.state_machine_log_group_arn,
    )
    report = compiled["report"]
    on_fargate = len(report["sizes"]) == len(plan["steps"])
    # Read before, for the task definitions.
    template = session.describe_task_definition(config.ecs_task_definition_arn)["taskDefinition"]
    billed = aws_plan.billed_sizes(plan["steps"], report["sizes"], template) if on_fargate else None
    return Deployment(
        machine_arn=deployed["arn"],
        plan=plan,
        run_secrets={key: value for part in environments.values() for key, value in part.run.items()},
        estimated_dollars=(
            None if billed is None else aws_cost.estimate_dollars(billed, expected_seconds, report["dollars_per_run"])
        ),
        created=[*(made["arn"] for made in known.values() if made["created"]), *deployed["created"]],
    )


def keep_secrets(
    session: AwsSession,
    config: StepFunctionsOrchestratorConfig,
    environments: Mapping[str, aws_secrets.Environment],
    component_id: object,
) -> dict[tuple[str, str], str]:
    """Stores what does not change between runs, each value once.

    Args:
        session: The session.
        config: The component's config.
        environments: Environment of every step.
        component_id: Id of the component.

    Returns:
        Where each is found, by variable and value; empty without a backend.
    """
    if config.secrets_backend == "none":
        return {}
    values = {item for environment in environments.values() for item in environment.stable.items()}
    return {
        (name, value): session.put_secret(
            config.secrets_backend,
            aws_secrets.stable_secret_name(config.secrets_prefix, component_id, name, value),
            value,
            tags={"step-engine": "secret"},
            kms_key=config.kms_key,
            overwrite=False,
        )
        for name, value in sorted(values)
    }


def collect(session: AwsSession, config: StepFunctionsOrchestratorConfig, pipeline: str) -> None:
    """Removes machines and task definitions that newer ones have taken the place of.

    Args:
        session: The session.
        config: The component's config.
        pipeline: Name of the pipeline, fit for state machines.
    """
    from step_engine.errors import AwsError

    try:
        session.collect_machines(pipeline, keep=config.keep_state_machines)
        session.collect_task_definitions(config.ecs_task_definition_arn, keep=config.keep_task_definitions)
    except AwsError as error:
        # Tidiness is no reason to fail; not everybody may delete.
        logger.debug("Old state machines and task definitions stay: %s", error)
