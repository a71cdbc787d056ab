"""The bench itself: tasks are containers, and machines do with them what AWS documents."""

from __future__ import annotations

import json
import time

import pytest
from bench_client import Bench
from conftest import Prerequisites
from shapes import machine, parallel, start, step

FOREVER = "trap 'exit 143' TERM; while true; do sleep 0.1; done"


def types(bench: Bench, execution: str) -> list[str]:
    """Names of the events."""
    return [event["type"] for event in bench.events(execution)]


def until(condition: object, seconds: float = 20) -> None:
    """Waits for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_diamond_runs_its_branches_side_by_side(bench: Bench, prerequisites: Prerequisites) -> None:
    """B waits for a file that C's log says is there; in turn they would never end."""
    execution = start(
        bench,
        prerequisites,
        machine(
            A=step(
                prerequisites, "echo A $RUN", environment=[{"Name": "RUN", "Value.$": "$$.Execution.Name"}], Next="P"
            ),
            P=parallel(
                machine(B=step(prerequisites, "date +%s%N; sleep 2; date +%s%N")),
                machine(C=step(prerequisites, "date +%s%N; sleep 2; date +%s%N")),
                Next="D",
            ),
            D=step(prerequisites, "echo D"),
        ),
    )
    assert bench.wait_for(execution)["status"] == "SUCCEEDED"
    seen = types(bench, execution)
    assert seen.count("TaskSubmitted") == seen.count("TaskSucceeded") == 4
    assert {"A run", "D"} <= set(bench.messages(prerequisites.log_group))
    entered = {
        event["stateEnteredEventDetails"]["name"]: event["timestamp"]
        for event in bench.events(execution)
        if "stateEnteredEventDetails" in event
    }
    left = {
        event["stateExitedEventDetails"]["name"]: event["timestamp"]
        for event in bench.events(execution)
        if "stateExitedEventDetails" in event
    }
    assert entered["C"] < left["B"] and entered["B"] < left["C"]
    assert not bench.containers()
    assert (
        json.loads(
            next(event for event in bench.events(execution) if event["type"] == "TaskSucceeded")[
                "taskSucceededEventDetails"
            ]["output"]
        )["Containers"][0]["ExitCode"]
        == 0
    )


def test_an_exit_code_fails_the_state_and_can_be_caught(bench: Bench, prerequisites: Prerequisites) -> None:
    failing = step(prerequisites, "echo boom; exit 3")
    over = bench.wait_for(start(bench, prerequisites, machine(X=failing)))
    assert (over["status"], over["error"]) == ("FAILED", "States.TaskFailed")
    cause = json.loads(over["cause"])
    assert cause["Containers"][0]["ExitCode"] == 3 and cause["StopCode"] == "EssentialContainerExited"
    catch = [{"ErrorEquals": ["States.TaskFailed"], "ResultPath": "$.error", "Next": "H"}]
    inside = parallel(machine(X=failing), Next="S", Catch=catch)
    caught = machine(P=inside, S={"Type": "Fail"}, H={"Type": "Succeed"})
    over = bench.wait_for(start(bench, prerequisites, caught))
    assert over["status"] == "SUCCEEDED" and json.loads(over["output"])["error"]["Error"] == "States.TaskFailed"


def test_a_retry_runs_the_task_again(bench: Bench, prerequisites: Prerequisites) -> None:
    count = [{"Name": "N", "Value.$": "States.Format('{}', $$.State.RetryCount)"}]
    retry = [{"ErrorEquals": ["States.TaskFailed"], "IntervalSeconds": 1, "MaxAttempts": 3, "BackoffRate": 1.0}]
    execution = start(
        bench, prerequisites, machine(X=step(prerequisites, "sleep 1; test $N = 2", environment=count, Retry=retry))
    )
    assert bench.wait_for(execution)["status"] == "SUCCEEDED"
    assert types(bench, execution).count("TaskSubmitted") == 3


def test_stopping_an_execution_stops_its_tasks(bench: Bench, prerequisites: Prerequisites) -> None:
    execution = start(
        bench,
        prerequisites,
        machine(P=parallel(machine(B=step(prerequisites, FOREVER)), machine(C=step(prerequisites, FOREVER)))),
    )
    until(lambda: types(bench, execution).count("TaskSubmitted") == 2 and len(bench.containers()) == 2)
    bench.client("stepfunctions").stop_execution(executionArn=execution, error="User", cause="enough")
    over = bench.wait_for(execution)
    assert (over["status"], over["error"], over["cause"]) == ("ABORTED", "User", "enough")
    until(lambda: not bench.containers())
    assert types(bench, execution)[-1] == "ExecutionAborted"


def test_a_failing_sibling_stops_the_other_branch(bench: Bench, prerequisites: Prerequisites) -> None:
    over = bench.wait_for(
        start(
            bench,
            prerequisites,
            machine(
                P=parallel(machine(B=step(prerequisites, "sleep 1; exit 1")), machine(C=step(prerequisites, FOREVER)))
            ),
        )
    )
    assert over["status"] == "FAILED"
    until(lambda: not bench.containers())


def test_a_timeout_stops_the_task(bench: Bench, prerequisites: Prerequisites) -> None:
    over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, FOREVER, TimeoutSeconds=3))))
    assert (over["status"], over["error"]) == ("FAILED", "States.Timeout")
    until(lambda: not bench.containers())


