"""What needs no AWS: settings, task definitions, secrets, schedules, prices, the program that a task runs first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import aws_cost, aws_package, aws_plan, aws_schedule, aws_secrets, names
from orchestrator.container import begin
from orchestrator.my_aws_orchestrator_flavor import (
    CapacityProvider,
    StepFunctionsOrchestratorConfig,
    StepFunctionsOrchestratorFlavor,
    StepFunctionsOrchestratorSettings,
)

CONFIG: dict[str, Any] = {
    "ecs_cluster_arn": "arn:aws:ecs:eu-central-1:123456789012:cluster/ml",
    "ecs_task_definition_arn": "arn:aws:ecs:eu-central-1:123456789012:task-definition/zenml:3",
    "execution_role": "arn:aws:iam::123456789012:role/exec",
    "subnet_ids": ["subnet-1", "subnet-2"],
    "security_group_ids": ["sg-1"],
    "account_id": "123456789012",
    "region": "eu-central-1",
}


def config(**fields: Any) -> StepFunctionsOrchestratorConfig:
    return StepFunctionsOrchestratorConfig(**{**CONFIG, **fields})


def test_the_tutorials_registration_is_understood() -> None:
    """Its flags arrive as strings; lists are JSON."""
    flags = {**CONFIG, "subnet_ids": '["subnet-xxx", "subnet-yyy"]', "security_group_ids": '["sg-xxx"]'}
    read = StepFunctionsOrchestratorConfig(**flags)
    assert read.subnet_ids == ["subnet-xxx", "subnet-yyy"]
    assert read.security_group_ids == ["sg-xxx"]
    assert read.is_remote
    assert read.is_schedulable
    assert read.handles_step_retries
    assert StepFunctionsOrchestratorFlavor().name == "aws_step_functions"
    assert StepFunctionsOrchestratorFlavor().config_schema["properties"]["region"]["description"]


def test_step_containers_need_neither_the_native_module_nor_boto3() -> None:
    code = (
        "import sys; sys.modules['step_engine'] = sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "import orchestrator.my_aws_orchestrator_flavor as flavor\n"
        "flavor.StepFunctionsOrchestratorFlavor().implementation_class\n"
        "import orchestrator.container.task, orchestrator.container.begin\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"region": "us-east-1"},
            ["ecs_cluster_arn is in region eu-central-1", "ecs_task_definition_arn is in region"],
        ),
        ({"account_id": "12345"}, ["twelve digits"]),
        ({"account_id": "999999999999"}, ["in account 123456789012"]),
        ({"execution_role": "exec"}, ["execution_role must be an ARN"]),
        ({"task_role": "arn:aws:ecs:eu-central-1:123456789012:cluster/ml"}, ["task_role must be an ARN"]),
        ({"aws_access_key_id": "AKIA"}, ["set both"]),
        ({"ecs_task_definition_arn": "zenml"}, []),
        ({}, []),
    ],
)
def test_mistakes_in_the_config_are_named(fields: dict[str, Any], words: list[str]) -> None:
    mistakes = aws_plan.check_config(config(**fields))
    assert bool(mistakes) == bool(words)
    for word in words:
        assert any(word in mistake for mistake in mistakes), mistakes


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("WANDB_API_KEY", True),
        ("DB_PASSWORD", True),
        ("aws_secret_access_key", True),
        ("HF_TOKEN", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("MONKEY", False),
        ("ZENML_STEP_ENGINE_SECRET", False),
        ("DISABLE_CREDENTIALS_DISK_CACHING", False),
        ("DECLARED", True),
    ],
)
def test_secrets_are_told_by_their_names(name: str, secret: bool) -> None:
    assert aws_secrets.is_secret(name, ["DECLARED"]) is secret


def test_an_environment_is_split_by_how_it_reaches_the_task() -> None:
    settings = StepFunctionsOrchestratorSettings(
        environment={"OWN": "1", "ZENML_ACTIVE_STACK_ID": "theirs wins"}, secret_environment=["DSN"]
    )
    given = {"ZENML_STORE_API_TOKEN": "t", "ZENML_ACTIVE_STACK_ID": "s", "DSN": "d", "EMPTY_TOKEN": ""}
    parts = aws_plan.step_environment(given, settings, {"AWS_ENDPOINT_URL_S3": "http://s3", "AWS_PROFILE": "no"})
    assert parts.run == {"ZENML_STORE_API_TOKEN": "t"}
    assert parts.stable == {"DSN": "d"}
    assert parts.plain == {
        "OWN": "1",
        "ZENML_ACTIVE_STACK_ID": "s",
        "EMPTY_TOKEN": "",
        "AWS_ENDPOINT_URL_S3": "http://s3",
    }


def test_names_of_secrets_follow_from_their_content_and_do_not_tell_it() -> None:
    name = aws_secrets.stable_secret_name("p", "component", "DSN", "hunter2")
    assert name == aws_secrets.stable_secret_name("p", "component", "DSN", "hunter2")
    assert name != aws_secrets.stable_secret_name("p", "component", "DSN", "hunter3")
    assert name != aws_secrets.stable_secret_name("p", "other", "DSN", "hunter2")
    assert "hunter2" not in name
    assert name.startswith("p/environment/DSN-")


@pytest.mark.parametrize(
    ("backend", "values", "location"),
    [
        ("secretsmanager", {"A": "1"}, "secretsmanager:p/runs/r"),
        ("ssm", {"A": "1"}, "ssm:/p/runs/r"),
        ("none", {"A": "1"}, 'plain:{"A": "1"}'),
        ("secretsmanager", {}, ""),
    ],
)
def test_where_a_task_finds_the_runs_secret(backend: str, values: dict[str, str], location: str) -> None:
    assert aws_secrets.secret_location(backend, aws_secrets.run_secret_name("p", "r"), values) == location


def run_program(
    tmp_path: Path, location: str, boto3: str | None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the program as a task does: its text after `python -c`, in a folder with a boto3 of the test's."""
    source = Path(begin.__file__).read_text()
    if boto3 is not None:
        (tmp_path / "boto3.py").write_text(textwrap.dedent(boto3))
        (tmp_path / "botocore").mkdir()
        (tmp_path / "botocore" / "__init__.py").touch()
        (tmp_path / "botocore" / "config.py").write_text("def Config(**_): return None\n")
    # -S: nothing but the standard library and the test's folder.
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    return subprocess.run(
        [sys.executable, "-S", "-c", source, sys.executable, "-S", "-c", show, "--step_name", "train"],
        env={"ZENML_STEP_ENGINE_SECRET": location, "PYTHONPATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )


FAKE_BOTO3 = """
    class Client:
        def get_secret_value(self, SecretId):
            assert SecretId == "p/runs/r"
            return {"SecretString": '{"TOKEN": "t", "BOTH": "secret"}'}

        def get_parameter(self, Name, WithDecryption):
            assert Name == "/p/runs/r" and WithDecryption
            return {"Parameter": {"Value": '{"TOKEN": "t", "BOTH": "secret"}'}}

    def client(backend, config):
        assert backend in ("secretsmanager", "ssm")
        return Client()
"""


@pytest.mark.parametrize(
    "location", ["secretsmanager:p/runs/r", "ssm:/p/runs/r", 'plain:{"TOKEN": "t", "BOTH": "secret"}']
)
def test_the_tasks_program_reads_the_secret_and_becomes_the_command(tmp_path: Path, location: str) -> None:
    done = run_program(tmp_path, location, FAKE_BOTO3, BOTH="own")
    assert done.returncode == 0, done.stderr
    arguments, environment = json.loads(done.stdout)
    assert arguments == ["--step_name", "train"]
    assert environment["TOKEN"] == "t"
    assert environment["BOTH"] == "own", "what the step sets for itself wins"
    assert "ZENML_STEP_ENGINE_SECRET" not in environment


def test_without_a_secret_the_tasks_program_needs_nothing(tmp_path: Path) -> None:
    done = run_program(tmp_path, "", None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == ["--step_name", "train"]


def test_the_tasks_program_says_what_is_missing(tmp_path: Path) -> None:
    done = run_program(tmp_path, "secretsmanager:p/runs/r", None)
    assert done.returncode == 1
    assert "boto3 is missing in the image" in done.stderr
    refusing = 'def client(*_, **__):\n    raise RuntimeError("AccessDenied on p/runs/r")\n'
    done = run_program(tmp_path, "secretsmanager:p/runs/r", refusing)
    assert done.returncode == 1
    assert "p/runs/r cannot be read: AccessDenied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}),
        ({"AWS_REGION": "us-east-2"}, {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "us-east-2"}),
        ({"AWS_DEFAULT_REGION": "us-east-2"}, {"AWS_REGION": None, "AWS_DEFAULT_REGION": "us-east-2"}),
        ({"ZENML_STEP_ENGINE_EXECUTION": ""}, {"AWS_REGION": None, "AWS_DEFAULT_REGION": None}),
    ],
)
def test_a_task_on_an_instance_learns_its_region(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], told: dict[str, str | None]
) -> None:
    assert begin.EXECUTION == names.ENV_EXECUTION
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        # What the test sets is taken back.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    arn = "arn:aws:states:eu-west-1:1:execution:m:r"
    for name, value in {names.ENV_EXECUTION: arn, **given}.items():
        monkeypatch.setenv(name, value)
    begin.name_region()
    assert {name: os.environ.get(name) for name in told} == told


