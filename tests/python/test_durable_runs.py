"""Real runs that are watched, stopped, retried and given up from other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from step_engine.errors import StepEngineError
from step_engine.lease import owner_lives

from orchestrator.resuming import retry

if TYPE_CHECKING:
    from conftest import Project


def test_what_failed_is_run_again_and_nothing_else(project: Project, tmp_path: Path) -> None:
    (project.scratch / "mended").unlink(missing_ok=True)
    code, output = project.run("mended")
    assert code != 0, output
    first = project.ended("mended")
    assert first.attempts == {"source": ["completed"], "mends": ["failed"]}
    (project.scratch / "mended").touch()
    # From any folder, without the pipeline's code.
    code, output = project.step_engine("retry", str(first.run.id), folder=tmp_path)
    assert code == 0, output
    second = project.ended("mended")
    assert second.run.id != first.run.id
    assert second.run.original_run is not None
    assert second.run.original_run.id == first.run.id
    assert (second.status, second.containers) == ("completed", [])
    assert second.attempts == {"source": ["skipped"], "mends": ["completed"], "usual": ["completed"]}
    code, output = project.step_engine("retry", str(second.run.id), folder=tmp_path)
    assert code == 1
    assert "there is nothing to run again" in output


def test_a_run_in_the_background_is_watched_and_stopped_from_other_terminals(
    project: Project, until: Callable[..., None], tmp_path: Path
) -> None:
    marker = project.scratch / "sleeping"
    marker.unlink(missing_ok=True)
    code, output = project.run("watched")
    assert code == 0, output
    until(marker.exists, "the step to run", 300)
    run_id = str(project.ended("watched").run.id)
    watching = subprocess.Popen(
        [str(Path(sys.executable).parent / "step-engine"), "attach", run_id],
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert code == 1
    assert "is driven by process" in output
    code, output = project.step_engine("stop", run_id, folder=tmp_path)
    assert code == 0, output
    assert f"Run {run_id}: stopped." in output
    seen, _ = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert "Run stopped in" in seen
    until(lambda: project.ended("watched").status == "stopped", "ZenML to know")
    until(lambda: not project.ended("watched").containers, "the owner to remove the container")
    assert project.ended("watched").attempts == {"sleeps": ["stopped"]}


def test_a_run_whose_owner_died_can_be_given_up(project: Project, until: Callable[..., None], tmp_path: Path) -> None:
    marker = project.scratch / "sleeping"
    marker.unlink(missing_ok=True)
    process = project.start("interrupted")
    until(marker.exists, "the step to run", 300)
    process.kill()
    process.wait()
    run_id = str(project.ended("interrupted").run.id)
    project.zenml("pipeline", "runs", "stop", run_id, "-y", folder=tmp_path)
    run = project.ended("interrupted")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"sleeps": ["stopped"]}, [])
    # As if it had been stopped from another machine, where nobody knows its folder.
    (run.log_directory / "given-up").unlink()
    label = f"--label=step-engine.run={run_id}"
    subprocess.run(
        ["docker", "create", label, project.environment["TEST_IMAGE"], "true"], check=True, capture_output=True
    )
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert code == 1
    assert "has ended (stopped)" in output
    assert project.ended("interrupted").containers == []
    assert (run.log_directory / "given-up").exists()
    code, output = project.step_engine("runs", folder=tmp_path)
    assert [line for line in output.splitlines() if run_id in line and "stopped" in line]


def test_a_run_that_was_over_when_its_owner_died_is_brought_to_its_end(
    project: Project, until: Callable[..., None], tmp_path: Path
) -> None:
    """The container's end is what the owner waited for, and it died before it came."""
    process = project.start("reported")
    until(lambda: "ends_slowly" in _attempts(project, "reported"), "the step to begin", 300)
    until(lambda: project.ended("reported").status == "completed", "ZenML to know")
    process.kill()
    process.wait()
    run_id = str(project.ended("reported").run.id)
    assert project.ended("reported").containers
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert code == 0, output
    run = project.ended("reported")
    assert (run.status, run.attempts, run.containers) == ("completed", {"ends_slowly": ["completed"]}, [])
    code, output = project.step_engine("resume", run_id, folder=tmp_path)
    assert (code, "has ended (completed)" in output) == (1, True), output


def test_what_did_not_fail_of_a_failed_run_is_gone_on_with(
    project: Project, until: Callable[..., None], tmp_path: Path
) -> None:
    """ZenML calls the run failed as soon as one step has, while the others go on."""
    for name in ("waits", "open"):
        (project.scratch / name).unlink(missing_ok=True)
    process = project.start("half_failed")
    until(lambda: _attempts(project, "half_failed").get("fails") == ["failed"], "the step to fail", 300)
    until((project.scratch / "waits").exists, "the other step to run")
    process.kill()
    process.wait()
    assert project.ended("half_failed").status == "failed"
    (project.scratch / "open").touch()
    code, output = project.step_engine("resume", str(project.ended("half_failed").run.id), folder=tmp_path)
    run = project.ended("half_failed")
    _private(run.log_directory)
    assert (code, run.status, run.containers) == (1, "failed", []), output
    assert run.attempts == {"fails": ["failed"], "waits": ["completed"], "usual": ["completed"]}, output
    assert "Step `fails` failed: exit code 1" in output


def test_a_run_that_is_not_what_it_was_is_refused(project: Project, until: Callable[..., None], tmp_path: Path) -> None:
    (project.scratch / "sleeping").unlink(missing_ok=True)
    code, output = project.run("watched")
    assert code == 0, output
    until((project.scratch / "sleeping").exists, "the step to run", 300)
    run = project.ended("watched")
    run_id, pinned = str(run.run.id), run.log_directory / "pinned.json"
    os.kill(json.loads((run.log_directory / "owner.lock").read_text())["pid"], signal.SIGKILL)
    until(lambda: owner_lives(run.log_directory) is False, "the owner to die")
    # A step that can write ZenML's store could ask for anything.
    project.zenml("orchestrator", "update", "my_docker_orchestrator", "--shm_size=64m")
    try:
        code, output = project.step_engine("resume", run_id, folder=tmp_path)
    finally:
        project.zenml("orchestrator", "remove-attribute", "my_docker_orchestrator", "shm_size")
    assert (code, "are not those that it began with" in output) == (1, True), output
    began = pinned.read_text()
    for pin, said in (("engine_id", "began on another Docker engine"), ("store_id", "began with another ZenML store")):
        pinned.write_text(json.dumps({**json.loads(began), pin: "another"}))
        code, output = project.step_engine("resume", run_id, folder=tmp_path)
        assert (code, said in " ".join(output.split())) == (1, True), output
    pinned.write_text(began)
    # Nothing was changed: it is there to be ended, or gone on with.
    assert project.ended("watched").containers
    _private(run.log_directory)
    project.zenml("pipeline", "runs", "stop", run_id, "-y", folder=tmp_path)
    run = project.ended("watched")
    assert (run.status, run.attempts, run.containers) == ("stopped", {"sleeps": ["stopped"]}, [])


def test_a_run_that_zenml_does_not_have_is_not_run_again(project: Project) -> None:
    with pytest.raises(StepEngineError, match="there is nothing to run again"):
        retry(str(uuid4()))


def _private(directory: Path) -> None:
    """What a run's folder holds is its user's alone."""
    for path in (directory, *directory.rglob("*")):
        assert path.lstat().st_mode & 0o077 == 0, path


def _attempts(project: Project, pipeline: str) -> dict[str, list[str]]:
    try:
        return project.ended(pipeline).attempts
    except IndexError:
        # The run is not there yet.
        return {}
