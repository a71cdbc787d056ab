"""Real pipelines in real containers, on ZenML's SQLite store and on a server: statuses afterwards, and nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project

everywhere = pytest.mark.parametrize("project", ["sqlite", "server"], indirect=True)


def test_a_fan_out_runs_in_parallel_in_a_folder_of_the_users_own(project: Project) -> None:
    code, output = project.run("fan_out")
    assert code == 0, output
    run = project.ended("fan_out")
    assert run.status == "completed"
    assert run.attempts == {"source": ["completed"], "left": ["completed"], "right": ["completed"]}
    assert run.containers == []
    scratch = project.scratch
    times = {path.name: float(path.read_text()) for path in scratch.iterdir() if path.name[:3] in ("beg", "end")}
    assert max(times["begin-left"], times["begin-right"]) < min(times["end-left"], times["end-right"])
    assert "source | to stdout" in output
    assert "source | to stderr" in output
    assert "says bonjour in True" in output
    assert "Run completed in" in output
    assert "at most 2 at a time" in output
    metadata = run.run.run_metadata
    assert metadata["orchestrator_run_id"] == str(run.run.id)
    assert (run.log_directory / "left.1.log").exists()
    assert run.rows["left"].run_metadata["container_id"]


@pytest.mark.parametrize("isolation", ["container", "process"])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("continue_on_failure", {"fails": "failed", "source": "completed", "long": "completed", "beside": "completed"}),
        ("stop_on_failure", {"fails": "failed"}),
        ("fail_fast", {"fails": "failed"}),
    ],
)
def test_a_failing_step_in_each_mode(project: Project, mode: str, expected: dict[str, str], isolation: str) -> None:
    code, output = project.run(f"failing_{mode}", isolation)
    assert code != 0
    assert "StepFailedError: Step `fails` failed: exit code 1" in output
    assert "ValueError: on purpose" in output
    run = project.ended(f"failing_{mode}")
    assert run.status == "failed"
    assert "below" not in run.attempts
    for step, status in expected.items():
        assert run.attempts[step][-1] == status, run.attempts
    if mode != "continue_on_failure":
        assert "beside" not in run.attempts
    assert not any(status in ("running", "retrying") for rows in run.attempts.values() for status in rows)
    assert run.containers == []


@everywhere
def test_steps_end_in_every_way(project: Project) -> None:
    code, output = project.run("endings")
    assert code != 0
    run = project.ended("endings")
    assert (run.status, run.containers) == ("failed", [])
    assert run.attempts == {
        "fails": ["failed"],
        "greedy": ["failed"],
        "too_slow": ["failed"],
        "second_time_lucky": ["retried", "completed"],
    }
    outcomes = {step: row.run_metadata["outcome"] for step, row in run.rows.items()}
    assert outcomes == {
        "fails": "exited",
        "greedy": "out_of_memory",
        "too_slow": "timed_out",
        "second_time_lucky": "completed",
    }
    for line in (
        "fails             | -- exit code 1",
        "greedy            | -- out of memory",
        "-- attempt 2",
        "-- timed out",
    ):
        assert line in output
    assert "StepFailedError: Step `" in output


@everywhere
def test_a_step_has_its_own_image_user_and_settings(project: Project, other_image: str) -> None:
    # What the client makes is open to everyone, as the step's user is not the client's.
    subprocess.run(["chmod", "-R", "a+rwX", project.config], check=True)
    before = os.umask(0)
    try:
        code, output = project.run("differing", TEST_OTHER_IMAGE=other_image)
    finally:
        os.umask(before)
    assert code == 0, output
    assert "other | 12345:54321 says bonjour in image 1" in output
    assert f"usual | {os.getuid()}:{os.getgid()} says hello, other image: False" in output
    run = project.ended("differing")
    assert run.status == "completed"
    (kept,) = run.containers
    format = "{{.State.Status}} {{json .Config.Labels}} {{.Name}} {{.Config.Cmd}}"
    command = ["docker", "inspect", "--format", format, kept]
    described = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    subprocess.run(["docker", "rm", "-f", kept], check=True, stdout=subprocess.DEVNULL)
    assert described.startswith("exited ")
    assert '"team":"a"' in described

    token_file = project.scratch / "token"
    token = token_file.read_text()
    assert bool(token) == ("ZENML_STORE_URL" in project.environment)
    if token:
        assert token not in described
        assert token not in output
        folders = (project.config, project.folder, run.log_directory)
        files = {path for folder in folders for path in folder.rglob("*") if path.is_file()} - {token_file}
        assert run.log_directory / "other.1.log" in files
        assert [path for path in files if token.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("project", "number", "isolation"),
    [
        ("sqlite", signal.SIGINT, "container"),
        ("sqlite", signal.SIGTERM, "process"),
        ("server", signal.SIGTERM, "container"),
        ("server", signal.SIGINT, "process"),
    ],
    indirect=["project"],
)
def test_a_signal_stops_the_run(
    project: Project, until: Callable[..., None], number: signal.Signals, isolation: str
) -> None:
    marker = project.scratch / "sleeping"
    marker.unlink(missing_ok=True)
    process = project.start("interrupted", isolation)
    until(marker.exists, "the step to run", 120)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "RunInterruptedError: The run was stopped." in output
    run = project.ended("interrupted")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"sleeps": ["stopped"]}, [])


@pytest.mark.parametrize(
    ("project", "isolation"),
    [("sqlite", "container"), ("sqlite", "process"), ("server", "container")],
    indirect=["project"],
)
def test_a_second_signal_kills(project: Project, until: Callable[..., None], isolation: str) -> None:
    marker = project.scratch / "stubborn"
    marker.unlink(missing_ok=True)
    process = project.start("killed", isolation)
    until(marker.exists, "the step to run", 120)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "killed" in output
    run = project.ended("killed")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"stubborn": ["stopped"]}, [])


@pytest.mark.parametrize(
    ("project", "graceful", "isolation"),
    [
        ("sqlite", True, "container"),
        ("sqlite", False, "process"),
        ("server", False, "container"),
        ("server", True, "process"),
    ],
    indirect=["project"],
)
def test_runs_stop_from_another_terminal(
    project: Project, until: Callable[..., None], tmp_path: Path, graceful: bool, isolation: str
) -> None:
    marker = project.scratch / "sleeping"
    marker.unlink(missing_ok=True)
    process = project.start("interrupted", isolation)
    until(marker.exists, "the step to run", 120)
    run_id = str(project.ended("interrupted").run.id)
    project.zenml("pipeline", "runs", "refresh", run_id, folder=tmp_path)
    assert project.ended("interrupted").status == "running"
    # From any folder: the package is found without the project's.
    project.zenml("pipeline", "runs", "stop", run_id, *(["--graceful"] if graceful else []), "-y", folder=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert "RunInterruptedError" in output
    run = project.ended("interrupted")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"sleeps": ["stopped"]}, [])


@everywhere
def test_a_run_in_the_background_outlives_its_client(project: Project, until: Callable[..., None]) -> None:
    code, output = project.run("background")
    assert code == 0, output
    assert "goes on in the background" in output
    until(lambda: project.ended("background").run.status.is_finished, "the run to finish", 180)
    run = project.ended("background")
    assert run.status == "completed"
    until(lambda: not run.containers, "the container to be removed")


def test_what_cannot_run_is_one_sentence_and_leaves_nothing(project: Project) -> None:
    code, output = project.run("refused")
    assert code == 0, output
    told = [json.loads(line.removeprefix("REFUSED ")) for line in output.splitlines() if line.startswith("REFUSED ")]
    refused = {reason: (kind, message) for reason, kind, message in told}
    for reason, kind, text in (
        ("memory", "PlanError", "lower its memory request"),
        (
            "image",
            "DockerError",
            "`step-engine-test/no-such-image:1` is not in the engine and the pull policy is `never`",
        ),
        ("argument", "DockerError", "run_args.no_such_argument"),
        ("detached", "DockerError", "run_args.detach"),
        ("volume", "StepFailedError", "`/no/such/folder` does not exist"),
        ("volume_form", "PlanError", "step `source`: the volume '/data' is not of the form `source:target`"),
        ("size", "PlanError", "512m"),
        ("network", "StepFailedError", "no-such-network"),
        ("schedule", "ValueError", "schedul"),
        ("engine", "DockerError", "unix:///no/such/docker.sock from DOCKER_HOST"),
    ):
        assert refused[reason][0] == kind, refused
        assert text in refused[reason][1], refused
        if reason == "schedule":
            continue
        run = project.ended(f"refused_{reason}")
        assert (run.status, run.containers) == ("failed", []), reason
        assert "running" not in {status for statuses in run.attempts.values() for status in statuses}


def test_a_database_that_is_locked_for_a_while_is_waited_for(project: Project, until: Callable[..., None]) -> None:
    marker = project.scratch / "lingering"
    process = project.start("lingering")
    until(marker.exists, "the step to run", 120)
    (database,) = project.config.glob("local_stores/*/zenml.db")
    with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(30)
        assert process.poll() is None
        other.execute("ROLLBACK")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = project.ended("lingering")
    assert (run.status, run.containers) == ("completed", [])


def test_an_engine_on_another_machine_is_told_from_one_here(
    project: Project, tcp_engine: str, other_image: str
) -> None:
    code, output = project.run("single", DOCKER_HOST=tcp_engine, TEST_IMAGE=other_image)
    assert code == 0, output
    assert f"The Docker engine at {tcp_engine} is on another machine" in output
    assert "source | to stdout" in output
    run = project.ended("single")
    assert (run.status, run.containers) == ("completed", [])
