"""What CloudFormation makes is what the services make: moto drops parts of task definitions, policies and routes.

A change set, which is how `aws cloudformation deploy` works, gives a stack its outputs, too. `AWS::NoValue` in a list leaves nothing there.
"""

from __future__ import annotations

import json
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.models import ChangeSet, OutputMap
from moto.core.utils import pascal_to_camelcase, remap_nested_keys
from moto.ec2.models.subnets import SubnetBackend, SubnetRouteTableAssociation
from moto.ecs.models import TaskDefinition, ecs_backends
from moto.iam.models import Role


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


def put_policy(self: Role, policy_name: str, policy_json: Any) -> None:
    """From a template the document comes as it is, and would be answered as Python writes it."""
    text = policy_json if isinstance(policy_json, str) else json.dumps(policy_json)
    self.policies[policy_name] = text


def create_subnet_association(self: Any, route_table_id: str, subnet_id: str) -> SubnetRouteTableAssociation:
    """Also tells the route table, which is what is asked later."""
    self.associate_route_table(route_table_id, subnet_id=subnet_id)
    return SubnetRouteTableAssociation(route_table_id, subnet_id)


_apply = ChangeSet.apply


def apply(self: ChangeSet) -> None:
    """moto leaves a stack the outputs that it had without a template, which is none."""
    _apply(self)
    self.stack.output_map = OutputMap(self.stack.resource_map, self.template_dict, self.stack_id)


_clean_json = parsing.clean_json


def clean_json(resource_json: Any, resources_map: Any) -> Any:
    """moto leaves a hole, in which a policy cannot be evaluated. It calls this for each part of a template."""
    cleaned = _clean_json(resource_json, resources_map)
    return [value for value in cleaned if value is not None] if isinstance(cleaned, list) else cleaned


parsing.clean_json = clean_json
ChangeSet.apply = apply
Role.put_policy = put_policy
SubnetBackend.create_subnet_association = create_subnet_association
