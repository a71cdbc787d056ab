"""Real pipelines in real containers on ZenML's SQLite store: statuses afterwards, and nothing left in the engine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Ended, Project

Look = Callable[[str], "Ended"]


def test_a_fan_out_runs_in_parallel_in_a_folder_of_the_users_own(project: Project, ended: Look) -> None:
    code, output = project.run("fan_out")
    assert code == 0, output
    run = ended("fan_out")
    assert run.status == "completed"
    assert run.attempts == {"source": ["completed"], "left": ["completed"], "right": ["completed"]}
    assert run.containers == []
    scratch = project.folder / "scratch"
    times = {path.name: float(path.read_text()) for path in scratch.iterdir() if path.name[:3] in ("beg", "end")}
    assert max(times["begin-left"], times["begin-right"]) < min(times["end-left"], times["end-right"])
    assert "source | to stdout" in output
    assert "source | to stderr" in output
    assert "says bonjour in True" in output
    assert "Run completed in" in output
    assert "at most 2 at a time" in output
    metadata = run.run.run_metadata
    assert metadata["orchestrator_run_id"] == str(run.run.id)
    assert (Path(metadata["log_directory"]) / "left.1.log").exists()
    assert run.run.steps["left"].run_metadata["container_id"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("continue_on_failure", {"fails": "failed", "source": "completed", "long": "completed", "beside": "completed"}),
        ("stop_on_failure", {"fails": "failed"}),
        ("fail_fast", {"fails": "failed"}),
    ],
)
def test_a_failing_step_in_each_mode(project: Project, ended: Look, mode: str, expected: dict[str, str]) -> None:
    code, output = project.run(f"failing_{mode}")
    assert code != 0
    assert "StepFailedError: Step `fails` failed: exit code 1" in output
    assert "ValueError: on purpose" in output
    run = ended(f"failing_{mode}")
    assert run.status == "failed"
    assert "below" not in run.attempts
    for step, status in expected.items():
        assert run.attempts[step][-1] == status, run.attempts
    if mode != "continue_on_failure":
        assert "beside" not in run.attempts
    assert not any(status in ("running", "retrying") for rows in run.attempts.values() for status in rows)
    assert run.containers == []


def test_a_killed_step_is_retried_in_another_container(project: Project, ended: Look) -> None:
    code, output = project.run("retried")
    assert code == 0, output
    run = ended("retried")
    assert run.status == "completed"
    assert run.attempts["second_time_lucky"] == ["retried", "completed"]
    assert "attempt 2" in output
    assert run.containers == []


def test_out_of_memory_says_so(project: Project, ended: Look) -> None:
    code, output = project.run("out_of_memory")
    assert code != 0
    assert "Step `greedy` failed: out of memory" in output
    run = ended("out_of_memory")
    assert (run.status, run.attempts["greedy"], run.containers) == ("failed", ["failed"], [])


def test_a_timeout_says_so(project: Project, ended: Look) -> None:
    code, output = project.run("timed_out")
    assert code != 0
    assert "Step `too_slow` failed: timed out" in output
    run = ended("timed_out")
    assert (run.status, run.attempts["too_slow"][-1], run.containers) == ("failed", "failed", [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run(
    project: Project, ended: Look, until: Callable[..., None], number: signal.Signals
) -> None:
    marker = project.folder / "scratch" / "sleeping"
    marker.unlink(missing_ok=True)
    process = project.start("interrupted")
    until(marker.exists, "the step to run", 120)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "RunInterruptedError: The run was stopped." in output
    run = ended("interrupted")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"sleeps": ["stopped"]}, [])


def test_a_second_signal_kills(project: Project, ended: Look, until: Callable[..., None]) -> None:
    marker = project.folder / "scratch" / "stubborn"
    process = project.start("killed")
    until(marker.exists, "the step to run", 120)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "killed" in output
    run = ended("killed")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"stubborn": ["stopped"]}, [])


@pytest.mark.parametrize("graceful", [True, False])
def test_runs_stop_from_another_terminal(
    project: Project, ended: Look, until: Callable[..., None], graceful: bool
) -> None:
    marker = project.folder / "scratch" / "sleeping"
    marker.unlink(missing_ok=True)
    process = project.start("interrupted")
    until(marker.exists, "the step to run", 120)
    run_id = str(ended("interrupted").run.id)
    project.zenml("pipeline", "runs", "refresh", run_id)
    assert ended("interrupted").status == "running"
    project.zenml("pipeline", "runs", "stop", run_id, *(["--graceful"] if graceful else []), "-y")
    output, _ = process.communicate(timeout=120)
    assert "RunInterruptedError" in output
    run = ended("interrupted")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"sleeps": ["stopped"]}, [])


def test_a_run_in_the_background_outlives_its_client(project: Project, ended: Look, until: Callable[..., None]) -> None:
    code, output = project.run("background")
    assert code == 0, output
    assert "goes on in the background" in output
    until(lambda: ended("background").run.status.is_finished, "the run to finish", 180)
    run = ended("background")
    assert run.status == "completed"
    until(lambda: not run.containers, "the container to be removed")


def test_memory_that_can_never_fit_starts_nothing(project: Project, ended: Look) -> None:
    code, output = project.run("impossible")
    assert code != 0
    assert "PlanError: step `source`" in output
    assert "lower its memory request" in output
    run = ended("impossible")
    assert (run.status, run.attempts, run.containers) == ("failed", {}, [])


def test_a_schedule_is_refused(project: Project) -> None:
    from zenml.client import Client

    component = Client().get_stack_component("orchestrator", "my_docker_orchestrator")
    assert component.flavor_name == "my_docker"
    from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorConfig

    assert LocalDockerOrchestratorConfig().is_schedulable is False
