"""The control socket of dynamic runs: both ends of it, and what may be asked for. No engine, no ZenML store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from step_engine.errors import PlanError, RunOwnedError, StepEngineError, StepFailedError
from step_engine.lease import Lease
from zenml.enums import ExecutionStatus
from zenml.exceptions import IllegalOperationError

import orchestrator.control as host
from orchestrator.container import control as container
from orchestrator.control import ControlServer, RefusedError, secret_digest
from orchestrator.dynamic import DynamicSession, in_flight
from orchestrator.dynamic_publishing import DynamicRunPublisher
from orchestrator.isolated_steps import IsolatedSteps
from orchestrator.my_docker_orchestrator import LocalDockerOrchestrator, own_run_id
from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings
from orchestrator.permits import Permits, digest_by_step, image_of, permitted_images, plan_name
from orchestrator.plan import LEADER
from orchestrator.publishing import RunPublisher

SECRET = "the run's own"


class FakeDesk:
    """Grants everything and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    def submit(self, step_run_id: UUID, invocation_id: str) -> str:
        self.asked.append(("submit", step_run_id, invocation_id))
        if invocation_id == "broken":
            raise KeyError("hunter2")
        return "provisioning"

    def status(self, step_run_id: UUID, wait_seconds: float) -> str:
        self.asked.append(("status", step_run_id, wait_seconds))
        self.gate.wait(30)
        return "completed"

    def stop(self, step_run_id: UUID) -> str:
        self.asked.append(("stop", step_run_id))
        return "running"


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


@pytest.fixture
def directory(tmp_path: Path, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run directory whose socket is served, with this process as the orchestration container."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv(container.ENV_SOCKET, str(tmp_path / "control" / "socket"))
    monkeypatch.setenv(container.ENV_SECRET, SECRET)
    with ControlServer(str(tmp_path), [secret_digest(SECRET)], desk, f"{os.getuid()}:{os.getgid()}"):
        yield tmp_path


def ask(directory: Path, request: bytes | dict[str, Any]) -> dict[str, Any]:
    data = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        line.connect(str(directory / "control" / "socket"))
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        return json.loads(line.makefile().readline())


def plain(**changes: Any) -> dict[str, Any]:
    request = {"version": 1, "secret": SECRET, "operation": "submit", "step_run_id": str(uuid4()), "invocation_id": "a"}
    return {name: value for name, value in {**request, **changes}.items() if value is not None}


def test_what_the_container_asks_for_reaches_the_host(directory: Path, desk: FakeDesk) -> None:
    step_run_id = uuid4()
    assert container.call("submit", step_run_id, "train") == "provisioning"
    assert container.call("status", step_run_id, wait_seconds=2.5) == "completed"
    assert container.call("stop", step_run_id) == "running"
    assert desk.asked == [("submit", step_run_id, "train"), ("status", step_run_id, 2.5), ("stop", step_run_id)]
    assert not (directory / "refused.log").exists()


def test_the_socket_is_its_owners_and_goes_with_the_run(directory: Path) -> None:
    control = directory / "control"
    assert control.stat().st_mode & 0o777 == 0o700
    assert (control / "socket").stat().st_mode & 0o777 == 0o600


def test_the_socket_is_gone_after_the_run(tmp_path: Path, desk: FakeDesk) -> None:
    (tmp_path / "control").mkdir()
    # What a killed owner left is no obstacle.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control" / "socket"))
    with ControlServer(str(tmp_path), [secret_digest(SECRET)], desk, None):
        assert (tmp_path / "control" / "socket").exists()
    assert not (tmp_path / "control" / "socket").exists()


def test_a_container_of_another_user_gets_in_and_other_users_of_the_host_do_not(tmp_path: Path, desk: FakeDesk) -> None:
    tmp_path.chmod(0o700)
    with ControlServer(str(tmp_path), [secret_digest(SECRET)], desk, "12345:54321"):
        entry = (tmp_path / "control" / "socket").stat()
        if os.getuid() == 0:
            assert (entry.st_uid, entry.st_gid, entry.st_mode & 0o777) == (12345, 54321, 0o600)
        else:
            assert entry.st_mode & 0o777 == 0o666
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (plain(secret="the run's owm"), "the secret is not the run's."),
        (plain(secret=None), "the secret is not the run's."),
        (plain(secret=7), "the secret is not the run's."),
        (plain(secret="ключ"), "the secret is not the run's."),
        (plain(version=2), "the protocol must be version 1."),
        (plain(version=None), "the protocol must be version 1."),
        (plain(operation="exec"), "the operation must be submit, status or stop."),
        (plain(operation=["submit"]), "the operation must be submit, status or stop."),
        (plain(step_run_id="../../x"), "the id of a step run is not one."),
        (plain(step_run_id=5), "the id of a step run is not one."),
        (plain(invocation_id=None), "a step must be named."),
        (plain(image="alpine"), "a request has no field 'image'."),
        (plain(volumes=["/:/host"]), "a request has no field 'volumes'."),
        (plain(privileged=True), "a request has no field 'privileged'."),
        (plain(run_id="another"), "a request has no field 'run_id'."),
        (plain(**{"a\x1b[2J\n": 1}), r"a request has no field 'a\x1b[2J\n'."),
        (plain(operation="stop"), "a request has no field 'invocation_id'."),
        (plain(operation="status", invocation_id=None, wait_seconds=1e9), "the wait must be from 0 to 20 seconds."),
        (plain(operation="status", invocation_id=None, wait_seconds=float("nan")), "the wait must be from 0 to"),
        (plain(operation="status", invocation_id=None, wait_seconds="1"), "the wait must be from 0 to 20 seconds."),
        (plain(invocation_id="x" * 2000), "a request must be one line of JSON of at most 1024 bytes."),
        (b"[" * 1000 + b"\n", "a request must be one line of JSON"),
        (b"[]\n", "a request must be an object."),
        (b"GET / HTTP/1.1\r\n\r\n", "a request must be one line of JSON"),
        (b"{}\n{}\n", "a request must be one line of JSON"),
        (b"{", "a request must be one line of JSON"),
        (b"\xff\xfe\n", "a request must be one line of JSON"),
    ],
)
def test_everything_else_is_refused_and_logged(
    directory: Path, desk: FakeDesk, request_: bytes | dict[str, Any], why: str
) -> None:
    answer = ask(directory, request_)
    assert answer["ok"] is False
    assert answer["message"].startswith(f"Refused: {why}")
    assert desk.asked == []
    logged = (directory / "refused.log").read_text()
    assert why in logged
    assert SECRET not in logged
    assert (directory / "refused.log").stat().st_mode & 0o777 == 0o600


