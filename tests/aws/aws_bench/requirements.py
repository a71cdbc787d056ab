"""What a call needs to be allowed to do: actions, the ARNs they are done to, and the condition keys that count."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moto.ecs.exceptions import TaskDefinitionNotFoundException
from moto.ecs.models import ecs_backends

from aws_bench.settings import ACCOUNT

if TYPE_CHECKING:
    from aws_bench.wire import Call

TASKS, STATES, SCHEDULER = "ecs-tasks.amazonaws.com", "states.amazonaws.com", "scheduler.amazonaws.com"
# Actions of which AWS knows no resource, so that a policy has to say "*".
WITHOUT_RESOURCE = frozenset(
    [
        "ecs:RegisterTaskDefinition",
        "ecs:DeregisterTaskDefinition",
        "ecs:DescribeTaskDefinition",
        "ecs:ListTaskDefinitions",
        "ecs:ListTaskDefinitionFamilies",
        "ecs:ListClusters",
        "ecs:CreateCluster",
        "ecr:GetAuthorizationToken",
        "states:ListStateMachines",
        "states:ValidateStateMachineDefinition",
        "states:SendTaskSuccess",
        "states:SendTaskFailure",
        "states:SendTaskHeartbeat",
        "secretsmanager:ListSecrets",
        "s3:ListAllMyBuckets",
    ]
)


@dataclass(frozen=True)
class Need:
    """One thing that has to be allowed."""

    action: str
    resource: str
    context: dict[str, Any] = field(default_factory=dict)


def of(call: Call) -> list[Need]:
    """Says what a call needs.

    Args:
        call: The call.

    Returns:
        Everything that has to be allowed, in the order in which AWS complains.
    """
    if call.name in WITHOUT_RESOURCE or call.service == "ec2":
        needs = [Need(call.name, "*")]
    else:
        find = globals().get(f"_{call.service}", lambda _: "*")
        found = find(call)
        needs = [Need(call.name, arn, _context(call)) for arn in (found if isinstance(found, list) else [found or "*"])]
    return [*needs, *_tagging(call), *_passing(call)]


def managed_rules(call: Call) -> list[str]:
    """The EventBridge rules that Step Functions makes with the role of a machine, as ARNs."""
    definition, rules = call.parameters.get("definition") or "", []
    if "ecs:runTask.sync" in definition:
        rules.append("StepFunctionsGetEventsForECSTaskRule")
    if "states:startExecution.sync" in definition:
        rules.append("StepFunctionsGetEventsForStepFunctionsExecutionRule")
    return [_arn(call, "events", f"rule/{rule}") for rule in rules]


def _arn(call: Call, service: str, rest: str) -> str:
    return f"arn:aws:{service}:{call.region}:{ACCOUNT}:{rest}"


def _context(call: Call) -> dict[str, Any]:
    context: dict[str, Any] = {}
    if call.service == "s3" and call.action == "ListBucket":
        context["s3:prefix"] = call.parameters["Prefix"]
    if call.service == "ecs" and call.parameters.get("cluster"):
        context["ecs:cluster"] = _cluster(call)
    tags = call.parameters.get("tags") or call.parameters.get("Tags") or []
    if isinstance(tags, list):
        for tag in tags:
            context[f"aws:RequestTag/{tag.get('key', tag.get('Key'))}"] = tag.get("value", tag.get("Value"))
        if tags:
            context["aws:TagKeys"] = [tag.get("key", tag.get("Key")) for tag in tags]
    return context


def _tagging(call: Call) -> list[Need]:
    """Tags given at creation need the action that tags."""
    if not (call.parameters.get("tags") or call.parameters.get("Tags")):
        return []
    where = {
        "ecs:RunTask": ("ecs:TagResource", _arn(call, "ecs", f"task/{_cluster(call).rsplit('/', 1)[-1]}/*")),
        "ecs:RegisterTaskDefinition": (
            "ecs:TagResource",
            _arn(call, "ecs", f"task-definition/{call.parameters.get('family')}:*"),
        ),
        "states:CreateStateMachine": (
            "states:TagResource",
            _arn(call, "states", f"stateMachine:{call.parameters.get('name')}"),
        ),
        "secretsmanager:CreateSecret": ("secretsmanager:TagResource", _secretsmanager(call)),
        "ssm:PutParameter": ("ssm:AddTagsToResource", _ssm(call)),
        "logs:CreateLogGroup": ("logs:TagResource", _logs(call)),
    }
    return [Need(*where[call.name], context=_context(call))] if call.name in where else []


def _passing(call: Call) -> list[Need]:
    """Roles that the caller gives to a service."""
    given, roles, service = call.parameters, [], TASKS
    if call.name == "ecs:RegisterTaskDefinition":
        roles = [given.get("taskRoleArn"), given.get("executionRoleArn")]
    elif call.name == "ecs:RunTask":
        definition, overrides = _definition(call), given.get("overrides") or {}
        roles = [
            overrides.get("taskRoleArn") or getattr(definition, "task_role_arn", None),
            overrides.get("executionRoleArn") or getattr(definition, "execution_role_arn", None),
        ]
    elif call.name in ("states:CreateStateMachine", "states:UpdateStateMachine"):
        roles, service = [given.get("roleArn")], STATES
    elif call.name in ("scheduler:CreateSchedule", "scheduler:UpdateSchedule"):
        roles, service = [(given.get("Target") or {}).get("RoleArn")], SCHEDULER
    return [Need("iam:PassRole", role, {"iam:PassedToService": service}) for role in roles if role]


def _cluster(call: Call) -> str:
    name = (call.parameters.get("cluster") or "default").rsplit("/", 1)[-1]
    return _arn(call, "ecs", f"cluster/{name}")


def _definition(call: Call) -> Any:
    try:
        return ecs_backends[ACCOUNT][call.region].describe_task_definition(call.parameters.get("taskDefinition", ""))
    except TaskDefinitionNotFoundException:
        return None


def _ecs(call: Call) -> str | list[str]:
    given, cluster = call.parameters, _cluster(call)
    if call.action == "RunTask":
        definition = _definition(call)
        if definition is not None:
            return definition.arn
        return _arn(call, "ecs", f"task-definition/{str(given.get('taskDefinition')).rsplit('/', 1)[-1]}")
    if call.action in ("StopTask", "DescribeTasks"):
        names = given.get("tasks") or [given.get("task") or "*"]
        return [
            name if name.startswith("arn:") else f"{cluster.replace(':cluster/', ':task/')}/{name}" for name in names
        ]
    if call.action == "DescribeClusters":
        return [
            name if name.startswith("arn:") else _arn(call, "ecs", f"cluster/{name}")
            for name in given.get("clusters") or ["default"]
        ]
    if call.action == "ListTasks":
        return cluster.replace(":cluster/", ":container-instance/") + "/*"
    return given.get("resourceArn") or cluster


def _states(call: Call) -> str:
    given = call.parameters
    arn = given.get("stateMachineArn") or given.get("executionArn") or given.get("resourceArn")
    arn = arn or given.get("stateMachineVersionArn")
    return arn or _arn(call, "states", f"stateMachine:{given.get('name', '*')}")


def _logs(call: Call) -> str:
    group, stream = call.parameters.get("logGroupName"), call.parameters.get("logStreamName")
    if call.action == "DescribeLogGroups" or not group:
        return _arn(call, "logs", "log-group:*") if call.action == "DescribeLogGroups" else "*"
    rest = f"log-stream:{stream}" if stream and call.action != "FilterLogEvents" else "*"
    return _arn(call, "logs", f"log-group:{group}:{rest}")


def _events(call: Call) -> str:
    return _arn(call, "events", f"rule/{call.parameters.get('Name') or call.parameters.get('Rule') or '*'}")


def _scheduler(call: Call) -> str:
    given = call.parameters
    group = given.get("GroupName") or given.get("groupName") or "default"
    if "Group" in call.action:
        return _arn(call, "scheduler", f"schedule-group/{given.get('Name', '*')}")
    return _arn(call, "scheduler", f"schedule/{group}/{given.get('Name', '*')}")


def _secretsmanager(call: Call) -> str:
    name = call.parameters.get("SecretId") or call.parameters.get("Name") or "*"
    # A name, without the six characters that AWS adds, matches a policy that ends with "-??????" or "*".
    return name if name.startswith("arn:") else _arn(call, "secretsmanager", f"secret:{name}-AbCdEf")


def _ssm(call: Call) -> str | list[str]:
    names = call.parameters.get("Names") or [call.parameters.get("Name") or call.parameters.get("Path") or "*"]
    return [_arn(call, "ssm", f"parameter/{re.sub('^.*:parameter', '', name).lstrip('/')}") for name in names]


def _ecr(call: Call) -> str | list[str]:
    given = call.parameters
    names = given.get("repositoryNames") or [given.get("repositoryName") or "*"]
    return [_arn(call, "ecr", f"repository/{name}") for name in names]


def _s3(call: Call) -> str:
    bucket, key = call.parameters["Bucket"], call.parameters["Key"]
    return f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"


def _iam(call: Call) -> str:
    given = call.parameters
    if given.get("PolicySourceArn"):
        return given["PolicySourceArn"]
    if given.get("RoleName"):
        return f"arn:aws:iam::{ACCOUNT}:role/{given['RoleName']}"
    return f"arn:aws:iam::{ACCOUNT}:user/{given['UserName']}" if given.get("UserName") else "*"


def _sts(call: Call) -> str:
    return call.parameters.get("RoleArn", "*")


def _cloudformation(call: Call) -> str:
    return _arn(call, "cloudformation", f"stack/{call.parameters.get('StackName', '*')}/*")


def parse_simulation(parameters: dict[str, Any]) -> tuple[str, list[str], list[str], dict[str, Any]]:
    """Reads the form of a SimulatePrincipalPolicy.

    Args:
        parameters: The form's fields.

    Returns:
        The principal's ARN, the actions, the resources and the context.
    """

    def members(prefix: str) -> list[str]:
        found = [(key, value) for key, value in parameters.items() if re.fullmatch(rf"{prefix}\.member\.\d+", key)]
        return [value for _, value in sorted(found, key=lambda pair: int(pair[0].rsplit(".", 1)[1]))]

    context: dict[str, Any] = {}
    index = 1
    while f"ContextEntries.member.{index}.ContextKeyName" in parameters:
        base = f"ContextEntries.member.{index}"
        context[parameters[f"{base}.ContextKeyName"]] = [
            value for key, value in parameters.items() if key.startswith(f"{base}.ContextKeyValues.member.")
        ]
        index += 1
    return parameters["PolicySourceArn"], members("ActionNames"), members("ResourceArns") or ["*"], context
