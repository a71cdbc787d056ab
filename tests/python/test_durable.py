"""Orders, leases with a heartbeat, and the commands that look after runs whose owner died. Without ZenML, on a real engine."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest
from step_engine import DockerEngine, DockerRun, cli, lease, orders, read_run
from step_engine.cli import durable
from step_engine.cli.runs import Run
from step_engine.errors import RunOwnedError, StepEngineError

PLAN = """
import json, os, sys, threading
from step_engine import DockerEngine, DockerRun
from step_engine.lease import Lease
from step_engine import orders

directory, plan, containers = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
lease = Lease.take(directory)
run = DockerRun(DockerEngine(), plan, containers, run_directory=directory)
run.start()
while not run.finished:
    lease.beat()
    order = orders.take(directory)
    if order:
        run.cancel(("interrupt", "kill")[order - 1])
    for event in run.next_events(0.1):
        if event["kind"] == "judge":
            run.judge(event["step"], event["attempt"], event["outcome"], True)
"""


def drive(run: DockerRun) -> list[dict]:
    """Drives a run to its end and returns what happened."""
    seen = []
    while not run.finished:
        for event in run.next_events(1):
            seen.append(event)
            if event["kind"] == "judge":
                run.judge(event["step"], event["attempt"], event["outcome"], True)
    return seen


class Kept:
    """A run in a directory as ZenML's configuration has it, driven by a process of its own."""

    def __init__(self, config: Path, run_id: str, image: str, commands: dict[str, str]) -> None:
        self.config, self.run_id = config, run_id
        self.directory = config / "step_engine" / "runs" / run_id
        steps = [{"name": name, "upstream": list(commands)[:at]} for at, name in enumerate(commands)]
        self.plan = {"run_id": run_id, "pipeline": "kept", "execution_mode": "continue_on_failure", "steps": steps}
        self.containers = {
            name: {
                "image": image,
                "entrypoint": ["sh", "-c"],
                "command": [command],
                "environment": {"TOKEN": "hunter2"},
            }
            for name, command in commands.items()
        }

    def start(self) -> subprocess.Popen[bytes]:
        arguments = [str(self.directory), json.dumps(self.plan), json.dumps(self.containers)]
        return subprocess.Popen([sys.executable, "-c", PLAN, *arguments])

    def events(self) -> list[dict]:
        record = read_run(str(self.directory)) if self.directory.exists() else None
        return record["events"] if record else []

    def command(self, *arguments: str) -> int:
        return cli.main([*arguments, "--config-path", str(self.config)])

    def resume(self) -> DockerRun:
        return DockerRun.resume(DockerEngine(), self.containers, run_directory=str(self.directory))


@pytest.fixture
def kept(tmp_path: Path, label: str, image: str):
    """A run of two steps, the first of which takes a while."""
    return Kept(tmp_path, label, image, {"a": "echo began; sleep 4; echo ended", "b": "echo after"})


def has(kept: Kept, kind: str, step: str) -> bool:
    return any(event["kind"] == kind and event["step"] == step for event in kept.events() if "step" in event)


def told_of(kept: Kept, capsys: pytest.CaptureFixture[str]) -> str:
    assert kept.command("runs", "--json") == 0
    return capsys.readouterr().out


def test_an_order_is_taken_once_and_only_whole(tmp_path: Path) -> None:
    assert orders.take(tmp_path) == 0
    orders.give(tmp_path, "stop")
    orders.give(tmp_path, "kill")
    assert [orders.take(tmp_path), orders.take(tmp_path)] == [2, 0]
    with pytest.raises(ValueError, match="dance"):
        orders.give(tmp_path, "dance")
    orders.give(tmp_path, "stop")
    (order,) = tmp_path.iterdir()
    # Nothing in it that could be there in part, or have no room on a full disk.
    assert (order.name, order.stat().st_mode & 0o777, order.stat().st_size) == ("order-stop", 0o600, 0)


def test_an_order_that_comes_while_another_is_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def slowly(path: Path) -> None:
        unlink(path)
        orders.give(tmp_path, "kill")

    orders.give(tmp_path, "stop")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", slowly)
        assert orders.take(tmp_path) == 1
    assert [orders.take(tmp_path), orders.take(tmp_path)] == [2, 0]


def test_a_lease_on_a_directory_that_was_removed_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    is_taken, removed = lease._is_taken, []

    def after_gc(file: IO[str]) -> bool:
        # As if `gc` had held the lock until now.
        if not removed:
            removed.append(shutil.rmtree(directory))
        return is_taken(file)

    monkeypatch.setattr(lease, "_is_taken", after_gc)
    held = lease.Lease.take(directory)
    with pytest.raises(RunOwnedError):
        lease.Lease.take(directory)
    held.release()


