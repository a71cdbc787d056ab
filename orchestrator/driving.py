"""The pump: events of a running `DockerRun` go to the console and to ZenML, signals and stop requests go back."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from zenml.logger import get_logger

if TYPE_CHECKING:
    from step_engine import DockerRun
    from step_engine.lease import Lease

    from orchestrator.dynamic import DynamicSession
    from orchestrator.publishing import RunPublisher

logger = get_logger(__name__)

STATUS_INTERVAL_SECONDS = 2.0
"""How often ZenML is asked whether somebody wants the run to stop."""

_ESCALATION = ("interrupt", "kill", "abandon")

_ANNOUNCE_SECONDS = 3.0
"""A stop waits so long for ZenML to know of it: steps that are asked to stop look there."""

_ABANDON_SECONDS = 5.0
"""So long what is still to be written waits for ZenML once the user has had enough."""

_WIND_DOWN_SECONDS = 60.0
"""So long the containers of a run may take to go when its client fails."""


class Desk:
    """Does one thing after the other in a thread of its own.

    ZenML's store may be locked or away for minutes; signals and output must not wait for it.
    """

    def __init__(self) -> None:
        """Starts the thread. A daemon: a store that never answers keeps no process alive."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # What ZenML keeps in the context, such as where logs go, holds here, too.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="step-engine-zenml", daemon=True)
        self._thread.start()

    def do(self, task: Callable[[], None]) -> threading.Event:
        """Adds a task.

        Args:
            task: What to do.

        Returns:
            Set when it is done.
        """
        done = threading.Event()

        def run() -> None:
            try:
                task()
            except Exception as error:
                logger.warning("ZenML could not be told what became of the run: %s", error)
            finally:
                done.set()

        self._tasks.put(run)
        return done

    def close(self) -> None:
        """Ends the thread after what it has to do."""
        self._tasks.put(None)

    def _work(self) -> None:
        while task := self._tasks.get():
            task()


