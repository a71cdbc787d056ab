"""Calls of the Rust core: what they create, what they find again, and how they take faults and refusals."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bench_client import Bench, Credentials
from conftest import Prerequisites
from core_client import Core, session, step
from step_engine import AwsSession
from step_engine.errors import AwsError, PlanError

# Of a definition, what a registration takes.
REGISTERED = (
    *("containerDefinitions", "volumes", "networkMode", "requiresCompatibilities"),
    *("cpu", "memory", "executionRoleArn", "taskRoleArn"),
)


@pytest.fixture
def core(bench: Bench, prerequisites: Prerequisites, monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    """The core with the administrator's keys."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bench.endpoint)
    yield Core(session(bench), prerequisites)


def machines(core: Core, **options: Any) -> list[dict[str, Any]]:
    """Machines that nobody deployed before."""
    pipeline = f"p{uuid.uuid4().hex[:8]}"
    return core.compile([step("a")], {"a": "true"}, **{"pipeline": pipeline, **options})[1]


def test_a_definition_is_registered_once_for_equal_content(core: Core, bench: Bench) -> None:
    overlay = {"image": "repo:1", "cpu": 1024, "memory_mib": 2048, "environment": {"N": uuid.uuid4().hex}}
    bench.reset_calls()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: core.definition(**overlay), range(4)))
    assert [each["created"] for each in made].count(True) == 1
    assert len({each["arn"] for each in made}) == 1
    assert bench.calls()["ecs:RegisterTaskDefinition"] == 1

    other = Core(session(bench), core.prerequisites)
    bench.reset_calls()
    again = other.definition(**overlay, tags={"run": "2"})
    assert (again["arn"], again["created"]) == (made[0]["arn"], False)
    # The template, and the family that is named after the content.
    assert bench.calls() == {"ecs:DescribeTaskDefinition": 2}

    read = core.aws.describe_task_definition(again["arn"])["taskDefinition"]
    container = read["containerDefinitions"][0]
    assert (read["cpu"], read["memory"], container["image"]) == ("1024", "2048", "repo:1")
    assert container["stopTimeout"] == 5 and read["networkMode"] == "awsvpc"
    assert again["log"] == {"group": "/ecs/zenml", "region": "us-east-1", "stream_prefix": "zenml"}


def test_an_overlay_that_does_not_fit_names_its_field(core: Core) -> None:
    with pytest.raises(PlanError) as caught:
        core.definition(container_name="other")
    assert caught.value.field == "overlay.container_name" and "main" in str(caught.value)
    with pytest.raises(PlanError) as caught:
        core.definition(imagge="x")
    assert "imagge" in str(caught.value)
    with pytest.raises(AwsError) as refused:
        core.definition(cpu=256, memory_mib=4096)
    assert refused.value.code == "ClientException" and "No Fargate configuration" in str(refused.value)


def test_every_call_survives_three_refusals_by_throttling(core: Core, bench: Bench) -> None:
    bench.throttle(times=3)
    image = core.definition(environment={"T": uuid.uuid4().hex})
    assert image["created"]
    deployed = core.deploy(machines(core, task_definition=image["arn"]))
    execution = core.aws.start(deployed["arn"], name="throttled-" + uuid.uuid4().hex[:8], input={})
    assert core.aws.describe_execution(execution)["name"].startswith("throttled-")
    core.aws.execution_steps(execution, ["a"])
    assert core.aws.put_secret("secretsmanager", f"t/{uuid.uuid4().hex}", "v")
    assert core.aws.put_secret("ssm", f"t/{uuid.uuid4().hex}", "v")
    core.aws.stop(execution)


def test_too_many_registrations_at_once_are_tried_again(core: Core, bench: Bench) -> None:
    text = "Too many concurrent attempts to create a new revision of the specified family."
    bench.fault("error", "ecs:RegisterTaskDefinition", code="ClientException", message=text, status=400, times=2)
    assert core.definition(environment={"R": uuid.uuid4().hex})["created"]


def test_a_lost_answer_starts_nothing_twice(core: Core, bench: Bench) -> None:
    deployed = core.deploy(machines(core))
    bench.lose_reply("states:StartExecution", times=2)
    name = "lost-" + uuid.uuid4().hex[:8]
    execution = core.aws.start(deployed["arn"], name=name, input={"x": [1, {"y": None}]})
    listed = bench.client("stepfunctions").list_executions(stateMachineArn=deployed["arn"])["executions"]
    assert [each["executionArn"] for each in listed] == [execution]
    end = time.monotonic() + 60
    while core.aws.describe_execution(execution)["status"] == "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.5)
    # Also when it is over by the time of the next try.
    assert core.aws.start(deployed["arn"], name=name, input={"x": [1, {"y": None}]}) == execution
    with pytest.raises(AwsError) as caught:
        core.aws.start(deployed["arn"], name=name, input={"x": 2})
    assert caught.value.code == "ExecutionAlreadyExists"


