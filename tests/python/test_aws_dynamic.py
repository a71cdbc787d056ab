"""Dynamic pipelines on Step Functions without AWS: what ECS would be asked for, and what its answers mean."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from step_engine.console import describe_outcome
from step_engine.errors import PlanError
from test_aws_deployment import TOKEN, Session
from test_aws_plan import config
from zenml.enums import ExecutionStatus

from orchestrator import aws_dynamic, aws_isolated_steps, aws_package, aws_status
from orchestrator.container import isolated
from orchestrator.my_aws_orchestrator_flavor import CapacityProvider, StepFunctionsOrchestratorSettings

STACK = SimpleNamespace(components={}, environment={})
PROCESS = {
    "ZENML_STEP_ENGINE_RUN_ID": "run",
    "ZENML_STEP_ENGINE_EXECUTION": "arn:aws:states:eu-central-1:123456789012:execution:m:run-2",
    "ZENML_STEP_ENGINE_SECRET_LOCATION": "secretsmanager:p/runs/run",
}
DEFINITIONS = isolated.Definitions(
    container="main",
    network_mode="awsvpc",
    log={"group": "/g", "stream_prefix": "step", "region": "eu-central-1"},
    by_template={
        "": isolated.Definition("zenml-se-0:1", isolated.digest("image"), "x"),
        "train": isolated.Definition("zenml-se-1:4", isolated.digest("other"), "y"),
    },
)


def described(**fields: Any) -> Any:
    """Configuration of a step or a pipeline, as ZenML has it."""
    resources = SimpleNamespace(cpu_count=None, gpu_count=None, get_memory=lambda _unit: None)
    return SimpleNamespace(**{"environment": {}, "resource_settings": resources, "step_operator": None, **fields})


def resources(cpu: float | None = None, memory_kb: float | None = None, gpus: int | None = None) -> Any:
    return SimpleNamespace(cpu_count=cpu, gpu_count=gpus, get_memory=lambda _unit: memory_kb)


def asked_for(**fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "step_run_id": "9d3c",
        "step": "train",
        "definition": "zenml-se-1:4",
        "definitions": DEFINITIONS,
        "config": config(),
        "settings": StepFunctionsOrchestratorSettings(),
        "command": ["python", "-m", "step"],
        "environment": {"PLAIN": "1"},
        "size": None,
        "gpus": None,
        "process": PROCESS,
    }
    return isolated.request(**{**given, **fields})


def test_sizes_are_those_of_the_core() -> None:
    from step_engine import compile_asl

    asked = [
        {"cpu_millis": cpu, "memory_bytes": memory, "gpus": 0}
        for cpu in (0, 1, 250, 251, 500, 1000, 1001, 4000, 7999, 16000)
        for memory in (0, 1, 2**29, 2**29 + 1, 2**30, 3 * 2**30, 2**31, 9 * 10**9, 30 * 2**30, 61 * 2**30, 120 * 2**30)
        if cpu or memory
    ]
    task = {"cluster": "c", "task_definition": "t", "container": "main", "launch_type": "FARGATE"}
    plan = {"steps": [{"name": f"s{at}", "resources": each} for at, each in enumerate(asked)]}
    sizes = {size["step"]: size for size in compile_asl(plan, {"task": task})["report"]["sizes"]}
    for at, each in enumerate(asked):
        size = sizes[f"s{at}"]
        assert isolated.task_size(each, True) == {"cpu_units": size["cpu_units"], "memory_mib": size["memory_mib"]}, (
            each
        )


def test_what_fargate_does_not_have_is_refused() -> None:
    for each in (
        {"cpu_millis": 16001, "memory_bytes": 0, "gpus": 0},
        {"cpu_millis": 0, "memory_bytes": 121 * 2**30, "gpus": 0},
        {"cpu_millis": 0, "memory_bytes": 0, "gpus": 1},
    ):
        with pytest.raises(ValueError, match="launch_type EC2"):
            isolated.task_size(each, True)
    nothing = {"cpu_millis": 0, "memory_bytes": 0, "gpus": 0}
    assert isolated.task_size(nothing, True) is None
    assert isolated.task_size({**nothing, "gpus": 2}, False) is None
    assert isolated.task_size({**nothing, "memory_bytes": 2**20 + 1}, False) == {"memory_mib": 2}
    assert isolated.task_size({**nothing, "cpu_millis": 500}, False) == {"cpu_units": 512}


EXITED = "Essential container in task exited"


@pytest.mark.parametrize(
    ("own", "fields", "outcome"),
    [
        ({"exitCode": 0}, {"stoppedReason": EXITED}, {"kind": "completed"}),
        ({"exitCode": 3}, {"stoppedReason": EXITED}, {"kind": "exited", "code": 3}),
        ({"exitCode": 137}, {"stoppedReason": EXITED}, {"kind": "exited", "code": 137}),
        (
            {"exitCode": 137, "reason": "OutOfMemoryError: Container killed due to memory usage"},
            {"stoppedReason": EXITED},
            {"kind": "out_of_memory"},
        ),
        (
            {},
            {"stopCode": "TaskFailedToStart", "stoppedReason": "CannotPullContainerError: no such image"},
            {"kind": "launch_failed", "reason": "CannotPullContainerError: no such image"},
        ),
        (
            {"reason": "CannotStartContainerError: x"},
            {},
            {"kind": "launch_failed", "reason": "CannotStartContainerError: x"},
        ),
        (
            {"exitCode": 137},
            {"stopCode": "UserInitiated", "stoppedReason": "by hand"},
            {"kind": "lost", "reason": "the task was stopped from outside: by hand"},
        ),
        (
            {"exitCode": 143},
            {"stopCode": "SpotInterruption", "stoppedReason": "Your Spot Task was interrupted."},
            {"kind": "lost", "reason": "Your Spot Task was interrupted."},
        ),
        ({"exitCode": 143}, {"stopCode": "UserInitiated", "stoppedReason": isolated.STOPPED}, {"kind": "stopped"}),
        (
            {"exitCode": 143},
            {"stopCode": "UserInitiated", "stoppedReason": f"{isolated.TIMED_OUT}=20"},
            {"kind": "timed_out"},
        ),
        ({}, {}, {"kind": "lost", "reason": "ECS does not say why the task ended"}),
    ],
)
def test_every_ending_has_its_outcome(own: dict[str, Any], fields: dict[str, Any], outcome: dict[str, Any]) -> None:
    containers = [{"name": "proxy", "exitCode": 9}, {"name": "main", **own}]
    task = {"lastStatus": "STOPPED", "containers": containers, **fields}
    assert isolated.outcome_of(task, "main") == outcome
    # The words of the console.
    assert isolated.describe(outcome) == describe_outcome(outcome)
    status, why = isolated.status_of(task, "main")
    if outcome["kind"] in ("completed", "stopped"):
        assert (status, why) == (outcome["kind"], None)
    else:
        assert (status, why) == ("failed", describe_outcome(outcome))


def test_a_step_that_succeeded_does_not_wait_for_the_network_to_be_let_go_of() -> None:
    task = {"lastStatus": "DEPROVISIONING", "startedAt": 1, "containers": [{"name": "main", "lastStatus": "STOPPED"}]}
    assert isolated.status_of(task, "main") == ("running", None)
    task["containers"][0]["exitCode"] = 1
    assert isolated.status_of(task, "main") == ("running", None), "why is not known yet"
    task["containers"][0]["exitCode"] = 0
    assert isolated.status_of(task, "main") == ("completed", None)


def test_a_task_that_has_not_ended() -> None:
    assert isolated.status_of({"lastStatus": "PENDING"}, "main") == ("provisioning", None)
    now = datetime.now(timezone.utc)
    task = {"lastStatus": "RUNNING", "startedAt": now, "createdAt": now - timedelta(seconds=30)}
    assert isolated.status_of(task, "main") == ("running", None)
    assert (
        isolated.is_late(task, 29, now)
        and not isolated.is_late(task, 31, now)
        and not isolated.is_late(task, None, now)
    )
    assert not isolated.is_late({**task, "desiredStatus": "STOPPED"}, 29, now), "it is asked once"


def test_a_request_names_run_and_step_and_no_secret() -> None:
    asked = asked_for(size={"cpu_units": 512, "memory_mib": 1024})
    (container,) = asked["overrides"]["containerOverrides"]
    assert {each["name"]: each["value"] for each in container["environment"]} == {
        "PLAIN": "1",
        "ZENML_STEP_ENGINE_RUN_ID": "run",
        "ZENML_STEP_ENGINE_EXECUTION": PROCESS["ZENML_STEP_ENGINE_EXECUTION"],
        "ZENML_STEP_ENGINE_STEP": "train",
        "ZENML_STEP_ENGINE_SECRET": "secretsmanager:p/runs/run",
    }
    assert (container["name"], container["command"]) == ("main", ["python", "-m", "step"])
    assert (asked["overrides"]["cpu"], asked["overrides"]["memory"]) == ("512", "1024")
    assert (asked["startedBy"], asked["clientToken"], asked["taskDefinition"]) == ("run-2", "9d3c", "zenml-se-1:4")
    assert asked["launchType"] == "FARGATE"
    assert asked["networkConfiguration"]["awsvpcConfiguration"] == {
        "subnets": ["subnet-1", "subnet-2"],
        "securityGroups": ["sg-1"],
        "assignPublicIp": "DISABLED",
    }


def test_settings_that_a_definition_cannot_know_are_in_the_request() -> None:
    spot = [CapacityProvider(name="FARGATE_SPOT", weight=4), CapacityProvider(name="FARGATE", base=1)]
    settings = StepFunctionsOrchestratorSettings(
        capacity_provider_strategy=spot,
        task_role="arn:aws:iam::123456789012:role/t",
        ephemeral_storage=40,
        platform_version="1.4.0",
        enable_execute_command=True,
        assign_public_ip=True,
    )
    asked = asked_for(settings=settings)
    assert "launchType" not in asked
    assert asked["capacityProviderStrategy"][0] == {"capacityProvider": "FARGATE_SPOT", "weight": 4, "base": 0}
    assert asked["overrides"]["taskRoleArn"].endswith("role/t")
    assert asked["overrides"]["ephemeralStorage"] == {"sizeInGiB": 40}
    assert (asked["platformVersion"], asked["enableExecuteCommand"]) == ("1.4.0", True)
    assert asked["networkConfiguration"]["awsvpcConfiguration"]["assignPublicIp"] == "ENABLED"
    assert "memory" not in asked_for(size={"memory_mib": 1024})["overrides"]["containerOverrides"][0]
    ec2 = StepFunctionsOrchestratorSettings(launch_type="EC2")
    on_instances = asked_for(settings=ec2, gpus=2, size={"memory_mib": 1024})
    assert "assignPublicIp" not in on_instances["networkConfiguration"]["awsvpcConfiguration"]
    (container,) = on_instances["overrides"]["containerOverrides"]
    assert container["resourceRequirements"] == [{"type": "GPU", "value": "2"}]
    assert (container["memory"], on_instances["overrides"]["memory"]) == (1024, "1024")


def test_boto3_knows_every_field_of_a_request() -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ecs").operation_model("RunTask").input_shape
    settings = StepFunctionsOrchestratorSettings(ephemeral_storage=40, platform_version="1.4.0", task_role="r")
    for asked in (
        asked_for(settings=settings, size={"cpu_units": 512, "memory_mib": 1024}),
        asked_for(settings=StepFunctionsOrchestratorSettings(launch_type="EC2"), gpus=1, size={"cpu_units": 512}),
    ):
        assert ParamValidator().validate(asked, shape).generate_report() == ""


def test_overrides_that_are_too_long_are_refused_before_ecs_does() -> None:
    with pytest.raises(ValueError, match="ECS takes 8192"):
        asked_for(environment={"LONG": "x" * 8000})


def test_definitions_travel_through_the_environment() -> None:
    text = DEFINITIONS.text()
    read = isolated.Definitions.read(text)
    assert read == DEFINITIONS
    assert read.choose("train", "other") == "train"
    assert read.choose("train", "image") == "", "a child pipeline's step of the same name has another image"
    assert read.choose(None, "image") == ""
    with pytest.raises(ValueError, match="was not known before the run began"):
        # What another step has beside the image would come with it.
        read.choose(None, "other")
    with pytest.raises(ValueError, match="was not known before the run began"):
        read.choose("train", "unknown")
    assert read.log_stream("arn:aws:ecs:eu-central-1:1:task/ml/0a1b") == ("/g", "step/main/0a1b")
    # Room for many steps of `depends_on`, beside the command and the rest.
    assert len(json.dumps(text)) / len(DEFINITIONS.by_template) < 110


def test_a_secret_of_the_running_pipeline_is_refused_and_not_told() -> None:
    settings = StepFunctionsOrchestratorSettings(environment={"MY_API_KEY": "hunter2", "PLAIN": "1"})
    wanted = isolated.user_environment(described(environment={"ITS_TOKEN": "zenml-sets-it"}), settings, STACK)
    assert dict(wanted.plain) == {"PLAIN": "1"}
    isolated.refuse_unknown_secrets(wanted, {"MY_API_KEY": "hunter2"})
    for known in ({}, {"MY_API_KEY": "another"}):
        with pytest.raises(ValueError, match="MY_API_KEY is a secret") as caught:
            isolated.refuse_unknown_secrets(wanted, known)
        assert "hunter2" not in str(caught.value)
    assert "hunter2" not in wanted.digest()
    other = isolated.user_environment(described(), StepFunctionsOrchestratorSettings(environment={"PLAIN": "2"}), STACK)
    assert other.digest() != wanted.digest()


class Ecs:
    """ECS's client, as boto3 has it."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers, self.asked = list(answers), []

    def run_task(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def describe_tasks(self, cluster: str, tasks: list[str]) -> dict[str, Any]:
        self.asked.append(tasks)
        return {"tasks": [{"taskArn": arn, "lastStatus": "RUNNING"} for arn in tasks if arn != "gone"], "failures": []}


def test_a_lack_of_capacity_is_waited_for_with_another_token() -> None:
    full = {"tasks": [], "failures": [{"reason": "RESOURCE:MEMORY", "detail": "none left"}]}
    slept: list[float] = []
    client = Ecs(full, full, {"tasks": [{"taskArn": "arn"}], "failures": []})
    assert isolated.start(client, {"clientToken": "t"}, 8, slept.append) == {"taskArn": "arn"}
    assert [each["clientToken"] for each in client.asked] == ["t", "t-1", "t-2"]
    assert slept == [2.0, 4.0]
    with pytest.raises(RuntimeError, match="could not place the task: RESOURCE:MEMORY none left"):
        isolated.start(Ecs(full, full), {"clientToken": "t"}, 1, slept.append)


def refusal(code: str, message: str) -> Exception:
    """What boto3 raises."""
    error = RuntimeError(message)
    error.response = {"Error": {"Code": code, "Message": message}}  # type: ignore[attr-defined]
    return error


def test_throttling_that_ecs_calls_a_mistake_is_waited_for_with_the_same_token() -> None:
    throttled = refusal("InvalidParameterException", "Error retrieving subnets: Rate exceeded (ErrorCode: Throttling)")
    slept: list[float] = []
    client = Ecs(throttled, throttled, {"tasks": [{"taskArn": "arn"}], "failures": []})
    assert isolated.start(client, {"clientToken": "t"}, 0, slept.append) == {"taskArn": "arn"}
    assert [each["clientToken"] for each in client.asked] == ["t"] * 3
    assert 1 <= slept[0] <= 2 <= slept[1] <= 4
    with pytest.raises(RuntimeError, match="Rate exceeded"):
        isolated.start(Ecs(*[throttled] * 20), {"clientToken": "t"}, 0, slept.append)
    mistake = refusal("InvalidParameterException", "No such subnet.")
    with pytest.raises(RuntimeError, match="No such subnet"):
        isolated.start(Ecs(mistake), {"clientToken": "t"}, 8, slept.append)


class Zenml:
    """ZenML's client, which knows how a step stands."""

    def __init__(self, status: str) -> None:
        self.status = ExecutionStatus(status)

    def get_run_step(self, _id: object, hydrate: bool = True) -> Any:
        return SimpleNamespace(status=self.status)


class Tasks:
    """The tasks of a run: one, as ECS describes it."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task, self.stopped, self.client = task, [], Ecs({"tasks": [task], "failures": []})

    def describe(self, _arn: str) -> dict[str, Any]:
        return self.task

    def note(self, _task: dict[str, Any]) -> None:
        pass

    def stop(self, arn: str, reason: str) -> None:
        self.stopped.append((arn, reason))


@pytest.mark.parametrize(("reported", "status"), [("completed", "completed"), ("running", "failed")])
def test_a_step_that_had_reported_before_its_process_died(
    monkeypatch: pytest.MonkeyPatch, reported: str, status: str
) -> None:
    task = {"taskArn": "arn", "lastStatus": "STOPPED", "containers": [{"name": "main", "exitCode": 139}]}
    told: list[str] = []
    monkeypatch.setattr(aws_isolated_steps, "Client", lambda: Zenml(reported))
    monkeypatch.setattr(aws_isolated_steps, "_tasks", lambda _: Tasks(task))
    monkeypatch.setattr(aws_isolated_steps, "_definitions", lambda: DEFINITIONS)
    monkeypatch.setattr(aws_isolated_steps, "_settings", lambda *_: StepFunctionsOrchestratorSettings())
    monkeypatch.setattr(aws_isolated_steps, "_publish_failure", lambda *given: told.append(given[-1]))
    step = SimpleNamespace(id="s", name="a", run_metadata={"task_arn": "arn"})
    assert aws_isolated_steps.status(None, step).value == status  # pyright: ignore
    assert told == ([] if status == "completed" else ["killed by SIGSEGV (exit code 139)"])


def test_a_task_that_zenml_cannot_be_told_of_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise ConnectionError("away")

    tasks = Tasks({"taskArn": "arn"})
    monkeypatch.setattr(aws_isolated_steps, "_tasks", lambda _: tasks)
    monkeypatch.setattr(aws_isolated_steps, "_request", lambda *_: {"clientToken": "t"})
    monkeypatch.setattr(aws_isolated_steps, "_file", away)
    orchestrator = SimpleNamespace(config=config())
    with pytest.raises(ConnectionError):
        aws_isolated_steps.submit(orchestrator, SimpleNamespace(pipeline_step_name="a", step_run=None))  # pyright: ignore
    assert tasks.stopped == [("arn", isolated.STOPPED)]


def test_one_request_tells_of_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(aws_isolated_steps, "time", SimpleNamespace(monotonic=lambda: now[0]))
    client = Ecs()
    tasks = aws_isolated_steps.Tasks(client, "ml")
    for arn in ("a", "b"):
        tasks.note({"taskArn": arn, "lastStatus": "PROVISIONING"})
    assert (tasks.describe("a") or {})["lastStatus"] == (tasks.describe("b") or {})["lastStatus"] == "RUNNING"
    assert client.asked == [["a", "b"]]
    now[0] += 5
    tasks.describe("b")
    assert client.asked[1:] == [["b", "a"]]
    assert tasks.describe("gone") is None


def snapshot(**templates: Any) -> Any:
    pipeline = described(name="search")
    steps = {name: SimpleNamespace(config=config) for name, config in templates.items()}
    return SimpleNamespace(id=uuid.uuid4(), pipeline_configuration=pipeline, step_configurations=steps)


def deploy(session: Session, shot: Any, settings: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Deploys a dynamic pipeline; `settings` are those of the steps in its `depends_on`, and of the pipeline (`""`)."""
    known = {
        id(step): StepFunctionsOrchestratorSettings(**(settings or {}).get(name, {}))
        for name, step in shot.step_configurations.items()
    }
    known[id(shot)] = StepFunctionsOrchestratorSettings(**(settings or {}).get("", {}))
    given = aws_dynamic.parts(
        shot,
        environment={"ZENML_STORE_URL": "https://zenml", "ZENML_STORE_API_TOKEN": TOKEN},
        settings=lambda each: known[id(each)],
        image=lambda step: "registry/own@sha256:2" if step == "own" else "registry/image@sha256:1",
        stack=STACK,  # pyright: ignore[reportArgumentType]
    )
    return aws_dynamic.deploy(session, shot, given, config=config(**fields), component_id="component")  # pyright: ignore


def container_of(session: Session) -> dict[str, Any]:
    (machine,) = session.machines
    states = json.loads(machine["definition"])["States"]
    (task,) = [state for state in states.values() if state["Type"] == "Task"]
    (container,) = task["Parameters"]["Overrides"]["ContainerOverrides"]
    return container


def test_the_orchestration_is_the_only_task_of_a_machine_and_knows_the_definitions() -> None:
    session = Session()
    shot = snapshot(
        own=described(), same=described(), large=described(resource_settings=resources(cpu=2, memory_kb=3 * 10**6))
    )
    secret = {"environment": {"MY_API_KEY": "hunter2"}}
    deployment = deploy(session, shot, {"": secret, "own": secret, "same": secret, "large": secret})
    images = [overlay["image"] for overlay in session.overlays]
    assert images == ["registry/image@sha256:1", "registry/own@sha256:2", "registry/image@sha256:1"]
    assert [(each["cpu"], each["memory_mib"]) for each in session.overlays] == [
        (1024, 2048),
        (1024, 2048),
        (2048, 4096),
    ]
    assert all(each["init_process"] for each in session.overlays)
    assert all(each["environment"]["ZENML_STORE_URL"] == "https://zenml" for each in session.overlays)
    assert all(list(each["secrets"]) == ["MY_API_KEY"] for each in session.overlays)
    container = container_of(session)
    environment = {each["Name"]: each.get("Value", each.get("Value.$")) for each in container["Environment"]}
    found = isolated.Definitions.read(environment[isolated.ENV_DEFINITIONS])
    assert {name: each.family for name, each in found.by_template.items()} == {
        "": "zenml-se-1:1",
        "own": "zenml-se-2:1",
        "large": "zenml-se-3:1",
    }
    assert environment["ZENML_STEP_ENGINE_RUN_ID"] == "$$.Execution.Input.orchestrator_run_id"
    assert environment["ZENML_STEP_ENGINE_SECRET_LOCATION"] == "$$.Execution.Input.secret"
    assert (
        "$$.Execution.Input.snapshot_id" in container["Command.$"]
        and "$$.Execution.Input.run_id" in container["Command.$"]
    )
    assert "DynamicPipelineEntrypointConfiguration" in container["Command.$"]
    assert deployment.run_secrets == {"ZENML_STORE_API_TOKEN": TOKEN}
    told = json.dumps([session.overlays, session.machines])
    assert TOKEN not in told and "hunter2" not in told


def test_an_unchanged_dynamic_pipeline_makes_the_same_machine() -> None:
    one, other = Session(), Session()
    for session in (one, other):
        deploy(session, snapshot(own=described()))
    assert one.machines == other.machines and one.overlays == other.overlays


def test_a_size_that_fargate_does_not_have_is_refused_before_anything_is_made() -> None:
    session = Session()
    with pytest.raises(PlanError, match=r"step `huge` asks for .* no Fargate task has"):
        deploy(session, snapshot(huge=described(resource_settings=resources(cpu=64))))
    assert not session.machines and not session.overlays and not session.secrets


def test_static_tasks_carry_nothing_of_isolated_steps() -> None:
    assert len(aws_package.packed()) < 16 * 1024
    assert len(aws_package.packed(dynamic=True)) < 30 * 1024


def test_a_resumed_run_has_another_execution_of_its_own() -> None:
    run = SimpleNamespace(id="7", run_metadata={})
    assert aws_dynamic.execution_name(run) == "7"  # pyright: ignore
    for before, name in (("7", "7-2"), ("7-2", "7-3"), ("7-9", "7-10")):
        run.run_metadata = {"execution_arn": f"arn:aws:states:r:1:execution:m:{before}"}
        assert aws_dynamic.execution_name(run) == name  # pyright: ignore


def test_only_dynamic_runs_have_other_tasks() -> None:
    metadata = {"execution_arn": "arn:aws:states:r:1:execution:m:7-2"}
    run = SimpleNamespace(id="7", run_metadata=metadata, snapshot=SimpleNamespace(is_dynamic=True))
    assert aws_dynamic.others(config(), run) == {"cluster": config().ecs_cluster_arn, "name": "7-2"}  # pyright: ignore
    run.snapshot.is_dynamic = False
    assert aws_dynamic.others(config(), run) is None  # pyright: ignore


@pytest.mark.parametrize(
    ("status", "known", "before", "current"),
    [
        ("running", "7", "running", True),
        ("running", None, "running", True),
        ("running", "7-2", "running", False),
        # Somebody goes on with it, and the new execution is not known yet.
        ("resuming", "7", "running", False),
        # The execution is the one that went on with it, and never said that it runs.
        ("resuming", "7", "resuming", True),
    ],
)
def test_the_execution_before_is_told_from_the_newest(
    monkeypatch: pytest.MonkeyPatch, status: str, known: str | None, before: str, current: bool
) -> None:
    arn = "arn:aws:states:r:1:execution:m:"
    metadata = {"execution_arn": arn + known} if known else {}
    now = SimpleNamespace(status=ExecutionStatus(status), run_metadata=metadata)
    client = SimpleNamespace(get_pipeline_run=lambda _id: now)
    monkeypatch.setattr(aws_status, "Client", lambda: client)
    run = SimpleNamespace(id="7", status=ExecutionStatus(before))
    assert aws_status.is_current(run, f"{arn}7") is current  # pyright: ignore
