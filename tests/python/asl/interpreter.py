"""A real Step Functions interpreter: moto's, with what its port left out, and ECS tasks that take simulated seconds.

moto 5.2.5 parses and executes definitions with a port of LocalStack's interpreter. Repaired here: parameters and answers of
`aws-sdk:` integrations, `States.*` errors that leave a `Parallel`, names of S3's errors, `.sync` on ECS and nested machines.
Pinned, because it reaches into internals.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

os.environ.setdefault("AWS_ACCESS_KEY_ID", "x")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "x")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

import boto3
import botocore.session
from moto import mock_aws
from moto.stepfunctions.parser import utils as sfn_utils
from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name import failure_event as fe
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import CustomErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_parallel import branches_decl
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import state_task_service as base
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import state_task_service_aws_sdk as sdk
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_callback as callback,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import state_task_service_ecs as ecs
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.parse.preprocessor import Preprocessor
from moto.stepfunctions.parser.backend.execution_worker import ExecutionWorker


@dataclass
class Run:
    """One execution."""

    status: str
    seconds: float
    error: str | None
    cause: str | None
    events: list[dict]
    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)


def _operation(service: str, action: str):
    model = botocore.session.get_session().get_service_model(service)
    return next(
        model.operation_model(name)
        for name in model.operation_names
        if sfn_utils.camel_to_snake_case(name) == sfn_utils.camel_to_snake_case(action)
    )


def _normalise(which: str, convert: str):
    def normalise(self, data, boto_service_name=None, service_action_name=None):
        service = self._get_boto_service_name(boto_service_name)
        shape = getattr(_operation(service, self._get_boto_service_action(service_action_name)), which)
        if shape is not None:
            getattr(self, convert)(data, shape)

    return normalise


def _error_name(error_name: str):
    found = (StatesErrorName(kind) for kind in StatesErrorNameType if kind.to_name() == error_name)
    return next(found, None) or CustomErrorName(error_name)


class Tasks:
    """Stands in for ECS: a step takes its seconds and completes or fails."""

    def __init__(self, seconds: dict[str, float], fails: set[str]) -> None:
        self.seconds, self.fails = seconds, fails
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.lock = threading.Lock()

    def run(self, env, parameters) -> dict:
        step = parameters["Group"].split(":", 1)[1]
        with self.lock:
            assert step not in self.started, f"{step} started twice"
            self.started[step] = time.monotonic()
        until = time.monotonic() + self.seconds.get(step, 0.0)
        while time.monotonic() < until and env.is_running():
            time.sleep(0.005)
        with self.lock:
            self.ended[step] = time.monotonic()
        if step in self.fails:
            details = TaskFailedEventDetails(
                error="States.TaskFailed", cause=step, resource="runTask.sync", resourceType="ecs"
            )
            event = fe.FailureEvent(
                env=env,
                error_name=_error_name("States.TaskFailed"),
                event_type=HistoryEventType.TaskFailed,
                event_details=EventDetails(taskFailedEventDetails=details),
            )
            raise fe.FailureEventException(event)
        return {"Containers": [{"ExitCode": 0}]}


@contextmanager
def interpreter(tasks: Tasks) -> Iterator[None]:
    """Patches moto; undone at the end."""
    patched: list[tuple[object, str, object]] = []

    def patch(owner: object, name: str, value: object) -> None:
        patched.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, value)

    def evaluate(self, env, resource_runtime_part, normalised_parameters, state_credentials):
        env.stack.append(tasks.run(env, normalised_parameters))

    context = ExecutionWorker._get_evaluation_environment

    def with_redrives(self):
        env = context(self)
        env.states.context_object.context_object_data["Execution"]["RedriveCount"] = 0
        return env

    patch(Preprocessor, "__init__", lambda self: self.__dict__.__setitem__("_query_language_per_scope", []))
    patch(base.StateTaskService, "_normalise_parameters", _normalise("input_shape", "_to_boto_request"))
    patch(base.StateTaskService, "_normalise_response", _normalise("output_shape", "_from_boto_response"))
    for module in (branches_decl, callback):
        patch(module, "CustomErrorName", _error_name)
    patch(sdk, "_SERVICE_ERROR_NAMES", {**sdk._SERVICE_ERROR_NAMES, "s3": "S3"})
    patch(ecs.StateTaskServiceEcs, "_eval_service_task", evaluate)
    patch(ecs.StateTaskServiceEcs, "_normalise_parameters", lambda self, parameters, **_: None)
    patch(ExecutionWorker, "_get_evaluation_environment", with_redrives)
    # The step's own answer is final: nothing to poll.
    patch(
        ecs.StateTaskServiceEcs,
        "_build_sync_resolver",
        lambda self, **kwargs: lambda: {"StopCode": "EssentialContainerExited"},
    )
    try:
        with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
            yield
    finally:
        for owner, name, value in reversed(patched):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def execute(compiled: dict, seconds: dict[str, float], fails: set[str] | None = None, timeout: float = 30.0) -> Run:
    """Creates the machines, runs the root to its end."""
    tasks = Tasks(seconds, fails or set())
    with interpreter(tasks):
        boto3.client("s3").create_bucket(Bucket="bucket")
        role = boto3.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        sfn = boto3.client("stepfunctions")
        for machine in compiled["machines"]:
            arn = sfn.create_state_machine(name=machine["name"], definition=machine["definition"], roleArn=role)[
                "stateMachineArn"
            ]
        begin = time.monotonic()
        execution = sfn.start_execution(stateMachineArn=arn, name="run-1", input=json.dumps({"snapshot_id": "s"}))[
            "executionArn"
        ]
        while (found := sfn.describe_execution(executionArn=execution))["status"] == "RUNNING":
            assert time.monotonic() < begin + timeout, "the execution hangs"
            time.sleep(0.01)
        took = time.monotonic() - begin
        history = sfn.get_execution_history(executionArn=execution)["events"]
    error, cause = found.get("error"), found.get("cause")
    for event in history:
        if details := event.get("executionFailedEventDetails"):
            error, cause = details.get("error"), details.get("cause")
    started = {step: at - begin for step, at in tasks.started.items()}
    ended = {step: at - begin for step, at in tasks.ended.items()}
    return Run(found["status"], took, error, cause, history, started, ended)
