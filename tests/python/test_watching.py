"""The watch of an execution between the core, the console and ZenML, without AWS and without a store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from step_engine.errors import RunInterruptedError, StepFailedError

from orchestrator import watching
from orchestrator.watching import Watcher, execution_reason, task_metadata

TASK = {
    "arn": "arn:aws:ecs:eu-central-1:123456789012:task/ml/1",
    "task_definition": "arn:aws:ecs:eu-central-1:123456789012:task-definition/zenml-se-1:1",
    "outcome": {"kind": "exited", "code": 3},
    "exit_code": 3,
    "cpu": "1024",
    "memory": "2048",
    "submitted_at_unix_seconds": 0.0,
    "stopped_at_unix_seconds": 3600.0,
    "launch_type": "FARGATE",
}
STARTED = {
    "kind": "attempt_started",
    "step": "a",
    "attempt": 1,
    "details": {"task": {"log_group": "/g", "log_stream": "s/c/1"}},
}
ENDED = {"kind": "task_ended", "step": "a", "attempt": 1, "log_tail": ["\x1b[37mone\x1b[0m", "two"], **TASK}


def finished(status: str) -> dict[str, Any]:
    return {"kind": "step_finished", "step": "a", "status": status, "outcome": {"kind": "exited", "code": 3}}


def summary(status: str, failed: bool = False) -> dict[str, Any]:
    failure = {"step": "a", "outcome": {"kind": "exited", "code": 3}} if failed else None
    return {
        "status": status,
        "steps": [["a", status]],
        "duration": 1.0,
        "peak_parallelism": 1,
        "left_running": [],
        "first_failure": failure,
    }


class Session:
    region = "eu-central-1"

    def __init__(self, left: float | None = None) -> None:
        self.credentials_expire_in_seconds = left


class Run:
    """Gives its batches one after the other; a batch that is an exception is raised."""

    def __init__(self, ending: dict[str, Any], *batches: Any) -> None:
        self.batches, self.ending = list(batches), ending
        self.summary: dict[str, Any] | None = None
        self.cancelled = False

    @property
    def finished(self) -> bool:
        if not self.batches:
            self.summary = self.ending
        return not self.batches

    def start(self) -> None:
        pass

    def next_events(self, _seconds: float) -> list[dict[str, Any]]:
        batch = self.batches.pop(0)
        if isinstance(batch, BaseException):
            raise batch
        return batch() if callable(batch) else batch

    def cancel(self, _reason: str = "interrupt") -> None:
        self.cancelled = True


class Store:
    pipeline_run_id = "the-run"

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def ensure_failed(self, step: str) -> None:
        self.said.append(("failed", step))

    def ensure_stopped(self, step: str) -> None:
        self.said.append(("stopped", step))

    def publish_step_metadata(self, step: str, metadata: dict[str, Any]) -> None:
        self.said.append(("task", step, metadata["task_arn"], str(metadata["log_url"])[-30:]))

    def publish_run_metadata(self, metadata: dict[str, Any]) -> None:
        self.said.append(("cost", metadata["task_cost_usd"]))

    def finish(self, status: str, reason: str | None) -> None:
        self.said.append(("end", status, reason))


def watch(
    run: Run,
    session: Session | None = None,
    renew: Callable[[], None] = lambda: None,
    is_current: Callable[[], bool] = lambda: True,
) -> tuple[Store, list[str]]:
    store, cleaned = Store(), []
    watcher = Watcher(
        session or Session(),  # pyright: ignore[reportArgumentType]
        run,  # pyright: ignore[reportArgumentType]
        store,  # pyright: ignore[reportArgumentType]
        ["a"],
        url="https://page",
        renew=renew,
        clean_up=lambda: cleaned.append("secret"),
        is_current=is_current,
    )
    try:
        watcher.watch()
    except BaseException as error:
        error.store, error.cleaned = store, cleaned  # type: ignore[attr-defined]
        raise
    return store, cleaned


def test_what_happened_is_written_down_in_order_and_the_secret_goes() -> None:
    done = {**ENDED, "outcome": {"kind": "completed"}}
    store, cleaned = watch(Run(summary("completed"), [STARTED], [done, finished("completed")]))
    assert store.said == [
        ("task", "a", TASK["arn"], "$252Fg/log-events/s$252Fc$252F1"[-30:]),
        ("cost", pytest.approx(0.04937)),
        ("end", "completed", None),
    ]
    assert cleaned == ["secret"]


def test_a_run_that_another_execution_goes_on_with_is_left_alone() -> None:
    with pytest.raises(RunInterruptedError) as caught:
        watch(Run(summary("stopped"), [STARTED, finished("stopped")]), is_current=lambda: False)
    assert caught.value.store.said == [("stopped", "a")]  # type: ignore[attr-defined]
    assert caught.value.cleaned == ["secret"], "its own"  # type: ignore[attr-defined]


def test_a_failed_step_is_told_with_its_last_output() -> None:
    with pytest.raises(StepFailedError) as caught:
        watch(Run(summary("failed", failed=True), [STARTED, ENDED, finished("failed")]))
    assert "Step `a` failed: exit code 3. Its last output:\n    one\n    two" in str(caught.value)
    assert "https://page" in str(caught.value)
    assert caught.value.log_tail == ["one", "two"]
    assert ("failed", "a") in caught.value.store.said  # type: ignore[attr-defined]
    assert caught.value.store.said[-1] == ("end", "failed", "Step `a`: exit code 3")  # type: ignore[attr-defined]
    assert caught.value.cleaned == ["secret"]  # type: ignore[attr-defined]


def test_an_execution_that_was_stopped_elsewhere() -> None:
    with pytest.raises(RunInterruptedError) as caught:
        watch(Run(summary("stopped"), [STARTED, finished("stopped")]))
    assert caught.value.stopped == ["a"]
    assert caught.value.store.said[-2:] == [("cost", 0.0), ("end", "stopped", None)]  # type: ignore[attr-defined]


def test_an_execution_that_failed_without_a_step() -> None:
    from step_engine.errors import AwsError

    ended = {"kind": "execution_ended", "status": "FAILED", "error": "States.Runtime", "cause": "no such field"}
    with pytest.raises(AwsError, match=r"States\.Runtime: no such field") as caught:
        watch(Run(summary("failed"), [ended]))
    assert caught.value.code == "States.Runtime"


def test_ctrl_c_ends_the_watching_only() -> None:
    run = Run(summary("completed"), [STARTED], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        watch(run)
    assert run.cancelled
    assert caught.value.store.said == []  # type: ignore[attr-defined]
    assert caught.value.cleaned == [], "the run needs its secret"  # type: ignore[attr-defined]


def test_an_execution_that_cannot_be_watched_any_longer_may_still_run() -> None:
    from step_engine.errors import AwsError

    run = Run(summary("completed"), [STARTED], AwsError("no answer for 15 minutes.", "GetExecutionHistory", "Timeout"))
    with pytest.raises(AwsError) as caught:
        watch(run)
    text = str(caught.value)
    assert "may still run: https://page\n" in text and "zenml pipeline runs refresh the-run\n" in text
    assert text.endswith("no answer for 15 minutes.")
    assert (caught.value.operation, caught.value.code) == ("GetExecutionHistory", "Timeout")
    assert run.cancelled
    assert caught.value.store.said == [], "nothing is known of its end"  # type: ignore[attr-defined]
    assert caught.value.cleaned == [], "the run needs its secret"  # type: ignore[attr-defined]


def test_credentials_are_renewed_before_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RENEW_PAUSE_SECONDS", 0.0)
    session, renewed = Session(watching.RENEW_SECONDS + 60), threading.Event()
    asked: list[float | None] = []

    def soon() -> list[dict[str, Any]]:
        session.credentials_expire_in_seconds = watching.RENEW_SECONDS - 1
        return []

    def wait() -> list[dict[str, Any]]:
        assert renewed.wait(10)
        return []

    def renew() -> None:
        asked.append(session.credentials_expire_in_seconds)
        session.credentials_expire_in_seconds = 3600.0
        renewed.set()

    watch(Run(summary("completed"), [], soon, wait, []), session, renew)
    assert asked == [watching.RENEW_SECONDS - 1]


def test_a_renewal_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RENEW_PAUSE_SECONDS", 0.0)
    session, tries, done = Session(1.0), [], threading.Event()

    def renew() -> None:
        tries.append(1)
        if len(tries) < 2:
            raise RuntimeError("the server is away")
        session.credentials_expire_in_seconds = None
        done.set()

    class Patient(Run):
        @property
        def finished(self) -> bool:
            if done.is_set():
                self.summary = self.ending
            return done.is_set()

        def next_events(self, _seconds: float) -> list[dict[str, Any]]:
            done.wait(0.01)
            return []

    watch(Patient(summary("completed")), session, renew)
    assert len(tries) == 2


def test_why_an_execution_ended() -> None:
    assert execution_reason({"status": "TIMED_OUT"}) == "the execution timed out (execution_timeout_seconds)"
    assert execution_reason({"status": "FAILED", "error": "E"}) == "E"
    assert execution_reason({}) is None


def test_a_task_that_never_started_has_no_log() -> None:
    assert task_metadata({"arn": None, "outcome": {"kind": "launch_failed", "reason": "r"}}, None, "r") == {
        "outcome": "launch_failed"
    }