@pytest.mark.parametrize(
    ("settings", "stop_timeout", "place"),
    [
        ({"stop_grace_seconds": 0}, 2, "FARGATE"),
        ({"stop_grace_seconds": 0, "launch_type": "EC2"}, 0, "EC2"),
        ({"stop_grace_seconds": 30.4, "launch_type": "EXTERNAL"}, 30, "EXTERNAL"),
        ({"capacity_provider_strategy": [{"name": "FARGATE_SPOT"}]}, None, "FARGATE"),
        ({"capacity_provider_strategy": [{"name": "mine"}], "launch_type": "FARGATE"}, None, "EC2"),
    ],
)
def test_a_definition_fits_the_place_where_it_runs(
    settings: dict[str, Any], stop_timeout: int | None, place: str
) -> None:
    described = overlay(settings=StepFunctionsOrchestratorSettings(**settings))
    assert (described.get("stop_timeout_seconds"), described["compatibility"]) == (stop_timeout, place)


def test_doctor_knows_where_steps_log_that_nobody_told() -> None:
    from step_engine.doctor.target import DEFAULT_LOG_GROUP

    assert aws_plan.DEFAULT_LOG_GROUP == DEFAULT_LOG_GROUP


def test_the_program_fits_into_a_task_definition() -> None:
    assert len(Path(begin.__file__).read_text()) < 4096


