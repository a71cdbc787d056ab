"""What a submission asks of AWS, with a session that only writes it down."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
from step_engine.errors import AwsError
from test_aws_plan import config, snapshot
from zenml.orchestrators.exceptions import PipelineSubmissionError

from orchestrator import aws_deployment, aws_submission
from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator
from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorSettings

TOKEN = "the-runs-token"


class Session:
    """Takes the place of `step_engine.AwsSession`."""

    region = "eu-central-1"

    def __init__(self, **refused: Exception) -> None:
        self.refused = refused
        self.overlays: list[dict[str, Any]] = []
        self.secrets: dict[str, tuple[str, bool]] = {}
        self.deleted: list[str] = []
        self.machines: list[dict[str, Any]] = []
        self.started: list[tuple[str, str, dict[str, Any]]] = []
        self.scheduled: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.unscheduled: list[tuple[str, str | None]] = []

    def ensure_task_definition(self, _template: str, overlay: dict[str, Any]) -> dict[str, Any]:
        self.overlays.append(overlay)
        arn = f"arn:aws:ecs:eu-central-1:123456789012:task-definition/zenml-se-{len(self.overlays)}:1"
        return {"arn": arn, "created": True, "container_name": "main", "network_mode": "awsvpc"}

    def describe_task_definition(self, _name: str) -> dict[str, Any]:
        return {"taskDefinition": {"cpu": "1024", "memory": "2048"}}

    def deploy(self, machines: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
        self.machines = machines
        return {"arn": "arn:machine", "created": ["arn:machine"]}

    def put_secret(self, backend: str, name: str, value: str, *, overwrite: bool = True, **_: Any) -> str:
        self.secrets[name] = (value, overwrite)
        return f"arn:{backend}:{name}"

    def delete_secret(self, _backend: str, name: str) -> bool:
        self.deleted.append(name)
        return True

    def start(self, arn: str, *, name: str, input: dict[str, Any]) -> str:
        if "start" in self.refused:
            raise self.refused["start"]
        self.started.append((arn, name, input))
        return f"arn:aws:states:eu-central-1:123456789012:execution:m:{name}"

    def put_schedule(self, name: str, **arguments: Any) -> dict[str, Any]:
        if "put_schedule" in self.refused:
            raise self.refused["put_schedule"]
        self.scheduled.append({"name": name, **arguments})
        return {"arn": "arn:schedule", "created": True}

    def stop(self, arn: str, **_: Any) -> dict[str, Any]:
        self.stopped.append(arn)
        return {}

    def delete_schedule(self, name: str, *, group: str | None = None) -> bool:
        self.unscheduled.append((name, group))
        return True

    def collect_machines(self, *_: Any, **__: Any) -> list[str]:
        return []

    def collect_task_definitions(self, *_: Any, **__: Any) -> list[str]:
        return []


def deploy(session: Session, environment: dict[str, str] | None = None, **fields: Any) -> aws_deployment.Deployment:
    shot = snapshot(load=[], train=["load"])
    given = {"ZENML_STORE_API_TOKEN": TOKEN, **(environment or {})}
    return aws_deployment.deploy(
        session,  # pyright: ignore[reportArgumentType]
        shot,
        config=config(**fields),
        settings=StepFunctionsOrchestratorSettings(),
        step_settings=dict.fromkeys(shot.step_configurations, StepFunctionsOrchestratorSettings()),
        step_environments=dict.fromkeys(shot.step_configurations, given),
        image=lambda _step: "registry/image@sha256:1",
        bucket="artifacts",
        component_id="component",
        expected_seconds={},
    )


def test_equal_steps_share_a_task_definition_and_nothing_of_the_run_is_in_it() -> None:
    session = Session()
    deployment = deploy(session, {"PLAIN": "1", "MY_API_KEY": "hunter2"})
    (overlay,) = session.overlays
    assert overlay["environment"]["PLAIN"] == "1"
    ((name, (value, overwrite)),) = session.secrets.items()
    assert (value, overwrite) == ("hunter2", False)
    assert overlay["secrets"] == {"MY_API_KEY": f"arn:secretsmanager:{name}"}
    assert deployment.run_secrets == {"ZENML_STORE_API_TOKEN": TOKEN}
    told = json.dumps([session.overlays, session.machines])
    assert TOKEN not in told and "hunter2" not in told
    definition = "arn:aws:ecs:eu-central-1:123456789012:task-definition/zenml-se-1:1"
    assert deployment.created == [definition, "arn:machine"]
    # Two tasks of the template's size for the minute that is billed at least, and the transitions.
    tasks = 2 * (0.04048 + 2 * 0.004445) / 60
    assert deployment.estimated_dollars == pytest.approx(tasks, abs=0.001)
    assert deployment.estimated_dollars > tasks


def test_without_a_backend_secrets_are_plain_as_the_user_chose() -> None:
    session = Session()
    deploy(session, {"MY_API_KEY": "hunter2"}, secrets_backend="none")
    assert session.overlays[0]["environment"]["MY_API_KEY"] == "hunter2"
    assert session.overlays[0]["secrets"] == {}
    assert not session.secrets


def orchestrator(**fields: Any) -> Any:
    return SimpleNamespace(
        config=config(**fields),
        id="component",
        name="sf",
        run_metadata=lambda run, arn: {
            "orchestrator_url": "https://page",
            "execution_arn": arn,
            "orchestrator_run_id": run,
        },
        get_settings=lambda _: StepFunctionsOrchestratorSettings(synchronous=False),
        renew=lambda _: None,
    )


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ZenML is told."""
    told: list[Any] = []
    monkeypatch.setattr(aws_submission, "set_orchestrator_run_id", lambda run, name: told.append(("id", run, name)))
    publisher = SimpleNamespace(
        publish_run_metadata=lambda metadata: told.append(("metadata", metadata["execution_arn"]))
    )
    monkeypatch.setattr(aws_submission, "RunPublisher", lambda *_: publisher)
    return told


