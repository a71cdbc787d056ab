"""Runs on the Rust core: what a watcher sees of tasks, logs, failures, stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from bench_client import Bench
from conftest import Prerequisites
from core_client import Core, Watched, session, step
from step_engine import AwsRun
from step_engine.errors import AwsError


@pytest.fixture
def core(bench: Bench, prerequisites: Prerequisites, monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    """The core with the administrator's keys."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bench.endpoint)
    yield Core(session(bench), prerequisites)


def test_a_run_is_told_from_launch_to_end_with_every_line_once(core: Core) -> None:
    steps = [step("a"), step("b", "a"), step("c", "a", retry={"max_retries": 1, "delay_seconds": 1}), step("d", "c")]
    commands = {
        "a": "for i in $(seq 300); do echo line $i; done; sleep 2; echo last",
        "b": "echo out; sleep 1; echo more",
        "c": "echo try; exit 3",
        "d": "echo never",
    }
    watched = core.start(*core.compile(steps, commands))
    summary = watched.finish()

    assert summary["status"] == "failed"
    assert summary["steps"] == [("a", "completed"), ("b", "completed"), ("c", "failed"), ("d", "skipped")]
    assert summary["first_failure"] == {"step": "c", "attempt": 2, "outcome": {"kind": "exited", "code": 3}}
    assert summary["attempts"] == 4
    assert watched.log("a") == [f"line {n}" for n in range(1, 301)] + ["last"]
    assert watched.log("b") == ["out", "more"]
    assert (watched.log("c", 1), watched.log("c", 2)) == (["try"], ["try"])

    kinds = [event["kind"] for event in watched.events if event.get("step") == "a" and event["kind"] != "log"]
    order = ["attempt_launched", "attempt_started", "attempt_ended", "step_finished", "task_ended"]
    assert kinds == order
    started = watched.of("attempt_started", step="a")[0]["details"]["task"]
    assert started["log_group"] == "/ecs/zenml" and started["log_stream"].startswith("zenml/main/")
    assert watched.of("retry_scheduled") == [{"kind": "retry_scheduled", "step": "c", "attempt": 2, "delay": 1.0}]
    ended = watched.of("task_ended", step="c", attempt=2)[0]
    assert (ended["exit_code"], ended["stop_code"], ended["log_tail"]) == (3, "EssentialContainerExited", ["try"])
    assert ended["started_at_unix_seconds"] <= ended["stopped_at_unix_seconds"]
    assert watched.events[-1]["kind"] == "run_finished" and watched.events[-2]["kind"] == "execution_ended"
    assert watched.of("execution_ended")[0]["failed_steps"] == ["c"]

    read = core.aws.execution_steps(watched.execution, ["a", "b", "c", "d"])
    statuses = {name: (its["status"], its["attempts"]) for name, its in read.items()}
    assert statuses == {"a": ("completed", 1), "b": ("completed", 1), "c": ("failed", 2), "d": ("skipped", 0)}
    assert core.aws.log_lines("/ecs/zenml", started["log_stream"], limit=2) == ["line 300", "last"]

    # A later watcher tells the same.
    again = AwsRun(core.aws, watched.execution, watched.plan, logs=False)
    again.start()
    later = []
    while not again.finished:
        later += again.next_events(1.0)
    assert again.summary is not None and again.summary["steps"] == summary["steps"]
    assert not [event for event in later if event["kind"] == "log"]


def start_other(core: Core, name: str, command: str, started_by: str, token: str = "") -> str:
    """Starts a task outside the execution, as an orchestration does for an isolated step. Returns its ARN."""
    needs = core.prerequisites
    variable = {"name": "ZENML_STEP_ENGINE_STEP", "value": name}
    override = {"name": "main", "command": ["sh", "-c", command], "environment": [variable]}
    asked = {
        "cluster": needs.cluster_arn,
        "taskDefinition": core.definition()["arn"],
        "launchType": "FARGATE",
        "startedBy": started_by,
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": needs.subnet_ids, "securityGroups": []}},
        "overrides": {"containerOverrides": [override]},
    }
    return core.aws.run_task(asked | ({"clientToken": token} if token else {}))["taskArn"]


