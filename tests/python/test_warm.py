"""Warm starts in real runs: real pipelines, real containers, ZenML's SQLite store."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from worker_client import alive

if TYPE_CHECKING:
    from conftest import Ended, Project

Look = Callable[[str], "Ended"]
MODULE = "warm_scenarios.py"
isolations = pytest.mark.parametrize("isolation", ["container", "process"])


def log_of(run: Ended, step: str, attempt: int = 1) -> str:
    return (Path(run.run.run_metadata["log_directory"]) / f"{step}.{attempt}.log").read_text()


@isolations
def test_every_way_to_end(project: Project, ended: Look, isolation: str) -> None:
    code, output = project.run("trials", isolation, MODULE)
    assert code != 0
    run = ended("trials")
    assert run.status == "failed"
    assert run.attempts == {
        "begins": ["completed"],
        "neighbour": ["completed"],
        "too_large": ["failed"],
        "too_slow": ["failed"],
        "second_time_lucky": ["retried", "completed"],
        "fails_with_artifact": ["failed"],
        "leaves_a_child_behind": ["completed"],
        "broken": ["failed"],
        "after": ["completed"],
    }, output
    assert run.containers == []
    outcomes = {name: step.run_metadata.get("outcome") for name, step in run.run.steps.items()}
    assert outcomes == {
        **dict.fromkeys(outcomes, "completed"),
        "too_large": "out_of_memory",
        "too_slow": "timed_out",
        "fails_with_artifact": "exited",
        "broken": "exited",
    }
    assert log_of(run, "broken").count("ModuleNotFoundError: No module named 'does_not_exist'") == 1
    assert log_of(run, "begins").count("INIT") == 1
    assert log_of(run, "after").count("INIT") == 1
    assert log_of(run, "begins").count("SUCCEEDED") == 1
    assert "SUCCEEDED" not in log_of(run, "after")
    assert "starts were warm; the longest start took" in output
    assert run.run.steps["after"].run_metadata["peak_memory_bytes"] > 50_000_000
    from zenml.client import Client

    assert Client().get_artifact_version("what_was_left").load() == 42


@isolations
def test_who_shares_a_container(project: Project, ended: Look, isolation: str) -> None:
    code, output = project.run("places", isolation, MODULE)
    assert code == 0, output
    run = ended("places")
    lines = {
        step: next(line for line in log_of(run, step).splitlines() if "WHERE" in line).split()[1:] for step in "abcd"
    }
    hosts = {step: line[0] for step, line in lines.items()}
    assert len(set(hosts.values())) == (3 if isolation == "process" else 4)
    if isolation == "process":
        assert hosts["a"] == hosts["b"]
        assert lines["a"][2] != lines["b"][2]
    assert [lines[step][1] for step in "abcd"] == ["None", "None", "hello", "None"]
    warm = {step: run.run.steps[step].run_metadata["warm"] for step in "abcd"}
    assert warm == {"a": isolation == "process", "b": True, "c": True, "d": False}
    assert f"{sum(warm.values())} of 4 starts were warm" in output
    assert all(run.run.steps[step].run_metadata["peak_memory_bytes"] > 50_000_000 for step in "abcd")
    assert run.containers == []


@isolations
def test_workers_do_not_survive_a_killed_client(
    project: Project, ended: Look, until: Callable[..., None], isolation: str
) -> None:
    marker = project.folder / "scratch" / "lasts"
    marker.unlink(missing_ok=True)
    process = project.start("abandoned", isolation, MODULE)
    until(marker.exists, "the step to run", 120)
    label = str(ended("abandoned").run.orchestrator_run_id)
    if isolation == "container":
        until(lambda: len(alive(label)) == 2, "a worker to warm up", 60)
    process.kill()
    process.wait()
    try:
        until(lambda: len(alive(label)) <= 1, "the worker to end", 10)
        # The step itself goes on to its end, as in any container.
        until(lambda: ended("abandoned").attempts["lasts"] == ["completed"], "the step to end")
        until(lambda: not alive(label), "the last container to end", 60)
        told = project.zenml("pipeline", "runs", "refresh", label)
        assert f"`step-engine resume {label}` goes on with it" in " ".join(told.split())
        assert ended("abandoned").status == "running"
        if isolation == "container":
            code, output = project.step_engine("resume", label)
            assert code == 0, output
            assert "lasts | -- completed" in output
        else:
            code, output = project.step_engine("resume", "-d")
            assert code == 0, output
            assert f"step-engine attach {label}" in output
            code, output = project.step_engine("attach", label)
            assert code == 0, output
            assert "Run completed in" in output
            until(lambda: ended("abandoned").run.status.is_finished, "ZenML to know")
            # Its worker ends after that, with the owner in the background.
            until(lambda: not ended("abandoned").containers, "the worker to be removed")
        run = ended("abandoned")
        assert (run.status, run.containers) == ("completed", [])
        assert run.attempts == {"lasts": ["completed"], "after": ["completed"]}
        assert run.rows["lasts"].run_metadata["outcome"] == "completed"
    finally:
        left = ended("abandoned").containers
        if left:
            subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=True)


def test_a_server_that_is_away_while_a_step_ends_is_waited_for(
    server_project: Project, until: Callable[..., None]
) -> None:
    server = server_project.records.server
    assert server is not None
    marker = server_project.folder / "scratch" / "lasts"
    marker.unlink(missing_ok=True)
    process = server_project.start("abandoned", "process", MODULE)
    try:
        until(marker.exists, "the step to run", 120)
        server.stop()
        # The step lasts for 20 seconds, and ZenML waits for half a minute.
        time.sleep(70)
    finally:
        server.start()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    run = server_project.ended("abandoned")
    assert (run.status, run.containers) == ("completed", [])
    assert run.attempts == {"lasts": ["completed"], "after": ["completed"]}


def test_warming_workers_do_not_survive_a_killed_client(
    project: Project, ended: Look, until: Callable[..., None]
) -> None:
    process = project.start("places", "process", MODULE)
    before = ended("places").run.id if known(project, "places") else None
    until(lambda: known(project, "places") and ended("places").run.id != before, "the run", 60)
    label = str(ended("places").run.id)
    until(lambda: alive(label), "a worker to start")
    process.kill()
    process.wait()
    try:
        until(lambda: not alive(label), "the worker to end", 10)
    finally:
        left = ended("places").containers
        if left:
            subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=True)


def test_a_step_operator_and_a_secret_of_the_stack(project: Project, ended: Look) -> None:
    name, token = "here", secrets.token_urlsafe()
    project.zenml("secret", "create", name, f"--token={token}")
    project.zenml("step-operator", "flavor", "register", "operators.HereFlavor")
    project.zenml("step-operator", "register", name, "-f", "here", f"--token={{{{{name}.token}}}}")
    project.zenml("stack", "register", name, "-o", "my_docker_orchestrator", "-a", "default", "-s", name)
    project.zenml("stack", "set", name)
    try:
        code, output = project.run("operated", "process", MODULE)
    finally:
        project.zenml("stack", "set", "my_stack")
    assert code == 0, output
    run = ended("operated")
    assert run.status == "completed"
    assert run.attempts == {"plain": ["completed"], "elsewhere": ["completed"], "after": ["completed"]}
    assert run.containers == []
    log = log_of(run, "elsewhere")
    assert f"OPERATOR runs elsewhere with the secret {hashlib.sha256(token.encode()).hexdigest()}" in log
    assert "with 1" in log and "ELSEWHERE" in log
    assert "after 2" in log_of(run, "after")
    assert all(run.run.steps[step].run_metadata["warm"] for step in ("elsewhere", "after"))
    # Nowhere in what is kept of the run.
    kept = [path for path in run.log_directory.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if token.encode() in path.read_bytes()]
    assert token not in output


def test_the_package_is_copied_to_an_engine_elsewhere(project: Project, ended: Look) -> None:
    done = subprocess.run(
        [sys.executable, "copied.py", "warm_scenarios", "two"],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = ended("two")
    assert (run.status, run.containers) == ("completed", [])
    assert run.run.steps["after"].run_metadata["warm"] is True


def known(project: Project, pipeline: str) -> bool:
    from zenml.models import PipelineRunFilter

    newest = PipelineRunFilter(project="default", pipeline=pipeline, size=1)
    return bool(project.records.store.list_runs(newest).items)