def test_an_execution_whose_start_was_never_answered_is_found(core: Core, bench: Bench) -> None:
    machine = core.deploy(machines(core))["arn"]
    bench.lose_reply("states:StartExecution", times=100)
    name = f"unanswered-{uuid.uuid4().hex[:8]}"
    arn = core.aws.start(machine, name=name, input={"x": 1})
    assert arn.endswith(f":{name}")
    listed = bench.client("stepfunctions").list_executions(stateMachineArn=machine)["executions"]
    assert [each["executionArn"] for each in listed] == [arn]


def test_lost_answers_of_creations_create_nothing_twice(core: Core, bench: Bench) -> None:
    for action in ("ecs:RegisterTaskDefinition", "states:CreateStateMachine", "scheduler:CreateSchedule"):
        bench.lose_reply(action)
    made = core.definition(environment={"L": uuid.uuid4().hex})
    assert made["arn"].endswith(":1")
    compiled = machines(core, task_definition=made["arn"])
    deployed = core.deploy(compiled)
    assert core.deploy(compiled)["arn"] == deployed["arn"]
    listed = bench.client("stepfunctions").list_state_machines()["stateMachines"]
    assert [each["stateMachineArn"] for each in listed].count(deployed["arn"]) == 1
    name = deployed["arn"].rpartition(":")[2]
    assert [each["name"] for each in listed if each["name"].rpartition("-")[0] == name.rpartition("-")[0]] == [name]
    scheduled = f"lost-{uuid.uuid4().hex[:8]}"
    schedule(core, scheduled, deployed["arn"])
    assert [each["Name"] for each in bench.client("scheduler").list_schedules(NamePrefix=scheduled)["Schedules"]] == [
        scheduled
    ]


DENIED: dict[str, Callable[[Core, list[dict[str, Any]], str], Any]] = {
    "ecs:DescribeTaskDefinition": lambda core, _, __: core.definition(),
    "ecs:RegisterTaskDefinition": lambda core, _, __: core.definition(environment={"D": uuid.uuid4().hex}),
    "states:DescribeStateMachine": lambda core, made, _: core.deploy(made),
    "states:CreateStateMachine": lambda core, made, _: core.deploy(made),
    "states:StartExecution": lambda core, _, arn: core.aws.start(arn, name="denied", input={}),
    "secretsmanager:CreateSecret": lambda core, _, __: core.aws.put_secret("secretsmanager", "denied", "hush"),
    "ssm:PutParameter": lambda core, _, __: core.aws.put_secret("ssm", "denied", "hush"),
    "scheduler:CreateSchedule": lambda core, _, arn: schedule(core, "denied", arn),
    "ecs:RunTask": lambda core, _, __: core.aws.run_task({"cluster": "zenml", "taskDefinition": "zenml-template"}),
}


@pytest.mark.parametrize("action", DENIED)
def test_what_is_denied_is_named(core: Core, bench: Bench, action: str) -> None:
    made = machines(core)
    arn = core.deploy(machines(core))["arn"] if "Execution" in action or "Schedule" in action else ""
    bench.deny(action)
    fresh = Core(session(bench), core.prerequisites)
    with pytest.raises(AwsError) as caught:
        DENIED[action](fresh, made, arn)
    error = caught.value
    assert "AccessDenied" in error.code and error.operation == action.split(":")[1] and error.request_id
    assert action in str(error) and "hush" not in str(error)


def test_a_role_that_iam_does_not_know_yet_is_waited_for(core: Core, bench: Bench) -> None:
    text = "'arn:aws:iam::123456789012:role/x' is not authorized to create managed-rule."
    bench.fault("error", "states:CreateStateMachine", code="AccessDeniedException", message=text, status=400, times=3)
    assert core.deploy(machines(core), role_wait_seconds=30)["created"]
    bench.fault("error", "states:CreateStateMachine", code="AccessDeniedException", message=text, status=400)
    with pytest.raises(AwsError) as caught:
        core.deploy(machines(core), role_wait_seconds=0)
    assert "managed-rule" in str(caught.value)


def test_expired_keys_are_renewed_during_a_watch(core: Core, bench: Bench) -> None:
    old = Credentials(access_key="AKIAOLD0000000000000")
    aws = session(bench, old, expires_at_unix_seconds=time.time() + 100)
    assert aws.credentials_expire_in_seconds is not None and 90 < aws.credentials_expire_in_seconds <= 100
    watched = Core(aws, core.prerequisites).start(*core.compile([step("a")], {"a": "echo one; sleep 4; echo two"}))
    watched.until("attempt_started")
    bench.expire(old)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        watched.events += watched.run.next_events(0.5)
    assert not watched.run.finished
    with pytest.raises(AwsError) as caught:
        aws.describe_execution(watched.execution)
    assert caught.value.code == "ExpiredTokenException"
    aws.set_credentials({"access_key_id": "AKIABENCHADMIN000000", "secret_access_key": "bench"})
    assert watched.finish()["status"] == "completed"
    assert watched.log("a") == ["one", "two"]


