"""Real pipelines on the bench: Step Functions executes, every step is a container, artifacts are in S3."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
from collections.abc import Callable

import pytest
from bench_client import Bench
from stack import Project

NEW = ("ecs:RegisterTaskDefinition", "states:CreateStateMachine", "states:UpdateStateMachine")


def test_the_tutorial_runs_on_step_functions(aws_project: Project, bench: Bench) -> None:
    """Its commands, its configuration, its image with the requirements that it asks for."""
    code, output = aws_project.run("run.py", "--config", "configs/step_functions.yaml")
    assert code == 0, output
    assert "Test accuracy: 0.9" in output
    run = aws_project.newest("sklearn_pipeline")
    assert run.status.value == "completed"
    assert aws_project.steps(run) == {name: ["completed"] for name in ("data_loader", "trainer", "evaluator")}
    assert str(run.run_metadata["orchestrator_run_id"]) == str(run.id)
    assert "#/v2/executions/details/arn:aws:states:" in str(run.run_metadata["orchestrator_url"])
    assert float(run.run_metadata["estimated_cost_usd"]) > 0
    assert float(run.run_metadata["task_cost_usd"]) > 0
    execution = aws_project.execution(run)
    assert execution["status"] == "SUCCEEDED"
    events = [event["type"] for event in bench.events(execution["executionArn"])]
    assert events.count("TaskSubmitted") == events.count("TaskSucceeded") == 3
    # The step's own output came to the console as well as to CloudWatch.
    assert any("Test accuracy: 0.9" in line for line in bench.messages(aws_project.given.log_group))
    assert any("Test accuracy: 0.9" in line and "evaluator" in line for line in output.splitlines())
    rows = aws_project.rows(run)
    (model,) = rows["trainer"][0].outputs["model"]
    assert model.uri.startswith(f"s3://{aws_project.given.bucket}/")
    prefix = model.uri.removeprefix(f"s3://{aws_project.given.bucket}/")
    assert bench.client("s3").list_objects_v2(Bucket=aws_project.given.bucket, Prefix=prefix)["KeyCount"] > 0
    for steps in rows.values():
        assert str(steps[0].run_metadata["task_arn"]).startswith("arn:aws:ecs:")
        assert "log-events" in str(steps[0].run_metadata["log_url"])
    # What the step asked for, rounded to what Fargate has.
    task = str(rows["trainer"][0].run_metadata["task_definition"])
    definition = bench.client("ecs").describe_task_definition(taskDefinition=task)["taskDefinition"]
    assert (definition["cpu"], definition["memory"]) == ("1024", "2048")
    # What nobody asked to change is the template's.
    assert definition["containerDefinitions"][0]["stopTimeout"] == 5
    assert definition["taskRoleArn"] == aws_project.given.task_role


def test_a_second_run_of_an_unchanged_pipeline_makes_nothing_new(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run("aws_scenarios.py", "chain")
    assert code == 0, output
    first = aws_project.newest("chain")
    bench.reset_calls()
    code, output = aws_project.run("aws_scenarios.py", "chain")
    assert code == 0, output
    second = aws_project.newest("chain")
    assert second.id != first.id and second.status.value == "completed"
    calls = bench.calls()
    assert not [name for name in NEW if name in calls], calls
    assert calls["states:StartExecution"] == 1
    one, other = aws_project.execution(first), aws_project.execution(second)
    assert one["stateMachineArn"] == other["stateMachineArn"]
    assert not [name for name in aws_project.secrets() if "/runs/" in name]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("continue_on_failure", {"slow": ["completed"], "after_slow": ["completed"]}),
        ("stop_on_failure", {"slow": ["completed"]}),
        ("fail_fast", {"slow": ["stopped"]}),
    ],
)
def test_a_failing_step(
    aws_project: Project,
    mode: str,
    expected: dict[str, list[str]],
) -> None:
    seconds = "120" if mode == "fail_fast" else "15"
    code, output = aws_project.run("aws_scenarios.py", "failing", TEST_MODE=mode, SLOW_SECONDS=seconds)
    assert code == 1
    assert "StepFailedError" in output
    assert "Step `broken` failed: exit code 1" in output
    assert "broken on purpose" in output.rpartition("Its last output:")[2]
    run = aws_project.newest("failing")
    assert run.status.value == "failed"
    assert aws_project.steps(run) == {"numbers": ["completed"], "broken": ["failed"], **expected}
    assert not aws_project.bench.containers()
    assert not [name for name in aws_project.secrets() if "/runs/" in name]


def test_no_step_waits_for_what_it_does_not_depend_on(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run("aws_scenarios.py", "n_graph", SLOW_SECONDS="40")
    assert code == 0, output
    run = aws_project.newest("n_graph")
    assert aws_project.steps(run) == {name: ["completed"] for name in ("numbers", "waits", "total", "both")}
    tasks = {name: str(rows[0].run_metadata["task_arn"]) for name, rows in aws_project.rows(run).items()}
    cluster = aws_project.given.cluster_arn
    ran = bench.client("ecs").describe_tasks(cluster=cluster, tasks=list(tasks.values()))["tasks"]
    times = {task["taskArn"]: (task["createdAt"], task["stoppedAt"]) for task in ran}
    (_, numbers), (_, waits), total, both = (times[tasks[name]] for name in ("numbers", "waits", "total", "both"))
    assert numbers <= total[0] < total[1] < waits <= both[0], "as the dependencies have it, and no later"
    # By a signal through the bucket.
    listed = bench.client("s3").list_objects_v2(
        Bucket=aws_project.given.bucket, Prefix=f"step-engine/signals/{run.id}/"
    )
    assert [item["Key"].rpartition(f"{run.id}/")[2] for item in listed["Contents"]] == ["numbers/over"]


def test_no_more_steps_run_at_once_than_are_allowed(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run("aws_scenarios.py", "limited")
    assert code == 1
    assert "Step `part_0` failed" in output
    run = aws_project.newest("limited")
    # What waits for its turn does not wait for success.
    others = {f"part_{number}": ["completed"] for number in range(1, 5)}
    assert aws_project.steps(run) == {"part_0": ["failed"], **others}
    tasks = [str(rows[0].run_metadata["task_arn"]) for rows in aws_project.rows(run).values()]
    ran = bench.client("ecs").describe_tasks(cluster=aws_project.given.cluster_arn, tasks=tasks)["tasks"]
    moments = sorted([(task["createdAt"], 1) for task in ran] + [(task["stoppedAt"], -1) for task in ran])
    at_once = list(itertools.accumulate(change for _, change in moments))
    assert (len(ran), max(at_once)) == (5, 2)


def test_a_container_that_dies_without_a_word(aws_project: Project) -> None:
    code, output = aws_project.run("aws_scenarios.py", "dying")
    assert code == 1
    assert "Step `killed` failed: killed by SIGKILL" in output
    assert "about to be killed" in output.rpartition("Its last output:")[2]
    run = aws_project.newest("dying")
    assert run.status.value == "failed"
    assert aws_project.steps(run) == {"numbers": ["completed"], "killed": ["failed"]}


def test_a_step_is_retried_in_another_task(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run("aws_scenarios.py", "retried")
    assert code == 0, output
    run = aws_project.newest("retried")
    assert run.status.value == "completed"
    assert aws_project.steps(run)["second_time"] == ["retried", "completed"]
    events = bench.events(aws_project.execution(run)["executionArn"])
    tasks = [
        json.loads(event["taskSubmittedEventDetails"]["output"]) for event in events if event["type"] == "TaskSubmitted"
    ]
    assert len({task["Tasks"][0]["TaskArn"] for task in tasks}) == 3


def test_ctrl_c_ends_the_watching_and_stop_ends_the_run(
    aws_project: Project,
    bench: Bench,
    until: Callable[..., None],
) -> None:
    process = aws_project.start("aws_scenarios.py", "waiting")
    assert process.stdout is not None
    seen = ""
    while "slow begins" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert "the run goes on" in rest
    assert process.returncode != 0
    run = aws_project.newest("waiting")
    assert run.status.value == "running"
    assert aws_project.execution(run)["status"] == "RUNNING"
    assert len(bench.containers()) == 1
    aws_project.zenml("pipeline", "runs", "refresh", str(run.id))
    assert aws_project.newest("waiting").status.value == "running"

    aws_project.zenml("pipeline", "runs", "stop", str(run.id), "-y")
    assert aws_project.execution(run)["status"] == "ABORTED"
    until(lambda: not bench.containers(), "the end of the task")
    ended = aws_project.newest("waiting")
    assert ended.status.value == "stopped"
    assert aws_project.steps(ended) == {"numbers": ["completed"], "slow": ["stopped"]}
    assert not [name for name in aws_project.secrets() if "/runs/" in name]


def test_refresh_puts_right_what_nobody_watched(
    aws_project: Project,
    bench: Bench,
    until: Callable[..., None],
) -> None:
    """The client is killed, then the task; nobody is left who could tell ZenML."""
    process = aws_project.start("aws_scenarios.py", "waiting")
    assert process.stdout is not None
    for line in process.stdout:
        if "slow begins" in line:
            break
    process.kill()
    process.communicate()
    run = aws_project.newest("waiting")
    (task,) = bench.running_tasks(aws_project.given.cluster_arn)
    bench.client("ecs").stop_task(cluster=aws_project.given.cluster_arn, task=task, reason="gone")
    arn = aws_project.execution(run)["executionArn"]
    assert bench.wait_for(arn)["status"] == "FAILED"
    aws_project.zenml("pipeline", "runs", "refresh", str(run.id))
    ended = aws_project.newest("waiting")
    assert ended.status.value == "failed"
    assert aws_project.steps(ended) == {"numbers": ["completed"], "slow": ["failed"]}
    assert not [name for name in aws_project.secrets() if "/runs/" in name]


def test_no_secret_stands_where_others_can_read_it(
    aws_project: Project,
    bench: Bench,
    until: Callable[..., None],
) -> None:
    mine = "hunter2-and-more"
    process = aws_project.start("aws_scenarios.py", "secretive", TEST_SECRET=mine)
    until(lambda: [name for name in aws_project.secrets() if "/runs/" in name], "the run's secret", 300)
    (name,) = [name for name in aws_project.secrets() if "/runs/" in name]
    kept = json.loads(bench.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])
    token = kept["ZENML_STORE_API_TOKEN"]
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = aws_project.newest("secretive")
    (seen,) = aws_project.rows(run)["tells_secrets"][0].outputs["seen"]
    body = bench.client("s3").list_objects_v2(
        Bucket=aws_project.given.bucket, Prefix=seen.uri.removeprefix(f"s3://{aws_project.given.bucket}/")
    )
    values = [
        bench.client("s3").get_object(Bucket=aws_project.given.bucket, Key=item["Key"])["Body"].read().decode()
        for item in body["Contents"]
    ]
    # The steps did see them.
    for variable, value in {"MY_API_KEY": mine, "ZENML_STORE_API_TOKEN": token, "PLAIN": "1"}.items():
        digest = hashlib.sha256(value.encode()).hexdigest()[:8]
        assert any(f"{variable}={digest}" in text for text in values), variable
    everything = json.dumps(bench.dump(), default=str)
    assert '"PLAIN"' in everything, "the search would find what is there"
    for secret in (mine, token):
        assert secret not in everything
        assert secret not in output
    assert name not in aws_project.secrets()
    assert any("/environment/MY_API_KEY-" in kept for kept in aws_project.secrets())


def test_a_schedule_is_made_changed_and_deleted(aws_project: Project, bench: Bench) -> None:
    scheduler = bench.client("scheduler")
    code, output = aws_project.run("aws_scenarios.py", "scheduled", "mornings")
    assert code == 0, output
    (name,) = [item["Name"] for item in scheduler.list_schedules()["Schedules"]]
    made = scheduler.get_schedule(Name=name)
    assert made["ScheduleExpression"] == "cron(0 8 ? * MON,TUE,WED,THU,FRI *)"
    assert made["State"] == "ENABLED"
    (secret,) = [item for item in aws_project.secrets() if "/schedules/" in item]

    # With the role that the schedule names, as EventBridge Scheduler would.
    started = bench.fire(name)
    assert bench.wait_for(started, 300)["status"] == "SUCCEEDED"
    run = aws_project.newest("scheduled")
    assert run.status.value == "completed"
    assert run.orchestrator_run_id == started.rpartition(":")[2]
    assert run.run_metadata["execution_arn"] == started
    assert run.schedule is not None and run.schedule.name == "mornings"

    aws_project.zenml("pipeline", "schedule", "update", "mornings", "--cron-expression", "30 9 1 * *")
    assert scheduler.get_schedule(Name=name)["ScheduleExpression"] == "cron(30 9 1 * ? *)"
    aws_project.zenml("pipeline", "schedule", "deactivate", "mornings")
    assert scheduler.get_schedule(Name=name)["State"] == "DISABLED"
    aws_project.zenml("pipeline", "schedule", "activate", "mornings")
    changed = scheduler.get_schedule(Name=name)
    assert (changed["State"], changed["ScheduleExpression"]) == ("ENABLED", "cron(30 9 1 * ? *)")
    aws_project.zenml("pipeline", "schedule", "delete", "mornings", "-y")
    assert not scheduler.list_schedules()["Schedules"]
    assert secret not in aws_project.secrets()


def test_a_schedule_that_cannot_be_leaves_nothing(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run("aws_scenarios.py", "interval", "odd")
    assert code == 1
    # The terminal's lines end anywhere.
    assert "counts in whole minutes" in " ".join(output.split())
    assert not bench.client("scheduler").list_schedules()["Schedules"]
    assert " odd " not in aws_project.zenml("pipeline", "schedule", "list")