def overlay(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "image": "registry/image@sha256:1",
        "settings": StepFunctionsOrchestratorSettings(),
        "config": config(),
        "environment": {"A": "1"},
        "secrets": {"DSN": "arn:secret"},
        "size": None,
        "gpus": 0,
    }
    return aws_plan.overlay(**{**arguments, **changes})


def test_an_overlay_says_only_what_differs_from_the_template() -> None:
    plain = overlay()
    assert plain["image"] == "registry/image@sha256:1"
    assert plain["environment"] == {"A": "1", "ZENML_STEP_ENGINE_PACKAGE": aws_package.packed()}
    assert plain["secrets"] == {"DSN": "arn:secret"}
    assert plain["entry_point"][:2] == ["python", "-c"]
    assert plain["execution_role_arn"] == CONFIG["execution_role"]
    assert not {"cpu", "memory_mib", "gpus", "task_role_arn", "container_name", "log_configuration"} & set(plain)
    assert plain["default_log_configuration"]["options"]["awslogs-create-group"] == "true"
    assert "stop_timeout_seconds" not in plain
    assert overlay(settings=StepFunctionsOrchestratorSettings(stop_grace_seconds=5))["stop_timeout_seconds"] == 5
    own = overlay(config=config(log_group="/mine"), size={"cpu_units": 512, "memory_mib": 1024}, gpus=1)
    assert own["log_configuration"]["options"]["awslogs-group"] == "/mine"
    assert "default_log_configuration" not in own
    assert (own["cpu"], own["memory_mib"], own["gpus"]) == (512, 1024, 1)


def snapshot(**steps: list[str]) -> Any:
    configurations = {
        name: SimpleNamespace(
            spec=SimpleNamespace(upstream_steps=upstream),
            config=SimpleNamespace(
                resource_settings=SimpleNamespace(cpu_count=None, gpu_count=None, get_memory=lambda _unit: None),
                retry=None,
            ),
        )
        for name, upstream in steps.items()
    }
    mode = SimpleNamespace(value="continue_on_failure")
    return SimpleNamespace(
        id=uuid.uuid4(),
        step_configurations=configurations,
        pipeline_configuration=SimpleNamespace(name="my pipeline!", execution_mode=mode),
    )


