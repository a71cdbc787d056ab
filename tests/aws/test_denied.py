"""Each call that the core makes is denied in turn: the error names the action, what it was about, and nothing secret."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bench_client import Bench
from conftest import Prerequisites
from step_engine import AwsSession
from step_engine.errors import AwsError

SECRET = "not-for-anybodys-eyes"
MACHINE = {"StartAt": "X", "States": {"X": {"Type": "Pass", "End": True}}}


class World:
    """What the calls are about: a machine that ran once, a schedule, a secret."""

    def __init__(self, bench: Bench, given: Prerequisites) -> None:
        credentials = {"access_key_id": "AKIABENCHADMIN000000", "secret_access_key": "bench"}
        self.session, self.given, self.id = (
            AwsSession(region=given.region, credentials=credentials),
            given,
            uuid.uuid4().hex[:8],
        )
        self.name = f"denied-{self.id}"
        self.machine = self.session.deploy(
            [{"name": self.name, "definition": json.dumps(MACHINE)}], role_arn=given.state_machine_role
        )["arn"]
        self.execution = self.session.start(self.machine, name="run", input={})
        bench.wait_for(self.execution)
        slow = {"StartAt": "X", "States": {"X": {"Type": "Wait", "Seconds": 600, "End": True}}}
        machine = {"name": f"{self.name}-slow", "definition": json.dumps(slow)}
        self.running = self.session.start(
            self.session.deploy([machine], role_arn=given.state_machine_role)["arn"], name="run", input={}
        )
        self.session.put_secret("secretsmanager", self.name, SECRET)
        self.session.put_secret("ssm", self.name, SECRET)
        self.put_schedule(self.session, self.name)

    def put_schedule(self, session: AwsSession, name: str) -> None:
        """Makes a schedule."""
        session.put_schedule(
            name,
            expression="rate(1 hour)",
            state_machine_arn=self.machine,
            role_arn=self.given.scheduler_role,
            input={},
        )


def task_request(world: World) -> dict[str, Any]:
    """A request for a task."""
    network = {"subnets": world.given.subnet_ids, "securityGroups": world.given.security_group_ids}
    return {
        "cluster": world.given.cluster_arn,
        "taskDefinition": world.given.task_definition_arn,
        "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": network},
    }


def collect(session: AwsSession, world: World) -> None:
    """Makes a machine that is not needed, and takes it away."""
    for number in (1, 2):
        other = {"StartAt": "X", "States": {"X": {"Type": "Pass", "Result": number, "End": True}}}
        machine = {"name": f"denied-too-{world.id}", "definition": json.dumps(other)}
        session.deploy([machine], role_arn=world.given.state_machine_role)
    session.collect_machines(f"denied-too-{world.id}", keep=1, min_age_seconds=0)


Call = Callable[[AwsSession, World], Any]
CALLS: dict[str, tuple[str, Call]] = {
    "sts:GetCallerIdentity": ("", lambda s, _: s.identity()),
    "ecs:DescribeTaskDefinition": (
        "zenml-template",
        lambda s, w: s.describe_task_definition(w.given.task_definition_arn),
    ),
    "ecs:RegisterTaskDefinition": (
        "zenml-template",
        lambda s, w: s.ensure_task_definition(w.given.task_definition_arn, {"image": f"image-{uuid.uuid4().hex}"}),
    ),
    "ecs:ListTaskDefinitionFamilies": (
        "zenml-template",
        lambda s, w: s.collect_task_definitions(w.given.task_definition_arn, keep=1),
    ),
    "ecs:RunTask": ("zenml-template", lambda s, w: s.run_task(task_request(w))),
    "ecs:DescribeTasks": ("zenml", lambda s, w: s.describe_tasks(w.given.cluster_arn, [f"task-{w.id}"])),
    "ecs:StopTask": ("task-", lambda s, w: s.stop_task(w.given.cluster_arn, f"task-{w.id}")),
    "states:CreateStateMachine": (
        "other-",
        lambda s, w: s.deploy(
            [{"name": f"other-{uuid.uuid4().hex[:6]}", "definition": json.dumps(MACHINE)}],
            role_arn=w.given.state_machine_role,
        ),
    ),
    "states:DescribeStateMachine": (
        "denied-",
        lambda s, w: s.deploy(
            [{"name": w.name, "definition": json.dumps(MACHINE)}], role_arn=w.given.state_machine_role
        ),
    ),
    "states:StartExecution": ("denied-", lambda s, w: s.start(w.machine, name=f"run-{uuid.uuid4().hex}", input={})),
    "states:DescribeExecution": ("denied-", lambda s, w: s.describe_execution(w.execution)),
    "states:GetExecutionHistory": ("denied-", lambda s, w: s.execution_steps(w.execution, ["X"])),
    "states:StopExecution": ("denied-", lambda s, w: s.stop(w.running)),
    "states:ListStateMachines": ("", lambda s, w: s.collect_machines(w.name)),
    "states:ListTagsForResource": ("denied-", lambda s, w: s.collect_machines(w.name)),
    "states:DeleteStateMachine": ("denied-", collect),
    "logs:GetLogEvents": ("/ecs/zenml", lambda s, w: s.log_lines(w.given.log_group, "no/such/stream")),
    "secretsmanager:CreateSecret": ("denied-", lambda s, w: s.put_secret("secretsmanager", f"{w.name}-new", SECRET)),
    "secretsmanager:PutSecretValue": ("denied-", lambda s, w: s.put_secret("secretsmanager", w.name, SECRET)),
    "secretsmanager:DescribeSecret": (
        "denied-",
        lambda s, w: s.put_secret("secretsmanager", w.name, SECRET, overwrite=False),
    ),
    "secretsmanager:DeleteSecret": ("denied-", lambda s, w: s.delete_secret("secretsmanager", w.name)),
    "ssm:PutParameter": ("denied-", lambda s, w: s.put_secret("ssm", w.name, SECRET)),
    "ssm:DeleteParameter": ("denied-", lambda s, w: s.delete_secret("ssm", w.name)),
    "scheduler:CreateSchedule": ("denied-", lambda s, w: w.put_schedule(s, f"{w.name}-new")),
    "scheduler:UpdateSchedule": ("denied-", lambda s, w: w.put_schedule(s, w.name)),
    "scheduler:GetSchedule": ("denied-", lambda s, w: s.get_schedule(w.name)),
    "scheduler:DeleteSchedule": ("denied-", lambda s, w: s.delete_schedule(w.name)),
    "scheduler:ListSchedules": ("", collect),
}


@pytest.fixture(scope="module")
def world(bench_server: Bench, prerequisites: Prerequisites) -> Iterator[World]:
    """Made once, before anything is denied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", bench_server.endpoint)
        made = World(bench_server, prerequisites)
    yield made
    bench_server.client("stepfunctions").stop_execution(executionArn=made.running)


@pytest.mark.parametrize("action", CALLS)
def test_the_error_names_the_action_and_its_subject(
    bench: Bench, world: World, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bench.endpoint)
    credentials = {"access_key_id": "AKIABENCHADMIN000000", "secret_access_key": "bench"}
    session = AwsSession(region=world.given.region, credentials=credentials)
    subject, call = CALLS[action]
    bench.deny(action)
    with pytest.raises(AwsError) as caught:
        call(session, world)
    service, operation = action.split(":")
    assert caught.value.operation == operation
    assert caught.value.code in ("AccessDeniedException", "AccessDenied")
    text = str(caught.value)
    assert operation in text and subject in text
    assert SECRET not in text
    # A refusal is final: it is not asked again and again.
    assert bench.calls()[action] == 1, service