def test_memory_is_limited(bench: Bench, prerequisites: Prerequisites) -> None:
    greedy = "python3 -c \"x = bytearray(3 << 30); print('lived')\""
    over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, greedy))))
    container = json.loads(over["cause"])["Containers"][0]
    assert container["ExitCode"] == 137 and container["Reason"].startswith("OutOfMemoryError")


def test_stop_task_asks_and_then_kills(bench: Bench, prerequisites: Prerequisites) -> None:
    ecs = bench.client("ecs")
    network = {"subnets": prerequisites.subnet_ids, "securityGroups": prerequisites.security_group_ids}
    task = ecs.run_task(
        cluster=prerequisites.cluster_arn,
        taskDefinition=prerequisites.task_definition_arn,
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": network},
        overrides={
            "containerOverrides": [
                {"name": "main", "command": ["sh", "-c", "trap 'echo deaf' TERM; while true; do sleep 0.1; done"]}
            ]
        },
    )["tasks"][0]

    def now() -> dict[str, object]:
        return ecs.describe_tasks(cluster=prerequisites.cluster_arn, tasks=[task["taskArn"]])["tasks"][0]

    until(lambda: now()["lastStatus"] == "RUNNING")
    time.sleep(0.5)
    asked = time.monotonic()
    answer = ecs.stop_task(cluster=prerequisites.cluster_arn, task=task["taskArn"], reason="enough")["task"]
    assert answer["desiredStatus"] == "STOPPED" and answer["lastStatus"] == "RUNNING"
    until(lambda: now()["lastStatus"] == "STOPPED")
    # The template's stopTimeout is five seconds.
    assert time.monotonic() - asked > 4.5
    stopped = now()
    assert (stopped["stopCode"], stopped["stoppedReason"]) == ("UserInitiated", "enough")
    assert stopped["containers"][0]["exitCode"] == 137  # type: ignore[index]
    assert "deaf" in bench.messages(prerequisites.log_group)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "no.such.registry.invalid/image:1"}, "CannotPullContainerError"),
        ({"image": "no-such-image:1"}, "CannotPullContainerError"),
        (
            {
                "logConfiguration": {
                    "logDriver": "awslogs",
                    "options": {
                        "awslogs-group": "/no/such",
                        "awslogs-region": "us-east-1",
                        "awslogs-stream-prefix": "x",
                    },
                }
            },
            "ResourceInitializationError",
        ),
        (
            {
                "secrets": [
                    {"name": "KEY", "valueFrom": "arn:aws:secretsmanager:us-east-1:123456789012:secret:none-AbCdEf"}
                ]
            },
            "ResourceInitializationError",
        ),
        ({"entryPoint": ["/no/such/program"]}, "CannotStartContainerError"),
    ],
)
def test_a_task_that_cannot_start_says_why(
    bench: Bench, prerequisites: Prerequisites, change: dict[str, object], reason: str
) -> None:
    family = register(bench, prerequisites, **change)
    over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, "true", definition=family))))
    cause = json.loads(over["cause"])
    assert cause["StopCode"] == "TaskFailedToStart" and cause["StoppedReason"].startswith(reason)


def test_a_task_has_its_secrets_its_role_and_the_endpoint(bench: Bench, prerequisites: Prerequisites) -> None:
    secret = bench.client("secretsmanager").create_secret(Name="bench-key", SecretString='{"key": "from-json"}')["ARN"]
    bench.client("ssm").put_parameter(Name="/bench/key", Value="from-ssm", Type="SecureString")
    family = register(
        bench,
        prerequisites,
        secrets=[
            {"name": "A", "valueFrom": f"{secret}:key::"},
            {"name": "B", "valueFrom": "arn:aws:ssm:us-east-1:123456789012:parameter/bench/key"},
        ],
    )
    # Credentials are fetched where the SDKs fetch them on ECS.
    program = (
        "import json, os, urllib.request as u; "
        "g = json.load(u.urlopen(os.environ['AWS_CONTAINER_CREDENTIALS_FULL_URI'])); "
        "t = json.load(u.urlopen(os.environ['ECS_CONTAINER_METADATA_URI_V4'] + '/task')); "
        "print('seen', os.environ['A'], os.environ['B'], g['RoleArn'], t['TaskARN'].split(':')[2], bool(os.environ['AWS_ENDPOINT_URL']))"
    )
    over = bench.wait_for(
        start(bench, prerequisites, machine(X=step(prerequisites, f'python3 -c "{program}"', definition=family)))
    )
    assert over["status"] == "SUCCEEDED", over.get("cause")
    assert f"seen from-json from-ssm {prerequisites.task_role} ecs True" in bench.messages(prerequisites.log_group)
    # Values of secrets stand in the log only, where the program itself put them.
    everything = bench.dump()
    everything.pop("logs")
    assert "from-json" not in json.dumps(everything) and "from-ssm" not in json.dumps(everything)


def register(bench: Bench, given: Prerequisites, **change: object) -> str:
    """Registers the template with a changed container; returns its ARN."""
    ecs = bench.client("ecs")
    definition = ecs.describe_task_definition(taskDefinition=given.task_definition_arn)["taskDefinition"]
    kept = ("networkMode", "requiresCompatibilities", "cpu", "memory", "executionRoleArn", "taskRoleArn")
    container = {**definition["containerDefinitions"][0], **change}
    return ecs.register_task_definition(
        family="changed", containerDefinitions=[container], **{key: definition[key] for key in kept}
    )["taskDefinition"]["taskDefinitionArn"]
