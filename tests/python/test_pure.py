"""What needs no engine: imports, parsing, the console."""

from __future__ import annotations

import io
import subprocess
import sys
import uuid
from types import SimpleNamespace

import pytest
from step_engine.console import Console, describe_outcome

from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings
from orchestrator.plan import CONTAINER_PYTHON_PATH, build_container, default_user, parse_size, parse_volume


def test_step_containers_need_no_native_module() -> None:
    """ZenML imports flavor and orchestrator in every step container, where our wheel is not installed."""
    code = (
        "import sys; sys.modules['step_engine'] = None\n"
        "from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorFlavor as F\n"
        "print(F().name, F().implementation_class.__name__, F().config_class().handles_step_retries)\n"
        "import orchestrator.driving, orchestrator.publishing, orchestrator.plan\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["my_docker", "LocalDockerOrchestrator", "True"], done.stderr


@pytest.mark.parametrize("same_machine", [True, False])
def test_a_container_mounts_what_its_engine_can_have(same_machine: bool) -> None:
    described = build_container(
        "train",
        SimpleNamespace(id=uuid.uuid4()),
        settings=LocalDockerOrchestratorSettings(volumes=["cache:/cache"]),
        environment={"ZENML_STORE_URL": "http://elsewhere"},
        image="sha256:1",
        image_reference="image:1",
        run_id="run",
        local_stores_path="/stores" if same_machine else None,
        default_user=None,
        same_machine=same_machine,
    )
    targets = [volume["target"] for volume in described["volumes"]]
    own = ["/stores", f"{CONTAINER_PYTHON_PATH}/orchestrator"]
    assert targets == ["/cache", *(own if same_machine else [])]
    assert described["environment"].get("ZENML_LOCAL_STORES_PATH") == ("/stores" if same_machine else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", ("/a", "/b", False)),
        ("/a:/b:ro", ("/a", "/b", True)),
        ("cache:/b:rw", ("cache", "/b", False)),
        ("C:\\data:/b", ("C:\\data", "/b", False)),
    ],
)
def test_volumes(text: str, expected: tuple[str, str, bool]) -> None:
    volume = parse_volume(text)
    assert (volume["source"], volume["target"], volume["read_only"]) == expected


@pytest.mark.parametrize("text", ["/a", "/a:", ":/b", "/a:/b:rx", "/a:/b:ro:z"])
def test_bad_volumes_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="source:target"):
        parse_volume(text)


def test_whom_containers_run_as(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 12345, raising=False)
    monkeypatch.setattr("os.getgid", lambda: 678, raising=False)
    here = {"local": True, "rootless": False}
    monkeypatch.setattr("sys.platform", "linux")
    assert default_user(here) == "12345:678"
    assert default_user({**here, "rootless": True}) == "0:0"
    assert default_user({**here, "local": False}) is None
    monkeypatch.setattr("sys.platform", "win32")
    assert default_user(here) is None


def test_sizes() -> None:
    assert [parse_size(size) for size in (None, 7, "7", "2k", "512m", "2G", "1gb")] == [
        None, 7, 7, 2048, 512 * 1024**2, 2 * 1024**3, 1024**3,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="512m"):
        parse_size("much")


def test_the_console_prefixes_and_summarises() -> None:
    stream = io.StringIO()
    console = Console(["load", "train"], stream)
    console.handle(
        [
            {"kind": "attempt_launched", "step": "train", "attempt": 1},
            {"kind": "log", "step": "train", "attempt": 1, "stream": "stdout", "text": "\x1b[37mone\x1b[0m\ntwo\n"},
            {
                "kind": "attempt_ended",
                "step": "train",
                "attempt": 1,
                "outcome": {"kind": "exited", "code": 137},
                "duration": 2.0,
            },
            {"kind": "step_finished", "step": "train", "status": "failed", "outcome": None},
        ]
    )
    console.summary(
        {
            "status": "failed",
            "steps": [("load", "completed"), ("train", "failed")],
            "duration": 3.21,
            "peak_parallelism": 2,
            "left_running": [],
        },
        "/logs",
    )
    assert stream.getvalue().splitlines() == [
        "train | one",
        "train | two",
        "train | -- killed by SIGKILL (exit code 137) after 2.0 s",
        "Run failed in 3.2 s: 1 completed, 1 failed; at most 2 at a time.",
        "Logs: /logs",
    ]


def test_outcomes_in_words() -> None:
    assert describe_outcome({"kind": "out_of_memory"}) == "out of memory"
    assert describe_outcome({"kind": "launch_failed", "reason": "no image"}) == "could not start: no image"
    assert describe_outcome(None) == "never started"
