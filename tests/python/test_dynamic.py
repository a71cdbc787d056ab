"""Real dynamic pipelines: their orchestration in a container, isolated steps in others."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from step_engine import read_run
from zenml.models import PipelineRunFilter, StepRunFilter

if TYPE_CHECKING:
    from conftest import Project

everywhere = pytest.mark.parametrize("project", ["sqlite", "server"], indirect=True)
MODULE = "dynamic_scenarios.py"


@everywhere
def test_maps_conditions_retries_commands_and_resources(project: Project) -> None:
    code, output = project.run("everything", module=MODULE)
    run = project.ended("everything")
    assert (code, run.status, run.containers) == (0, "completed", []), output
    attempts = run.attempts
    assert attempts["lucky"] == ["retried", "completed"]
    assert {name: rows for name, rows in attempts.items() if name != "lucky"} == {
        name: ["completed"] for name in ("numbers", "map:double:0", "map:double:1", "total", "CommandStep")
    }
    # The orchestration has the socket; no other container has it, or the variables that lead to it, or the engine's.
    assert "orchestration sees True 2 False" in output
    for value in (1, 2):
        assert re.search(rf"map:double:{value - 1} +\| isolated {value} sees False 0 False within 599998464", output), (
            output
        )
    assert "the command runs" in output
    # Two isolated steps at the same time and the orchestration, which takes no place of theirs.
    assert "at most 3 at a time" in output
    assert "killed by SIGKILL" in output
    metadata = run.rows["map:double:0"].run_metadata
    assert metadata["outcome"] == "completed"
    assert metadata["container_id"]
    assert (run.log_directory / "lucky.2.log").exists()
    # The journal leads to the same steps.
    record = read_run(str(run.log_directory))
    assert record is not None
    assert set(record["steps"]) == {"orchestration", "lucky", "map:double:0", "map:double:1", "CommandStep"}
    assert record["summary"]["status"] == "completed"


def test_a_failure_stops_what_runs_when_the_mode_says_so(project: Project) -> None:
    code, output = project.run("failing", module=MODULE)
    run = project.ended("failing")
    assert code != 0
    assert (run.status, run.containers) == ("failed", []), output
    assert run.attempts == {"sleeps": ["stopped"], "fails_late": ["failed"]}
    # The orchestration hears of it from ZenML, and may be seen to end before the step's container is.
    # ZenML's runner ends with 45 when the run failed.
    assert re.search(
        "StepFailedError: Step `(fails_late` failed: exit code 1|orchestration` failed: exit code 45)", output
    ), output
    assert "ValueError: on purpose, isolated" in output


def test_an_interrupt_stops_the_orchestration_and_its_steps(project: Project, until: Callable[..., None]) -> None:
    marker = project.scratch / "dynamic-sleeping"
    marker.unlink(missing_ok=True)
    process = project.start("interrupted", module=MODULE)
    until(lambda: marker.exists() or process.poll() is not None, "the isolated step", 120)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    run = project.ended("interrupted")
    assert process.returncode != 0
    assert (run.status, run.containers, run.attempts) == ("stopped", [], {"sleeps": ["stopped"]}), output
    assert "RunInterruptedError: The run was stopped." in output


@pytest.mark.parametrize(("project", "how"), [("sqlite", ["--graceful"]), ("server", [])], indirect=["project"])
def test_a_run_in_the_background_is_refreshed_and_stopped(
    project: Project, how: list[str], until: Callable[..., None]
) -> None:
    marker = project.scratch / "dynamic-sleeping"
    marker.unlink(missing_ok=True)
    code, output = project.run("behind", module=MODULE)
    assert code == 0, output
    run = project.ended("behind")
    until(marker.exists, "the isolated step", 120)
    project.zenml("pipeline", "runs", "refresh", str(run.run.id))
    assert project.ended("behind").status == "running"
    project.zenml("pipeline", "runs", "stop", str(run.run.id), *how, "-y")
    until(lambda: project.ended("behind").status == "stopped", "the run's end")
    run = project.ended("behind")
    assert run.attempts == {"sleeps": ["stopped"]}
    until(lambda: project.ended("behind").containers == [], "the containers' end")


def test_an_orchestration_that_is_killed_goes_on_where_it_was(project: Project) -> None:
    code, output = project.run("restarted", module=MODULE)
    run = project.ended("restarted")
    assert (code, run.status, run.containers) == (0, "completed", []), output
    assert run.attempts["counted"] == ["completed"]
    assert run.attempts["dies_once"][-1] == "completed"
    assert (project.scratch / "counted").read_text() == "x", "it ran once"
    assert "orchestration | -- attempt 2" in output


def test_children_of_a_run_have_their_isolated_steps_run_too(project: Project) -> None:
    code, output = project.run("family", module=MODULE)
    run = project.ended("family")
    # The last one fails, and with it its parent.
    assert (code != 0, run.status, run.containers) == (True, "failed", []), output
    record = read_run(str(run.log_directory))
    assert record is not None
    names = ["pipeline:child", "pipeline:child_2", "pipeline:child_3"]
    # Two of them are asked for at the same time.
    assert set(record["steps"]) == {"orchestration", "doubled", *(f"{name}/doubled" for name in names)}
    assert len(record["steps"]) == 5
    store = project.records.store
    runs = PipelineRunFilter(project="default", parent_run_id=run.run.id, sort_by="asc:created")
    children = {child.child_key: child for child in store.list_runs(runs).items}
    assert [children[name].status.value for name in names] == ["completed", "completed", "failed"]
    for name, child in children.items():
        rows = StepRunFilter(project="default", pipeline_run_id=child.id)
        assert [(row.name, row.status) for row in store.list_run_steps(rows).items] == [("doubled", child.status)], name
    assert "ValueError: on purpose, in a child" in output


def test_zenmls_retry_goes_on_with_a_failed_run(project: Project) -> None:
    counted = project.scratch / "counted"
    counted.unlink(missing_ok=True)
    code, output = project.run("retried", module=MODULE)
    run = project.ended("retried")
    assert (code != 0, run.status) == (True, "failed"), output
    assert "RuntimeError: the file is missing" in output
    (project.scratch / "the-file").touch()
    project.zenml("pipeline", "runs", "retry", str(run.run.id))
    again = project.ended("retried")
    assert (again.run.id, again.status, again.containers) == (run.run.id, "completed", [])
    assert again.attempts == {"counted": ["completed"], "follows": ["completed"]}
    assert counted.read_text() == "x", "it ran once"
    # What the first owner left is still there, the logs of the second one beside it.
    assert list(again.log_directory.glob("earlier-1/counted.1.log"))
    assert (again.log_directory / "follows.1.log").exists()


def _outlived(project: Project, until: Callable[..., None]) -> str:
    """Begins a run, kills its owner while an isolated step waits for the gate, and returns the run's id."""
    for name in ("counted", "gated", "gated-began", "gate"):
        (project.scratch / name).unlink(missing_ok=True)
    process = project.start("outlived", module=MODULE)
    marker = project.scratch / "gated-began"
    until(lambda: marker.exists() or process.poll() is not None, "the isolated step", 120)
    process.kill()
    process.communicate()
    return str(project.ended("outlived").run.id)


