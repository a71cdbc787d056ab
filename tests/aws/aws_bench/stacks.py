"""CloudFormation makes task definitions as ECS does; moto drops their size, network mode, roles and compatibilities."""

from __future__ import annotations

from typing import Any

from moto.core.utils import pascal_to_camelcase, remap_nested_keys
from moto.ecs.models import TaskDefinition, ecs_backends


def create_task_definition(
    cls: type[TaskDefinition],
    resource_name: str,
    cloudformation_json: dict[str, Any],
    account_id: str,
    region_name: str,
    **_: Any,
) -> TaskDefinition:
    """Replaces moto's way from a template to a task definition."""
    given = cloudformation_json["Properties"]

    def nested(name: str) -> Any:
        return remap_nested_keys(given.get(name, []), pascal_to_camelcase)

    containers = nested("ContainerDefinitions")
    for original, container in zip(given.get("ContainerDefinitions", []), containers, strict=True):
        options = (original.get("LogConfiguration") or {}).get("Options")
        if options:
            # The keys of a map are the user's.
            container["logConfiguration"]["options"] = options
    return ecs_backends[account_id][region_name].register_task_definition(
        family=given.get("Family", resource_name),
        container_definitions=containers,
        volumes=nested("Volumes"),
        cpu=str(given["Cpu"]) if "Cpu" in given else None,
        memory=str(given["Memory"]) if "Memory" in given else None,
        network_mode=given.get("NetworkMode"),
        requires_compatibilities=given.get("RequiresCompatibilities"),
        execution_role_arn=given.get("ExecutionRoleArn"),
        task_role_arn=given.get("TaskRoleArn"),
        runtime_platform=remap_nested_keys(given["RuntimePlatform"], pascal_to_camelcase)
        if "RuntimePlatform" in given
        else None,
        tags=nested("Tags"),
    )


TaskDefinition.create_from_cloudformation_json = classmethod(create_task_definition)
