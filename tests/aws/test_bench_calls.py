"""The bench itself: faults, counted calls, what the API checks, schedules that fire."""

from __future__ import annotations

import json
import time
import uuid
from datetime import datetime, timezone

import botocore.exceptions
import pytest
from bench_client import Bench, Credentials
from conftest import Prerequisites
from shapes import machine, start, step

PASS = {"StartAt": "X", "States": {"X": {"Type": "Pass", "End": True}}}


def code_of(call: object) -> str:
    """The error code of a call that has to fail."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call()  # type: ignore[operator]
    return caught.value.response["Error"]["Code"]


def create(bench: Bench, given: Prerequisites, definition: dict[str, object] = PASS, name: str = "") -> str:
    """Creates a machine; returns its ARN."""
    return bench.client("stepfunctions").create_state_machine(
        name=name or f"m-{uuid.uuid4().hex[:8]}", definition=json.dumps(definition), roleArn=given.state_machine_role
    )["stateMachineArn"]


def test_throttling_ends_after_the_first_answers_of_each_action(bench: Bench) -> None:
    bench.throttle(times=3)
    for service, call in (("ecs", "list_clusters"), ("sts", "get_caller_identity"), ("logs", "describe_log_groups")):
        client = bench.client(service)
        codes = {code_of(getattr(client, call)) for _ in range(3)}
        assert codes <= {"ThrottlingException", "Throttling"}
        getattr(client, call)()
    assert bench.client("ecs", retries=4).list_clusters()["clusterArns"] is not None
    assert bench.calls()["ecs:ListClusters"] == 5


def test_a_lost_reply_was_carried_out(bench: Bench, prerequisites: Prerequisites) -> None:
    arn = create(bench, prerequisites)
    bench.lose_reply("states:StartExecution")
    states = bench.client("stepfunctions")
    with pytest.raises(botocore.exceptions.HTTPClientError):
        states.start_execution(stateMachineArn=arn, name="once", input="{}")
    assert [execution["name"] for execution in states.list_executions(stateMachineArn=arn)["executions"]] == ["once"]
    bench.wait_for(f"{arn.replace(':stateMachine:', ':execution:')}:once")
    assert bench.calls()["states:StartExecution"] == 1


def test_a_denied_action_is_named_with_its_resource(bench: Bench, prerequisites: Prerequisites) -> None:
    bench.deny("states:StartExecution")
    arn = create(bench, prerequisites)
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        bench.client("stepfunctions").start_execution(stateMachineArn=arn)
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    assert "states:StartExecution" in str(caught.value) and arn in str(caught.value)


def test_credentials_expire(bench: Bench) -> None:
    old, new = Credentials("AKIAOLD0000000000000"), Credentials("AKIANEW0000000000000")
    bench.expire(old)
    assert code_of(bench.client("ecs", old).list_clusters) == "ExpiredTokenException"
    bench.client("ecs", new).list_clusters()


def test_credentials_of_a_role_end(bench: Bench, prerequisites: Prerequisites) -> None:
    with bench.short_sessions(2):
        given = bench.client("sts").assume_role(RoleArn=prerequisites.task_role, RoleSessionName="short")["Credentials"]
    assert 0 < (given["Expiration"] - datetime.now(timezone.utc)).total_seconds() <= 2
    role = Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    bench.client("ecs", role).list_clusters()
    time.sleep(2.1)
    assert code_of(bench.client("ecs", role).list_clusters) == "ExpiredTokenException"
    assert code_of(bench.client("s3", role).list_buckets) == "ExpiredToken"


def test_want_of_capacity_is_an_error_of_the_state(bench: Bench, prerequisites: Prerequisites) -> None:
    nothing = {"tasks": [], "failures": [{"arn": "x", "reason": "Capacity is unavailable at this time"}]}
    bench.fault("reply", "ecs:RunTask", body=nothing, times=1, who="service")
    retry = [{"ErrorEquals": ["AmazonECS.Unknown"], "IntervalSeconds": 1, "MaxAttempts": 1}]
    execution = start(bench, prerequisites, machine(X=step(prerequisites, "true", Retry=retry)))
    assert bench.wait_for(execution)["status"] == "SUCCEEDED"
    assert bench.calls("service")["ecs:RunTask"] == 2


def test_throttled_tasks_fail_under_the_name_that_aws_gives_it(bench: Bench, prerequisites: Prerequisites) -> None:
    bench.throttle("ecs:RunTask", times=1, who="service")
    over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, "true"))))
    assert (over["status"], over["error"]) == ("FAILED", "ECS.AmazonECSException")


def test_an_interrupted_spot_task_fails_the_state(bench: Bench, prerequisites: Prerequisites) -> None:
    execution = start(bench, prerequisites, machine(X=step(prerequisites, "sleep 60")))
    ecs = bench.client("ecs")
    while not (tasks := ecs.list_tasks(cluster=prerequisites.cluster_arn, desiredStatus="RUNNING")["taskArns"]):
        pass
    bench.stop_task(tasks[0])
    cause = json.loads(bench.wait_for(execution)["cause"])
    assert cause["StopCode"] == "SpotInterruption"


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"StartAt": "Y", "States": PASS["States"]}, "MISSING_TRANSITION_TARGET"),
        ({"StartAt": "X", "States": {"X" * 81: {"Type": "Pass", "End": True}}}, "INVALID_STATE_NAME"),
        ({"StartAt": "X", "States": {"X": {"Type": "Pass", "Next": "Z"}}}, "MISSING_TRANSITION_TARGET"),
        (
            {
                "StartAt": "X",
                "States": {
                    "X": {
                        "Type": "Task",
                        "Resource": "arn:aws:states:::ecs:runTask.sync",
                        "Parameters": {"cluster": "c", "TaskDefinition": "t"},
                        "End": True,
                    }
                },
            },
            "The field 'cluster' is not supported",
        ),
    ],
)
def test_wrong_definitions_are_refused(
    bench: Bench, prerequisites: Prerequisites, definition: dict[str, object], words: str
) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match=words) as caught:
        create(bench, prerequisites, definition)
    assert caught.value.response["Error"]["Code"] == "InvalidDefinition"


def test_names_are_taken_and_versions_stay_as_they_were(bench: Bench, prerequisites: Prerequisites) -> None:
    states, name = bench.client("stepfunctions"), f"m-{uuid.uuid4().hex[:8]}"
    arn = create(bench, prerequisites, name=name)
    assert create(bench, prerequisites, name=name) == arn
    other = {"StartAt": "X", "States": {"X": {"Type": "Pass", "Result": 2, "End": True}}}
    assert code_of(lambda: create(bench, prerequisites, other, name)) == "StateMachineAlreadyExists"
    first = states.publish_state_machine_version(stateMachineArn=arn)["stateMachineVersionArn"]
    states.update_state_machine(stateMachineArn=arn, definition=json.dumps(other))
    assert states.publish_state_machine_version(stateMachineArn=arn)["stateMachineVersionArn"] != first
    execution = states.start_execution(stateMachineArn=first, input='{"as": "given"}')["executionArn"]
    assert json.loads(bench.wait_for(execution)["output"]) == {"as": "given"}
    states.delete_state_machine_version(stateMachineVersionArn=first)
    assert len(states.list_state_machine_versions(stateMachineArn=arn)["stateMachineVersions"]) == 1


def test_a_history_has_pages_in_both_orders(bench: Bench, prerequisites: Prerequisites) -> None:
    states = bench.client("stepfunctions")
    execution = states.start_execution(stateMachineArn=create(bench, prerequisites))["executionArn"]
    bench.wait_for(execution)
    page = states.get_execution_history(executionArn=execution, maxResults=2, reverseOrder=True)
    assert page["events"][0]["type"] == "ExecutionSucceeded" and "nextToken" in page
    last = states.get_execution_history(
        executionArn=execution, maxResults=2, reverseOrder=True, nextToken=page["nextToken"]
    )
    assert [event["type"] for event in last["events"]] == ["PassStateEntered", "ExecutionStarted"]


def test_nested_executions_succeed_and_stop_with_their_parent(bench: Bench, prerequisites: Prerequisites) -> None:
    states = bench.client("stepfunctions")
    child = create(bench, prerequisites, machine(X={"Type": "Wait", "Seconds": 60, "End": True}))
    nested = {
        "Type": "Task",
        "Resource": "arn:aws:states:::states:startExecution.sync:2",
        "Parameters": {"StateMachineArn": create(bench, prerequisites), "Input": {"n": 1}},
        "End": True,
    }
    over = bench.wait_for(start(bench, prerequisites, machine(N=nested)))
    assert over["status"] == "SUCCEEDED" and json.loads(over["output"])["Output"] == {"n": 1}
    nested["Parameters"] = {"StateMachineArn": child}
    execution = start(bench, prerequisites, machine(N=nested))
    while not (running := states.list_executions(stateMachineArn=child)["executions"]):
        pass
    states.stop_execution(executionArn=execution)
    assert bench.wait_for(running[0]["executionArn"])["status"] == "ABORTED"


def test_a_failed_execution_is_redriven(bench: Bench, prerequisites: Prerequisites) -> None:
    count = [{"Name": "N", "Value.$": "States.Format('{}', $$.Execution.RedriveCount)"}]
    states = bench.client("stepfunctions")
    second = step(prerequisites, "test $N = 1", environment=count)
    execution = start(bench, prerequisites, machine(A={"Type": "Pass", "Next": "B"}, B=second))
    assert bench.wait_for(execution)["status"] == "FAILED"
    states.redrive_execution(executionArn=execution)
    assert bench.wait_for(execution)["redriveCount"] == 1
    assert states.describe_execution(executionArn=execution)["status"] == "SUCCEEDED"


def test_sizes_that_fargate_and_ecs_refuse(bench: Bench, prerequisites: Prerequisites) -> None:
    ecs = bench.client("ecs")

    def register(**more: object) -> None:
        container = {"name": "main", "image": "x", **more}
        ecs.register_task_definition(
            family="sizes",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu=str(more.pop("cpu", 256)),
            memory=str(more.pop("memory", 512)),
            containerDefinitions=[{"name": "main", "image": "x", **more}] if more else [container],
        )

    assert code_of(lambda: register(memory=4096)) == "ClientException"
    huge = [{"name": "A", "value": "x" * 70_000}]
    assert code_of(lambda: register(environment=huge)) == "ClientException"
    over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, "echo " + "x" * 9000))))
    assert over["error"] == "ECS.InvalidParameterException" and "8192" in over["cause"]


def test_schedules_are_checked_and_fire(bench: Bench, prerequisites: Prerequisites) -> None:
    scheduler = bench.client("scheduler")
    arn = create(bench, prerequisites)
    target = {"Arn": arn, "RoleArn": prerequisites.scheduler_role, "Input": '{"run": "<aws.scheduler.execution-id>"}'}

    def make(name: str, expression: str, zone: str = "Europe/Paris") -> None:
        scheduler.create_schedule(
            Name=name,
            ScheduleExpression=expression,
            ScheduleExpressionTimezone=zone,
            FlexibleTimeWindow={"Mode": "OFF"},
            Target=target,
        )

    for expression in ("cron(bad)", "every monday", "rate(1 minutes)", "cron(0 12 * * * *)"):
        assert code_of(lambda wrong=expression: make("wrong", wrong)) == "ValidationException"
    assert code_of(lambda: make("wrong", "rate(1 hour)", "Mars/Olympus")) == "ValidationException"
    for expression in ("cron(0 12 * * ? *)", "cron(0/5 8-17 ? * MON-FRI 2026)", "at(2027-01-01T00:00:00)"):
        make(f"s{uuid.uuid4().hex[:6]}", expression)
    make("fires", "rate(2 hours)")
    over = bench.wait_for(bench.fire("fires"))
    assert json.loads(over["input"])["run"] == over["name"]
    scheduler.update_schedule(
        Name="fires",
        ScheduleExpression="rate(1 hour)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target=target,
        State="DISABLED",
    )
    with pytest.raises(RuntimeError, match="paused"):
        bench.fire("fires")
    assert any(schedule["name"] == "fires" for schedule in bench.dump()["schedules"])
