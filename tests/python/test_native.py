"""The native interface on a real engine, without ZenML."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from step_engine import DockerEngine, DockerRun, errors, read_run
from step_engine.lease import Lease, owner_lives

from orchestrator.driving import owner_lock


def container(image: str, script: str, **more: Any) -> dict[str, Any]:
    return {"image": image, "entrypoint": ["sh", "-c"], "command": [script], **more}


def finish(run: DockerRun, verdict: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Drives a run; every judgement is answered with `verdict`, or with what the engine says."""
    run.start()
    events: list[dict[str, Any]] = []
    while not run.finished:
        for event in run.next_events(1.0):
            events.append(event)
            if event["kind"] == "judge":
                run.judge(event["step"], event["attempt"], verdict or event["outcome"], True)
    assert run.summary is not None
    return run.summary, events


def text(events: list[dict[str, Any]], step: str) -> str:
    return "".join(event["text"] for event in events if event["kind"] == "log" and event["step"] == step)


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return DockerEngine()


def test_steps_run_in_order_and_together(engine: DockerEngine, image: str, label: str, tmp_path: Path) -> None:
    plan = {
        "run_id": label,
        "pipeline": "p",
        "max_parallelism": 2,
        "steps": [
            {"name": "a"},
            {"name": "b", "upstream": ["a"]},
            {"name": "c", "upstream": ["a"]},
            {"name": "d", "upstream": ["b", "c"]},
        ],
    }
    containers = {name: container(image, f"echo out {name}; echo err {name} >&2; sleep 0.5") for name in "abcd"}
    run = DockerRun(engine, plan, containers, run_directory=str(tmp_path / "logs"))
    summary, events = finish(run)
    assert summary["status"] == "completed"
    assert summary["peak_parallelism"] == 2
    ends = {e["step"]: at for at, e in enumerate(events) if e["kind"] == "attempt_ended"}
    begins = {e["step"]: at for at, e in enumerate(events) if e["kind"] == "attempt_launched"}
    for upstream, downstream in (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")):
        assert ends[upstream] < begins[downstream]
    for name in "abcd":
        assert sorted(text(events, name).splitlines()) == [f"err {name}", f"out {name}"]
        log = tmp_path / "logs" / f"{name}.1.log"
        assert f"out {name}\n" in log.read_text()
        assert log.stat().st_mode & 0o077 == 0
    assert (tmp_path / "logs").stat().st_mode & 0o077 == 0
    assert engine.containers(label) == []


def test_a_retry_is_another_container_and_the_verdict_counts(engine: DockerEngine, image: str, label: str) -> None:
    plan = {"run_id": label, "steps": [{"name": "a", "retry": {"max_retries": 1, "delay_seconds": 0.1}}]}
    summary, events = finish(DockerRun(engine, plan, {"a": container(image, "exit 3")}))
    assert summary["status"] == "failed"
    assert summary["first_failure"] == {"step": "a", "attempt": 2, "outcome": {"kind": "exited", "code": 3}}
    ids = {e["details"]["container_id"] for e in events if e["kind"] == "attempt_started"}
    assert len(ids) == 2
    summary, _ = finish(
        DockerRun(engine, plan | {"run_id": label}, {"a": container(image, "exit 3")}), {"kind": "completed"}
    )
    assert summary["status"] == "completed"
    assert summary["attempts"] == 1


def test_cancel_kills_what_ignores_sigterm(engine: DockerEngine, image: str, label: str) -> None:
    plan = {"run_id": label, "steps": [{"name": "a", "stop_grace_seconds": 0.5}, {"name": "b", "upstream": ["a"]}]}
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    run = DockerRun(engine, plan, {name: container(image, script) for name in "ab"})
    run.start()
    while not run.finished:
        for event in run.next_events(1.0):
            if event["kind"] == "log":
                run.cancel("interrupt")
            if event["kind"] == "judge":
                run.judge(event["step"], event["attempt"], event["outcome"], True)
    assert run.summary is not None
    assert run.summary["status"] == "stopped"
    assert run.summary["steps"] == [("a", "stopped"), ("b", "skipped")] or run.summary["steps"] == [
        ["a", "stopped"],
        ["b", "skipped"],
    ]
    assert engine.containers(label) == []


def test_output_is_complete_whatever_it_is(engine: DockerEngine, image: str, label: str, tmp_path: Path) -> None:
    script = (
        "import sys; w=sys.stdout.buffer.write; w(b'first\\n'); w(b'x'*1_000_000); w(b'\\n\\xff\\xfe\\n');"
        "[w(b'0123456789abcdef'*4+b'\\n') for _ in range(320_000)]; w(b'last')"
    )
    plan = {"run_id": label, "steps": [{"name": "a"}]}
    spec = {"image": image, "entrypoint": ["python", "-c"], "command": [script]}
    summary, events = finish(DockerRun(engine, plan, {"a": spec}, run_directory=str(tmp_path / "logs")))
    assert summary["status"] == "completed"
    written = (tmp_path / "logs" / "a.1.log").read_bytes()
    assert len(written) == 6 + 1_000_001 + 3 + 320_000 * 65 + 4
    assert written.endswith(b"last")
    shown = text(events, "a")
    assert shown.startswith("first\n")


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"steps": [{"name": "a", "upstream": ["b"]}, {"name": "b", "upstream": ["a"]}]}, "", "wait for each other"),
        ({"steps": [{"name": "a"}, {"name": "a"}]}, "steps[1].name", "taken"),
        (
            {"steps": [{"name": "a", "retry": {"delay_seconds": "soon"}}]},
            "steps[0].retry.delay_seconds",
            "must be real number",
        ),
        (
            {"steps": [{"name": "a", "resources": {"memory_bytes": 10**18}}]},
            "steps[0].resources.memory_bytes",
            "the host has",
        ),
        ({"steps": [{"name": "a", "resources": {"gpus": 99}}]}, "steps[0].resources.gpus", "GPUs"),
    ],
)
def test_bad_plans_are_refused(
    engine: DockerEngine, image: str, label: str, change: dict[str, Any], field: str, message: str
) -> None:
    plan = {"run_id": label, **change}
    with pytest.raises(errors.PlanError, match=message) as raised:
        DockerRun(engine, plan, {name: container(image, "true") for name in "ab"[: len(change["steps"])]})
    assert raised.value.field == field