def test_keys_that_are_incomplete_or_not_ours_to_renew_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError):
        AwsSession(region="us-east-1", credentials={"access_key_id": "x"})
    with pytest.raises(AwsError) as caught:
        AwsSession(region="us-east-1", credentials={"access_key_id": "", "secret_access_key": ""})
    assert caught.value.operation == "configure"
    for name, value in bench.environment().items():
        monkeypatch.setenv(name, value)
    chain = AwsSession()
    assert chain.identity()["account"] == "123456789012" and chain.credentials_expire_in_seconds is None
    with pytest.raises(AwsError):
        chain.set_credentials({"access_key_id": "a", "secret_access_key": "b"})


def test_without_any_keys_the_error_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bench.endpoint)
    with pytest.raises(AwsError) as caught:
        AwsSession(region="us-east-1").identity()
    assert caught.value.code == "NoCredentials", str(caught.value)


@pytest.mark.parametrize("backend", ["secretsmanager", "ssm"])
def test_a_secret_is_kept_replaced_and_deleted(core: Core, bench: Bench, backend: str) -> None:
    name = f"step-engine/{uuid.uuid4().hex}"

    def value(arn: str) -> str:
        if backend == "ssm":
            read = bench.client("ssm").get_parameter(Name=arn, WithDecryption=True)
            return read["Parameter"]["Value"]
        return bench.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"]

    arn = core.aws.put_secret(backend, name, "one", tags={"run": "r"})
    assert arn.startswith("arn:aws:") and value(arn if backend != "ssm" else f"/{name}") == "one"
    assert core.aws.put_secret(backend, name, "two", overwrite=False) == arn
    assert value(arn if backend != "ssm" else f"/{name}") == "one"
    assert core.aws.put_secret(backend, name, "two") == arn
    assert value(arn if backend != "ssm" else f"/{name}") == "two"
    assert core.aws.delete_secret(backend, arn) is True
    # Secrets Manager does not tell.
    assert core.aws.delete_secret(backend, name) is (backend == "secretsmanager")
    assert core.aws.put_secret(backend, name, "three")


def schedule(core: Core, name: str, machine: str, **more: Any) -> dict[str, Any]:
    """Puts a schedule."""
    given = {
        "expression": "cron(0 12 * * ? *)",
        "state_machine_arn": machine,
        "role_arn": core.prerequisites.scheduler_role,
        "input": {"id": "<aws.scheduler.execution-id>"},
    }
    return core.aws.put_schedule(name, **(given | more))


def test_a_schedule_is_created_changed_paused_and_deleted(core: Core) -> None:
    machine = core.deploy(machines(core))["arn"]
    name = f"s-{uuid.uuid4().hex[:8]}"
    begin, end = 2_000_000_000.0, 2_000_086_400.0
    assert core.aws.get_schedule(name) is None
    made = schedule(core, name, machine, timezone="Europe/Berlin", start_at_unix_seconds=begin, description="daily")
    assert made["created"]
    changed = schedule(core, name, machine, expression="rate(2 hours)", end_at_unix_seconds=end, flexible_minutes=5)
    assert changed == {"arn": made["arn"], "created": False}
    read = core.aws.get_schedule(name)
    assert read is not None
    assert (read["expression"], read["end_at_unix_seconds"], read["flexible_minutes"]) == ("rate(2 hours)", end, 5)
    assert read["start_at_unix_seconds"] is None and read["input"] == {"id": "<aws.scheduler.execution-id>"}
    assert core.aws.set_schedule_enabled(name, False) is True
    paused = core.aws.get_schedule(name)
    assert paused == read | {"enabled": False}
    given = {key: value for key, value in paused.items() if key != "arn"}
    assert core.aws.delete_schedule(name) is True
    assert core.aws.delete_schedule(name) is False
    with pytest.raises(AwsError) as caught:
        core.aws.put_schedule(**given, create=False)
    assert caught.value.code == "ResourceNotFoundException"
    assert core.aws.get_schedule(name) is None, "a change makes nothing anew"
    assert core.aws.set_schedule_enabled(name, True) is False


def test_a_start_that_is_over_is_not_sent_again(core: Core) -> None:
    """AWS refuses one that is in the past, and the schedule could not be paused any more."""
    name, start = f"s-{uuid.uuid4().hex[:8]}", time.time() + 1
    schedule(core, name, core.deploy(machines(core))["arn"], start_at_unix_seconds=start)
    time.sleep(1.5)
    assert core.aws.set_schedule_enabled(name, False) is True
    read = core.aws.get_schedule(name)
    assert read is not None and (read["enabled"], read["start_at_unix_seconds"]) == (False, None)