class Driver:
    """Drives one run to its end.

    Args:
        run: A run that was not started yet.
        publisher: The run's rows in ZenML.
        step_names: Names of the steps, in the plan's order.
        run_directory: Where logs are kept.
        record: What happened under a former owner of the run, as `read_run` gives it.
        session: Attends the run from before its start to after its end, and hears of every event.
        lease: Says already that this process drives the run; released at the end.
    """

    def __init__(
        self,
        run: DockerRun,
        publisher: RunPublisher,
        step_names: list[str],
        run_directory: str,
        record: Mapping[str, Any] | None = None,
        *,
        session: DynamicSession | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Prepares the console."""
        from step_engine.console import Console

        self._run = run
        self._publisher = publisher
        self._session = session
        self._lease = lease
        self._run_directory = run_directory
        self._console = Console(step_names)
        self._record = record
        self._past: Sequence[dict[str, Any]] = record["events"] if record else ()
        self._signals = 0
        self._escalated = 0
        self._stop_announced = False
        self._stops_running = False
        self._failed = False
        self._details: dict[str, dict[str, Any]] = {}
        self._tails: dict[str, list[str]] = {}
        self._stopped: list[str] = []
        self._beat: Callable[[], None] = lambda: None

    def drive(self) -> None:
        """Runs to the end.

        Raises:
            StepFailedError: A step failed.
            RunInterruptedError: The run was stopped.
            RunOwnedError: Another process drives the run; nothing was changed.
            StepEngineError: Another process went on with the run after its past was read; nothing was changed.
        """
        self._desk = Desk()
        try:
            with owner_lock(self._run_directory, self._lease) as self._beat:
                self._refuse_other_past()
                if self._lease is None:
                    # Meant for a former owner. What comes from now on is meant for this one.
                    take_order(self._run_directory)
                with self._signal_handlers(), self._attendance():
                    self._drive()
        finally:
            self._desk.close()
        self._end()

    def _drive(self) -> None:
        self._run.start()
        try:
            self._recall()
            self._pump()
        except BaseException as error:
            self._wind_down(error)
            raise
        self._console.close()
        self._finish()

    def _attendance(self) -> contextlib.AbstractContextManager[object]:
        return self._session or contextlib.nullcontext()

    def _refuse_other_past(self) -> None:
        """Since its past was read, somebody may have ended the run, or gone on with it and died, too."""
        if self._record is None:
            return
        from step_engine import read_run
        from step_engine.errors import StepEngineError

        from orchestrator.resuming import is_given_up

        if is_given_up(self._run_directory):
            raise StepEngineError(f"Somebody ended the run in {self._run_directory} in the meantime.")
        now = read_run(self._run_directory)
        if now is None or any(now[key] != self._record[key] for key in ("events", "requests")):
            raise StepEngineError(
                f"Another process went on with the run in {self._run_directory} in the meantime; resume it again."
            )

    def _recall(self) -> None:
        """Takes over what a former owner knew. It may have died before it told ZenML."""
        self._console.recall(self._past)
        for event in self._past:
            kind = event["kind"]
            if kind == "stop_requested":
                self._stops_running |= event["stops_running"]
            elif kind in ("attempt_started", "attempt_measured"):
                self._handle(event)
            elif kind == "step_finished":
                if event["status"] == "stopped":
                    self._stopped.append(event["step"])
                self._desk.do(partial(self._tell_unless_known, event, self._details.get(event["step"])))

    def _tell_unless_known(self, event: dict[str, Any], details: dict[str, Any] | None) -> None:
        if not self._publisher.knows_outcome(event["step"]):
            self._step_finished(event, details)

    def _pump(self) -> None:
        look: threading.Event | None = None
        next_look = time.monotonic() + STATUS_INTERVAL_SECONDS
        while not self._run.finished:
            events = self._run.next_events(0.5)
            self._beat()
            # As if the signals had come from a terminal.
            self._signals = max(self._signals, take_order(self._run_directory))
            self._pass_signals_on()
            self._console.handle(event for event in events if event["kind"] != "judge")
            for event in events:
                if self._session is not None:
                    self._session.handle(event)
                self._handle(event)
            if time.monotonic() >= next_look and (look is None or look.is_set()):
                look = self._desk.do(self._look_for_stop)
                next_look = time.monotonic() + STATUS_INTERVAL_SECONDS

    def _wind_down(self, error: BaseException) -> None:
        """The client failed: nothing of the run is to go on without it."""
        self._failed = True
        self._run.cancel("kill")
        deadline = time.monotonic() + _WIND_DOWN_SECONDS
        with contextlib.suppress(Exception):
            while not self._run.finished and time.monotonic() < deadline:
                self._beat()
                for event in self._run.next_events(0.5):
                    self._handle(event)
        self._wait(
            self._desk.do(lambda: self._publisher.finish("failed", f"The client failed: {type(error).__name__}"))
        )

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "judge":
            self._tails[event["step"]] = event["log_tail"]
            self._desk.do(lambda: self._judge(event))
        elif kind == "attempt_started":
            self._details[event["step"]] = event["details"]
        elif kind == "attempt_measured":
            self._details[event["step"]] = {**self._details.get(event["step"], {}), **event["usage"]}
        elif kind == "stop_requested":
            self._stops_running |= event["stops_running"]
        elif kind == "step_finished":
            if event["status"] == "stopped":
                self._stopped.append(event["step"])
            details = self._details.get(event["step"])
            self._desk.do(lambda: self._step_finished(event, details))

    def _judge(self, event: dict[str, Any]) -> None:
        stopping = self._stops_running or self._signals > 0 or self._failed
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

    def _step_finished(self, event: dict[str, Any], details: dict[str, Any] | None) -> None:
        step, status = event["step"], event["status"]
        try:
            if status == "failed":
                self._publisher.ensure_failed(step)
            elif status == "stopped":
                self._publisher.ensure_stopped(step)
            if details:
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
            announced = self._desk.do(self._publisher.announce_stop)
            deadline = time.monotonic() + _ANNOUNCE_SECONDS
            # A second signal does not wait, either.
            while not announced.wait(0.05) and self._signals < 2 and time.monotonic() < deadline:
                pass
        while self._escalated < min(self._signals, len(_ESCALATION)):
            self._run.cancel(_ESCALATION[self._escalated])
            self._escalated += 1

    def _finish(self) -> None:
        """Brings the run to its end in ZenML, after everything that is still to be written."""
        if (summary := self._run.summary) is None:
            return
        failure = failure_reason(summary)
        self._wait(self._desk.do(lambda: self._publisher.finish(summary["status"], failure)))

    def _wait(self, done: threading.Event) -> None:
        """Waits for the desk: until the user has had enough, and a little longer."""
        deadline: float | None = None
        while not done.wait(0.05):
            self._beat()
            # Of the run nothing is left to be killed: the second order says what the third signal does.
            if deadline is None and (self._signals >= len(_ESCALATION) or take_order(self._run_directory) >= 2):
                deadline = time.monotonic() + _ABANDON_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                logger.warning(
                    "ZenML's store did not answer: `zenml pipeline runs refresh` puts the run's status right."
                )
                return

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Counts signals that end programs while the run lasts. Python allows handlers in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(_signal: int, _frame: object) -> None:
            self._signals += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        # A terminal that is closed; `nohup` has it ignored, and Windows does not have it.
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            numbers.append(hangup)
        previous = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _end(self) -> None:
        summary = self._run.summary
        if summary is None:
            raise RuntimeError("The run ended without a summary.")
        self._console.summary(summary, self._run_directory)
        raise_unless_completed(summary, self._tails, self._stopped, self._run_directory)


def failure_reason(summary: dict[str, Any]) -> str | None:
    """Says in a line why a run failed.

    Args:
        summary: The run's summary.

    Returns:
        The first failure; none when no step failed.
    """
    from step_engine.console import describe_outcome

    failure = summary["first_failure"]
    return f"Step `{failure['step']}`: {describe_outcome(failure['outcome'])}" if failure else None


def raise_unless_completed(summary: dict[str, Any], tails: dict[str, list[str]], stopped: list[str], logs: str) -> None:
    """Ends a run that did not complete as its caller should see it.

    Args:
        summary: The run's summary.
        tails: Last lines of the steps' logs.
        stopped: Steps that were stopped.
        logs: Where the logs are.

    Raises:
        StepFailedError: A step failed.
        RunInterruptedError: The run was stopped.
    """
    from step_engine.console import describe_outcome
    from step_engine.errors import RunInterruptedError, StepFailedError

    failure = summary["first_failure"]
    if summary["status"] == "failed" and failure:
        tail = tails.get(failure["step"], [])
        lines = "".join(f"\n    {line}" for line in tail)
        message = f"Step `{failure['step']}` failed: {describe_outcome(failure['outcome'])}."
        if tail:
            message += f" Its last output:{lines}"
        raise StepFailedError(f"{message}\nLogs: {logs}", failure["step"], failure["outcome"], tail)
    if summary["status"] == "stopped":
        left = summary["left_running"]
        message = "The run was stopped."
        if left:
            message += f" Containers of these steps may still run: {', '.join(left)}."
        raise RunInterruptedError(message, stopped, left)


def take_order(run_directory: str) -> int:
    """Takes what `step-engine stop` has left for the owner of a run.

    Args:
        run_directory: The run's directory.

    Returns:
        0 for nothing, 1 to stop what runs with its grace, 2 to kill it.
    """
    from step_engine import orders

    return orders.take(run_directory)


@contextlib.contextmanager
def owner_lock(run_directory: str, lease: Lease | None = None) -> Iterator[Callable[[], None]]:
    """Holds the lease that says that a run's owner lives.

    Args:
        run_directory: The run's directory.
        lease: The lease, if this process has it.

    Yields:
        What shows that the owner lives; to be called every few seconds.

    Raises:
        RunOwnedError: Another process drives the run.
    """
    from step_engine.errors import RunOwnedError
    from step_engine.lease import BEAT_SECONDS, Lease

    try:
        lease = lease or Lease.take(run_directory)
    except OSError as error:
        # Like logs that cannot be kept, no reason not to run.
        logger.warning(
            "The run directory %s cannot be written (%s): `zenml pipeline runs refresh` cannot tell whether this "
            "process lives.",
            run_directory,
            error.strerror,
        )
    last = time.monotonic()

    def beat() -> None:
        nonlocal last, lease
        if time.monotonic() - last < BEAT_SECONDS:
            return
        last = time.monotonic()
        if lease is not None:
            lease.beat()
            return
        # There may be room by now, and the journal begins then, too.
        with contextlib.suppress(OSError, RunOwnedError):
            lease = Lease.take(run_directory)

    try:
        yield beat
    finally:
        if lease is not None:
            lease.release()