def machine(settings: StepFunctionsOrchestratorSettings | None = None, **changes: Any) -> dict[str, Any]:
    """The machine that a pipeline becomes, and its options."""
    from step_engine import compile_asl

    from orchestrator.plan import build_plan

    shot = changes.pop("shot", None) or snapshot(load=[], train=["load"])
    settings = settings or StepFunctionsOrchestratorSettings()
    every = dict.fromkeys(shot.step_configurations, settings)
    definition = {"arn": "arn:aws:ecs:eu-central-1:123456789012:task-definition/zenml-se-1:1", "container_name": "main"}
    options = aws_plan.asl_options(
        shot,
        config=config(**changes),
        settings=settings,
        step_settings=every,
        task_definitions=dict.fromkeys(every, definition),
        bucket="artifacts",
    )
    compiled = compile_asl(build_plan(shot, "", None, every, {}), options)
    return {
        "options": options,
        **json.loads(compiled["machines"][-1]["definition"]),
        "name": compiled["machines"][-1]["name"],
    }


def test_the_machine_depends_on_nothing_that_a_run_brings() -> None:
    first = machine(shot=snapshot(load=[], train=["load"]))
    second = machine(shot=snapshot(train=["load"], load=[]))
    assert first["States"] == second["States"]
    parameters = first["States"]["load"]["Parameters"]
    (override,) = parameters["Overrides"]["ContainerOverrides"]
    assert "$$.Execution.Input.snapshot_id" in override["Command.$"]
    assert {variable["Name"]: variable["Value.$"] for variable in override["Environment"]} == {
        "ZENML_STEP_ENGINE_EXECUTION": "$$.Execution.Id",
        "ZENML_STEP_ENGINE_RUN_ID": "$$.Execution.Name",
        "ZENML_STEP_ENGINE_SECRET": "$$.Execution.Input.secret",
    }
    assert parameters["LaunchType"] == "FARGATE"
    assert parameters["NetworkConfiguration"]["AwsvpcConfiguration"]["Subnets"] == ["subnet-1", "subnet-2"]
    assert first["name"] == "my-pipeline"


def test_capacity_providers_take_the_place_of_the_launch_type() -> None:
    strategy = [CapacityProvider(name="FARGATE_SPOT", weight=4), CapacityProvider(name="FARGATE")]
    settings = StepFunctionsOrchestratorSettings(capacity_provider_strategy=strategy, assign_public_ip=True)
    parameters = machine(settings)["States"]["load"]["Parameters"]
    assert "LaunchType" not in parameters
    assert [item["CapacityProvider"] for item in parameters["CapacityProviderStrategy"]] == ["FARGATE_SPOT", "FARGATE"]
    assert parameters["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "ENABLED"
    # ECS refuses public addresses on instances.
    instances = StepFunctionsOrchestratorSettings(launch_type="EC2", assign_public_ip=True)
    parameters = machine(instances)["States"]["load"]["Parameters"]
    assert parameters["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"


@pytest.mark.parametrize(
    ("resources", "fargate", "size"),
    [
        ((0, 0), {"cpu_units": 256, "memory_mib": 512}, None),
        ((250, 0), {"cpu_units": 256, "memory_mib": 512}, {"cpu_units": 256, "memory_mib": 512}),
        ((1500, 10 * 2**20 + 1), None, {"cpu_units": 1536, "memory_mib": 11}),
        ((0, 2**30), None, {"memory_mib": 1024}),
    ],
)
def test_sizes_of_tasks(resources: tuple[int, int], fargate: dict[str, int], size: dict[str, int] | None) -> None:
    asked = {"cpu_millis": resources[0], "memory_bytes": resources[1]}
    assert aws_plan.task_size(asked, fargate) == size


def test_durations_do_not_make_another_machine_each_time() -> None:
    assert aws_plan.steady_seconds({"a": 3.1}, "exact") == {}
    assert aws_plan.steady_seconds({"a": 3.1}, "exact", max_parallelism=2) == {"a": 4.0}
    assert aws_plan.steady_seconds({"a": 33.0}, "barrier") == aws_plan.steady_seconds({"a": 45.0}, "barrier")
    assert aws_plan.steady_seconds({"a": 0.0}, "auto") == {"a": 2.0}


def test_pages_of_the_console() -> None:
    arn = "arn:aws:states:eu-central-1:123456789012:execution:m:r"
    assert names.console_url("eu-central-1", arn) == (
        f"https://eu-central-1.console.aws.amazon.com/states/home?region=eu-central-1#/v2/executions/details/{arn}"
    )
    china = "arn:aws-cn:states:cn-north-1:123456789012:execution:m:r"
    assert "//console.amazonaws.cn/" in names.console_url("cn-north-1", china)
    assert names.log_url("r", "/a", "s/c/1").endswith("log-group/$252Fa/log-events/s$252Fc$252F1")


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 8 * * *", "cron(0 8 * * ? *)"),
        ("*/15 * * * *", "cron(0,15,30,45 * * * ? *)"),
        ("0 9 * * 1-5", "cron(0 9 ? * MON,TUE,WED,THU,FRI *)"),
        ("0 9 * * 0", "cron(0 9 ? * SUN *)"),
        ("0 9 * * 6-7", "cron(0 9 ? * SUN,SAT *)"),
        ("0 9 * * mon", "cron(0 9 ? * MON *)"),
        ("0 9 * * */2", "cron(0 9 ? * SUN,TUE,THU,SAT *)"),
        ("5 4 1,15 jan-mar *", "cron(5 4 1,15 1,2,3 ? *)"),
        ("10-20/5 2/10 * * *", "cron(10,15,20 2,12,22 * * ? *)"),
        ("@daily", "cron(0 0 * * ? *)"),
        ("cron(0 8 ? * MON#1 *)", "cron(0 8 ? * MON#1 *)"),
    ],
)
def test_cron_expressions(cron: str, expected: str) -> None:
    assert aws_schedule.cron_expression(cron) == expected