def test_only_what_nothing_uses_is_collected(core: Core, bench: Bench) -> None:
    pipeline = f"gc{uuid.uuid4().hex[:8]}"
    arns = []
    for number in range(5):
        made = core.compile([step("a")], {"a": "sleep 30" if number == 1 else f"echo {number}"}, pipeline=pipeline)[1]
        arns.append(core.deploy(made)["arn"])
    other = core.deploy(machines(core, pipeline=pipeline + "x"))["arn"]
    running = core.aws.start(arns[1], name="busy", input={})
    name = f"gc-{uuid.uuid4().hex[:8]}"
    schedule(core, name, arns[2], enabled=False)
    assert core.aws.collect_machines(pipeline, keep=1) == []
    assert core.aws.collect_machines(pipeline, keep=1, min_age_seconds=0) == [arns[3], arns[0]]
    core.aws.stop(running)
    core.aws.delete_schedule(name)
    assert sorted(core.aws.collect_machines(pipeline, keep=1, min_age_seconds=0)) == sorted(arns[1:3])
    left = [each["stateMachineArn"] for each in bench.client("stepfunctions").list_state_machines()["stateMachines"]]
    assert arns[4] in left and other in left


def test_task_definitions_of_machines_stay(core: Core, bench: Bench) -> None:
    template = bench.client("ecs").register_task_definition(
        family=f"t{uuid.uuid4().hex[:8]}",
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "main", "image": "x"}],
    )["taskDefinition"]["taskDefinitionArn"]
    arns = [core.aws.ensure_task_definition(template, {"image": f"i:{n}"})["arn"] for n in range(4)]
    core.deploy(machines(core, task_definition=arns[0]))
    collected = core.aws.collect_task_definitions(template, keep=1, min_age_seconds=0)
    assert len(collected) == 2 and arns[0] not in collected and template not in collected
    # The session does not take a definition for granted that it has taken away.
    gone = arns.index(collected[0])
    again = core.aws.ensure_task_definition(template, {"image": f"i:{gone}"})
    assert again["created"] and again["arn"] != collected[0]


def test_clients_that_register_the_same_definition_together_take_the_same_one(core: Core, bench: Bench) -> None:
    ecs = bench.client("ecs")
    overlay = {"image": f"i:{uuid.uuid4().hex}"}
    first = core.definition(**overlay)["arn"]
    # What the other one registered, which had not seen the first.
    described = ecs.describe_task_definition(taskDefinition=first, include=["TAGS"])
    made = described["taskDefinition"]
    again = ecs.register_task_definition(
        family=made["family"],
        tags=described["tags"],
        **{key: made[key] for key in REGISTERED if key in made},
    )["taskDefinition"]["taskDefinitionArn"]
    assert again == f"{first.rpartition(':')[0]}:2"
    later = session(bench).ensure_task_definition(core.prerequisites.task_definition_arn, overlay)
    assert (later["arn"], later["created"]) == (first, False)
    ecs.deregister_task_definition(taskDefinition=first)
    later = session(bench).ensure_task_definition(core.prerequisites.task_definition_arn, overlay)
    assert (later["arn"], later["created"]) == (again, False)


def test_a_single_task_runs_and_stops(core: Core) -> None:
    needs = core.prerequisites
    overrides = {"containerOverrides": [{"name": "main", "command": ["sh", "-c", "echo hi; sleep 60"]}]}
    network = {"awsvpcConfiguration": {"subnets": needs.subnet_ids, "securityGroups": needs.security_group_ids}}
    task = core.aws.run_task(
        {
            "cluster": needs.cluster_arn,
            "taskDefinition": needs.task_definition_arn,
            "launchType": "FARGATE",
            "networkConfiguration": network,
            "overrides": overrides,
        }
    )
    arn = task["taskArn"]

    def status() -> str:
        return core.aws.describe_tasks(needs.cluster_arn, [arn])[0]["lastStatus"]

    end = time.monotonic() + 60
    while status() != "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.3)
    core.aws.stop_task(needs.cluster_arn, arn, reason="enough")
    while status() != "STOPPED":
        assert time.monotonic() < end
        time.sleep(0.3)
    read = core.aws.describe_tasks(needs.cluster_arn, [arn])[0]
    assert read["stoppedReason"] == "enough"
    assert json.dumps(read)


def test_signals_reach_python_while_a_call_waits(core: Core, bench: Bench) -> None:
    import signal

    bench.fault("delay", "sts:GetCallerIdentity", seconds=20)
    threading.Timer(1.0, lambda: signal.raise_signal(signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        core.aws.identity()
    assert time.monotonic() - begun < 10