def test_a_start_tells_zenml_first_and_gives_the_token_by_name(rows: list[Any]) -> None:
    session = Session()
    result = aws_submission.start(
        orchestrator(),
        session,
        snapshot(load=[]),
        deploy(session),
        SimpleNamespace(id="run", orchestrator_run_id=None),  # pyright: ignore
    )
    assert rows[0] == ("id", "run", "run")
    ((_, name, given),) = session.started
    assert name == "run"
    assert given["secret"] == "secretsmanager:zenml-step-engine/runs/run"
    assert json.loads(session.secrets["zenml-step-engine/runs/run"][0]) == {"ZENML_STORE_API_TOKEN": TOKEN}
    assert TOKEN not in json.dumps(given)
    assert result.wait_for_completion is None
    assert rows[1][1].endswith(":run")


def test_a_start_that_is_refused_leaves_no_secret(rows: list[Any]) -> None:
    session = Session(start=RuntimeError("refused"))
    with pytest.raises(RuntimeError, match="refused"):
        aws_submission.start(
            orchestrator(),
            session,
            snapshot(load=[]),
            deploy(session),
            SimpleNamespace(id="run", orchestrator_run_id=None),  # pyright: ignore
        )
    assert session.deleted == ["zenml-step-engine/runs/run"]


@pytest.mark.parametrize("error", [AwsError("", "StartExecution", "NoAnswer"), KeyboardInterrupt()])
def test_an_execution_that_may_have_been_started_is_stopped(rows: list[Any], error: BaseException) -> None:
    """ZenML calls the run failed, and its token is gone."""
    session = Session(start=error)
    deployment = dataclasses.replace(deploy(session), machine_arn="arn:aws:states:r:1:stateMachine:m")
    run: Any = SimpleNamespace(id="run", orchestrator_run_id=None)
    with pytest.raises(type(error)):
        aws_submission.start(orchestrator(), session, snapshot(load=[]), deployment, run)  # pyright: ignore
    assert session.stopped == ["arn:aws:states:r:1:execution:m:run"]
    assert session.deleted == ["zenml-step-engine/runs/run"]
    refused = Session(start=AwsError("", "StartExecution", "AccessDeniedException"))
    with pytest.raises(AwsError):
        aws_submission.start(orchestrator(), refused, snapshot(load=[]), deployment, run)  # pyright: ignore
    assert refused.stopped == []


