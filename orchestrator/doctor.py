"""From a ZenML stack to what `step-engine doctor` looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from step_engine.doctor import Target


def target_of(stack_name: str) -> tuple[Target, dict[str, Any] | None, str | None]:
    """Reads a stack.

    Args:
        stack_name: Name or id of the stack.

    Returns:
        What it uses in AWS, the credentials of its service connector or config, and the profile in its config.

    Raises:
        PlanError: There is no such stack, or it has another orchestrator.
    """
    from step_engine.doctor import Target
    from step_engine.errors import PlanError
    from zenml.client import Client
    from zenml.stack import Stack

    from orchestrator.container.isolated import uses_fargate
    from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator

    try:
        stack = Stack.from_model(Client().get_stack(stack_name))
    except KeyError as error:
        raise PlanError(f"There is no stack `{stack_name}`: `zenml stack list` shows those there are.") from error
    orchestrator = stack.orchestrator
    if not isinstance(orchestrator, StepFunctionsOrchestrator):
        raise PlanError(
            f"The stack `{stack_name}` runs pipelines elsewhere: its orchestrator is `{orchestrator.flavor}`."
        )
    config, registry = orchestrator.config, stack.container_registry
    path = stack.artifact_store.path
    target = Target(
        region=config.region,
        account_id=config.account_id,
        cluster=config.ecs_cluster_arn,
        task_definition=config.ecs_task_definition_arn,
        execution_role=config.execution_role,
        subnet_ids=tuple(config.subnet_ids),
        security_group_ids=tuple(config.security_group_ids),
        bucket=path.removeprefix("s3://").split("/", 1)[0] if path.startswith("s3://") else "",
        registry=registry.config.uri if registry else "",
        repository=(registry.config.default_repository if registry else None) or "zenml",
        task_role=config.task_role,
        state_machine_role=config.state_machine_role,
        scheduler_role=config.scheduler_role,
        log_group=config.log_group,
        secrets_backend=config.secrets_backend,
        secrets_prefix=config.secrets_prefix,
        signals_prefix=config.signals_prefix,
        assign_public_ip=config.assign_public_ip,
        container_name=config.container_name,
        fargate=uses_fargate(config),
    )
    return target, orchestrator._credentials(), config.aws_profile
