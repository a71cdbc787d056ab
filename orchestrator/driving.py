"""The pump: events of a running `DockerRun` go to the console and to ZenML, signals and stop requests go back."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from zenml.logger import get_logger

if TYPE_CHECKING:
    from step_engine import DockerRun

    from orchestrator.publishing import RunPublisher

logger = get_logger(__name__)

STATUS_INTERVAL_SECONDS = 2.0
"""How often ZenML is asked whether somebody wants the run to stop."""

_ESCALATION = ("interrupt", "kill", "abandon")


class Driver:
    """Drives one run to its end.

    Args:
        run: A run that was not started yet.
        publisher: The run's rows in ZenML.
        step_names: Names of the steps, in the plan's order.
        run_directory: Where logs are kept.
    """

    def __init__(self, run: DockerRun, publisher: RunPublisher, step_names: list[str], run_directory: str) -> None:
        """Prepares the console."""
        from step_engine.console import Console

        self._run = run
        self._publisher = publisher
        self._run_directory = run_directory
        self._console = Console(step_names)
        self._signals = 0
        self._escalated = 0
        self._stop_announced = False
        self._stops_running = False
        self._details: dict[str, dict[str, Any]] = {}
        self._tails: dict[str, list[str]] = {}
        self._stopped: list[str] = []

    def drive(self) -> None:
        """Runs to the end.

        Raises:
            StepFailedError: A step failed.
            RunInterruptedError: The run was stopped.
        """
        with owner_lock(self._run_directory), self._signal_handlers():
            self._run.start()
            next_look = time.monotonic() + STATUS_INTERVAL_SECONDS
            while not self._run.finished:
                events = self._run.next_events(0.5)
                self._pass_signals_on()
                self._console.handle(event for event in events if event["kind"] != "judge")
                for event in events:
                    self._handle(event)
                if time.monotonic() >= next_look:
                    self._look_for_stop()
                    next_look = time.monotonic() + STATUS_INTERVAL_SECONDS
        self._console.close()
        self._end()

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "judge":
            self._tails[event["step"]] = event["log_tail"]
            self._judge(event)
        elif kind == "attempt_started":
            self._details[event["step"]] = event["details"]
        elif kind == "attempt_measured":
            self._details[event["step"]] = {**self._details.get(event["step"], {}), **event["usage"]}
        elif kind == "stop_requested":
            self._stops_running |= event["stops_running"]
        elif kind == "step_finished":
            self._step_finished(event)

    def _judge(self, event: dict[str, Any]) -> None:
        stopping = self._stops_running or self._signals > 0
        outcome, may_retry = event["outcome"], True
        try:
            if not stopping and self._publisher.is_stopping():
                stopping = True
                self._stop_announced = True
                self._run.cancel("interrupt")
            outcome, may_retry = self._publisher.judge(event["step"], outcome, stopping)
        except Exception as error:
            logger.warning("ZenML could not be asked how step `%s` ended: %s", event["step"], error)
        self._run.judge(event["step"], event["attempt"], outcome, may_retry)

    def _step_finished(self, event: dict[str, Any]) -> None:
        step, status = event["step"], event["status"]
        try:
            if status == "failed":
                self._publisher.ensure_failed(step)
            elif status == "stopped":
                self._stopped.append(step)
                self._publisher.ensure_stopped(step)
            if details := self._details.get(step):
                metadata = {key: value for key, value in details.items() if value is not None}
                metadata["outcome"] = (event["outcome"] or {"kind": status})["kind"]
                self._publisher.publish_step_metadata(step, metadata)
        except Exception as error:
            logger.warning("ZenML could not be told how step `%s` ended: %s", step, error)

    def _look_for_stop(self) -> None:
        if self._stop_announced:
            return
        try:
            stopping = self._publisher.is_stopping()
        except Exception as error:
            logger.debug("ZenML could not be asked for the run's status: %s", error)
            return
        if stopping:
            self._stop_announced = True
            self._run.cancel("interrupt")

    def _pass_signals_on(self) -> None:
        if self._signals > 0 and not self._stop_announced:
            self._stop_announced = True
            self._publisher.announce_stop()
        while self._escalated < min(self._signals, len(_ESCALATION)):
            self._run.cancel(_ESCALATION[self._escalated])
            self._escalated += 1

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Counts SIGINT and SIGTERM while the run lasts. Python allows handlers in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(_signal: int, _frame: object) -> None:
            self._signals += 1

        previous = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _end(self) -> None:
        from step_engine.console import describe_outcome
        from step_engine.errors import RunInterruptedError, StepFailedError

        summary = self._run.summary
        if summary is None:
            raise RuntimeError("The run ended without a summary.")
        failure = summary["first_failure"]
        reason = f"Step `{failure['step']}`: {describe_outcome(failure['outcome'])}" if failure else None
        self._publisher.finish(summary["status"], reason)
        self._console.summary(summary, self._run_directory)
        if summary["status"] == "failed" and failure:
            tail = self._tails.get(failure["step"], [])
            lines = "".join(f"\n    {line}" for line in tail)
            message = f"Step `{failure['step']}` failed: {describe_outcome(failure['outcome'])}."
            if tail:
                message += f" Its last output:{lines}"
            raise StepFailedError(f"{message}\nLogs: {self._run_directory}", failure["step"], failure["outcome"], tail)
        if summary["status"] == "stopped":
            left = summary["left_running"]
            message = "The run was stopped."
            if left:
                message += f" Containers of these steps may still run: {', '.join(left)}."
            raise RunInterruptedError(message, self._stopped, left)


@contextlib.contextmanager
def owner_lock(run_directory: str) -> Iterator[None]:
    """Holds the lock that says that a run's owner lives.

    Args:
        run_directory: The run's directory.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory = Path(run_directory)
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)
            _try_lock(stack.enter_context((directory / "owner.lock").open("a")))
        except OSError as error:
            # Like logs that cannot be kept, no reason not to run.
            logger.warning(
                "The run directory %s cannot be written (%s): `zenml pipeline runs refresh` cannot tell whether this "
                "process lives.",
                run_directory,
                error.strerror,
            )
        yield


def owner_lives(run_directory: str) -> bool | None:
    """Whether the process that drives a run lives.

    Args:
        run_directory: The run's directory.

    Returns:
        None when it cannot be told: the run belongs to another machine, or the platform has no such locks.
    """
    path = Path(run_directory) / "owner.lock"
    if not path.exists():
        return None
    with path.open("a") as lock:
        locked = _try_lock(lock)
        return None if locked is None else not locked


def _try_lock(lock: IO[str]) -> bool | None:
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
