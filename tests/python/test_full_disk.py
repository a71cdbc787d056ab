"""A disk without room while a pipeline runs: a small file system that is filled, and freed or not."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Project, Records
from step_engine import read_run
from step_engine.console import Console


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for ZenML's records."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m,mode=0777", "none", str(path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Writes a file until nothing more fits."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return ballast


def records_in(directory: Path) -> Records:
    """ZenML's records on SQLite in a directory."""
    from zenml.zen_stores.sql_zen_store import SqlZenStore, SqlZenStoreConfiguration

    environment = {"ZENML_CONFIG_PATH": str(directory)}
    zenml = str(Path(sys.executable).with_name("zenml"))
    subprocess.run([zenml, "status"], env={**os.environ, **environment}, check=True, capture_output=True)
    (database,) = directory.glob("local_stores/*/zenml.db")
    store = SqlZenStore(config=SqlZenStoreConfiguration(url=f"sqlite:///{database}"), skip_default_registrations=True)
    return Records(environment, store)


def words(log: Path) -> list[int]:
    """What the step said, in its log."""
    return [int(number) for number in re.findall(r"word (\d+) \.{200}", log.read_text())]


def shows_our_frames(output: str) -> bool:
    """Whether a traceback leads through our code. ZenML prints one where its artifact store has no room for its logs."""
    return re.search(r'File ".*/(orchestrator|step_engine)/', output) is not None


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_time(
    small_disk: Path, image: str, tmp_path: Path, until: Callable[..., None]
) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", image, records_in(small_disk / "zenml"))
    process = project.start("talking")
    until((project.scratch / "talking").exists, "the step to run", 120)
    ballast = fill(small_disk)
    # The step ends meanwhile.
    time.sleep(20)
    assert process.poll() is None
    ballast.unlink()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert not shows_our_frames(output), output
    run = project.ended("talking")
    assert (run.status, run.attempts, run.containers) == (
        "completed",
        {name: ["completed"] for name in ("talks", *(f"listens_{at}" for at in range(5)))},
        [],
    ), output
    record = read_run(run.log_directory)
    assert record is not None
    assert record["summary"]["status"] == "completed"
    assert words(run.log_directory / "talks.1.log") == list(range(60))
    assert "ZenML's store waits for room" in output
    assert f"{run.log_directory}/talks.1.log cannot be written: No space left on device" in output


def test_a_disk_of_logs_that_stays_full_costs_no_status(
    small_disk: Path, image: str, tmp_path: Path, until: Callable[..., None]
) -> None:
    config = tmp_path / "zenml"
    records = records_in(config)
    (small_disk / "runs").mkdir()
    (config / "step_engine").symlink_to(small_disk)
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", image, records)
    process = project.start("talking")
    until((project.scratch / "talking").exists, "the step to run", 120)
    fill(small_disk)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert not shows_our_frames(output), output
    run = project.ended("talking")
    assert (run.status, run.containers) == ("completed", []), output
    assert output.count("the run waits for its journal") == 1, output
    assert output.count("the run goes on without a journal") == 1, output
    # Whatever lacks room says so once.
    assert 1 <= output.count("cannot be written: No space left on device") <= 4, output
    # It knows nothing of it, rather than something wrong.
    assert read_run(run.log_directory) is None
    code, told = project.step_engine("resume", str(run.run.id))
    assert (code, "Traceback" in told) == (1, False), told


class Full(io.StringIO):
    """A file that has no room at times; like Python's own, it keeps what it was given until there is."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def flush(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")


def test_a_console_on_a_full_disk_says_how_many_lines_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Full()
    console = Console(["a"], stream)

    def say(text: str) -> None:
        console.handle([{"kind": "log", "step": "a", "attempt": 1, "stream": "stdout", "text": f"{text}\n"}])

    say("one")
    stream.full = True
    for number in ("two", "three", "four"):
        say(number)
    stream.full = False
    monkeypatch.setattr("step_engine.console._ROOM_SECONDS", 0.0)
    console._full_until = 0.0
    say("five")
    lines = stream.getvalue().split("\n")
    assert lines == ["a | one", "a | two", "", "-- the disk was full: up to 3 lines are not shown here", "a | five", ""]
