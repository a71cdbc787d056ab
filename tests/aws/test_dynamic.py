"""Dynamic pipelines on the bench: the orchestration is the only task of an execution, and starts the isolated ones."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from account import PREFIX, Account
from bench_client import Bench
from conftest import Prerequisites
from stack import Project
from zenml_server import ZenmlServer

MODULE = "dynamic_scenarios.py"
NEW = ("ecs:RegisterTaskDefinition", "states:CreateStateMachine", "states:UpdateStateMachine")


def tasks_of(bench: Bench, run: Any) -> dict[str, dict[str, Any]]:
    """The tasks that a run's orchestration has started, as the bench remembers them, by ARN."""
    return {task["arn"]: task for task in bench.dump()["tasks"] if (task["started_by"] or "").startswith(str(run.id))}


def running(project: Project) -> list[str]:
    return project.bench.running_tasks(project.given.cluster_arn)


def leaves_nothing(project: Project) -> None:
    assert not project.bench.containers()
    assert not [name for name in project.secrets() if "/runs/" in name]


def test_inline_mapped_and_retried_steps(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run(MODULE, "everything")
    assert code == 0, output
    run = aws_project.newest("everything")
    assert run.status.value == "completed"
    assert aws_project.steps(run) == {
        "numbers": ["completed"],
        "map:double:0": ["completed"],
        "map:double:1": ["completed"],
        "second_time": ["retried", "completed"],
        "total": ["completed"],
    }
    execution = aws_project.execution(run)
    assert execution["status"] == "SUCCEEDED"
    events = [event["type"] for event in bench.events(execution["executionArn"])]
    assert events.count("TaskSubmitted") == events.count("TaskSucceeded") == 1
    # Inline in the orchestration's task, isolated each in its own, a retried one in another.
    isolated = tasks_of(bench, run)
    rows = aws_project.rows(run)
    of_rows = {str(row.run_metadata["task_arn"]) for name, each in rows.items() if name != "numbers" for row in each}
    inline = re.search(r"inline in (arn:\S+)", output)
    assert inline is not None and inline[1] not in isolated
    assert of_rows - {inline[1]} == set(isolated) and len(isolated) == 4
    assert all("log-events" in str(row.run_metadata["log_url"]) for row in rows["second_time"])
    assert rows["second_time"][0].run_metadata["outcome"] == "exited"
    # 600 MB are 573 MiB, and Fargate has 1024 with a quarter of a CPU.
    lines = output.splitlines()
    assert any(line.startswith("map:double:1") and line.endswith("within 1073741824") for line in lines), output
    # Everybody's output comes to the console, with the step's name in front.
    assert any(line.startswith("orchestration") and "the total is 6" in line for line in lines)
    said = [line.partition("|")[2].strip() for line in lines if line.startswith("second_time")]
    assert [line for line in said if line.startswith(("attempt", "--"))][:2] == ["-- started", "attempt 1"], said
    assert "attempt 2" in said and any("killed by SIGKILL" in line for line in said)
    assert "Run completed" in output and "5 completed" not in output
    leaves_nothing(aws_project)

    bench.reset_calls()
    code, output = aws_project.run(MODULE, "everything")
    assert code == 0, output
    again = aws_project.newest("everything")
    assert again.id != run.id and again.status.value == "completed"
    assert not [name for name in NEW if name in bench.calls()], bench.calls()
    assert aws_project.execution(again)["stateMachineArn"] == execution["stateMachineArn"]


def test_secrets_of_isolated_steps(aws_project: Project, bench: Bench, until: Callable[..., None]) -> None:
    mine = "hunter3-and-more"
    process = aws_project.start(MODULE, "secretive", TEST_SECRET=mine)
    until(lambda: [name for name in aws_project.secrets() if "/runs/" in name], "the run's secret", 300)
    (name,) = [name for name in aws_project.secrets() if "/runs/" in name]
    kept = json.loads(bench.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])
    token = kept["ZENML_STORE_API_TOKEN"]
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    run = aws_project.newest("secretive")
    (seen,) = aws_project.rows(run)["tells_secrets"][0].outputs["seen"]
    prefix = seen.uri.removeprefix(f"s3://{aws_project.given.bucket}/")
    store = bench.client("s3")
    listed = store.list_objects_v2(Bucket=aws_project.given.bucket, Prefix=prefix)["Contents"]
    values = [
        store.get_object(Bucket=aws_project.given.bucket, Key=each["Key"])["Body"].read().decode() for each in listed
    ]
    for variable, value in {"MY_API_KEY": mine, "ZENML_STORE_API_TOKEN": token, "PLAIN": "1", "ADDED": "2"}.items():
        digest = hashlib.sha256(value.encode()).hexdigest()[:8]
        assert any(f"{variable}={digest}" in text for text in values), (variable, values)
    # What only the running pipeline knows can get into a task in plain text only, so it does not.
    told = " ".join(output.split())
    assert "its variable OTHER_API_KEY is a secret that was not known before the run began" in told, output
    everything = json.dumps(bench.dump(), default=str)
    assert '"ADDED"' in everything, "the search would find what is there"
    for secret in (mine, token):
        assert secret not in everything
        assert secret not in output
    leaves_nothing(aws_project)