def _secret(run_id: str) -> str:
    """What opens the control socket: it stands in the environment of the orchestration, and nowhere else there."""
    (container,) = _orchestrations(run_id)
    inspected = subprocess.run(["docker", "inspect", container], check=True, capture_output=True, text=True).stdout
    (line,) = (
        line
        for line in json.loads(inspected)[0]["Config"]["Env"]
        if line.startswith("ZENML_STEP_ENGINE_CONTROL_SECRET=")
    )
    secret = line.partition("=")[2]
    assert (len(secret) > 30, inspected.count(secret)) == (True, 1)
    return secret


def _orchestrations(run_id: str) -> list[str]:
    labels = (f"label=step-engine.run={run_id}", "label=step-engine.step=orchestration")
    command = ["docker", "ps", "-q", *(part for label in labels for part in ("--filter", label))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def _went_on(project: Project, output: str, secret: str) -> None:
    run = project.ended("outlived")
    assert (run.status, run.containers) == ("completed", []), output
    assert run.attempts == {name: ["completed"] for name in ("counted", "gated", "follows")}
    assert [(project.scratch / name).read_text() for name in ("counted", "gated")] == ["x", "y"], "each ran once"
    record = read_run(str(run.log_directory))
    assert record is not None
    assert record["summary"]["status"] == "completed"
    assert [request["step"] for request in record["requests"]] == ["counted", "gated", "follows"]
    # The secret of the control socket stands in no file, and nobody has printed it.
    for path in run.log_directory.rglob("*"):
        assert path.is_dir() or path.is_socket() or secret.encode() not in path.read_bytes(), path
    assert secret not in output


@everywhere
def test_a_run_whose_owner_died_is_gone_on_with(project: Project, until: Callable[..., None], tmp_path: Path) -> None:
    run_id = _outlived(project, until)
    secret = _secret(run_id)
    project.zenml("pipeline", "runs", "refresh", run_id, folder=tmp_path)
    assert project.ended("outlived").status == "running"
    # Other settings than it began with: somebody who can write ZenML's store could ask for anything.
    project.zenml("orchestrator", "update", "my_docker_orchestrator", "--shm_size=64m")
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert (code, "are not those that it began with" in output) == (1, True), output
    project.zenml("orchestrator", "remove-attribute", "my_docker_orchestrator", "shm_size")
    # The step ends while nobody drives the run.
    (project.scratch / "gate").touch()
    until(lambda: project.ended("outlived").attempts.get("gated") == ["completed"], "the isolated step to end")
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert code == 0, output
    _went_on(project, output, secret)
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert (code, "has ended (completed)" in output) == (1, True), output


def test_a_run_whose_owner_and_orchestration_died_is_gone_on_with(
    project: Project, until: Callable[..., None], tmp_path: Path
) -> None:
    run_id = _outlived(project, until)
    secret = _secret(run_id)
    subprocess.run(["docker", "kill", *_orchestrations(run_id)], check=True, capture_output=True)
    resuming = subprocess.Popen(
        [str(Path(sys.executable).parent / "step-engine"), "resume", run_id],
        cwd=tmp_path,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until((project.ended("outlived").log_directory / "orchestration.2.log").exists, "the orchestration")
    (project.scratch / "gate").touch()
    output, _ = resuming.communicate(timeout=300)
    assert resuming.returncode == 0, output
    # It has a secret of its own, and the step that went on has not.
    _went_on(project, output, secret)


def test_what_was_not_said_before_the_run_is_refused(project: Project) -> None:
    # A step run of another run.
    assert project.run("single")[0] == 0
    code, output = project.run("refused", module=MODULE)
    run = project.ended("refused")
    assert code == 0, output
    answers = dict(re.findall(r"ASKED ([a-z ]+): (.*)", output))
    assert {what: answer.partition(".")[0] for what, answer in answers.items()} == {
        "another run": f"Refused: step run {_first(project)} belongs to another run",
        "another secret": "Refused: the secret is not the run's",
        "an image": "Refused: a request has no field 'image'",
        "a mount": "Refused: a request has no field 'volumes'",
        "no step": answers["no step"].partition(".")[0],
        "another version": "Refused: the protocol must be version 1",
        "a stop": f"Refused: step run {_first(project)} is none that this run has submitted",
        "too much": "Refused: a request must be one line of JSON of at most 1024 bytes",
    }, output
    assert answers["no step"].startswith("Refused: there is no step run ")
    tried = dict(re.findall(r"TRIED ([a-z]+): (.*)", output))
    for what, field in {
        "mount": "`volumes` that was not said",
        "privileges": "`run_args.privileged` that was not said",
        "user": "`user` that was not said",
        "network": "`network` that was not said",
        "image": "an image that is not the run's",
        "argument": "an image that is not the run's",
        "memory": "asks for 900000.0 GB of memory and the host has",
    }.items():
        assert field in tried[what], output
    assert not (project.scratch / "reached").exists()
    logged = (run.log_directory / "refused.log").read_text()
    for reason in ("belongs to another run", "not the run's", "no field 'volumes'", "`run_args.privileged`"):
        assert reason in logged, logged
        assert reason in output.replace("ASKED", ""), output
    assert (run.log_directory / "refused.log").stat().st_mode & 0o777 == 0o600
    assert run.containers == []


def _first(project: Project) -> str:
    from zenml.models import StepRunFilter

    oldest = StepRunFilter(project="default", sort_by="asc:created", size=1)
    return str(project.records.store.list_run_steps(oldest).items[0].id)


def test_isolated_steps_on_an_engine_elsewhere_are_refused(project: Project, tcp_engine: str) -> None:
    code, output = project.run("remote", module=MODULE, DOCKER_HOST=tcp_engine)
    run = project.ended("remote")
    assert code != 0
    assert run.attempts["total"] == ["completed"], output
    assert run.attempts["reaches"] == ["failed"]
    assert "Isolated steps need the control socket of the run" in output
    assert (run.status, run.containers) == ("failed", [])
