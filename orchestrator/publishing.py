"""What the orchestrator writes back to ZenML, and what it reads there to judge how a step ended.

The step's own process reports its status. It cannot when it is killed: then rows are left `running`, or were never
written. ZenML's server counts attempts by rows, and computes the run's status from the steps' rows; see the comments.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.enums import ExecutionStatus
from zenml.logger import get_logger
from zenml.orchestrators.publish_utils import (
    publish_failed_pipeline_run,
    publish_failed_step_run,
    publish_pipeline_run_metadata,
    publish_pipeline_run_status_update,
    publish_step_run_metadata,
    publish_stopped_step_run,
)
from zenml.utils.pagination_utils import depaginate

if TYPE_CHECKING:
    from zenml.models import PipelineSnapshotResponse, StepRunResponse

logger = get_logger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long a locked database, one without room on its disk, or an absent server is waited for."""

_FULL = ("database or disk is full", "disk I/O error", "unable to open database file")
"""What SQLite says on a full disk: the last two when there is no room for its journal."""

STOPPING_STATUSES = {ExecutionStatus.STOPPING, ExecutionStatus.STOPPED}


def patiently(call: Callable[[], T], patience_seconds: float = PATIENCE_SECONDS) -> T:
    """Repeats a call to ZenML's store while the store is locked or away, or its disk is full.

    Args:
        call: The call.
        patience_seconds: How long to go on.

    Returns:
        What the call returns.

    Raises:
        Exception: What the call raised last, or at once if waiting does not help.
    """
    deadline, pause, told = time.monotonic() + patience_seconds, 0.2, False
    while True:
        try:
            return call()
        except Exception as error:
            if not _is_passing(error) or time.monotonic() + pause > deadline:
                raise
            if not told:
                logger.warning("ZenML's store does not answer, waiting: %s", _in_words(error))
                told = True
            time.sleep(pause)
            pause = min(pause * 2, 5.0)


def _is_passing(error: BaseException) -> bool:
    return any(_passes(cause) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _passes(error: BaseException) -> bool:
    name = type(error).__name__
    if name in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "ChunkedEncodingError"):
        return True
    if name == "OperationalError" and ("locked" in str(error) or "busy" in str(error) or _is_full(error)):
        return True
    return name == "HTTPError" and getattr(getattr(error, "response", None), "status_code", 0) in (502, 503, 504)


def _is_full(error: BaseException) -> bool:
    return type(error).__name__ == "OperationalError" and any(text in str(error) for text in _FULL)


def _in_words(error: BaseException) -> str:
    """What a store's error is, without the statement and the values in it."""
    path = _database_path() if any(map(_is_full, _causes(error))) else None
    if path is None:
        return type(error).__name__
    try:
        free = shutil.disk_usage(Path(path).parent).free
    except OSError:
        return f"{path} cannot be written"
    return f"{path} cannot be written, {free} bytes are free there"


def _database_path() -> str | None:
    """ZenML's SQLite file, if it uses one."""
    engine: Any = getattr(GlobalConfiguration().zen_store, "_engine", None)
    return engine.url.database if engine is not None and engine.dialect.name == "sqlite" else None


def set_orchestrator_run_id(pipeline_run_id: UUID, run_id: str) -> None:
    """Tells ZenML the orchestrator's id of a run, without which it refuses to stop it.

    Args:
        pipeline_run_id: ZenML's id of the run.
        run_id: The orchestrator's.
    """
    from zenml.models import PipelineRunUpdate

    update = PipelineRunUpdate(orchestrator_run_id=run_id)
    patiently(lambda: Client().zen_store.update_run(pipeline_run_id, update))


def expected_seconds(snapshot: PipelineSnapshotResponse) -> dict[str, float]:
    """Step durations of a pipeline's last completed run, for the order in which ready steps start.

    Args:
        snapshot: The snapshot.

    Returns:
        Seconds by step; empty when nothing is known, or nothing depends on it.
    """
    if snapshot.pipeline is None or len(snapshot.step_configurations) < 3:
        return {}
    try:
        runs = Client().list_pipeline_runs(
            pipeline_id=snapshot.pipeline.id, status="completed", sort_by="desc:created", size=1, hydrate=False
        )
        if not runs.items:
            return {}
        steps = Client().list_run_steps(pipeline_run_id=runs.items[0].id, status="completed", size=1000, hydrate=False)
        return {
            step.name: max((step.end_time - step.start_time).total_seconds(), 0.0)
            for step in steps.items
            if step.start_time and step.end_time
        }
    except Exception as error:
        logger.debug("No durations of earlier runs: %s", error)
        return {}


