"""Which statements the policies of the roles and of the client need.

`infra/aws/step-engine.yaml` has the same ones, except the right to make a log group: it makes one itself.
"""

from __future__ import annotations

from typing import Any

from step_engine.doctor.target import Statement, Target

TASKS, STATES, SCHEDULER = "ecs-tasks.amazonaws.com", "states.amazonaws.com", "scheduler.amazonaws.com"


def passing(service: str) -> dict[str, Any]:
    """Writes the condition under which a role may be passed.

    Args:
        service: To whom.

    Returns:
        The condition.
    """
    return {"StringEquals": {"iam:PassedToService": service}}


def of_execution_role(target: Target, log_group: str | None, *, makes_group: bool = False) -> list[Statement]:
    """Says what ECS does with the execution role.

    Args:
        target: The stack.
        log_group: Log group of the steps, if there is one.
        makes_group: Whether the first task is to make it.

    Returns:
        Statements.
    """
    statements = []
    if ".dkr.ecr." in target.registry:
        pull = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
        statements = [
            Statement("LogInToRegistry", ("ecr:GetAuthorizationToken",), ("*",)),
            Statement("PullImages", pull, (target.arn("ecr", f"repository/{target.repository}"),)),
        ]
    if log_group:
        group = target.arn("logs", f"log-group:{log_group}:*")
        stream = group.removesuffix("*") + "log-stream:example"
        write = ("logs:CreateLogStream", "logs:PutLogEvents")
        statements.append(Statement("WriteLogs", write, (group,), probes=(stream,)))
        if makes_group:
            itself = group.removesuffix(":*")
            statements.append(Statement("MakeLogGroup", ("logs:CreateLogGroup",), (itself, group), probes=(itself,)))
    return [*statements, *_reading(target, "ReadEnvironment", "GetParameters", "environment")]


def of_task_role(target: Target, task_roles: tuple[str, ...]) -> list[Statement]:
    """Says what the steps do with their role.

    Args:
        target: The stack.
        task_roles: The roles that tasks are given.

    Returns:
        Statements. Without the last three, dynamic pipelines have no isolated steps.
    """
    cluster = target.arn("ecs", f"cluster/{target.cluster_name}")
    here, context = {"ArnEquals": {"ecs:cluster": cluster}}, {"ecs:cluster": cluster}
    without = "dynamic pipelines have no isolated steps"
    derived = target.arn("ecs", f"task-definition/{target.family}-se-*:*")
    tasks = target.arn("ecs", f"task/{target.cluster_name}/*")
    return [
        *_artifacts(target),
        *_reading(target, "ReadRunSecret", "GetParameter", "runs", "schedules"),
        Statement("RunIsolatedSteps", ("ecs:RunTask",), (derived,), here, context=context, without=without),
        Statement(
            *("FollowIsolatedSteps", ("ecs:DescribeTasks", "ecs:StopTask"), (tasks,), here),
            context=context,
            without=without,
        ),
        Statement(
            *("PassTaskRoles", ("iam:PassRole",), task_roles, passing(TASKS)),
            context={"iam:PassedToService": TASKS},
            without=without,
        ),
    ]


def of_state_machine_role(target: Target, task_roles: tuple[str, ...]) -> list[Statement]:
    """Says what Step Functions does with the role of the machines, for any pipeline.

    Args:
        target: The stack.
        task_roles: The roles that tasks are given.

    Returns:
        Statements. `step-engine asl --format policy` has those of one pipeline.
    """
    bucket, keys = f"arn:{target.partition}:s3:::{target.bucket}", f"{target.signals_prefix}/*"
    task = target.arn("ecs", f"task/{target.cluster_name}/example")
    rule = "rule/StepFunctionsGetEventsFor"
    statements = [
        Statement(
            "RunTasks",
            ("ecs:RunTask",),
            (target.arn("ecs", f"task-definition/{target.family}*:*"),),
            context={"ecs:cluster": target.arn("ecs", f"cluster/{target.cluster_name}")},
        ),
        Statement("WatchAndStopTasks", ("ecs:StopTask", "ecs:DescribeTasks"), ("*",), probes=(task,)),
        Statement("TagTasks", ("ecs:TagResource",), (target.arn("ecs", "task/*"),), probes=(task,)),
        Statement(
            "PassTaskRoles", ("iam:PassRole",), task_roles, passing(TASKS), context={"iam:PassedToService": TASKS}
        ),
    ]
    if target.bucket:
        see = {"StringLike": {"s3:prefix": [keys]}}
        key = {"s3:prefix": f"{target.signals_prefix}/example"}
        statements += [
            Statement("ExchangeSignals", ("s3:GetObject", "s3:PutObject"), (f"{bucket}/{keys}",)),
            Statement("SeeMissingSignals", ("s3:ListBucket",), (bucket,), see, context=key),
            Statement("ReleaseWaiters", ("states:SendTaskSuccess",), ("*",)),
        ]
    return [
        *statements,
        Statement("StartMachines", ("states:StartExecution",), (target.arn("states", "stateMachine:*"),)),
        Statement(
            "WatchAndStopMachines",
            ("states:DescribeExecution", "states:StopExecution"),
            (target.arn("states", "execution:*"),),
            probes=(target.arn("states", "execution:example:example"),),
        ),
        Statement(
            "ManagedRules",
            ("events:PutTargets", "events:PutRule", "events:DescribeRule"),
            (
                target.arn("events", f"{rule}ECSTaskRule"),
                target.arn("events", f"{rule}StepFunctionsExecutionRule"),
            ),
        ),
    ]


def of_scheduler_role(target: Target) -> list[Statement]:
    """Says what EventBridge Scheduler does with its role.

    Args:
        target: The stack.

    Returns:
        Statements.
    """
    machines = (target.arn("states", "stateMachine:*"),)
    return [Statement("StartScheduledRuns", ("states:StartExecution",), machines)]


