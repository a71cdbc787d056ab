"""What goes wrong between a client and AWS, with real pipelines on the bench."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_client import Bench
from stack import Project

SESSION_SECONDS = 40.0
"""Longer than the pause between two renewals."""


@pytest.mark.parametrize(
    ("action", "calls"),
    [
        ("ecs:DescribeTaskDefinition", 0),
        ("ecs:RegisterTaskDefinition", 0),
        ("states:CreateStateMachine", 0),
        ("secretsmanager:CreateSecret", 0),
        ("states:StartExecution", 1),
    ],
)
def test_a_missing_permission_is_named(aws_project: Project, bench: Bench, action: str, calls: int) -> None:
    # A pipeline of its own for each, so that everything is still to be made.
    pipeline = f"denied_{action.partition(':')[2]}"
    bench.deny(action)
    bench.reset_calls()
    code, output = aws_project.run("aws_scenarios.py", "chain", TEST_PIPELINE_NAME=pipeline)
    assert code == 1
    assert action in " ".join(output.replace("│", " ").split()), output
    assert aws_project.newest(pipeline).status.value == "failed"
    assert bench.calls().get("states:StartExecution", 0) == calls
    assert not [name for name in aws_project.secrets() if "/runs/" in name]


def test_throttling_and_a_lost_answer_start_nothing_twice(aws_project: Project, bench: Bench) -> None:
    bench.throttle("states:*")
    bench.throttle("ecs:*")
    bench.throttle("secretsmanager:*")
    bench.lose_reply("states:StartExecution")
    code, output = aws_project.run("aws_scenarios.py", "chain", TEST_PIPELINE_NAME="throttled")
    # What is asked from here on is the test's own.
    bench.clear_faults()
    assert code == 0, output
    run = aws_project.newest("throttled")
    assert run.status.value == "completed"
    machine = aws_project.execution(run)["stateMachineArn"]
    assert len(bench.client("stepfunctions").list_executions(stateMachineArn=machine)["executions"]) == 1


def test_two_clients_submit_the_same_pipeline_at_once(aws_project: Project, bench: Bench, tmp_path: Path) -> None:
    machines, ecs = bench.client("stepfunctions"), bench.client("ecs")

    def made() -> list[str]:
        found = machines.list_state_machines()["stateMachines"]
        return [machine["stateMachineArn"] for machine in found if machine["name"].startswith("together-")]

    # The image is there before: what two builds of one tag in one engine make is a matter between ZenML and the engine.
    code, output = aws_project.run("aws_scenarios.py", "chain", TEST_PIPELINE_NAME="together")
    assert code == 0, output
    (machine,) = made()
    machines.delete_state_machine(stateMachineArn=machine)
    for definition in ecs.list_task_definitions()["taskDefinitionArns"]:
        if "-se-" in definition:
            ecs.deregister_task_definition(taskDefinition=definition)
    projects = [aws_project, aws_project.copied_to(tmp_path / "other")]
    processes = [project.start("aws_scenarios.py", "chain", TEST_PIPELINE_NAME="together") for project in projects]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    (machine,) = made()
    executions = machines.list_executions(stateMachineArn=machine)["executions"]
    assert [execution["status"] for execution in executions] == ["SUCCEEDED"] * 2


def started(project: Project, pipeline: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """A client that watches a run whose step `slow` has begun, and what it wrote until then."""
    process = project.start("aws_scenarios.py", "waiting", TEST_PIPELINE_NAME=pipeline, **environment)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "slow begins" in line:
            return process, seen
    raise AssertionError(seen)


def test_a_task_that_aws_takes_away(aws_project: Project, bench: Bench) -> None:
    process, _ = started(aws_project, "taken")
    (task,) = bench.running_tasks(aws_project.given.cluster_arn)
    bench.stop_task(task)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Step `slow` failed" in output
    run = aws_project.newest("taken")
    assert run.status.value == "failed"
    assert aws_project.steps(run) == {"numbers": ["completed"], "slow": ["failed"]}
    (row,) = aws_project.rows(run)["slow"]
    assert "Spot" in str(row.run_metadata["stopped_reason"])


def test_a_zenml_server_that_is_away_while_a_step_ends(aws_project: Project) -> None:
    process, seen = started(aws_project, "restarted", SLOW_SECONDS="5")
    aws_project.server.stop()
    try:
        # In the task it is ZenML that waits, for half a minute.
        time.sleep(10)
    finally:
        aws_project.server.start()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, seen + output
    run = aws_project.newest("restarted")
    assert run.status.value == "completed"
    assert aws_project.steps(run) == {"numbers": ["completed"], "slow": ["completed"], "after": ["completed"]}
    assert not [name for name in aws_project.secrets() if "/runs/" in name]


def test_an_execution_that_somebody_aborts_in_the_console(
    aws_project: Project,
    bench: Bench,
    until: Callable[..., None],
) -> None:
    process, _ = started(aws_project, "aborted")
    run = aws_project.newest("aborted")
    bench.client("stepfunctions").stop_execution(executionArn=str(run.run_metadata["execution_arn"]), cause="console")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "RunInterruptedError" in output
    until(lambda: not bench.containers(), "the end of the task")
    ended = aws_project.newest("aborted")
    # The task gets its SIGTERM before anybody could tell ZenML of a stop: a step that reports in time calls itself failed.
    assert ended.status.value in ("stopped", "failed")


def test_the_service_connector_gives_the_credentials(aws_project: Project, bench: Bench) -> None:
    """A user's key is in the connector only: neither client nor tasks have another way to AWS."""
    key = bench.user([{"Effect": "Allow", "Action": "*", "Resource": "*"}])
    aws_project.zenml(
        *["service-connector", "register", "aws_explicit", "--type", "aws", "--auth-method", "secret-key"],
        *["--region=us-east-1", f"--aws_access_key_id={key.access_key}", f"--aws_secret_access_key={key.secret_key}"],
        "--no-verify",
    )
    aws_project.zenml("orchestrator", "connect", f"sf_{aws_project.name}", "--connector", "aws_explicit")
    aws_project.zenml(
        *["artifact-store", "connect", f"s3_{aws_project.name}", "--connector", "aws_explicit"],
        *["--resource-id", f"s3://{aws_project.given.bucket}"],
    )
    try:
        without = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        with bench.enforced_policies():
            code, output = aws_project.run("aws_scenarios.py", "chain", TEST_PIPELINE_NAME="connected", **without)
        assert code == 0, output
        assert aws_project.newest("connected").status.value == "completed"
    finally:
        aws_project.zenml("orchestrator", "disconnect", f"sf_{aws_project.name}")
        aws_project.zenml("artifact-store", "disconnect", f"s3_{aws_project.name}")
    everything = json.dumps(bench.dump(), default=str)
    assert key.secret_key not in everything


