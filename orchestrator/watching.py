"""Watches an execution of Step Functions: its events go to the console and to ZenML. Watching changes nothing there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zenml.logger import get_logger
from zenml.metadata.metadata_types import Uri

from orchestrator import aws_cost, names
from orchestrator.driving import Desk, failure_reason, raise_unless_completed

if TYPE_CHECKING:
    from step_engine import AwsRun, AwsSession

    from orchestrator.publishing import RunPublisher

logger = get_logger(__name__)

RENEW_SECONDS = 300.0
"""Credentials are renewed so long before they end."""

RENEW_PAUSE_SECONDS = 30.0
"""So long after a renewal that failed comes the next one."""


class Watcher:
    """Watches one execution to its end.

    Args:
        session: The session that watches.
        run: A run that is not watched yet.
        publisher: The run's rows in ZenML.
        step_names: Names of the steps, in the plan's order.
        url: Page of the execution, for people.
        renew: Gives the session new credentials.
        is_current: Whether the run has no newer execution, which would be another one's to tell of.
        clean_up: What to do once the end was seen, whatever it is.
    """

    def __init__(
        self,
        session: AwsSession,
        run: AwsRun,
        publisher: RunPublisher,
        step_names: list[str],
        *,
        url: str,
        renew: Callable[[], None],
        clean_up: Callable[[], None],
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepares the console."""
        from step_engine.console import Console

        self._session = session
        self._run = run
        self._publisher = publisher
        self._url = url
        self._renew = renew
        self._clean_up = clean_up
        self._is_current = is_current
        self._console = Console(step_names)
        self._renewal: threading.Event | None = None
        self._next_renewal = 0.0
        self._logs: dict[tuple[str, int], tuple[str, str]] = {}
        self._tasks: list[dict[str, Any]] = []
        self._tails: dict[str, list[str]] = {}
        self._stopped: list[str] = []
        self._execution: dict[str, Any] = {}

    def watch(self) -> None:
        """Watches to the end.

        Raises:
            StepFailedError: A step failed.
            RunInterruptedError: The run was stopped.
            AwsError: The execution ended before a step could fail, or cannot be watched any longer.
            KeyboardInterrupt: The user has seen enough; the run goes on.
        """
        self._desk = Desk()
        try:
            self._run.start()
            while not self._run.finished:
                events = self._next_events()
                self._console.handle(events)
                for event in events:
                    self._handle(event)
                self._keep_credentials()
            self._console.close()
            if self._run.summary is not None:
                self._desk.do(lambda: self._finish(self._run.summary or {})).wait()
                self._desk.do(self._clean_up).wait()
        except KeyboardInterrupt:
            self._console.close()
            self._run.cancel()
            logger.info("Nobody watches any more, the run goes on: %s", self._url)
            raise
        except BaseException:
            self._console.close()
            self._run.cancel()
            raise
        finally:
            self._desk.close()
        self._end()

    def _next_events(self) -> list[dict[str, Any]]:
        from step_engine.errors import AwsError

        try:
            return self._run.next_events(0.5)
        except AwsError as error:
            message = (
                f"The watching ends, the execution may still run: {self._url}\n"
                f"Its status: zenml pipeline runs refresh {self._publisher.pipeline_run_id}\n{error}"
            )
            raise AwsError(message, error.operation, error.code, error.request_id) from error

    def _keep_credentials(self) -> None:
        left = self._session.credentials_expire_in_seconds
        if left is None or left > RENEW_SECONDS or time.monotonic() < self._next_renewal:
            return
        if self._renewal is None or self._renewal.is_set():
            self._next_renewal = time.monotonic() + RENEW_PAUSE_SECONDS
            # In a thread of its own: ZenML's server may take its time.
            self._renewal = self._desk.do(self._renew_credentials)

    def _renew_credentials(self) -> None:
        try:
            self._renew()
        except Exception as error:
            logger.warning("The AWS credentials could not be renewed, trying again: %s", error)

    def _handle(self, event: dict[str, Any]) -> None:
        from step_engine.console import plain

        kind = event["kind"]
        if kind == "attempt_started":
            task = event["details"]["task"]
            if task.get("log_group") and task.get("log_stream"):
                self._logs[event["step"], event["attempt"]] = (task["log_group"], task["log_stream"])
        elif kind == "task_ended":
            self._tasks.append(event)
            self._tails[event["step"]] = [plain(line) for line in event["log_tail"] or []]
            self._desk.do(lambda: self._publish_task(event))
        elif kind == "step_finished":
            if event["status"] == "stopped":
                self._stopped.append(event["step"])
            if event["status"] in ("failed", "stopped"):
                self._desk.do(lambda: self._step_ended(event["step"], event["status"]))
        elif kind == "execution_ended":
            self._execution = event

    def _publish_task(self, event: dict[str, Any]) -> None:
        log = self._logs.get((event["step"], event["attempt"]))
        self._publisher.publish_step_metadata(event["step"], task_metadata(event, log, self._session.region))

    def _step_ended(self, step: str, status: str) -> None:
        if status == "failed":
            # A container that was killed or never started left no word, or too few.
            self._publisher.ensure_failed(step)
        else:
            self._publisher.ensure_stopped(step)

    def _finish(self, summary: dict[str, Any]) -> None:
        """Brings the run to its end in ZenML, after everything that is still to be written."""
        if not self._is_current():
            logger.warning("Another execution goes on with the run; what became of this one changes nothing there.")
            return
        dollars = aws_cost.tasks_dollars(self._tasks)
        if dollars is not None:
            self._publisher.publish_run_metadata({"task_cost_usd": round(dollars, 6)})
        self._publisher.finish(summary["status"], failure_reason(summary) or execution_reason(self._execution))

    def _end(self) -> None:
        from step_engine.errors import AwsError

        summary = self._run.summary
        if summary is None:
            return
        self._console.summary(summary, self._url)
        raise_unless_completed(summary, self._tails, self._stopped, self._url)
        if summary["status"] == "failed":
            reason = execution_reason(self._execution) or "for a reason that it does not tell"
            message = f"The execution failed: {reason}\nExecution: {self._url}"
            raise AwsError(message, "StartExecution", str(self._execution.get("error") or ""))


def execution_reason(execution: dict[str, Any]) -> str | None:
    """Says why an execution did not succeed.

    Args:
        execution: Fields of an `execution_ended` event.

    Returns:
        Error and cause as Step Functions gives them; none when it gives none.
    """
    parts = [str(execution[key]) for key in ("error", "cause") if execution.get(key)]
    if not parts and execution.get("status") == "TIMED_OUT":
        return "the execution timed out (execution_timeout_seconds)"
    return ": ".join(parts) or None


def task_metadata(task: dict[str, Any], log: tuple[str, str] | None, region: str) -> dict[str, Any]:
    """What ZenML's page of a step tells of its task.

    Args:
        task: Fields of a `task_ended` event.
        log: Log group and stream, if they are known.
        region: Region.

    Returns:
        Metadata.
    """
    arn = task.get("arn")
    metadata: dict[str, Any] = {
        "task_arn": arn,
        "task_definition": task.get("task_definition"),
        "outcome": (task.get("outcome") or {}).get("kind"),
        "exit_code": task.get("exit_code"),
        "stopped_reason": task.get("stopped_reason"),
    }
    if log:
        partition = (names.parse_arn(arn or "") or {}).get("partition", "aws")
        metadata["log_url"] = Uri(names.log_url(region, *log, partition=partition))
    return {name: value for name, value in metadata.items() if value is not None}
