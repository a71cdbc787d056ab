"""Everything that the bench remembers, to be searched for what should not be there."""

from __future__ import annotations

from typing import Any

from moto.ecs.models import ecs_backends
from moto.logs.models import logs_backends
from moto.scheduler.models import scheduler_backends
from moto.stepfunctions.models import stepfunctions_backends
from moto.stepfunctions.parser.models import stepfunctions_parser_backends


def everything() -> dict[str, Any]:
    """Collects it; secrets and parameters are left out, since that is where secrets belong.

    Returns:
        Machines, executions with their histories, task definitions, tasks, logs and schedules.
    """
    return {
        "machines": [_machine(machine) for backend in _backends(_states()) for machine in backend.state_machines],
        "task_definitions": [
            _public(definition)
            for backend in _backends(ecs_backends)
            for revisions in backend.task_definitions.values()
            for definition in revisions.values()
        ],
        "tasks": [
            {
                "arn": task.task_arn,
                "overrides": task.overrides,
                "tags": task.tags,
                "started_by": task.started_by,
                "stopped_reason": task.stopped_reason,
            }
            for backend in _backends(ecs_backends)
            for tasks in backend.tasks.values()
            for task in tasks.values()
        ],
        "logs": [
            {
                "group": group.name,
                "stream": stream.log_stream_name,
                "messages": [event.message for event in stream.events],
            }
            for backend in _backends(logs_backends)
            for group in backend.groups.values()
            for stream in group.streams.values()
        ],
        "schedules": [
            _public(schedule)
            for backend in _backends(scheduler_backends)
            for group in backend.schedule_groups.values()
            for schedule in group.schedules.values()
        ],
    }


def _states() -> Any:
    return stepfunctions_parser_backends if _backends(stepfunctions_parser_backends) else stepfunctions_backends


def _backends(found: Any) -> list[Any]:
    return [backend for regions in list(found.values()) for backend in list(regions.values())]


def _machine(machine: Any) -> dict[str, Any]:
    return {
        "arn": machine.arn,
        "definition": machine.definition,
        "tags": machine.backend.get_tags_list_for_state_machine(machine.arn),
        "versions": [version.definition for version in machine.versions.values()],
        "executions": [
            {
                "arn": execution.exec_arn,
                "status": execution.status,
                "input": execution.execution_input,
                "output": execution.output,
                "error": execution.error,
                "cause": execution.cause,
                "history": execution.to_history_output()["events"],
            }
            for execution in machine.executions
        ],
    }


def _public(thing: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(thing).items() if not key.startswith("_")}