@pytest.mark.parametrize(("mode", "other"), [("fail_fast", "stopped"), ("stop_on_failure", "completed")])
def test_a_failing_isolated_step(aws_project: Project, mode: str, other: str) -> None:
    seconds = "600" if mode == "fail_fast" else "20"
    code, output = aws_project.run(MODULE, "failing", TEST_MODE=mode, SLEEP_SECONDS=seconds)
    assert code == 1
    run = aws_project.newest("failing")
    assert run.status.value == "failed", output
    assert aws_project.steps(run) == {"sleeps": [other], "broken": ["failed"]}
    assert "Step `orchestration` failed: exit code 45" in output
    assert "broken on purpose" in output.rpartition("Its last output:")[2]
    assert any(line.startswith("broken") and "about to break" in line for line in output.splitlines()), output
    assert aws_project.execution(run)["status"] == "FAILED"
    leaves_nothing(aws_project)


def test_isolated_steps_that_die_without_a_word(aws_project: Project) -> None:
    code, output = aws_project.run(MODULE, "dying")
    assert code == 1
    run = aws_project.newest("dying")
    assert run.status.value == "failed", output
    assert aws_project.steps(run) == {"dies": ["failed"], "too_slow": ["failed"], "last": ["failed"]}
    told = " ".join(line.partition("|")[2].strip() for line in output.splitlines())
    for step, why in {"dies": "killed by SIGSEGV (exit code 139)", "too_slow": "timed out"}.items():
        assert f"TRIED RuntimeError Step `{step}` failed: {why} (task arn:aws:ecs:" in told, output
    rows = aws_project.rows(run)
    assert rows["too_slow"][0].run_metadata["outcome"] == "timed_out"
    assert rows["last"][0].run_metadata["exit_code"] == 139
    leaves_nothing(aws_project)


