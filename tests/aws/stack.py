"""A ZenML server and a user's folder whose stack is on the bench. Imported by the tests that need them."""

from __future__ import annotations

import copy
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bench_client import REGION, Bench
from conftest import IMAGE, Prerequisites
from zenml_server import ZenmlServer

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

ROOT = Path(__file__).parents[2]
FLAVOR = "orchestrator.my_aws_orchestrator_flavor.StepFunctionsOrchestratorFlavor"
PARENT = "step-engine-test/aws-steps"

# ZenML reads these when it is imported.
for name, value in {
    "ZENML_ANALYTICS_OPT_IN": "false",
    "ZENML_LOGGING_COLORS_DISABLED": "true",
    "ZENML_ENABLE_REPO_INIT_WARNINGS": "false",
    "AUTO_OPEN_DASHBOARD": "false",
}.items():
    os.environ[name] = value


@pytest.fixture(scope="module")
def zenml_server(tmp_path_factory: pytest.TempPathFactory, bench_server: Bench) -> Iterator[ZenmlServer]:
    """A ZenML server with passwords in a process of its own; tasks share this host's network.

    It makes the credentials of service connectors, so it must find the bench; it has none of its own. Its region is that of
    the checks for which ZenML's connector does not use the one it was given (method `iam-role`).
    """
    folder = tmp_path_factory.mktemp("server")
    (folder / "test").mkdir()
    os.environ["ZENML_CONFIG_PATH"] = str(folder / "test")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
        "AWS_ENDPOINT_URL": bench_server.endpoint,
        "AWS_DEFAULT_REGION": REGION,
    }
    server = ZenmlServer(folder, "127.0.0.1", port, environment)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def parent_image() -> str:
    """What the tests' images are built on: ZenML with the requirements of the S3 store, scikit-learn and pyarrow."""
    tag = f"{PARENT}:{IMAGE.rpartition('-')[2]}"
    if subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=False).returncode:
        lines = f'FROM {IMAGE}\nRUN pip install --no-cache-dir "s3fs>2022.3.0,!=2025.3.1" boto3 aws-profile-manager\n'
        subprocess.run(
            ["docker", "build", "-t", tag, "--label", "step-engine.base=1", "-"], input=lines.encode(), check=True
        )
    return tag


class Project:
    """A user's folder, initialised, with a stack as the tutorial registers it."""

    def __init__(
        self, folder: Path, bench: Bench, server: ZenmlServer, given: Prerequisites, image: str, **extra: str
    ) -> None:
        self.folder, self.bench, self.server, self.given = folder, bench, server, given
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            **bench.environment(),
            **server.login,
            "ZENML_CONFIG_PATH": str(folder / "config"),
            "TEST_IMAGE": image,
        }
        self.environment.pop("PYTHONPATH", None)
        for source in (Path(__file__).parent / "project").glob("*.py"):
            shutil.copy(source, folder)
        for name in ("pipelines", "steps", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "run.py", folder)
        own = {
            "ecs_cluster_arn": given.cluster_arn,
            "ecs_task_definition_arn": given.task_definition_arn,
            "execution_role": given.execution_role,
            "state_machine_role": given.state_machine_role,
            "scheduler_role": given.scheduler_role,
            "subnet_ids": '["' + '", "'.join(given.subnet_ids) + '"]',
            "security_group_ids": '["' + '", "'.join(given.security_group_ids) + '"]',
            "account_id": given.account_id,
            "region": given.region,
            **extra,
        }
        self.zenml("init")
        self.zenml("orchestrator", "flavor", "register", FLAVOR, check=False)
        self.name = f"stack_{folder.name}".replace("-", "_")
        for arguments in (
            ["artifact-store", "register", f"s3_{self.name}", "-f", "s3", f"--path=s3://{given.bucket}"],
            # ECR itself has no server here; tasks take its host name for this registry.
            ["container-registry", "register", f"ecr_{self.name}", "-f", "default", f"--uri={bench.registry}"],
            [
                *["orchestrator", "register", f"sf_{self.name}", "-f", "aws_step_functions"],
                *(f"--{key}={value}" for key, value in own.items()),
            ],
            [
                *["stack", "register", self.name, "-o", f"sf_{self.name}", "-a", f"s3_{self.name}"],
                *["-c", f"ecr_{self.name}"],
            ],
            ["stack", "set", self.name],
        ):
            self.zenml(*arguments)

    def copied_to(self, folder: Path) -> Project:
        """A colleague's folder with the same code and stack. ZenML clients cannot begin at the same time in one folder:
        one reads `.zen/config.yaml` while another one writes it, and finds it empty."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = copy.copy(self)
        other.folder = folder
        other.environment = {**self.environment, "ZENML_CONFIG_PATH": str(folder / "config")}
        return other

    def zenml(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """Runs a command of ZenML in the project's folder and returns its output."""
        command = [str(Path(sys.executable).parent / "zenml"), *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0 or not check, f"zenml {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a program of the folder."""
        return subprocess.Popen(
            [sys.executable, "-u", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs a program of the folder to its end: exit code and output."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=1800)
        return process.returncode, output

    def newest(self, pipeline: str) -> PipelineRunResponse:
        """A pipeline's newest run."""
        from zenml.models import PipelineRunFilter

        newest = PipelineRunFilter(project="default", pipeline=pipeline, sort_by="desc:created", size=1)
        return self.server.store.list_runs(newest, hydrate=True).items[0]

    def steps(self, run: PipelineRunResponse) -> dict[str, list[str]]:
        """Statuses of the attempts of every step."""
        return {name: [row.status.value for row in rows] for name, rows in self.rows(run).items()}

    def rows(self, run: PipelineRunResponse) -> dict[str, list[Any]]:
        """Rows of the attempts of every step."""
        from zenml.models import StepRunFilter

        rows = StepRunFilter(project="default", pipeline_run_id=run.id, size=100, sort_by="asc:created")
        found: dict[str, list[Any]] = {}
        for row in self.server.store.list_run_steps(rows, hydrate=True).items:
            found.setdefault(row.name, []).append(row)
        return found

    def execution(self, run: PipelineRunResponse) -> dict[str, Any]:
        """The execution of a run, as Step Functions tells of it."""
        return self.bench.client("stepfunctions").describe_execution(
            executionArn=str(run.run_metadata["execution_arn"])
        )

    def secrets(self) -> list[str]:
        """Names of the secrets that there are."""
        pages = self.bench.client("secretsmanager").get_paginator("list_secrets").paginate()
        return [secret["Name"] for page in pages for secret in page["SecretList"]]


@pytest.fixture(scope="module")
def aws_project(
    tmp_path_factory: pytest.TempPathFactory,
    bench_server: Bench,
    zenml_server: ZenmlServer,
    prerequisites: Prerequisites,
    parent_image: str,
) -> Project:
    """The user's folder."""
    return Project(tmp_path_factory.mktemp("project"), bench_server, zenml_server, prerequisites, parent_image)


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for something, at most a minute."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.2)

    return wait
