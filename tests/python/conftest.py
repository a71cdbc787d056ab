"""Fixtures: ZenML configurations of their own, on SQLite and on a server, project folders, and the base image."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zenml.models import StepRunResponse
    from zenml.zen_stores.base_zen_store import BaseZenStore

# ZenML takes the folder of the main module's file for the root of sources; in a worker of pytest-xdist it has none.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = str(Path(pytest.__file__).with_name("__main__.py"))

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

from zenml_server import ZenmlServer  # noqa: E402

import orchestrator  # noqa: E402
from orchestrator.plan import CONTAINER_PYTHON_PATH  # noqa: E402

IMAGE = f"zenmldocker/zenml:0.98.0-py{sys.version_info[0]}.{sys.version_info[1]}"
FLAVOR = "orchestrator.my_docker_orchestrator_flavor.LocalDockerOrchestratorFlavor"


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The base image, which scripts/base-image makes, with the folder that ZenML's own images have for any user."""
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    if found.returncode != 0:
        pytest.fail(f"The image {IMAGE} is missing: run scripts/base-image first.")
    yield from _derived(IMAGE, "step-engine-test/steps", "RUN mkdir -p /app && chmod 777 /app")


@pytest.fixture(scope="session")
def other_image(image: str) -> Iterator[str]:
    """Another image that runs steps; its variable OTHER_IMAGE tells it apart. It has our package already."""
    instruction = f"ENV OTHER_IMAGE=1\nCOPY . {CONTAINER_PYTHON_PATH}/orchestrator"
    yield from _derived(image, "step-engine-test/other", instruction)


def _derived(base: str, name: str, instruction: str) -> Iterator[str]:
    tag = f"{name}:{os.getpid()}"
    context = str(Path(orchestrator.__file__).parent)
    command = ["docker", "build", "-q", "-t", tag, "-f", "-", context]
    dockerfile = f"FROM {base}\n{instruction}\n"
    subprocess.run(command, input=dockerfile, text=True, check=True, stdout=subprocess.DEVNULL)
    yield tag
    subprocess.run(["docker", "rmi", tag], check=False, stdout=subprocess.DEVNULL)


class Records:
    """Where ZenML keeps its records: variables for the processes of a test, and the store for the test itself."""

    def __init__(self, environment: dict[str, str], store: BaseZenStore, server: ZenmlServer | None = None) -> None:
        self.environment = environment
        self.store = store
        self.server = server


@pytest.fixture(scope="session")
def sqlite_records() -> Records:
    """ZenML's default: a SQLite file, used by the client and by the step containers."""
    from zenml.client import Client

    return Records({}, Client().zen_store)