def test_bad_containers_are_refused(engine: DockerEngine, image: str, label: str) -> None:
    plan = {"run_id": label, "steps": [{"name": "a"}]}
    with pytest.raises(errors.DockerError, match=r"detach|supported"):
        DockerRun(engine, plan, {"a": container(image, "true", run_args={"no_such_argument": 1})})
    with pytest.raises(errors.PlanError, match="unknown field"):
        DockerRun(engine, plan, {"a": container(image, "true", imagee="x")})
    with pytest.raises(errors.PlanError, match="no container"):
        DockerRun(engine, plan, {})
    with pytest.raises(errors.DockerError, match="pull policy is `never`"):
        engine.image_id("step-engine-test/no-such-image:1", pull_policy="never")


def test_a_missing_volume_is_a_failure_that_names_it(engine: DockerEngine, image: str, label: str) -> None:
    plan = {"run_id": label, "steps": [{"name": "a"}]}
    volumes = [{"source": "/no/such/folder", "target": "/data"}]
    summary, _ = finish(DockerRun(engine, plan, {"a": container(image, "true", volumes=volumes)}))
    outcome = summary["first_failure"]["outcome"]
    assert outcome["kind"] == "launch_failed"
    assert "/no/such/folder" in outcome["reason"]


def test_no_environment_value_is_in_any_label_or_error(engine: DockerEngine, image: str, label: str) -> None:
    plan = {"run_id": label, "steps": [{"name": "a"}]}
    spec = container(image, "sleep 0.2; exit 1", environment={"TOKEN": "s3cr3t"}, keep_containers="failed")
    summary, events = finish(DockerRun(engine, plan, {"a": spec}))
    assert "s3cr3t" not in repr(summary) + repr(events)
    (kept,) = engine.containers(label)
    assert kept["state"] == "exited"
    labels = subprocess.run(
        ["docker", "inspect", "--format", "{{json .Config.Labels}} {{.Name}}", kept["id"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "s3cr3t" not in labels


def test_no_engine_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    with pytest.raises(errors.DockerError, match="/no/such/socket") as raised:
        DockerEngine()
    assert "\n" not in str(raised.value)


def test_the_current_context_is_followed_to_tcp(
    image: str, label: str, tcp_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "elsewhere"}))
    meta = tmp_path / "contexts" / "meta" / hashlib.sha256(b"elsewhere").hexdigest()
    meta.mkdir(parents=True)
    context = {"Name": "elsewhere", "Metadata": {}, "Endpoints": {"docker": {"Host": tcp_engine}}}
    (meta / "meta.json").write_text(json.dumps(context))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    engine = DockerEngine()
    assert (engine.info()["address"], engine.info()["local"]) == (tcp_engine, False)
    plan = {"run_id": label, "steps": [{"name": "a"}]}
    summary, events = finish(DockerRun(engine, plan, {"a": container(image, "echo far away")}))
    assert (summary["status"], text(events, "a")) == ("completed", "far away\n")
    assert engine.containers(label) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    # The engine or a log may still have a file of it open.
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_told_once_and_the_run_goes_on(
    engine: DockerEngine, image: str, label: str, small_disk: Path
) -> None:
    plan = {"run_id": label, "steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}]}
    script = "head -c 1000000 /dev/zero | tr '\\0' x | fold -w 100; echo; echo the last line"
    containers = {name: container(image, script) for name in "ab"}
    summary, events = finish(DockerRun(engine, plan, containers, run_directory=str(small_disk / "logs")))
    assert summary["status"] == "completed"
    assert text(events, "b").endswith("the last line\n")
    warnings = [event["message"] for event in events if event["kind"] == "warning" and event["step"] == "a"]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    with owner_lock(str(small_disk / "logs")):
        assert owner_lives(str(small_disk / "logs"))


def test_a_run_directory_that_cannot_be_made_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = str(tmp_path / "file" / "run")
    with owner_lock(directory):
        assert owner_lives(directory) is None


FILL = "head -c 1000000 /dev/zero | tr '\\0' x | fold -w 100; "


def filling(image: str, then: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A step that fills the disk with its log, and a row of others, whose journal needs a further page of it."""
    names = [f"s{at}" for at in range(12)]
    steps: list[dict[str, Any]] = [{"name": "a"}]
    steps += [{"name": name, "upstream": [before]} for before, name in zip(["a", *names], names, strict=False)]
    return steps, {"a": container(image, FILL + then), **{name: container(image, "true") for name in names}}


def test_a_full_disk_holds_a_run_for_a_while_which_then_goes_on_without_a_journal(
    engine: DockerEngine, image: str, label: str, small_disk: Path
) -> None:
    steps, containers = filling(image, "true")
    plan = {"run_id": label, "steps": steps}
    summary, events = finish(DockerRun(engine, plan, containers, run_directory=str(small_disk / "logs")))
    assert summary["status"] == "completed"
    warnings = [event["message"] for event in events if event["kind"] == "warning"]
    assert len([message for message in warnings if "the run waits for it" in message]) == 1, warnings
    assert len([message for message in warnings if "goes on without a journal" in message]) == 1, warnings
    assert read_run(str(small_disk / "logs")) is None


def test_a_stop_does_not_wait_for_a_full_disk(engine: DockerEngine, image: str, label: str, small_disk: Path) -> None:
    steps, containers = filling(image, "true")
    steps.append({"name": "long"})
    containers["long"] = container(image, "exec sleep 600")
    plan = {"run_id": label, "steps": steps}
    run = DockerRun(engine, plan, containers, run_directory=str(small_disk / "logs"))
    run.start()
    asked: float | None = None
    while not run.finished:
        for event in run.next_events(1.0):
            if event["kind"] == "judge":
                run.judge(event["step"], event["attempt"], event["outcome"], True)
            elif event["kind"] == "warning" and "the run waits for it" in event["message"]:
                asked = time.monotonic()
                run.cancel("kill")
    assert asked is not None
    assert time.monotonic() - asked < 8
    assert run.summary is not None
    assert run.summary["status"] == "stopped"
    assert engine.containers(label) == []


def test_a_run_tells_its_story_from_its_directory(engine: DockerEngine, image: str, label: str, tmp_path: Path) -> None:
    plan = {"run_id": label, "pipeline": "story", "steps": [{"name": "a"}, {"name": "b", "upstream": ["a"]}]}
    containers = {
        "a": container(image, "echo hello", environment={"TOKEN": "secret-value"}),
        "b": container(image, "exit 3"),
    }
    directory = tmp_path / "run"
    assert read_run(str(directory)) is None
    summary, events = finish(DockerRun(engine, plan, containers, run_directory=str(directory)))
    record = read_run(str(directory))
    assert record is not None
    assert (record["run_id"], record["pipeline"], record["steps"]) == (label, "story", ["a", "b"])
    assert record["summary"]["steps"] == summary["steps"] == [("a", "completed"), ("b", "failed")]
    quiet = ("log", "judge", "warning", "progress", "run_finished")
    assert [e["kind"] for e in record["events"]] == [e["kind"] for e in events if e["kind"] not in quiet]
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
        assert b"secret-value" not in path.read_bytes()
    (directory / "journal.jsonl").write_text("{}\n{}\n")
    with pytest.raises(errors.StepEngineError, match="line 1 of the journal is damaged"):
        read_run(str(directory))


def test_a_run_has_one_owner(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert owner_lives(directory) is None
    lease = Lease.take(directory)
    assert owner_lives(directory)
    with pytest.raises(errors.RunOwnedError, match=f"driven by process {os.getpid()} on ") as refused:
        Lease.take(directory)
    assert refused.value.owner is not None
    assert (refused.value.run_directory, refused.value.owner["pid"]) == (str(directory), os.getpid())
    lease.release()
    assert owner_lives(directory) is False
    Lease.take(directory).release()


def test_looking_for_an_owner_keeps_nobody_from_becoming_one(tmp_path: Path) -> None:
    Lease.take(tmp_path).release()
    code = "import sys\nfrom step_engine.lease import owner_lives\nwhile True: owner_lives(sys.argv[1])"
    looker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        for _ in range(30):
            Lease.take(tmp_path).release()
    finally:
        looker.kill()
        looker.wait()
