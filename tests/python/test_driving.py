"""The pump between a run, the console and ZenML, without an engine and without a store."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from step_engine import lease, orders
from step_engine.console import Console
from step_engine.errors import RunInterruptedError, StepEngineError, StepFailedError

from orchestrator import driving
from orchestrator.resuming import give_up

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = {
    "status": "stopped",
    "steps": [["a", "stopped"]],
    "duration": 1.0,
    "peak_parallelism": 1,
    "warm_starts": 0,
    "left_running": [],
    "first_failure": None,
}


class Run:
    """A run whose one step lasts until somebody cancels it; `first` is what it says before."""

    def __init__(self, *first: dict[str, Any]) -> None:
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.cancels: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.reasons: list[str] = []
        self.verdicts: list[tuple[dict[str, Any], bool]] = []
        self.finished = False
        self.summary: dict[str, Any] | None = None
        for event in first:
            self.events.put(event)

    def start(self) -> None:
        pass

    def next_events(self, seconds: float) -> list[dict[str, Any]]:
        try:
            return [self.events.get(timeout=seconds)]
        except queue.Empty:
            return []

    def judge(self, _step: str, _attempt: int, outcome: dict[str, Any], may_retry: bool) -> None:
        self.verdicts.append((outcome, may_retry))

    def cancel(self, reason: str) -> None:
        self.reasons.append(reason)
        self.cancels.put(reason)
        self.summary, self.finished = SUMMARY, True


class Store:
    """ZenML. Answers once it is back."""

    def __init__(self, *, away: bool = False) -> None:
        self.asked = threading.Event()
        self.back = threading.Event()
        self.finished: list[str] = []
        self.known: set[str] = set()
        self.told: list[tuple[str, str]] = []
        if not away:
            self.back.set()

    def is_stopping(self) -> bool:
        self.asked.set()
        assert self.back.wait(60)
        return False

    def announce_stop(self) -> None:
        assert self.back.wait(60)

    def judge(self, _step: str, outcome: dict[str, Any], stopping: bool) -> tuple[dict[str, Any], bool]:
        return ({"kind": "stopped"}, False) if stopping else (outcome, True)

    def finish(self, status: str, _reason: str | None) -> None:
        self.finished.append(status)

    def knows_outcome(self, step: str) -> bool:
        return step in self.known

    def ensure_failed(self, step: str) -> None:
        self.told.append((step, "failed"))

    def publish_step_metadata(self, step: str, metadata: dict[str, Any]) -> None:
        self.told.append((step, metadata["outcome"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_while_the_store_is_away(tmp_path: Path, number: signal.Signals) -> None:
    run, store = Run(), Store(away=True)
    seen: list[str] = []

    def user() -> None:
        store.asked.wait(60)
        os.kill(os.getpid(), number)
        # Without the store's answer, which comes only now.
        try:
            seen.append(run.cancels.get(timeout=30))
        except queue.Empty:
            run.cancel("nobody did")
        store.back.set()

    # Whoever runs the tests may have it ignored, as `nohup` does.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    pressing = threading.Thread(target=user)
    pressing.start()
    try:
        with pytest.raises(RunInterruptedError):
            driving.Driver(run, store, ["a"], str(tmp_path)).drive()  # pyright: ignore[reportArgumentType]
    finally:
        store.back.set()
        pressing.join()
        signal.signal(signal.SIGHUP, before)
    assert (seen, store.finished) == (["interrupt"], ["stopped"])


def test_a_client_that_fails_takes_its_run_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = {"kind": "judge", "step": "a", "attempt": 1, "outcome": {"kind": "exited", "code": 1}, "log_tail": []}
    run, store = Run({"kind": "attempt_started", "step": "a", "attempt": 1, "details": {}}, judged), Store()

    def fail(_self: Console, _events: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Console, "handle", fail)
    with pytest.raises(MemoryError):
        driving.Driver(run, store, ["a"], str(tmp_path)).drive()  # pyright: ignore[reportArgumentType]
    assert (run.reasons, store.finished) == (["kill"], ["failed"])


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run, store = Run({"kind": "log", "step": "a", "attempt": 1, "stream": "stdout", "text": "one\n"}), Store()

    def next_events(seconds: float) -> list[dict[str, Any]]:
        events = Run.next_events(run, seconds)
        if not events:
            failed = {"step": "a", "outcome": {"kind": "exited", "code": 1}}
            run.summary = {**SUMMARY, "status": "failed", "first_failure": failed}
            run.finished = True
        return events

    monkeypatch.setattr(run, "next_events", next_events)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w", buffering=1) as stream:
        driver = driving.Driver(run, store, ["a"], str(tmp_path))  # pyright: ignore[reportArgumentType]
        driver._console = Console(["a"], stream)
        with pytest.raises(StepFailedError, match="exit code 1"):
            driver.drive()
    assert (run.reasons, store.finished) == ([], ["failed"])


def test_what_a_dead_owner_did_not_tell_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = []
    for step, status, outcome in (("a", "failed", {"kind": "exited", "code": 1}), ("b", "completed", None)):
        past.append({"kind": "attempt_started", "step": step, "attempt": 1, "details": {"warm": False}})
        past.append({"kind": "step_finished", "step": step, "status": status, "outcome": outcome})
    run, store = Run(), Store()
    store.known.add("b")
    run.summary, run.finished = {**SUMMARY, "status": "completed"}, True
    record = {"events": past, "requests": []}
    monkeypatch.setattr("step_engine.read_run", lambda _directory: record)
    driving.Driver(run, store, ["a", "b"], str(tmp_path), record).drive()  # pyright: ignore[reportArgumentType]
    assert store.told == [("a", "failed"), ("a", "exited")]
    assert store.finished == ["completed"]


@pytest.mark.parametrize("further", ["events", "requests"])
def test_nobody_goes_on_with_what_another_owner_has_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, further: str
) -> None:
    record: dict[str, Any] = {"events": [], "requests": []}
    one = {"events": {"kind": "attempt_launched", "step": "a", "attempt": 1}, "requests": {"step": "a"}}[further]
    monkeypatch.setattr("step_engine.read_run", lambda _directory: {**record, further: [one]})
    run, store = Run(), Store()
    monkeypatch.setattr(run, "start", lambda: pytest.fail("it was gone on with"))
    with pytest.raises(StepEngineError, match="in the meantime; resume it again"):
        driving.Driver(run, store, ["a"], str(tmp_path), record).drive()  # pyright: ignore[reportArgumentType]
    assert (store.told, store.finished) == ([], [])


def test_nobody_goes_on_with_what_somebody_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record: dict[str, Any] = {"events": [], "requests": []}
    monkeypatch.setattr("step_engine.read_run", lambda _directory: record)
    give_up(str(tmp_path))
    orders.give(str(tmp_path), "stop")
    run, store = Run(), Store()
    monkeypatch.setattr(run, "start", lambda: pytest.fail("it was gone on with"))
    with pytest.raises(StepEngineError, match="Somebody ended the run in"):
        driving.Driver(run, store, ["a"], str(tmp_path), record).drive()  # pyright: ignore[reportArgumentType]
    assert store.finished == []
    assert orders.take(str(tmp_path)) == 1, "nothing was changed"


def test_a_lease_that_could_not_be_taken_is_taken_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a full disk, where there is no room for the run's folder; the journal begins later, too."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.0)
    place = tmp_path / "place"
    place.write_text("no folder")
    with driving.owner_lock(str(place / "run")) as beat:
        beat()
        assert lease.owner_lives(place / "run") is None
        place.unlink()
        beat()
        beat()
        assert lease.owner_lives(place / "run") is True
    assert lease.owner_lives(place / "run") is False


def test_an_owner_shows_that_it_lives_while_it_waits_for_the_store(tmp_path: Path) -> None:
    driver = driving.Driver(Run(), Store(), ["a"], str(tmp_path))  # type: ignore[arg-type]
    beats, done = [], threading.Event()
    driver._beat = lambda: (beats.append(1), len(beats) > 2 and done.set())[0]
    driver._wait(done)
    assert len(beats) > 2


def test_an_order_counts_from_the_moment_the_owner_is_one(tmp_path: Path) -> None:
    class Session:
        def __enter__(self) -> None:
            orders.give(tmp_path, "stop")

        def __exit__(self, *_error: object) -> None:
            pass

        def handle(self, _event: dict[str, Any]) -> None:
            pass

    run, store = Run(), Store()

    def next_events(seconds: float) -> list[dict[str, Any]]:
        run.summary, run.finished = SUMMARY, True
        return []

    run.next_events = next_events
    driver = driving.Driver(run, store, ["a"], str(tmp_path), session=Session())  # pyright: ignore[reportArgumentType]
    with pytest.raises(RunInterruptedError):
        driver.drive()
    assert run.reasons == ["interrupt"]


def test_an_order_of_the_time_before_the_first_moment_counts(tmp_path: Path) -> None:
    """Whoever was handed the run has it from before its own beginning."""
    held = lease.Lease.take(tmp_path)
    orders.give(tmp_path, "stop")
    run, store = Run(), Store()
    with pytest.raises(RunInterruptedError):
        driving.Driver(run, store, ["a"], str(tmp_path), lease=held).drive()  # pyright: ignore[reportArgumentType]
    assert run.reasons == ["interrupt"]
    assert lease.owner_lives(tmp_path) is False


def test_a_store_that_never_answers_is_not_waited_for_once_somebody_has_had_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "_ABANDON_SECONDS", 0.1)
    run, store = Run(), Store()
    run.summary, run.finished = SUMMARY, True
    never = threading.Event()

    def finish(_status: str, _reason: str | None) -> None:
        orders.give(tmp_path, "kill")
        never.wait(60)

    monkeypatch.setattr(store, "finish", finish)
    begun = time.monotonic()
    with pytest.raises(RunInterruptedError):
        driving.Driver(run, store, ["a"], str(tmp_path)).drive()  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - begun < 30
    never.set()


@pytest.mark.parametrize(("order", "reasons"), [("stop", ["interrupt"]), ("kill", ["interrupt", "kill"])])
def test_an_order_acts_as_signals_do_and_old_ones_do_not(tmp_path: Path, order: str, reasons: list[str]) -> None:
    orders.give(tmp_path, "kill")
    run, store = Run({"kind": "attempt_started", "step": "a", "attempt": 1, "details": {}}), Store()

    def next_events(seconds: float) -> list[dict[str, Any]]:
        events = Run.next_events(run, min(seconds, 0.05))
        if events:
            assert not list(tmp_path.glob("order*"))
            orders.give(tmp_path, order)
        return events

    run.next_events = next_events
    with pytest.raises(RunInterruptedError):
        driving.Driver(run, store, ["a"], str(tmp_path)).drive()  # pyright: ignore[reportArgumentType]
    assert run.reasons == reasons