@pytest.fixture(scope="session")
def server_records(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    """A ZenML server that step containers can reach."""
    folder = tmp_path_factory.mktemp("server")
    server = ZenmlServer(folder, *_address_for_containers(image), os.environ)
    try:
        server.start()
        yield Records({**server.login, "ZENML_CONFIG_PATH": str(folder / "client")}, server.store, server)
    finally:
        server.stop()


def _address_for_containers(image: str) -> tuple[str, int]:
    """An address of this machine that containers reach, and a port that is free there."""
    command = ["docker", "run", "--rm", "--add-host", "host.docker.internal:host-gateway", image, "cat", "/etc/hosts"]
    hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    gateway = next(line.split()[0] for line in hosts.splitlines() if line.endswith("host.docker.internal"))
    # Docker Desktop's gateway is in its virtual machine; from there `host.docker.internal`, which ZenML makes of a local
    # address inside containers, leads to this machine's loopback.
    for address in (gateway, "127.0.0.1"):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind((address, 0))
            return address, free.getsockname()[1]
    raise AssertionError("no address for a server")


class Project:
    """A user's folder, initialised, with a stack on our orchestrator, away from this repository."""

    def __init__(self, folder: Path, image: str, records: Records) -> None:
        self.folder = folder
        self.records = records
        self.scratch = folder / "scratch"
        self.environment = {
            **os.environ,
            **records.environment,
            "TEST_IMAGE": image,
            "TEST_SCRATCH": str(self.scratch),
        }
        # The package comes from the environment, as it does for a user, not from the repository.
        self.environment.pop("PYTHONPATH", None)
        self.scratch.mkdir(mode=0o777)
        self.scratch.chmod(0o777)
        for name in (
            "scenarios.py",
            "warm_scenarios.py",
            "broken_steps.py",
            "seeded_steps.py",
            "capture.py",
            "copied.py",
            "dynamic_scenarios.py",
            "operators.py",
        ):
            shutil.copy(Path(__file__).parent / name, folder)
        for arguments in (
            ["init"],
            ["orchestrator", "flavor", "register", FLAVOR],
            ["orchestrator", "register", "my_docker_orchestrator", "-f", "my_docker"],
            ["stack", "register", "my_stack", "-o", "my_docker_orchestrator", "-a", "default"],
            ["stack", "set", "my_stack"],
        ):
            self.zenml(*arguments)

    @property
    def config(self) -> Path:
        """ZenML's configuration directory."""
        return Path(self.environment["ZENML_CONFIG_PATH"])

    def zenml(self, *arguments: str, folder: Path | None = None) -> str:
        """Runs a command of ZenML, in the project's folder unless told otherwise, and returns its output."""
        command = [str(Path(sys.executable).parent / "zenml"), *arguments]
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"zenml {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def step_engine(self, *arguments: str, folder: Path | None = None) -> tuple[int, str]:
        """Runs our command, from any folder, and returns its exit code and output."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "step-engine"), *arguments],
            cwd=folder or self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, done.stdout

    def start(
        self, scenario: str, isolation: str = "container", module: str = "scenarios.py", **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a scenario and returns its process."""
        return subprocess.Popen(
            [sys.executable, "-u", module, scenario],
            cwd=self.folder,
            env={**self.environment, "TEST_ISOLATION": isolation, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, scenario: str, isolation: str = "container", module: str = "scenarios.py", **environment: str
    ) -> tuple[int, str]:
        """Runs a scenario to its end: exit code and output."""
        process = self.start(scenario, isolation, module, **environment)
        try:
            output, _ = process.communicate(timeout=600)
        finally:
            # A run that hangs must not slow down the tests after it.
            process.kill()
        return process.returncode, output

    def ended(self, pipeline: str) -> Ended:
        """Looks up a pipeline's newest run."""
        return Ended(self.records.store, pipeline)


class Ended:
    """What ZenML and the engine know of a pipeline's newest run."""

    def __init__(self, store: BaseZenStore, pipeline: str) -> None:
        from zenml.models import PipelineRunFilter, StepRunFilter

        newest = PipelineRunFilter(project="default", pipeline=pipeline, sort_by="desc:created", size=1)
        self.run = store.list_runs(newest, hydrate=True).items[0]
        self.status = self.run.status.value
        rows = StepRunFilter(project="default", pipeline_run_id=self.run.id, size=100, sort_by="asc:created")
        self.attempts: dict[str, list[str]] = {}
        self.rows: dict[str, StepRunResponse] = {}
        for row in store.list_run_steps(rows, hydrate=True).items:
            self.attempts.setdefault(row.name, []).append(row.status.value)
            self.rows[row.name] = row

    @property
    def containers(self) -> list[str]:
        """Containers of the run that the engine still has."""
        command = ["docker", "ps", "-aq", "--filter", f"label=step-engine.run={self.run.orchestrator_run_id}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    @property
    def log_directory(self) -> Path:
        """Where the run's logs are."""
        return Path(str(self.run.run_metadata["log_directory"]))


@pytest.fixture(scope="session")
def sqlite_project(image: str, sqlite_records: Records, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The user's folder on SQLite."""
    return Project(tmp_path_factory.mktemp("project"), image, sqlite_records)


@pytest.fixture(scope="session")
def server_project(image: str, server_records: Records, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The user's folder on a server."""
    return Project(tmp_path_factory.mktemp("project"), image, server_records)


@pytest.fixture
def project(request: pytest.FixtureRequest) -> Project:
    """The user's folder: on SQLite, unless the test is parametrised with `project`."""
    return request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_project")


@pytest.fixture
def ended(project: Project) -> Callable[[str], Ended]:
    """Looks up a pipeline's newest run in the user's folder of the test."""
    return project.ended


@pytest.fixture
def tcp_engine() -> Iterator[str]:
    """The engine at an address of TCP that looks like another machine's; only this machine reaches it."""
    from step_engine import DockerEngine

    engine = DockerEngine().info()["address"]
    if not engine.startswith("unix://"):
        pytest.skip("the engine has no socket")

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as far:
                far.connect(engine.removeprefix("unix://"))
                back = threading.Thread(target=_pump, args=(far, self.request), daemon=True)
                back.start()
                _pump(self.request, far)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    try:
        server = Server(("127.0.0.2", 0), Line)
    except OSError:
        pytest.skip("this machine has one loopback address only")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"tcp://127.0.0.2:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


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