def test_zenmls_retry_goes_on_with_a_failed_run_in_another_execution(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run(MODULE, "continued")
    run = aws_project.newest("continued")
    assert code == 1 and run.status.value == "failed", output
    first = aws_project.execution(run)
    assert (first["name"], first["status"]) == (str(run.id), "FAILED")
    bench.client("s3").put_object(Bucket=aws_project.given.bucket, Key="the-file", Body=b"")
    output = aws_project.zenml("pipeline", "runs", "retry", str(run.id))
    again = aws_project.newest("continued")
    assert (again.id, again.status.value) == (run.id, "completed"), output
    assert aws_project.steps(again) == {"counted": ["completed"], "follows": ["completed"]}, "one ran once"
    second = aws_project.execution(again)
    assert (second["name"], second["status"]) == (f"{run.id}-2", "SUCCEEDED")
    assert second["stateMachineArn"] == first["stateMachineArn"]
    assert len(tasks_of(bench, run)) == 2
    leaves_nothing(aws_project)


def begun(process: Any) -> str:
    """Reads until both steps of `waiting` run."""
    seen = ""
    while seen.count("sleep begins") < 2:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


def test_stop_leaves_no_task(aws_project: Project, bench: Bench, until: Callable[..., None]) -> None:
    process = aws_project.start(MODULE, "waiting")
    begun(process)
    run = aws_project.newest("waiting")
    assert run.status.value == "running" and len(running(aws_project)) == 3
    aws_project.zenml("pipeline", "runs", "stop", str(run.id), "-y")
    assert not running(aws_project)
    assert aws_project.execution(run)["status"] == "ABORTED"
    output, _ = process.communicate(timeout=120)
    assert "RunInterruptedError" in output
    ended = aws_project.newest("waiting")
    assert ended.status.value == "stopped"
    assert aws_project.steps(ended) == {"sleeps_0": ["stopped"], "sleeps_1": ["stopped"]}
    leaves_nothing(aws_project)


def test_refresh_stops_what_a_killed_orchestration_left(
    aws_project: Project, bench: Bench, until: Callable[..., None]
) -> None:
    """The client is killed, then the orchestration; nobody is left who would stop the isolated steps."""
    process = aws_project.start(MODULE, "waiting")
    begun(process)
    process.kill()
    process.communicate()
    run = aws_project.newest("waiting")
    isolated = tasks_of(bench, run)
    (orchestration,) = set(running(aws_project)) - set(isolated)
    bench.stop_task(orchestration)
    assert bench.wait_for(str(run.run_metadata["execution_arn"]))["status"] == "FAILED"
    assert set(running(aws_project)) == set(isolated) and len(isolated) == 2
    aws_project.zenml("pipeline", "runs", "refresh", str(run.id))
    until(lambda: not running(aws_project), "the end of the isolated tasks")
    ended = aws_project.newest("waiting")
    assert ended.status.value == "failed"
    assert aws_project.steps(ended) == {"sleeps_0": ["failed"], "sleeps_1": ["failed"]}
    until(lambda: not bench.containers(), "the end of the containers")
    leaves_nothing(aws_project)


def test_the_templates_roles_suffice(
    tmp_path_factory: pytest.TempPathFactory,
    account: Account,
    bench: Bench,
    zenml_server: ZenmlServer,
    parent_image: str,
) -> None:
    """Those of `infra/aws`, with everybody held to their policies: the client, Step Functions, ECS and the tasks."""
    target = account.target
    given = Prerequisites(
        cluster_arn=target.cluster,
        task_definition_arn=target.task_definition,
        execution_role=target.execution_role,
        task_role=target.execution_role.replace("execution", "task"),
        state_machine_role=str(target.state_machine_role),
        scheduler_role=str(target.scheduler_role),
        subnet_ids=list(target.subnet_ids),
        security_group_ids=list(target.security_group_ids),
        bucket=target.bucket,
        log_group=f"/{PREFIX}/steps",
    )
    folder = tmp_path_factory.mktemp("template")
    project = Project(folder, bench, zenml_server, given, parent_image, assign_public_ip="true")
    developer = bench.environment(account.developer())
    with bench.enforced_policies():
        code, output = project.run(MODULE, "everything", **developer)
        assert code == 0, output
        assert any(line.startswith("map:double:0") and "isolated 1" in line for line in output.splitlines()), output
        process = project.start(MODULE, "waiting", **developer)
        begun(process)
        run = project.newest("waiting")
        project.zenml("pipeline", "runs", "stop", str(run.id), "-y", **developer)
        process.communicate(timeout=120)
    assert not running(project)
    assert project.newest("waiting").status.value == "stopped"
    leaves_nothing(project)
