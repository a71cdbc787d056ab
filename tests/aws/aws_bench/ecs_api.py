"""What ECS checks, and moto does not: sizes, limits, and what StopTask does."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from typing import Any

import moto.ecs.models as ecs
from moto.core.responses import ActionResult
from moto.ecs.responses import EC2ContainerServiceResponse as Response

from aws_bench import tasks

FARGATE_MEBIBYTES = {
    256: (512, 1024, 2048),
    512: range(1024, 4097, 1024),
    1024: range(2048, 8193, 1024),
    2048: range(4096, 16385, 1024),
    4096: range(8192, 30721, 1024),
    8192: range(16384, 61441, 4096),
    16384: range(32768, 122881, 8192),
}
OVERRIDES_CHARACTERS = 8192
DEFINITION_BYTES = 65536
Backend = ecs.EC2ContainerServiceBackend
_register, _run, _list = Backend.register_task_definition, Backend.run_task, Backend.list_tasks
_registering: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def register_task_definition(
    self: Backend, family: str, container_definitions: list[dict[str, Any]], **given: Any
) -> Any:
    """Refuses what ECS refuses; two at once in one family fail as they do there."""
    if "FARGATE" in (given.get("requires_compatibilities") or []):
        allowed = FARGATE_MEBIBYTES.get(int(given.get("cpu") or 0), ())
        if int(given.get("memory") or 0) not in allowed:
            raise ecs.EcsClientException("No Fargate configuration exists for given values.")
        if given.get("network_mode") != "awsvpc":
            raise ecs.EcsClientException("Fargate only supports network mode awsvpc.")
    if len(json.dumps(container_definitions)) > DEFINITION_BYTES:
        raise ecs.EcsClientException("Actual length of task definition exceeds the limit of 65536 bytes")
    lock = _registering[family]
    if not lock.acquire(blocking=False):
        raise ecs.EcsClientException("Too many concurrent attempts to create a new revision of the specified family.")
    try:
        definition = _register(self, family, container_definitions, **given)
        definition.registered_at = time.time()
        return definition
    finally:
        lock.release()


def run_task(
    self: Backend,
    cluster_str: str,
    task_definition_str: str,
    count: int,
    overrides: dict[str, Any] | None,
    *rest: Any,
    **given: Any,
) -> Any:
    """Checks the overrides and the network, which Fargate needs, before moto makes the task."""
    if len(json.dumps((overrides or {}).get("containerOverrides", []), separators=(",", ":"))) > OVERRIDES_CHARACTERS:
        raise ecs.InvalidParameterException("Container Overrides length must be at most 8192")
    definition = self.describe_task_definition(task_definition_str)
    if definition.status != "ACTIVE":
        raise ecs.EcsClientException("TaskDefinition is inactive")
    if "FARGATE" in (definition.requires_compatibilities or []):
        cpu, memory = ((overrides or {}).get(name) or getattr(definition, name) for name in ("cpu", "memory"))
        if int(memory or 0) not in FARGATE_MEBIBYTES.get(int(cpu or 0), ()):
            raise ecs.EcsClientException("No Fargate configuration exists for given values.")
    return _run(self, cluster_str, task_definition_str, count, overrides, *rest, **given)


def stop_task(self: Backend, cluster_str: str, task_str: str, reason: str) -> Any:
    """Answers at once; the task's containers get SIGTERM and, if need be, SIGKILL."""
    cluster = self._get_cluster(cluster_str)
    wanted = task_str.split("/")[-1]
    task = next((task for arn, task in self.tasks.get(cluster.name, {}).items() if arn.endswith(wanted)), None)
    if task is None:
        raise ecs.InvalidParameterException("The referenced task was not found.")
    task.stop("UserInitiated", reason or "Task stopped by user")
    return task


_answer_run = Response.run_task
_by_token: dict[tuple[str, str], tuple[str, Any]] = {}
_running = threading.Lock()


def answer_run_task(self: Response) -> Any:
    """Carries a request with a `clientToken` out once, which moto does not."""
    token = self._get_param("clientToken")
    if not token:
        return _answer_run(self)
    key = (self._get_param("cluster", "default").rsplit("/", 1)[-1], token)
    asked = json.dumps([self._get_param(name) for name in ("taskDefinition", "overrides", "startedBy")], sort_keys=True)
    with _running:
        before = _by_token.get(key)
        if before is not None and before[0] != asked:
            raise ecs.EcsClientException("The clientToken is already in use with a different RunTask request.")
        if before is None:
            before = _by_token[key] = asked, _answer_run(self).result["tasks"]
        return ActionResult({"tasks": before[1], "failures": []})


_describe = Response.describe_tasks


def describe_tasks(self: Response) -> Any:
    """Says which tasks there are none of; moto leaves them out without a word."""
    answer = _describe(self)
    found = {task.id for task in answer.result["tasks"]}
    wanted = self._get_param("tasks", [])
    missing = [name for name in wanted if name.rsplit("/", 1)[-1] not in found]
    answer.result["failures"] = [{"arn": name, "reason": "MISSING"} for name in missing]
    return answer


def find_task(identifier: str) -> tasks.DockerTask | None:
    """Finds a task by the last part of its ARN, in every region.

    Args:
        identifier: The id, or the ARN.

    Returns:
        The task, if there is one.
    """
    for backends in ecs.ecs_backends.values():
        for backend in backends.values():
            for of_cluster in backend.tasks.values():
                for arn, task in of_cluster.items():
                    if arn.endswith(identifier.split("/")[-1]):
                        return task
    return None


def list_tasks(self: Backend, *given: Any) -> Any:
    """ECS lists tasks that are to run unless it is asked for those that are not; moto lists all of them."""
    if not given:
        # moto itself asks, for all.
        return _list(self)
    *others, desired_status = given
    return _list(self, *others, desired_status or "RUNNING")


Backend.list_tasks = list_tasks
Backend.register_task_definition = register_task_definition
Backend.run_task = run_task
Backend.stop_task = stop_task
Response.run_task = answer_run_task
Response.describe_tasks = describe_tasks
# It crashes on definitions that have no memory on their containers, which Fargate allows.
Backend._calculate_task_resource_requirements = staticmethod(lambda _: {})