def test_tasks_that_an_executions_own_starts_are_shown_as_steps(core: Core) -> None:
    plan, machines = core.compile([step("leader")], {"leader": "sleep 20"}, pipeline="leading")
    others = {"cluster": core.prerequisites.cluster_arn, "name": f"run-{time.time_ns()}"}
    execution = core.aws.start(core.deploy(machines)["arn"], name=others["name"], input={})
    watched = Watched(AwsRun(core.aws, execution, plan, others=others), execution, plan)
    watched.run.start()
    start_other(core, "good", "for i in $(seq 50); do echo line $i; done; sleep 4", others["name"])
    watched.until("attempt_started", step="good")
    start_other(core, "bad", "echo first; exit 3", others["name"])
    watched.until("attempt_ended", step="bad")
    # Another attempt; and a task of somebody else.
    start_other(core, "bad", "echo second; exit 0", others["name"])
    start_other(core, "foreign", "echo not ours", "somebody-else")
    summary = watched.finish()

    assert dict(summary["steps"]) == {"leader": "completed", "good": "completed", "bad": "completed"}
    assert (summary["status"], summary["attempts"], summary["first_failure"]) == ("completed", 4, None)
    assert summary["peak_parallelism"] >= 2
    assert watched.log("good") == [f"line {n}" for n in range(1, 51)]
    assert (watched.log("bad", 1), watched.log("bad", 2)) == (["first"], ["second"])
    kinds = [event["kind"] for event in watched.events if event.get("step") == "good" and event["kind"] != "log"]
    assert kinds == [
        "step_added",
        "attempt_launched",
        "attempt_started",
        "attempt_ended",
        "step_finished",
        "task_ended",
    ]
    assert [each["outcome"] for each in watched.of("attempt_ended", step="bad")] == [
        {"kind": "exited", "code": 3},
        {"kind": "completed"},
    ]
    assert watched.of("task_ended", step="bad", attempt=1)[0]["exit_code"] == 3
    assert len(watched.of("step_finished", step="bad")) == len(watched.of("step_added", step="bad")) == 1
    assert not watched.of("step_added", step="foreign")
    assert watched.events[-1]["kind"] == "run_finished" and watched.events[-2]["kind"] == "execution_ended"


def test_a_stop_ends_the_tasks_that_an_executions_own_started(core: Core, bench: Bench) -> None:
    plan, machines = core.compile([step("leader")], {"leader": "sleep 300"}, pipeline="leading")
    others = {"cluster": core.prerequisites.cluster_arn, "name": f"run-{time.time_ns()}"}
    execution = core.aws.start(core.deploy(machines)["arn"], name=others["name"], input={})
    watched = Watched(AwsRun(core.aws, execution, plan, others=others), execution, plan)
    watched.run.start()
    ours = start_other(core, "isolated", "exec sleep 300", others["name"], token="once")
    assert start_other(core, "isolated", "exec sleep 300", others["name"], token="once") == ours, "a token counts once"
    foreign = start_other(core, "foreign", "exec sleep 300", "somebody-else")
    watched.until("attempt_started", step="isolated")
    watched.until("attempt_started", step="leader")
    stopped = core.aws.stop(execution, cause="enough", grace_seconds=30, others=others)
    assert ours in stopped["stopped_tasks"] and len(stopped["stopped_tasks"]) == 2 and not stopped["left_running"]
    assert stopped["others"] == [ours]
    summary = watched.finish()
    assert summary["status"] == "stopped" and summary["attempts"] == 2
    assert bench.running_tasks(others["cluster"]) == [foreign]
    core.aws.stop_task(others["cluster"], foreign)
    # An execution that is over has left nothing.
    again = core.aws.stop(execution, others=others)
    assert (again["was_running"], again["left_running"], again["others"]) == (False, [], [])