def test_nothing_stands_between_a_start_that_nobody_watches_and_its_report(
    rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is old is collected before; a Ctrl-C after the start would make ZenML call the run failed."""
    session, order = Session(), []
    monkeypatch.setattr(aws_submission, "collect", lambda *_: order.append(len(session.started)))
    run: Any = SimpleNamespace(id="run", orchestrator_run_id=None)
    aws_submission.start(orchestrator(), session, snapshot(load=[]), deploy(session), run)  # pyright: ignore
    assert (order, len(session.started)) == ([0], 1)


def scheduled(**fields: Any) -> Any:
    shot = snapshot(load=[])
    names = ("cron_expression", "interval_second", "run_once_start_time", "start_time", "end_time")
    shot.schedule = SimpleNamespace(
        **{**dict.fromkeys(names), "id": "s", "name": "mornings", "catchup": False, **fields}
    )
    return shot


def test_a_schedule_has_a_secret_of_its_own() -> None:
    session = Session()
    result = aws_submission.make_schedule(
        orchestrator(scheduler_role="arn:aws:iam::123456789012:role/s", schedule_group="ml"),
        session,  # pyright: ignore[reportArgumentType]
        scheduled(cron_expression="0 8 * * *"),
        lambda: deploy(session),
    )
    (made,) = session.scheduled
    assert made["role_arn"].endswith("role/s")
    assert made["input"]["secret"] == "secretsmanager:zenml-step-engine/schedules/s"
    assert result.metadata == {"schedule_name": made["name"], "schedule_arn": "arn:schedule", "schedule_group": "ml"}


def test_a_schedule_that_cannot_be_makes_nothing() -> None:
    session = Session()
    with pytest.raises(ValueError, match="five fields"):
        aws_submission.make_schedule(
            orchestrator(),
            session,
            scheduled(cron_expression="often"),
            lambda: deploy(session),  # pyright: ignore
        )
    assert not session.overlays and not session.secrets
    refused = Session(put_schedule=RuntimeError("refused"))
    with pytest.raises(RuntimeError):
        aws_submission.make_schedule(
            orchestrator(),
            refused,
            scheduled(cron_expression="0 8 * * *"),
            lambda: deploy(refused),  # pyright: ignore
        )
    assert refused.deleted == ["zenml-step-engine/schedules/s"]
    assert refused.unscheduled == []
    unanswered = Session(put_schedule=AwsError("", "CreateSchedule", "Timeout"))
    with pytest.raises(AwsError):
        aws_submission.make_schedule(
            orchestrator(schedule_group="ml"),
            unanswered,
            scheduled(cron_expression="0 8 * * *"),
            lambda: deploy(unanswered),  # pyright: ignore
        )
    ((name, group),) = unanswered.unscheduled
    assert (name.endswith("-s"), group) == (True, "ml")


@pytest.mark.parametrize("error", [RuntimeError("no credentials"), KeyboardInterrupt()])
def test_zenml_keeps_no_schedule_that_was_not_made(error: BaseException) -> None:
    def session() -> None:
        raise error

    component: Any = SimpleNamespace(_session=session)
    with pytest.raises(
        PipelineSubmissionError, match=r"The schedule was not made: (no credentials|it was interrupted)"
    ):
        StepFunctionsOrchestrator.submit_pipeline(
            component,
            scheduled(cron_expression="0 8 * * *"),
            SimpleNamespace(),
            {},
            {},  # pyright: ignore
        )


def test_a_schedule_of_which_zenml_was_not_told_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = SimpleNamespace(get_pipeline=lambda _id, hydrate: SimpleNamespace(name="my pipeline"))
    monkeypatch.setattr(aws_submission, "Client", lambda: pipelines)
    session = Session()
    schedule: Any = SimpleNamespace(id="s", name="mornings", pipeline_id="p", run_metadata={})
    aws_submission.remove_schedule(config(schedule_group="ml"), session, schedule)  # pyright: ignore
    assert session.unscheduled == [("my-pipeline-s", "ml")]
    assert session.deleted == ["zenml-step-engine/schedules/s"]