def test_a_failure_of_the_host_tells_no_secret(directory: Path) -> None:
    assert ask(directory, plain(invocation_id="broken"))["message"] == "The host of the run failed: KeyError."


def test_refusals_do_not_fill_the_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_MAX_REFUSALS", 3)
    for _ in range(10):
        ask(directory, plain(version=9))
    lines = (directory / "refused.log").read_text().splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("Further ones are not told.")


def test_many_ask_at_once_and_too_many_are_turned_away(directory: Path, desk: FakeDesk) -> None:
    desk.gate.clear()
    threads = [threading.Thread(target=container.call, args=("status", uuid4())) for _ in range(60)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(desk.asked) < 60 and time.monotonic() < deadline:
        time.sleep(0.02)
    idle = []
    for _ in range(4):
        idle.append(socket.socket(socket.AF_UNIX))
        idle[-1].connect(str(directory / "control" / "socket"))
    time.sleep(0.3)
    with pytest.raises((OSError, ValueError)):
        ask(directory, plain())
    for line in idle:
        line.close()
    desk.gate.set()
    for thread in threads:
        thread.join(20)
    # And afterwards there is room again.
    assert ask(directory, plain())["ok"] is True


def test_a_path_longer_than_an_address_may_be(tmp_path: Path, desk: FakeDesk) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("the way round is Linux's")
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    with ControlServer(str(directory), [secret_digest(SECRET)], desk, None):
        # A container has it at a short path.
        (tmp_path / "short").symlink_to(directory)
        assert ask(tmp_path / "short", plain())["ok"] is True


def test_what_no_text_can_be_is_refused_like_the_rest(directory: Path) -> None:
    answer = ask(directory, plain(secret="\ud800"))
    assert (answer["ok"], answer["message"]) == (False, "Refused: the secret is not the run's.")


def test_a_step_that_the_host_was_never_asked_for_is_asked_for(
    directory: Path, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orchestration that was killed between its row and its request left the row to the next one."""
    row = SimpleNamespace(id=uuid4(), name="train")

    def ask_for_status() -> str:
        return IsolatedSteps.get_isolated_step_status(None, row).value  # type: ignore[arg-type]

    def unknown(_self: FakeDesk, _step_run_id: UUID, _wait_seconds: float) -> str:
        raise RefusedError("there is no such step.", unknown=not desk.asked)

    monkeypatch.setattr(FakeDesk, "status", unknown)
    assert ask_for_status() == "provisioning"
    assert desk.asked == [("submit", row.id, "train")]
    with pytest.raises(container.ControlError, match="there is no such step"):
        ask_for_status()


def test_the_secret_of_a_former_owner_opens_it_too(tmp_path: Path, desk: FakeDesk) -> None:
    with ControlServer(str(tmp_path), [secret_digest("former"), secret_digest(SECRET)], desk, None):
        assert [ask(tmp_path, plain(secret=given))["ok"] for given in ("former", SECRET, "another")] == [
            True,
            True,
            False,
        ]
    with ControlServer(str(tmp_path), [], desk, None):
        assert ask(tmp_path, plain(secret=""))["ok"] is False


def test_a_host_that_comes_back_is_waited_for(tmp_path: Path, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(container.ENV_SOCKET, str(tmp_path / "control" / "socket"))
    monkeypatch.setenv(container.ENV_SECRET, SECRET)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(container.call("status", uuid4())))
    asking.start()
    time.sleep(0.5)
    with ControlServer(str(tmp_path), [secret_digest(SECRET)], desk, None):
        asking.join(20)
    assert answers == ["completed"]
    monkeypatch.setattr(container, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(container.ControlError, match="does not answer"):
        container.call("status", uuid4())


def test_a_step_waits_for_whoever_resumes_the_run(
    tmp_path: Path, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(container.ENV_SOCKET, str(tmp_path / "control" / "socket"))
    monkeypatch.setenv(container.ENV_SECRET, SECRET)
    monkeypatch.setattr(container, "_answered", threading.Event())
    monkeypatch.setattr(container, "_PATIENCE_SECONDS", 0.5)
    # Whether anybody was ever there is not known yet.
    with pytest.raises(container.ControlError, match="does not answer"):
        container.call("submit", uuid4(), "train")
    with ControlServer(str(tmp_path), [secret_digest(SECRET)], desk, None):
        assert container.call("submit", uuid4(), "train") == "provisioning"
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(container.call("submit", uuid4(), "evaluate")), daemon=True)
    asking.start()
    with pytest.raises(container.ControlError, match="does not answer"):
        container.call("status", uuid4())
    asking.join(1)
    assert asking.is_alive()
    with ControlServer(str(tmp_path), [secret_digest(SECRET)], desk, None):
        asking.join(20)
    assert answers == ["provisioning"]
    assert [record.message for record in caplog.records if record.name == container.__name__] == [container._ABSENT]
    monkeypatch.setattr(container, "_ABSENCE_SECONDS", 1.0)
    with pytest.raises(container.ControlError, match=r"does not answer: (ConnectionRefused|FileNotFound)Error"):
        container.call("submit", uuid4(), "train")


@pytest.mark.parametrize("operation", ["submit", "stop"])
def test_a_host_that_breaks_off_may_have_died_and_is_waited_for(
    directory: Path, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    exchange, begin, broken = container._exchange, time.monotonic(), []

    def breaks_off(*arguments: Any) -> dict[str, Any]:
        if not broken or time.monotonic() - begin < 1:
            broken.append(1)
            raise ValueError("ends early")
        return exchange(*arguments)

    container.call("status", uuid4())
    monkeypatch.setattr(container, "_exchange", breaks_off)
    monkeypatch.setattr(container, "_PATIENCE_SECONDS", 0.3)
    begin = time.monotonic()
    container.call(operation, uuid4(), "train" if operation == "submit" else "")
    assert len(broken) > 1
    assert [asked[0] for asked in desk.asked] == ["status", operation]


def test_a_store_that_is_away_is_answered(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(_self: FakeDesk, _step_run_id: UUID, _invocation_id: str) -> str:
        raise ConnectionResetError("of the connection to ZenML's server")

    monkeypatch.setattr(FakeDesk, "submit", submit)
    with pytest.raises(container.ControlError, match="The host of the run failed: ConnectionResetError"):
        container.call("submit", uuid4(), "train")
    assert "ConnectionResetError" in (directory / "refused.log").read_text()


def test_a_host_that_takes_its_time_is_not_taken_for_dead(
    directory: Path, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pulls(self: FakeDesk, step_run_id: UUID, invocation_id: str) -> str:
        self.asked.append(("submit", step_run_id, invocation_id))
        time.sleep(0 if len(self.asked) > 2 else 1)
        return "provisioning"

    monkeypatch.setattr(FakeDesk, "submit", pulls)
    monkeypatch.setattr(container, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(container, "_PATIENCE_SECONDS", 0.1)
    assert container.call("submit", uuid4(), "train") == "provisioning"
    assert len(desk.asked) == 3
    assert not [record for record in caplog.records if record.name == container.__name__]


def test_a_refusal_of_any_length_is_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: FakeDesk, step_run_id: UUID, invocation_id: str) -> str:
        raise RefusedError("the registry says: " + "é" * 100_000)

    monkeypatch.setattr(FakeDesk, "submit", refuses)
    with pytest.raises(container.ControlError, match="Refused: the registry says: éé"):
        container.call("submit", uuid4(), "train")


def test_whoever_puts_a_run_away_is_its_only_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.my_docker_orchestrator.run_directory", lambda _run_id: str(tmp_path))
    monkeypatch.setattr("step_engine.DockerEngine", lambda: SimpleNamespace(stop_run=pytest.fail))
    (tmp_path / "journal.jsonl").write_text("what another one left")
    lease = Lease.take(tmp_path)
    run_id = uuid4()
    run = SimpleNamespace(id=run_id, orchestrator_run_id=str(run_id), root_run_id=None)
    stack = SimpleNamespace(check_local_paths=lambda: None)
    with pytest.raises(RunOwnedError):
        LocalDockerOrchestrator.submit_dynamic_pipeline(None, None, stack, {}, run)  # pyright: ignore[reportArgumentType]
    lease.release()
    assert (tmp_path / "journal.jsonl").read_text() == "what another one left"


def test_a_run_is_not_begun_again_beside_what_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.my_docker_orchestrator.run_directory", lambda _run_id: str(tmp_path))
    engine = SimpleNamespace(stop_run=lambda *_, **__: ["busy"], remove_run=lambda _run_id: ["busy"])
    monkeypatch.setattr("step_engine.DockerEngine", lambda: engine)
    (tmp_path / "journal.jsonl").write_text("what tells of it")
    run_id = uuid4()
    run = SimpleNamespace(id=run_id, orchestrator_run_id=str(run_id), root_run_id=None)
    stack = SimpleNamespace(check_local_paths=lambda: None)
    with pytest.raises(StepEngineError, match="not begun again beside them: busy"):
        LocalDockerOrchestrator.submit_dynamic_pipeline(None, None, stack, {}, run)  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "journal.jsonl").read_text() == "what tells of it"


@pytest.mark.parametrize("foreign", ["/home/user", "../..", "00000000-0000-4000-8000-000000000000"])
def test_an_id_that_is_not_the_runs_own_names_no_folder_and_no_container(
    monkeypatch: pytest.MonkeyPatch, foreign: str
) -> None:
    """Steps can write it into ZenML's store."""
    monkeypatch.setattr("step_engine.DockerEngine", lambda: SimpleNamespace(stop_run=pytest.fail))
    run: Any = SimpleNamespace(
        id=uuid4(), orchestrator_run_id=foreign, root_run_id=None, status=ExecutionStatus.RUNNING
    )
    stack: Any = SimpleNamespace(check_local_paths=lambda: None)
    none: Any = None
    for call in (
        lambda: LocalDockerOrchestrator.submit_dynamic_pipeline(none, none, stack, {}, run),
        lambda: LocalDockerOrchestrator._stop_run(none, run),
        lambda: LocalDockerOrchestrator.fetch_status(none, run),
    ):
        with pytest.raises(StepEngineError, match="under an orchestrator's id that is not its own"):
            call()
    root = uuid4()
    assert own_run_id(SimpleNamespace(id=uuid4(), orchestrator_run_id=str(root), root_run_id=root)) == str(root)  # pyright: ignore


@pytest.mark.parametrize("anothers", [True, False])
def test_a_run_that_somebody_goes_on_with_is_not_called_failed(monkeypatch: pytest.MonkeyPatch, anothers: bool) -> None:
    """ZenML does so when a submission raises, and not when the waiting for the run's end does."""

    def fails(*_: object) -> None:
        raise StepFailedError("it failed here")

    monkeypatch.setattr("step_engine.DockerRun", lambda *_, **__: SimpleNamespace(warnings=[], summary={}))
    publisher = SimpleNamespace(publish_run_metadata=lambda _: None, is_over_or_anothers=lambda: anothers)
    monkeypatch.setattr("orchestrator.publishing.RunPublisher", lambda *_: publisher)
    monkeypatch.setattr("orchestrator.dynamic.drive_dynamic", fails)
    component: Any = SimpleNamespace(get_settings=lambda _: settings(synchronous=True), id=uuid4(), name="docker")
    plan: dict[str, Any] = {"run_id": "r"}
    job = {"plan": plan, "containers": {}, "run_directory": "/r", "pipeline_run_id": str(uuid4()), "dynamic": {}}
    none: Any = None
    if anothers:
        result = LocalDockerOrchestrator._carry_out(component, none, job, none)
        assert result.wait_for_completion is not None
        with pytest.raises(StepFailedError):
            result.wait_for_completion()
    else:
        with pytest.raises(StepFailedError):
            LocalDockerOrchestrator._carry_out(component, none, job, none)


@pytest.mark.parametrize(
    ("status", "said"),
    [("failed", True), ("stopped", True), ("resuming", True), ("running", False), ("paused", False)],
)
def test_whether_there_is_more_to_say_of_a_run(monkeypatch: pytest.MonkeyPatch, status: str, said: bool) -> None:
    monkeypatch.setattr(RunPublisher, "run_status", lambda _self: ExecutionStatus(status))
    assert RunPublisher(uuid4(), uuid4()).is_over_or_anothers() is said


def test_pins_that_could_not_be_written_are_written_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a full disk: the next owner must know the secret of an orchestration that this one started."""
    written, room = [], [False, True]
    monkeypatch.setattr("orchestrator.resuming.write_pins", lambda job: written.append(job["pins"]) or room.pop(0))
    session: Any = object.__new__(DynamicSession)
    session._pins = SimpleNamespace(known={"image:1": "sha256:1"})
    session._pins_written = {"permits": "p"}
    session._job = {"run_directory": "/nowhere"}
    for _ in range(3):
        session._write_pins()
    assert written == [{"permits": "p", "images": {"image:1": "sha256:1"}}] * 2


def test_the_stop_of_a_child_run_touches_nothing_of_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (
        "step_engine.DockerEngine",
        "zenml.orchestrators.base_orchestrator.publish_pipeline_run_status_update",
    ):
        monkeypatch.setattr(asked, lambda *_, **__: pytest.fail("the run was touched"))
    root = uuid4()
    child = SimpleNamespace(id=uuid4(), orchestrator_run_id=str(root), root_run_id=root)
    with pytest.raises(IllegalOperationError, match=f"`zenml pipeline runs stop {root}` stops both"):
        LocalDockerOrchestrator.stop_run(None, child)  # pyright: ignore[reportArgumentType]


def test_without_a_socket_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(container.ENV_SOCKET, raising=False)
    with pytest.raises(container.ControlError, match="engine on another machine cannot reach: use an engine on the"):
        container.call("submit", uuid4(), "a")


def test_the_containers_end_needs_nothing_but_python() -> None:
    code = "import sys; sys.modules['zenml'] = sys.modules['step_engine'] = None; import orchestrator.container.control"
    subprocess.run([sys.executable, "-c", code], check=True)


# What a step may have.


def settings(**values: Any) -> LocalDockerOrchestratorSettings:
    return LocalDockerOrchestratorSettings(**values)


KNOWN = [
    settings(volumes=["/data:/data:ro"], extra_hosts={"db": "10.0.0.1"}, user="1000:1000"),
    settings(network="backend", run_args={"cap_add": ["SYS_PTRACE"]}, shm_size="1g"),
]


@pytest.mark.parametrize(
    "asked",
    [
        settings(),
        settings(volumes=["/data:/data:ro"], network="backend", user="1000:1000", shm_size="1g"),
        settings(run_args={"cap_add": ["SYS_PTRACE"]}, extra_hosts={"db": "10.0.0.1"}),
        # These give a container nothing that it could not take.
        settings(environment={"A": "b"}, labels={"a": "b"}, timeout_seconds=5, keep_containers="failed"),
    ],
)
def test_what_was_said_before_the_run_is_permitted(asked: LocalDockerOrchestratorSettings) -> None:
    Permits(KNOWN, ["image:1"]).check("a", asked, "image:1")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (settings(volumes=["/:/host"]), "volumes"),
        (settings(volumes=["/data:/data"]), "volumes"),
        (settings(volumes=["/data:/data:ro", "/var/run/docker.sock:/docker.sock"]), "volumes"),
        (settings(network="host"), "network"),
        (settings(user="0:0"), "user"),
        (settings(pull_policy="always"), "pull_policy"),
        (settings(platform="linux/arm64"), "platform"),
        (settings(shm_size="900g"), "shm_size"),
        (settings(extra_hosts={"db": "10.0.0.2"}), "extra_hosts.db"),
        (settings(enforce_limits=False), "enforce_limits"),
        (settings(run_args={"privileged": True}), "run_args.privileged"),
        (settings(run_args={"cap_add": ["SYS_ADMIN"]}), "run_args.cap_add"),
        (settings(run_args={"environment": {"TOKEN": "hunter2"}}), "run_args.environment"),
    ],
)
def test_anything_else_is_refused_by_name(asked: LocalDockerOrchestratorSettings, field: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        Permits(KNOWN, ["image:1"]).check("train", asked, "image:1")
    assert f"step 'train' asks for `{field}` that was not said before the run began" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


RESTRICTED = [
    settings(network="none", user="1000", run_args={"cap_drop": ["ALL"], "read_only": True}),
    settings(network="backend", user="1000", run_args={"cap_drop": ["ALL"]}),
]


@pytest.mark.parametrize(
    ("left_out", "field"), [({"network"}, "network"), ({"user"}, "user"), ({"run_args"}, "run_args.cap_drop")]
)
def test_what_restricts_everything_restricts_every_step(left_out: set[str], field: str) -> None:
    permits = Permits(RESTRICTED, ["image:1"])
    asked = {"network": "none", "user": "1000", "run_args": {"cap_drop": ["ALL"]}}
    permits.check("train", settings(**asked), "image:1")
    # What restricts nothing need not be there.
    Permits([settings(run_args={"hostname": "h"})], ["image:1"]).check("train", settings(), "image:1")
    with pytest.raises(RefusedError, match=f"step 'train' leaves out `{field}`"):
        permits.check("train", settings(**{name: asked[name] for name in asked.keys() - left_out}), "image:1")


def docker(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"skip_build": False, "parent_image": None, **values})


def snapshot() -> Any:
    images = {"orchestrator": "built:1", "special.orchestrator": "built:2"}

    def get_image(component_key: str, step: str | None) -> str:
        return images.get(f"{step}.{component_key}", images[component_key])

    build = SimpleNamespace(
        images={key: SimpleNamespace(image=value) for key, value in images.items()}, get_image=get_image
    )
    step = SimpleNamespace(config=SimpleNamespace(docker_settings=docker(skip_build=True, parent_image="ready:1")))
    pipeline = SimpleNamespace(docker_settings=docker(parent_image="base:1"))
    return SimpleNamespace(build=build, pipeline_configuration=pipeline, step_configurations={"s": step})


def test_images_are_those_of_the_build_and_of_the_settings() -> None:
    known = [settings(run_args={"image": "chosen:1"})]
    assert permitted_images(snapshot(), known) == {"built:1", "built:2", "ready:1", "chosen:1"}
    config = SimpleNamespace(docker_settings=docker(), template=None)
    assert image_of(snapshot(), config, settings()) == "built:1"
    config.template = "special"
    assert image_of(snapshot(), config, settings()) == "built:2"
    config.docker_settings = docker(skip_build=True, parent_image="evil:1")
    assert image_of(snapshot(), config, settings()) == "evil:1"
    with pytest.raises(RefusedError, match="an image that is not the run's"):
        Permits(known, permitted_images(snapshot(), known)).check("a", settings(), "evil:1")


def test_steps_of_all_runs_below_a_root_have_names_of_their_own() -> None:
    assert plan_name("a", None, {}) == "a"
    assert plan_name("a", "child", {"a": 1}) == "child/a"
    assert plan_name("child/a", None, {"child/a": 1}) == "child/a-2"
    assert plan_name(LEADER, None, {}) == f"{LEADER}-2"


def test_a_digest_tells_whether_permits_are_the_same() -> None:
    one, other = settings(volumes=["/a:/a"]), settings(network="n")
    digest = Permits([one, other], ["image:1", "image:2"]).digest()
    assert Permits([other, one], ["image:2", "image:1"]).digest() == digest
    # What everybody may have does not count.
    free = settings(volumes=["/a:/a"], shm_size=None, environment={"A": "b"}, timeout_seconds=3, max_parallelism=2)
    assert Permits([free, other], ["image:1", "image:2"]).digest() == digest
    for changed in (
        Permits([one, settings(network="m")], ["image:1", "image:2"]),
        Permits([one, other], ["image:1"]),
        Permits([one], ["image:1", "image:2"]),
        Permits([one, settings(network="n", enforce_limits=False)], ["image:1", "image:2"]),
    ):
        assert changed.digest() != digest
    Permits([one, settings(enforce_limits=False)], ["image:1"]).check("a", settings(enforce_limits=False), "image:1")


def test_a_digest_by_step_tells_who_has_what() -> None:
    one, other = settings(volumes=["/a:/a"]), settings(environment={"A": "b"})
    digest = digest_by_step({"a": one, "b": other})
    assert digest_by_step({"b": settings(), "a": one}) == digest
    for changed in ({"a": other, "b": one}, {"a": one, "b": one}, {"a": one}):
        assert digest_by_step(changed) != digest


# What becomes of a step.


class FakeRun:
    """An engine's run that starts nothing."""

    def __init__(self) -> None:
        self.requested: list[str] = []
        self.references: list[str] = []
        self.dropped: list[str] = []
        self.error: Exception | None = None

    def request_step(self, step: dict[str, Any], _container: dict[str, Any]) -> None:
        if self.error:
            raise self.error
        self.requested.append(step["name"])
        self.references.append(step["reference"])

    def drop_step(self, step: str) -> None:
        self.dropped.append(step)


class Session(DynamicSession):
    """A session whose records are taken for read."""

    def __init__(self, run: FakeRun) -> None:
        self._run = run  # pyright: ignore
        self._run_id = uuid4()
        self._submitting, self._changed = threading.Lock(), threading.Condition()
        self._states, self._attempts, self._retries, self._over, self._name_of = {}, {}, Counter(), set(), {}
        self._pins_written = {}

    def _row(self, step_run_id: UUID, invocation_id: str) -> Any:
        return SimpleNamespace(id=step_run_id, name=invocation_id, pipeline_run_id=self._run_id)

    def _described(self, row: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"name": name}, {}


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def session(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr("orchestrator.dynamic.publish_step_run_status_update", lambda *_: None)
    return Session(run)


def ended(kind: str, step: str = "a", attempt: int = 1) -> dict[str, Any]:
    return {"kind": "attempt_ended", "step": step, "attempt": attempt, "outcome": {"kind": kind}}


def test_a_step_run_is_followed_to_its_end(session: Session, run: FakeRun) -> None:
    step_run_id = uuid4()
    assert session.submit(step_run_id, "a") == "provisioning"
    session.handle({"kind": "attempt_started", "step": "a", "attempt": 1})
    assert session.status(step_run_id, 0) == "running"
    threading.Timer(0.2, lambda: session.handle(ended("completed"))).start()
    assert session.status(step_run_id, 20) == "completed"
    # Repeated, because its answer was lost: no second container.
    assert session.submit(step_run_id, "a") == "completed"
    assert run.requested == ["a"]


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("exited", "failed"), ("out_of_memory", "failed"), ("lost", "failed"), ("stopped", "stopped")],
)
def test_bad_ends(session: Session, outcome: str, state: str) -> None:
    step_run_id = uuid4()
    session.submit(step_run_id, "a")
    session.handle(ended(outcome))
    assert session.status(step_run_id, 0) == state


def test_a_step_that_never_started_is_over_too(session: Session) -> None:
    step_run_id = uuid4()
    session.submit(step_run_id, "a")
    session.handle({"kind": "step_finished", "step": "a", "status": "skipped"})
    assert session.status(step_run_id, 0) == "stopped"


def test_a_retry_is_another_step_run_of_the_same_step(session: Session, run: FakeRun) -> None:
    first, second = uuid4(), uuid4()
    session.submit(first, "a")
    session.handle(ended("exited"))
    session.handle({"kind": "retry_scheduled", "step": "a"})
    assert session.submit(second, "a") == "provisioning"
    session.handle(ended("completed", attempt=2))
    assert (session.status(first, 0), session.status(second, 0)) == ("failed", "completed")
    assert run.requested == ["a", "a"]
    session.handle({"kind": "step_finished", "step": "a", "status": "completed"})
    with pytest.raises(RefusedError, match="has ended for good"):
        session.submit(uuid4(), "a")


def test_one_step_runs_once_at_a_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.dynamic._STILL_ENDING_SECONDS", 0.1)
    session.submit(uuid4(), "a")
    with pytest.raises(RefusedError, match="runs already"):
        session.submit(uuid4(), "a")


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a" * 256])
def test_a_name_that_would_spoil_a_terminal_is_refused(session: Session, run: FakeRun, name: str) -> None:
    with pytest.raises(RefusedError, match="cannot be the name of a step") as refusal:
        session.submit(uuid4(), name)
    assert str(refusal.value).isprintable()
    assert run.requested == []


def test_a_retry_that_is_asked_for_before_the_word_on_it_came_waits(session: Session, run: FakeRun) -> None:
    session.submit(uuid4(), "a")
    session.handle(ended("exited"))
    threading.Timer(0.3, lambda: session.handle({"kind": "retry_scheduled", "step": "a"})).start()
    assert session.submit(uuid4(), "a") == "provisioning"
    assert run.requested == ["a", "a"]


def test_what_the_host_cannot_run_is_refused(session: Session, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run.error = PlanError("Step `a` asks for 9 GPUs and the host offers 0.")
    step_run_id = uuid4()
    with pytest.raises(RefusedError, match="asks for 9 GPUs"):
        session.submit(step_run_id, "a")
    with pytest.raises(RefusedError, match="none that this run has submitted"):
        session.status(step_run_id, 0)
    monkeypatch.setattr("orchestrator.dynamic.MAX_STEPS", 0)
    with pytest.raises(RefusedError, match="a run may ask for 0 isolated steps"):
        session.submit(uuid4(), "a")


def test_a_stop_reaches_the_step_and_no_other(session: Session, run: FakeRun) -> None:
    first, second = uuid4(), uuid4()
    session.submit(first, "a")
    session.submit(second, "b")
    assert session.stop(second) == "provisioning"
    assert run.dropped == ["b"]
    session.handle(ended("stopped", "b"))
    assert session.stop(second) == "stopped"
    assert run.dropped == ["b"]
    with pytest.raises(RefusedError, match="none that this run has submitted"):
        session.stop(uuid4())


def test_another_owner_knows_what_the_first_one_was_asked_for(
    session: Session, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.dynamic._STILL_ENDING_SECONDS", 0.1)
    done, failed, again, running, queued = (uuid4() for _ in range(5))
    for step_run_id, name in ((done, "a"), (failed, "b"), (running, "c"), (queued, "d/with/slashes")):
        session.submit(step_run_id, name)
    events = [
        {"kind": "attempt_started", "step": "a", "attempt": 1},
        ended("completed"),
        {"kind": "step_finished", "step": "a", "status": "completed"},
        ended("exited", "b"),
        {"kind": "retry_scheduled", "step": "b", "attempt": 2},
        {"kind": "attempt_started", "step": "c", "attempt": 1},
    ]
    requests = [{"step": name, "reference": text} for name, text in zip(run.requested, run.references, strict=True)]
    heir_run = FakeRun()
    heir = Session(heir_run)
    heir._run, heir._run_id = None, session._run_id
    heir.recall({"events": events, "requests": requests})
    heir.attend(heir_run)  # pyright: ignore[reportArgumentType]
    states = {name: heir.status(one, 0) for name, one in zip("abcd", (done, failed, running, queued), strict=True)}
    assert states == {"a": "completed", "b": "failed", "c": "running", "d": "provisioning"}
    assert [heir.step_run_of(name) for name in ("b", "d/with/slashes", LEADER)] == [failed, queued, None]
    # Asked again, because the first owner died before it answered: nothing starts twice.
    assert heir.submit(running, "c") == "running"
    assert heir_run.requested == []
    assert heir.submit(again, "b") == "provisioning"
    assert heir_run.requested == ["b"]
    for name in ("a", "c"):
        with pytest.raises(RefusedError, match="runs already, or has ended for good"):
            heir.submit(uuid4(), name)


def test_what_may_run_is_taken_over_or_the_run_is_left_alone(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"kind": "attempt_launched", "step": "a", "attempt": 1}
    assert in_flight([launched]) == {"a"}
    assert in_flight([launched, ended("exited")]) == set()
    session.submit(uuid4(), "a")

    def refuse(_self: Session, _row: Any, _name: str) -> None:
        raise RefusedError("its image cannot be pulled.")

    monkeypatch.setattr(Session, "_described", refuse)
    monkeypatch.setattr("orchestrator.dynamic.Client", lambda: SimpleNamespace(get_run_step=lambda _: None))
    assert session.containers(["a", "never asked for"], set()) == {}
    with pytest.raises(StepEngineError, match=r"`a` of run .* may still run and cannot be taken over: its image"):
        session.containers(["a"], {"a"})


# What becomes of the orchestration.


@pytest.mark.parametrize(
    ("status", "outcome", "stopping", "judged"),
    [
        ("running", {"kind": "exited", "code": 137}, False, ({"kind": "exited", "code": 137}, True)),
        ("running", {"kind": "lost", "reason": "x"}, False, ({"kind": "lost", "reason": "x"}, True)),
        ("running", {"kind": "exited", "code": 1}, False, ({"kind": "exited", "code": 1}, False)),
        ("running", {"kind": "timed_out"}, False, ({"kind": "timed_out"}, False)),
        ("failed", {"kind": "exited", "code": 45}, False, ({"kind": "exited", "code": 45}, False)),
        ("failed", {"kind": "exited", "code": 137}, False, ({"kind": "exited", "code": 137}, False)),
        ("completed", {"kind": "exited", "code": 137}, False, ({"kind": "completed"}, False)),
        ("paused", {"kind": "exited", "code": 137}, False, ({"kind": "completed"}, False)),
        ("stopping", {"kind": "exited", "code": 143}, False, ({"kind": "stopped"}, False)),
        ("running", {"kind": "exited", "code": 143}, True, ({"kind": "stopped"}, False)),
    ],
)
def test_an_orchestration_is_restarted_when_it_was_killed_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    outcome: dict[str, Any],
    stopping: bool,
    judged: tuple[dict[str, Any], bool],
) -> None:
    from zenml.enums import ExecutionStatus

    publisher = DynamicRunPublisher(uuid4(), uuid4())
    monkeypatch.setattr(publisher, "run_status", lambda: ExecutionStatus(status))
    assert publisher.judge(LEADER, outcome, stopping) == judged


def test_a_run_that_somebody_else_goes_on_with_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    from zenml.enums import ExecutionStatus

    statuses = iter(["resuming", "running", "resuming", "resuming"])
    monkeypatch.setattr(RunPublisher, "run_status", lambda _: ExecutionStatus(next(statuses)))
    publisher = DynamicRunPublisher(uuid4(), uuid4())
    monkeypatch.setattr(publisher, "_unfinished_children", lambda: pytest.fail("the run was ended"))
    killed = {"kind": "exited", "code": 137}
    # Its own beginning, if ZenML goes on with a run.
    assert publisher.judge(LEADER, killed, False) == (killed, True)
    assert publisher.judge(LEADER, killed, False) == (killed, True)
    assert publisher.judge(LEADER, killed, False) == (killed, False)
    publisher.finish("failed", "killed")