def of_client(
    target: Target, task_roles: tuple[str, ...], machine_role: str, scheduler_role: str, log_group: str | None
) -> list[Statement]:
    """Says what `python run.py` calls.

    Args:
        target: The stack.
        task_roles: The roles that tasks are given.
        machine_role: The role that machines take.
        scheduler_role: The role that the scheduler takes.
        log_group: Log group of the steps, if there is one.

    Returns:
        Statements.
    """
    machines, executions = target.arn("states", "stateMachine:*"), target.arn("states", "execution:*")
    cluster = target.arn("ecs", f"cluster/{target.cluster_name}")
    define = (
        "RegisterTaskDefinition",
        "DeregisterTaskDefinition",
        "DescribeTaskDefinition",
        "ListTaskDefinitionFamilies",
    )
    deploy = ("Create", "Update", "Delete", "Describe")
    statements = [
        Statement("RegisterTaskDefinitions", tuple(f"ecs:{name}" for name in define), ("*",)),
        Statement(
            "TagTaskDefinitions", ("ecs:TagResource",), (target.arn("ecs", f"task-definition/{target.family}*:*"),)
        ),
        Statement(
            "FollowTasks", ("ecs:DescribeTasks", "ecs:StopTask"), (target.arn("ecs", f"task/{target.cluster_name}/*"),)
        ),
        Statement(
            "FindTasks",
            ("ecs:ListTasks",),
            ("*",),
            {"ArnEquals": {"ecs:cluster": cluster}},
            context={"ecs:cluster": cluster},
            without="isolated steps of dynamic pipelines are neither shown nor stopped with their run",
        ),
        Statement(
            "PassTaskRoles", ("iam:PassRole",), task_roles, passing(TASKS), context={"iam:PassedToService": TASKS}
        ),
        Statement(
            "PassStateMachineRole",
            ("iam:PassRole",),
            (machine_role,),
            passing(STATES),
            context={"iam:PassedToService": STATES},
        ),
        Statement(
            "PassSchedulerRole",
            ("iam:PassRole",),
            (scheduler_role,),
            passing(SCHEDULER),
            context={"iam:PassedToService": SCHEDULER},
        ),
        Statement(
            "DeployMachines",
            (
                *(f"states:{verb}StateMachine" for verb in deploy),
                *("states:TagResource", "states:ListTagsForResource", "states:StartExecution", "states:ListExecutions"),
            ),
            (machines,),
        ),
        Statement("ListMachines", ("states:ListStateMachines",), ("*",)),
        Statement(
            "FollowRuns",
            ("states:DescribeExecution", "states:GetExecutionHistory", "states:StopExecution"),
            (executions,),
            probes=(executions.removesuffix("*") + "example:example",),
        ),
    ]
    if log_group:
        group = target.arn("logs", f"log-group:{log_group}:*")
        stream = group.removesuffix("*") + "log-stream:example"
        statements.append(Statement("ReadLogs", ("logs:GetLogEvents",), (group,), probes=(stream,)))
    keep = tuple(f"scheduler:{verb}Schedule" for verb in ("Create", "Update", "Get", "Delete"))
    schedule = (target.arn("scheduler", "schedule/default/example"),)
    statements += [
        Statement("KeepSchedules", keep, (target.arn("scheduler", "schedule/*"),), probes=schedule),
        Statement("ListSchedules", ("scheduler:ListSchedules",), ("*",)),
        *_keeping(target),
        *_artifacts(target),
    ]
    if ".dkr.ecr." in target.registry:
        push = (
            *("BatchCheckLayerAvailability", "BatchGetImage", "CompleteLayerUpload", "DescribeImages"),
            *("GetDownloadUrlForLayer", "InitiateLayerUpload", "ListImages", "PutImage", "UploadLayerPart"),
        )
        repository = (target.arn("ecr", f"repository/{target.repository}"),)
        statements += [
            Statement("LogInToRegistry", ("ecr:GetAuthorizationToken",), ("*",)),
            Statement("PushImages", tuple(f"ecr:{name}" for name in push), repository),
        ]
    return statements


def _artifacts(target: Target) -> list[Statement]:
    if not target.bucket:
        return []
    bucket = f"arn:{target.partition}:s3:::{target.bucket}"
    keep = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
    return [
        Statement("FindArtifacts", ("s3:ListBucket", "s3:GetBucketLocation"), (bucket,)),
        Statement("KeepArtifacts", keep, (f"{bucket}/*",)),
    ]


def _secret(target: Target, rest: str) -> str:
    if target.secrets_backend == "ssm":
        return target.arn("ssm", f"parameter/{target.secrets_prefix}/{rest}")
    return target.arn("secretsmanager", f"secret:{target.secrets_prefix}/{rest}")


def _reading(target: Target, sid: str, ssm_action: str, *folders: str) -> list[Statement]:
    if target.secrets_backend == "none":
        return []
    action = f"ssm:{ssm_action}" if target.secrets_backend == "ssm" else "secretsmanager:GetSecretValue"
    return [Statement(sid, (action,), tuple(_secret(target, f"{folder}/*") for folder in folders))]


def _keeping(target: Target) -> list[Statement]:
    if target.secrets_backend == "none":
        return []
    if target.secrets_backend == "ssm":
        actions = ("ssm:PutParameter", "ssm:DeleteParameter", "ssm:AddTagsToResource")
    else:
        verbs = ("CreateSecret", "PutSecretValue", "DescribeSecret", "DeleteSecret", "RestoreSecret", "TagResource")
        actions = tuple(f"secretsmanager:{verb}" for verb in verbs)
    return [Statement("KeepSecrets", actions, (_secret(target, "*"),))]