def test_credentials_of_a_connector_that_end_during_the_watch(aws_project: Project, bench: Bench) -> None:
    """A role's, which the connector assumes: the watch has new ones before the old ones end, several times."""
    key = bench.user([{"Effect": "Allow", "Action": "*", "Resource": "*"}])
    aws_project.zenml(
        *["service-connector", "register", "aws_short", "--type", "aws", "--auth-method", "iam-role"],
        *["--region=us-east-1", f"--aws_access_key_id={key.access_key}", f"--aws_secret_access_key={key.secret_key}"],
        *[f"--role_arn={aws_project.given.task_role}", "--no-verify"],
        # ZenML counts credentials as ended five minutes before they do, unless told otherwise.
        "--expires-skew-tolerance=1",
    )
    aws_project.zenml("orchestrator", "connect", f"sf_{aws_project.name}", "--connector", "aws_short", "--no-verify")
    try:
        bench.reset_calls()
        with bench.short_sessions(SESSION_SECONDS):
            process, seen = started(aws_project, "renewed", SLOW_SECONDS=str(1.5 * SESSION_SECONDS))
            output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, seen + output
        assert aws_project.newest("renewed").status.value == "completed"
        assert bench.calls()["sts:AssumeRole"] >= 3
        assert "slow ends" in output, "its log was streamed to its end"
    finally:
        aws_project.zenml("orchestrator", "disconnect", f"sf_{aws_project.name}")