@pytest.mark.parametrize("cron", ["0 8 * *", "61 * * * *", "0 8 1 * 1", "x * * * *", "5-1 * * * *", "*/0 * * * *", ""])
def test_cron_expressions_that_are_none(cron: str) -> None:
    with pytest.raises(ValueError, match="cron expression"):
        aws_schedule.cron_expression(cron)


@pytest.mark.parametrize(
    ("interval", "rate"),
    [
        (timedelta(minutes=1), "rate(1 minute)"),
        (timedelta(minutes=90), "rate(90 minutes)"),
        (timedelta(hours=2), "rate(2 hours)"),
        (timedelta(days=1), "rate(1 day)"),
    ],
)
def test_intervals(interval: timedelta, rate: str) -> None:
    assert aws_schedule.rate_expression(interval) == rate


@pytest.mark.parametrize("interval", [timedelta(seconds=30), timedelta(seconds=90), timedelta(0)])
def test_intervals_that_eventbridge_does_not_know(interval: timedelta) -> None:
    with pytest.raises(ValueError, match="whole minutes"):
        aws_schedule.rate_expression(interval)


NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


def schedule(**fields: Any) -> Any:
    names = ("cron_expression", "interval_second", "run_once_start_time", "start_time", "end_time")
    return SimpleNamespace(**{**dict.fromkeys(names), **fields})


def test_schedules() -> None:
    later = NOW + timedelta(hours=1)
    daily = schedule(cron_expression="0 8 * * *", start_time=NOW - timedelta(days=1), end_time=later)
    assert aws_schedule.schedule_arguments(daily, "Europe/Berlin", NOW) == {
        "expression": "cron(0 8 * * ? *)",
        "timezone": "Europe/Berlin",
        "end_at_unix_seconds": later.timestamp(),
    }
    # ZenML's store keeps UTC without saying so.
    once = schedule(run_once_start_time=later.replace(tzinfo=None))
    assert aws_schedule.schedule_arguments(once, None, NOW)["expression"] == "at(2030-01-01T01:00:00)"
    hourly = schedule(interval_second=timedelta(hours=1), start_time=later)
    assert aws_schedule.schedule_arguments(hourly, None, NOW)["start_at_unix_seconds"] == later.timestamp()