def test_a_watch_that_may_not_list_tasks_says_so_and_goes_on(core: Core, bench: Bench) -> None:
    plan, machines = core.compile([step("leader")], {"leader": "echo mine"}, pipeline="leading")
    others = {"cluster": core.prerequisites.cluster_arn, "name": f"run-{time.time_ns()}"}
    bench.deny("ecs:ListTasks")
    execution = core.aws.start(core.deploy(machines)["arn"], name=others["name"], input={})
    watched = Watched(AwsRun(core.aws, execution, plan, others=others), execution, plan)
    watched.run.start()
    assert watched.finish()["status"] == "completed"
    assert watched.log("leader") == ["mine"]
    told = [event["message"] for event in watched.of("warning")]
    assert len(told) == 1 and "steps in tasks of their own are not shown" in told[0] and "ecs:ListTasks" in told[0]


def test_the_second_deployment_of_an_unchanged_pipeline_is_one_call(core: Core, bench: Bench) -> None:
    _, machines = core.compile([step("only")], {"only": "true"}, pipeline="unchanged")
    first = core.deploy(machines, tags={"team": "ml"})
    assert first["created"] == [first["arn"]]
    bench.reset_calls()
    second = core.deploy(machines)
    assert (second["arn"], second["created"], second["calls"]) == (first["arn"], [], 1)
    assert bench.calls() == {"states:DescribeStateMachine": 1}
    tags = bench.client("stepfunctions").list_tags_for_resource(resourceArn=first["arn"])["tags"]
    assert {tag["key"]: tag["value"] for tag in tags} == {
        "team": "ml",
        "step-engine:pipeline": "unchanged",
        "step-engine:machine": "root",
    }


def test_steps_of_machines_inside_are_seen(core: Core) -> None:
    names = [f"s{n}" for n in range(8)]
    steps = [step(name) for name in names] + [step("end", *names)]
    commands = {name: f"echo {name}" for name in [*names, "end"]} | {"s3": "exit 4"}
    plan, machines = core.compile(steps, commands, limits={"definition_bytes": 9_000})
    assert len(machines) > 1
    watched = core.start(plan, machines)
    summary = watched.finish()
    statuses = dict(summary["steps"])
    expected = dict.fromkeys(names, "completed") | {"s3": "failed", "end": "skipped"}
    assert statuses == expected
    assert all(watched.log(name) == [name] for name in names if name != "s3")
    read = core.aws.execution_steps(watched.execution, [*names, "end"])
    assert {name: its["status"] for name, its in read.items()} == expected


def test_how_tasks_fail_is_told(core: Core) -> None:
    missing_image = core.definition(image="no.such.registry/image:1")["arn"]
    log = {"logDriver": "awslogs", "options": {"awslogs-group": "/no/such", "awslogs-stream-prefix": "x"}}
    missing_group = core.definition(log_configuration=log)["arn"]
    steps = [step(name) for name in ("memory", "image", "logs", "slow", "killed")]
    steps[3]["timeout_seconds"] = 3
    hog = 'python3 -c "x = bytearray(3 << 30); import time; time.sleep(9)"'
    commands = {"memory": hog, "image": "true", "logs": "true", "slow": "sleep 60", "killed": "echo hi; sleep 60"}
    plan, machines = core.compile(steps, commands)
    definition = json.loads(machines[-1]["definition"])

    def point(states: dict) -> None:
        for name, state in states.items():
            if name in ("image", "logs"):
                arn = {"image": missing_image, "logs": missing_group}[name]
                state["Parameters"]["TaskDefinition"] = arn
            for branch in state.get("Branches", []):
                point(branch["States"])

    point(definition["States"])
    machines[-1]["definition"] = json.dumps(definition)
    watched = core.start(plan, machines)
    started = watched.until("attempt_started", step="killed")
    watched.until("log", step="killed")
    task = started["details"]["task"]
    core.aws.stop_task(task["cluster"], task["arn"], reason="by hand")
    watched.finish()
    outcomes = {event["step"]: event["outcome"] for event in watched.of("attempt_ended")}
    assert outcomes["memory"] == {"kind": "out_of_memory"}
    assert outcomes["slow"] == {"kind": "timed_out"}
    assert outcomes["image"]["kind"] == "launch_failed" and "CannotPull" in outcomes["image"]["reason"]
    assert outcomes["logs"]["kind"] == "launch_failed" and "ResourceInit" in outcomes["logs"]["reason"]
    assert outcomes["killed"]["kind"] == "lost" and "by hand" in outcomes["killed"]["reason"]