def test_stop_does_not_guess_which_run_is_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capacity = {"cpu_millis": 1000, "memory_bytes": 1, "gpus": 0}
    for name in ("same-1", "same-2"):
        directory = tmp_path / "step_engine" / "runs" / name
        directory.mkdir(parents=True)
        header = {"version": 2, "plan": {"run_id": name, "steps": [{"name": "a"}]}, "capacity": capacity}
        line = json.dumps({**header, "prepare": False, "began_unix_nanos": 7})
        (directory / "journal.jsonl").write_text(f"{line}\n")
    assert cli.main(["stop", "same", "--config-path", str(tmp_path)]) == 1
    assert "Several runs begin with same: " in capsys.readouterr().err


def test_a_run_without_a_journal_is_stopped_through_its_owner(
    tmp_path: Path, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has just begun, or there was no room for the journal."""
    directory = tmp_path / "step_engine" / "runs" / label
    directory.mkdir(parents=True)
    command = ["stop", label, "--config-path", str(tmp_path)]
    assert cli.main(command) == 1
    assert "If it has just begun, stop it again in a moment" in capsys.readouterr().err
    held = lease.Lease.take(directory)
    ordered: list[int] = []

    def owner() -> None:
        deadline = time.monotonic() + 30
        while not ordered and time.monotonic() < deadline:
            ordered.extend(filter(None, [orders.take(directory)]))
            time.sleep(0.05)
        held.release()

    owning = threading.Thread(target=owner)
    owning.start()
    assert cli.main(command) == 0
    owning.join()
    assert ordered == [1]
    assert "there is no journal of the run" in capsys.readouterr().err


def test_a_stop_is_asked_of_whoever_goes_on_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who resumes a run takes no order that was meant for its former owner."""
    given: list[str] = []
    owners = iter([{"pid": 1}, {"pid": 1}, {"pid": 2}, {"pid": 2}])
    lives = iter([True, True, True, False])
    monkeypatch.setattr(durable, "owner_of", lambda _directory: next(owners))
    monkeypatch.setattr(durable, "owner_lives", lambda _directory: next(lives))
    monkeypatch.setattr(orders, "give", lambda _directory, order: given.append(order))
    options = argparse.Namespace(force=False, grace_seconds=None)
    durable._stop_through_owner(tmp_path, options)
    assert given == ["stop", "stop"]


def test_a_lease_is_handed_to_a_process_without_a_moment_between(tmp_path: Path, until) -> None:
    held = lease.Lease.take(tmp_path)
    code = "import sys, time\nfrom step_engine.lease import Lease\n"
    code += "held = Lease.inherit(int(sys.argv[1]), sys.argv[2])\ntime.sleep(60)"
    command = [sys.executable, "-c", code, str(held.descriptor), str(tmp_path)]
    heir = subprocess.Popen(command, pass_fds=[held.descriptor])
    held.hand_over()
    try:
        assert lease.owner_lives(tmp_path) is True
        with pytest.raises(RunOwnedError):
            lease.Lease.take(tmp_path)
        until(lambda: (lease.owner_of(tmp_path) or {}).get("pid") == heir.pid, "the heir to give its name")
    finally:
        heir.kill()
        heir.wait()
    assert lease.owner_lives(tmp_path) is False


def test_gc_takes_what_a_dead_owner_without_a_journal_left(kept: Kept, image: str) -> None:
    """Such as after a full disk. One that has just begun has none either."""
    lease.Lease.take(kept.directory).release()
    label = f"step-engine.run={kept.run_id}"
    subprocess.run(["docker", "run", "-d", "--label", label, image, "sleep", "300"], check=True, capture_output=True)
    assert kept.command("gc", "--older-than", "0") == 0
    assert kept.directory.exists()
    assert len(DockerEngine().containers(kept.run_id)) == 1
    for path in (*kept.directory.iterdir(), kept.directory):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    assert kept.command("gc") == 0
    assert DockerEngine().containers(kept.run_id) == []


def test_a_run_whose_journal_vanishes_goes_on_while_its_owner_lives(tmp_path: Path) -> None:
    held = lease.Lease.take(tmp_path / "run")
    run = Run(tmp_path / "run", {"run_id": "r", "summary": None}, "running")
    assert run.later().status == "running"
    held.release()
    assert run.later().status == "unknown"
    shutil.rmtree(tmp_path / "run")
    assert run.later().status == "unknown"


def test_without_locks_the_heartbeat_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_try_lock", lambda _file, shared: None)
    held = lease.Lease.take(tmp_path)
    assert lease.owner_lives(tmp_path) is True
    path = tmp_path / lease.FILE_NAME
    path.write_text(json.dumps({"pid": os.getpid() + 1, "host": "elsewhere"}))
    with pytest.raises(RunOwnedError, match="elsewhere"):
        lease.Lease.take(tmp_path)
    # Process ids are those of a machine.
    path.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    with pytest.raises(RunOwnedError, match="elsewhere"):
        lease.Lease.take(tmp_path)
    os.utime(path, (1, time.time() - 60))
    assert lease.owner_lives(tmp_path) is False
    held.beat()
    assert lease.owner_lives(tmp_path) is True
    assert abs((lease.last_beat(tmp_path) or 0) - time.time()) < 10
    held.release()
    assert lease.owner_lives(tmp_path) is False
    assert lease.last_beat(tmp_path) is None


def test_what_a_killed_owner_left_is_gone_on_with(kept: Kept, until) -> None:
    owner = kept.start()
    until(lambda: has(kept, "attempt_started", "a"), "the step to start")
    owner.kill()
    owner.wait()
    assert lease.owner_lives(kept.directory) is False
    run = kept.resume()
    run.start()
    events = drive(run)
    assert run.summary is not None
    assert (run.summary["status"], run.summary["attempts"]) == ("completed", 2)
    assert [event["step"] for event in events if event["kind"] == "attempt_launched"] == ["b"]
    assert (kept.directory / "a.1.log").read_text() == "began\nended\n"
    assert DockerEngine().containers(kept.run_id) == []
    # Everything that the directory holds is its user's alone, and no secret.
    for path in kept.directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
        assert b"hunter2" not in path.read_bytes()
    assert kept.directory.stat().st_mode & 0o777 == 0o700


def test_a_run_without_a_journal_cannot_be_gone_on_with(kept: Kept) -> None:
    kept.directory.mkdir(parents=True)
    with pytest.raises(StepEngineError, match=r"journal\.jsonl: No such file"):
        kept.resume()
    assert kept.command("resume") == 1


def test_a_run_is_watched_and_stopped_from_other_terminals(kept: Kept, until, capsys) -> None:
    kept.containers["a"]["command"] = ["trap 'echo bye; exit 3' TERM; echo began; sleep 60 & wait"]
    owner = kept.start()
    watched: list[int] = []
    watching = threading.Thread(target=lambda: watched.append(kept.command("attach", kept.run_id)))
    try:
        until(lambda: has(kept, "attempt_started", "a"), "the step to start")
        watching.start()
        time.sleep(1)
        assert kept.command("stop", kept.run_id) == 0
    finally:
        if owner.poll() is None and not watching.is_alive():
            owner.kill()
    assert owner.wait(30) == 0
    watching.join(30)
    output = capsys.readouterr().out
    assert watched == [1]
    assert f"Run {kept.run_id}: stopped." in output
    assert "a | began" in output
    assert "a | bye" in output
    assert "Run stopped in" in output


def test_a_dead_owner_is_told_with_what_to_do(kept: Kept, until, capsys) -> None:
    owner = kept.start()
    until(lambda: has(kept, "attempt_started", "a"), "the step to start")
    owner.kill()
    owner.wait()
    assert kept.command("attach", kept.run_id) == 1
    assert f"`step-engine resume {kept.run_id}` goes on with it" in capsys.readouterr().err
    assert kept.command("runs") == 0
    told = capsys.readouterr()
    assert "abandoned" in told.out
    assert "step-engine resume RUN" in told.err
    assert json.loads(told_of(kept, capsys))[0]["status"] == "abandoned"
    assert kept.command("retry", kept.run_id) == 1
    assert "step-engine resume" in capsys.readouterr().err
    assert kept.command("stop", kept.run_id, "--force") == 0
    assert "step-engine resume" in capsys.readouterr().err
    assert not any(one["state"] == "running" for one in DockerEngine().containers(kept.run_id))


def test_gc_takes_what_the_dead_left_and_nothing_of_the_living(kept: Kept, until, capsys) -> None:
    owner = kept.start()
    until(lambda: has(kept, "attempt_started", "a"), "the step to start")
    assert kept.command("gc", "--older-than", "0") == 0
    assert owner.poll() is None
    assert kept.directory.exists()
    assert len(DockerEngine().containers(kept.run_id)) == 1
    owner.kill()
    owner.wait()
    before = lease.last_beat(kept.directory)
    capsys.readouterr()
    assert kept.command("gc") == 0
    assert "it can be resumed" in capsys.readouterr().out
    assert (kept.directory / "journal.jsonl").exists()
    assert len(DockerEngine().containers(kept.run_id)) == 1
    assert lease.last_beat(kept.directory) == before
    assert kept.command("gc", "--older-than", "0", "--dry-run") == 0
    assert kept.directory.exists()
    assert kept.command("gc", "--older-than", "0") == 0
    assert not kept.directory.exists()
    assert DockerEngine().containers(kept.run_id) == []
