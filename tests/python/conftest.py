"""Fixtures: a ZenML configuration of its own, a project folder with pipelines, and the base image."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# ZenML reads its configuration when it is imported, so this comes first.
_CONFIG = tempfile.mkdtemp(prefix="step-engine-test-")
atexit.register(shutil.rmtree, _CONFIG, ignore_errors=True)
os.environ.update(
    ZENML_CONFIG_PATH=_CONFIG,
    ZENML_ANALYTICS_OPT_IN="false",
    ZENML_LOGGING_COLORS_DISABLED="true",
    ZENML_ENABLE_REPO_INIT_WARNINGS="false",
    AUTO_OPEN_DASHBOARD="false",
)

IMAGE = f"zenmldocker/zenml:0.98.0-py{sys.version_info[0]}.{sys.version_info[1]}"
FLAVOR = "orchestrator.my_docker_orchestrator_flavor.LocalDockerOrchestratorFlavor"


@pytest.fixture(scope="session")
def image() -> str:
    """The base image; scripts/base-image makes it."""
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    if found.returncode != 0:
        pytest.fail(f"The image {IMAGE} is missing: run scripts/base-image first.")
    return IMAGE


class Project:
    """A user's folder, initialised, with a stack on our orchestrator, away from this repository."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TEST_IMAGE": image, "TEST_SCRATCH": str(folder / "scratch")}
        # The package comes from the environment, as it does for a user, not from the repository.
        self.environment.pop("PYTHONPATH", None)
        (folder / "scratch").mkdir(mode=0o777)
        shutil.copy(Path(__file__).parent / "scenarios.py", folder / "scenarios.py")
        for arguments in (
            ["init"],
            ["orchestrator", "flavor", "register", FLAVOR],
            ["orchestrator", "register", "my_docker_orchestrator", "-f", "my_docker"],
            ["stack", "register", "my_stack", "-o", "my_docker_orchestrator", "-a", "default"],
            ["stack", "set", "my_stack"],
        ):
            self.zenml(*arguments)

    def zenml(self, *arguments: str) -> str:
        """Runs a command of ZenML and returns its output."""
        command = [str(Path(sys.executable).parent / "zenml"), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"zenml {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, scenario: str) -> subprocess.Popen[str]:
        """Starts a scenario and returns its process."""
        return subprocess.Popen(
            [sys.executable, "-u", "scenarios.py", scenario],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, scenario: str) -> tuple[int, str]:
        """Runs a scenario to its end: exit code and output."""
        process = self.start(scenario)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output


class Ended:
    """What ZenML and the engine know of a pipeline's newest run."""

    def __init__(self, pipeline: str) -> None:
        from zenml.client import Client

        runs = Client().list_pipeline_runs(pipeline=pipeline, sort_by="desc:created", size=1)
        self.run = runs.items[0]
        self.status = self.run.status.value
        rows = Client().list_run_steps(pipeline_run_id=self.run.id, size=100, sort_by="asc:created").items
        self.attempts: dict[str, list[str]] = {}
        for row in rows:
            self.attempts.setdefault(row.name, []).append(row.status.value)

    @property
    def containers(self) -> list[str]:
        """Containers of the run that the engine still has."""
        command = ["docker", "ps", "-aq", "--filter", f"label=step-engine.run={self.run.orchestrator_run_id}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="session")
def project(image: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The user's folder."""
    return Project(tmp_path_factory.mktemp("project"), image)


@pytest.fixture(scope="session")
def ended() -> Callable[[str], Ended]:
    """Looks up a pipeline's newest run."""
    return Ended


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for something, at most a minute."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.1)

    return wait


@pytest.fixture
def label() -> Iterator[str]:
    """A run id of a test's own; its containers are removed afterwards."""
    run_id = f"test-{time.time_ns()}"
    yield run_id
    left = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=step-engine.run={run_id}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if left:
        subprocess.run(["docker", "rm", "-f", *left], capture_output=True, check=True)


def dump(value: object) -> str:
    """Readable form for assertion messages."""
    return json.dumps(value, indent=1, default=str)