def test_stop_ends_the_execution_and_its_tasks(core: Core, bench: Bench) -> None:
    commands = {
        "a": "trap 'sleep 3; echo last words; exit 1' TERM; echo up; sleep 120 & wait",
        "b": "trap '' TERM; echo up; sleep 120 & wait; sleep 60",
    }
    watched = core.start(*core.compile([step("a"), step("b"), step("c", "a")], commands | {"c": "true"}))
    for name in ("a", "b"):
        watched.until("log", step=name)
    stopped = core.aws.stop(watched.execution, cause="enough", grace_seconds=30)
    assert stopped["was_running"] and len(stopped["stopped_tasks"]) == 2 and stopped["left_running"] == []
    summary = watched.finish()
    assert summary["status"] == "stopped"
    assert watched.log("a") == ["up", "last words"]
    exit_codes = {event["step"]: event["exit_code"] for event in watched.of("task_ended")}
    assert exit_codes == {"a": 1, "b": 137}
    assert summary["steps"] == [("a", "stopped"), ("b", "stopped"), ("c", "skipped")]
    assert watched.of("stop_requested")[0]["reason"] == "enough"
    tasks = [event["arn"] for event in watched.of("task_ended")]
    states = bench.client("ecs").describe_tasks(cluster="zenml", tasks=tasks)["tasks"]
    assert {task["lastStatus"] for task in states} == {"STOPPED"}
    again = core.aws.stop(watched.execution)
    assert again["was_running"] is False and again["left_running"] == []


def test_the_first_failure_ends_a_fail_fast_run(core: Core) -> None:
    commands = {"bad": "sleep 3; exit 9", "slow": "echo up; sleep 60", "next": "true"}
    steps = [step("bad"), step("slow"), step("next", "slow")]
    watched = core.start(*core.compile(steps, commands, mode="fail_fast"))
    begun = time.monotonic()
    summary = watched.finish()
    assert time.monotonic() - begun < 40
    assert summary["steps"] == [("bad", "failed"), ("slow", "stopped"), ("next", "skipped")]
    assert summary["status"] == "failed" and summary["first_failure"]["outcome"] == {"kind": "exited", "code": 9}


def test_cancel_ends_the_watching_only(core: Core) -> None:
    watched = core.start(*core.compile([step("a")], {"a": "sleep 5"}))
    watched.until("attempt_launched")
    watched.run.cancel("interrupt")
    while not watched.run.finished:
        watched.run.next_events(0.5)
    assert watched.run.summary is None
    assert core.aws.describe_execution(watched.execution)["status"] == "RUNNING"
    core.aws.stop(watched.execution)


def test_an_execution_that_does_not_exist_is_an_error(core: Core) -> None:
    arn = "arn:aws:states:us-east-1:123456789012:execution:none:none"
    run = AwsRun(core.aws, arn, {"steps": [step("a")]})
    run.start()
    with pytest.raises(AwsError) as caught:
        while not run.finished:
            run.next_events(1.0)
    assert caught.value.code == "ExecutionDoesNotExist" and run.summary is None