def newest_rows(pipeline_run_id: UUID) -> list[StepRunResponse]:
    """Looks up the newest attempt of each step of a run, however many there are.

    Args:
        pipeline_run_id: ZenML's id of the run.

    Returns:
        Their rows.
    """
    page = {"exclude_retried": True, "size": 1000, "hydrate": False}
    rows: list[Any] = depaginate(Client().list_run_steps, pipeline_run_id=pipeline_run_id, **page)
    return rows


class RunPublisher:
    """Reads and writes the rows of one run.

    Args:
        pipeline_run_id: ZenML's id of the run.
        component_id: Id of the orchestrator component, under which metadata is filed.
    """

    def __init__(self, pipeline_run_id: UUID, component_id: UUID) -> None:
        """Remembers the run; reads nothing yet."""
        self.pipeline_run_id = pipeline_run_id
        self.component_id = component_id
        self._client = Client()

    def run_status(self) -> ExecutionStatus:
        """The run's status in ZenML.

        Returns:
            The status.
        """
        return patiently(lambda: self._client.get_pipeline_run(self.pipeline_run_id, hydrate=False).status)

    def is_stopping(self) -> bool:
        """Whether somebody asked ZenML to stop the run.

        Returns:
            True if so.
        """
        return self.run_status() in STOPPING_STATUSES

    def is_over_or_anothers(self) -> bool:
        """Whether there is nothing more to say about the run.

        Returns:
            True if ZenML calls it finished, or somebody goes on with it. False if ZenML cannot be asked.
        """
        try:
            status = self.run_status()
        except Exception as error:
            logger.debug("ZenML could not be asked for the run's status: %s", error)
            return False
        return status.is_finished or status == ExecutionStatus.RESUMING

    def newest_row(self, step_name: str) -> StepRunResponse | None:
        """The row of a step's newest attempt.

        Args:
            step_name: Step name.

        Returns:
            The row, if any attempt got as far as writing one.
        """
        page = patiently(
            lambda: self._client.list_run_steps(
                name=step_name,
                pipeline_run_id=self.pipeline_run_id,
                exclude_retried=True,
                sort_by="desc:version",
                size=1,
                hydrate=False,
            )
        )
        return page.items[0] if page.items else None

    def knows_outcome(self, step_name: str) -> bool:
        """Whether everything about a finished step was written.

        Args:
            step_name: Step name.

        Returns:
            True if its row is final and has the outcome among its metadata.
        """
        row = self.newest_row(step_name)
        if row is None or not row.status.is_finished:
            return False
        row_id = row.id
        return "outcome" in patiently(lambda: self._client.get_run_step(row_id).run_metadata)

    def completed(self, step_names: Iterable[str]) -> set[str]:
        """Which steps have done their work.

        Args:
            step_names: Step names.

        Returns:
            Those whose newest row says so.
        """
        rows = ((name, self.newest_row(name)) for name in step_names)
        return {name for name, row in rows if row is not None and row.status.is_successful}

    def judge(self, step_name: str, outcome: dict[str, Any], stopping: bool) -> tuple[dict[str, Any], bool]:
        """Judges an attempt that did not exit with 0.

        Args:
            step_name: Step name.
            outcome: How the attempt ended as far as the engine can tell.
            stopping: Whether the run is being stopped, so that attempts which were running are stopped, not failed.

        Returns:
            How it ended after all, and whether another attempt makes sense.
        """
        row = self.newest_row(step_name)
        status = row.status if row else None
        if status is not None and status.is_successful:
            # The step had reported before its process died.
            return {"kind": "completed"}, False
        if row is not None and status is not None and not status.is_finished and status != ExecutionStatus.RETRYING:
            # Died without a word. The server answers `retrying` while attempts are left.
            row_id = row.id
            if stopping:
                self._quietly(lambda: publish_stopped_step_run(row_id))
            else:
                self._quietly(lambda: publish_failed_step_run(row_id))
            row = self.newest_row(step_name)
            status = row.status if row else None
        if stopping or status in (ExecutionStatus.STOPPED, ExecutionStatus.CANCELLED):
            return {"kind": "stopped"}, False
        return outcome, status != ExecutionStatus.FAILED

    def ensure_failed(self, step_name: str) -> None:
        """Makes sure that a step which failed for good has a final failed row, so that the run can end.

        Args:
            step_name: Step name.
        """
        # Each row that is written counts as an attempt; the server answers `retrying` until none is left.
        for _ in range(100):
            row = self.newest_row(step_name)
            if row is not None and row.status.is_finished:
                return
            if row is not None and row.status != ExecutionStatus.RETRYING:
                if not self._quietly(partial(publish_failed_step_run, row.id)):
                    return
            elif not self._create_failed_row(step_name):
                return

    def ensure_stopped(self, step_name: str) -> None:
        """Makes sure that no row of a stopped step is unfinished.

        Args:
            step_name: Step name.
        """
        row = self.newest_row(step_name)
        if row is not None and not row.status.is_finished:
            row_id = row.id
            self._quietly(lambda: publish_stopped_step_run(row_id))

    def _create_failed_row(self, step_name: str) -> bool:
        from zenml.orchestrators.step_run_utils import StepRunRequestFactory
        from zenml.utils.time_utils import utc_now

        def create() -> None:
            run = self._client.get_pipeline_run(self.pipeline_run_id)
            if run.snapshot is None:
                return
            snapshot = self._client.zen_store.get_snapshot(run.snapshot.id)
            factory = StepRunRequestFactory(snapshot=snapshot, pipeline_run=run, stack=self._client.active_stack)
            request = factory.create_request(step_name)
            try:
                factory.populate_request(request)
            except Exception as error:
                logger.debug("The failed step %s cannot be described in full: %s", step_name, error)
            request.status = ExecutionStatus.FAILED
            request.end_time = utc_now()
            self._client.zen_store.create_run_step(request)

        return self._quietly(create)

    def finish(self, status: str, reason: str | None) -> None:
        """Brings the run's status to its end.

        Args:
            status: `completed`, `failed` or `stopped`.
            reason: Why it did not complete, for the run's page; at most 255 characters are kept.
        """
        if self.run_status().is_finished:
            return
        if status == "stopped":
            # The status of a static run is computed: a request for `stopping` gives `stopped` once no step is
            # unfinished, a request for `stopped` gives `running`.
            self._quietly(
                lambda: publish_pipeline_run_status_update(
                    self.pipeline_run_id, ExecutionStatus.STOPPING, status_reason=(reason or "Stopped.")[:255]
                )
            )
        elif status == "failed":
            self._quietly(
                lambda: publish_pipeline_run_status_update(
                    self.pipeline_run_id, ExecutionStatus.FAILED, status_reason=(reason or "A step failed.")[:255]
                )
            )
        if status == "failed" and not self.run_status().is_finished:
            self._quietly(lambda: publish_failed_pipeline_run(self.pipeline_run_id))

    def announce_stop(self) -> None:
        """Tells ZenML that the run is being stopped. Steps look there when they get SIGTERM, so this comes first."""
        self._quietly(
            lambda: publish_pipeline_run_status_update(
                self.pipeline_run_id, ExecutionStatus.STOPPING, status_reason="Stopped by its owner."
            )
        )

    def publish_run_metadata(self, metadata: dict[str, Any]) -> None:
        """Files metadata of the run.

        Args:
            metadata: Names and values.
        """
        self._quietly(lambda: publish_pipeline_run_metadata(self.pipeline_run_id, {self.component_id: metadata}))

    def publish_step_metadata(self, step_name: str, metadata: dict[str, Any]) -> None:
        """Files metadata of a step's newest attempt.

        Args:
            step_name: Step name.
            metadata: Names and values.
        """
        row = self.newest_row(step_name)
        if row is not None:
            row_id = row.id
            self._quietly(lambda: publish_step_run_metadata(row_id, {self.component_id: metadata}))

    def _quietly(self, call: Callable[[], object]) -> bool:
        """Writes; a refusal (the row is finished, the token has ended) is not the user's matter."""
        try:
            patiently(call)
        except Exception as error:
            logger.debug("ZenML did not take an update: %s: %s", type(error).__name__, error)
            return False
        return True