@pytest.mark.parametrize(
    ("fields", "zone", "words"),
    [
        ({"cron_expression": "0 8 * * *"}, "Mars/X", "no time zone"),
        ({"run_once_start_time": NOW - timedelta(hours=1)}, None, "is over"),
        ({"cron_expression": "0 8 * * *", "end_time": NOW}, None, "end is over"),
        ({}, None, "no cron expression"),
    ],
)
def test_schedules_that_cannot_be(fields: dict[str, Any], zone: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        aws_schedule.schedule_arguments(schedule(**fields), zone, NOW)


def test_names_of_schedules_are_short_enough() -> None:
    assert len(aws_schedule.schedule_name("p" * 60, uuid.uuid4())) <= 64


def test_prices() -> None:
    # 1 vCPU and 2 GiB for an hour.
    assert aws_cost.task_dollars(1024, 2048, 3600) == pytest.approx(0.04048 + 2 * 0.004445)
    assert aws_cost.task_dollars(1024, 2048, 1) == aws_cost.task_dollars(1024, 2048, 60)
    task = {"cpu": "1024", "memory": "2048", "submitted_at_unix_seconds": 0, "stopped_at_unix_seconds": 3600}
    assert aws_cost.tasks_dollars([task, task]) == pytest.approx(2 * (0.04048 + 2 * 0.004445))
    assert aws_cost.tasks_dollars([{**task, "launch_type": "EC2"}]) is None
    sizes = [{"step": "a", "cpu_units": 1024, "memory_mib": 2048}]
    assert aws_cost.estimate_dollars(sizes, {"a": 3600}, 0.001) == pytest.approx(0.04048 + 2 * 0.004445 + 0.001)


def test_the_endpoint_of_a_task_that_is_none_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.container import task

    monkeypatch.delenv(task.ENDPOINT, raising=False)
    assert task.describe() == {}
    monkeypatch.setitem(os.environ, task.ENDPOINT, "file:///etc/passwd")
    assert task.describe() == {}


def test_what_travels_in_the_task_definition_is_all_that_a_task_imports(tmp_path: Path) -> None:
    """Unpacked by the program itself, into a Python that has ZenML but neither our wheel nor boto3."""
    code = (
        "import sys\n"
        "sys.modules['step_engine'] = sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "import orchestrator\n"
        "assert 'step-engine-' in orchestrator.__file__, orchestrator.__file__\n"
        "from zenml.stack.flavor import validate_flavor_source\n"
        "from zenml.enums import StackComponentType\n"
        "name = 'orchestrator.my_aws_orchestrator_flavor.StepFunctionsOrchestratorFlavor'\n"
        "_, flavor = validate_flavor_source(name, StackComponentType.ORCHESTRATOR)\n"
        f"config = flavor.config_class(**{CONFIG!r})\n"
        "from datetime import datetime\n"
        "from uuid import uuid4\n"
        "made = flavor.implementation_class(name='o', id=uuid4(), config=config, flavor='aws_step_functions',\n"
        "    type=StackComponentType.ORCHESTRATOR, user=None, created=datetime.now(), updated=datetime.now())\n"
        "assert made.get_orchestrator_run_id() == 'run'\n"
        "assert made.config.handles_step_retries\n"
        "assert made.get_pipeline_run_metadata(uuid4())['execution_arn'].endswith(':run')\n"
        "assert 'peak_memory_bytes' in made.get_step_run_metadata(None)\n"
    )
    (tmp_path / "step.py").write_text(code)
    site = [path for path in sys.path if path.endswith("site-packages")]
    # -S keeps out what is installed in development mode; the packages of the environment come back by their folder.
    done = subprocess.run(
        [sys.executable, "-S", "-c", Path(begin.__file__).read_text(), sys.executable, "-S", "step.py"],
        env={
            "PATH": os.environ["PATH"],
            "ZENML_STEP_ENGINE_PACKAGE": aws_package.packed(),
            "ZENML_STEP_ENGINE_RUN_ID": "run",
            "ZENML_STEP_ENGINE_EXECUTION": "arn:aws:states:eu-central-1:123456789012:execution:m:run",
            "PYTHONPATH": str(without_ours(site[0], tmp_path)),
            "ZENML_CONFIG_PATH": str(tmp_path / "config"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(aws_package.packed()) < 16 * 1024


def without_ours(site: str, tmp_path: Path) -> Path:
    """The environment's packages except `orchestrator`."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for path in Path(site).iterdir():
        if path.name not in ("orchestrator", "step_engine"):
            (folder / path.name).symlink_to(path)
    return folder
