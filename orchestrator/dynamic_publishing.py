"""What the owner of a dynamic run writes to ZenML and reads there.

Unlike a static run's, the status of a dynamic one is what somebody sets it to: the orchestration does, and if it died
without a word the owner. Steps are looked up by their step run, for runs below the same root may have steps of the same
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from zenml.enums import ExecutionStatus
from zenml.orchestrators.publish_utils import (
    publish_failed_step_run,
    publish_pipeline_run_status_update,
    publish_stopped_step_run,
)
from zenml.utils.pagination_utils import depaginate

from orchestrator.plan import LEADER
from orchestrator.publishing import STOPPING_STATUSES, RunPublisher, newest_rows, patiently

if TYPE_CHECKING:
    from zenml.models import StepRunResponse

_PAGE = 1000


class DynamicRunPublisher(RunPublisher):
    """Reads and writes the rows of one dynamic run and of the runs below it.

    Args:
        pipeline_run_id: ZenML's id of the run.
        component_id: Id of the orchestrator component.
        step_run_of: Step run of a step's newest attempt, by its name in the plan.
    """

    def __init__(
        self, pipeline_run_id: UUID, component_id: UUID, step_run_of: Callable[[str], UUID | None] = lambda _: None
    ) -> None:
        """Remembers the run; reads nothing yet."""
        super().__init__(pipeline_run_id, component_id)
        self._step_run_of = step_run_of
        self._has_begun = False

    def run_status(self) -> ExecutionStatus:
        """The run's status in ZenML.

        Returns:
            The status.
        """
        status = super().run_status()
        self._has_begun |= status != ExecutionStatus.RESUMING
        return status

    def _is_anothers(self, status: ExecutionStatus) -> bool:
        """Whether the run, paused or failed, is being gone on with already: by somebody who waits for its lease."""
        return status == ExecutionStatus.RESUMING and self._has_begun

    def newest_row(self, step_name: str) -> StepRunResponse | None:
        """The row of a step's newest attempt.

        Args:
            step_name: Name in the plan.

        Returns:
            The row; none for the orchestration, which has none.
        """
        step_run_id = self._step_run_of(step_name)
        if step_run_id is None:
            return None
        return patiently(lambda: self._client.get_run_step(step_run_id, hydrate=False))

    def judge(self, step_name: str, outcome: dict[str, Any], stopping: bool) -> tuple[dict[str, Any], bool]:
        """Judges an attempt that did not exit with 0.

        Args:
            step_name: Name in the plan.
            outcome: How the attempt ended as far as the engine can tell.
            stopping: Whether the run is being stopped.

        Returns:
            How it ended after all, and whether another attempt makes sense.
        """
        if step_name == LEADER:
            return self._judge_orchestration(outcome, stopping)
        # One step can be stopped, too, while the run goes on.
        stopped = stopping or outcome["kind"] == "stopped"
        judged = super().judge(step_name, outcome, stopped)
        if stopped:
            self.ensure_stopped(step_name)
        return judged

    def _judge_orchestration(self, outcome: dict[str, Any], stopping: bool) -> tuple[dict[str, Any], bool]:
        status = self.run_status()
        if status.is_successful or status == ExecutionStatus.PAUSED:
            # It had reported before its process died.
            return {"kind": "completed"}, False
        if stopping or status in STOPPING_STATUSES:
            return {"kind": "stopped"}, False
        if self._is_anothers(status):
            return outcome, False
        # ZenML goes on with a run whose orchestration was killed: what completed is not run again. An orchestration
        # that failed by itself would do so again.
        killed = outcome["kind"] in ("lost", "out_of_memory") or outcome.get("code", 0) > 128
        return outcome, killed and not status.is_finished

    def ensure_failed(self, step_name: str) -> None:
        """Makes sure that no row of a step that failed for good is unfinished.

        Args:
            step_name: Name in the plan.
        """
        row = self.newest_row(step_name)
        if row is not None:
            self._end([row], "failed")

    def fail_unfinished(self) -> None:
        """Counts attempts that ran under a dead owner as failed ones: what is left of them was removed."""
        for run_id in [self.pipeline_run_id, *self._unfinished_children()]:
            for row in self._unfinished_rows(run_id):
                if row.status != ExecutionStatus.RETRYING:
                    self._quietly(partial(publish_failed_step_run, row.id))

    def finish(self, status: str, reason: str | None) -> None:
        """Brings the run to its end, with its steps and the runs below it, as far as they did not do so themselves.

        Args:
            status: `completed`, `failed` or `stopped`.
            reason: Why it did not complete; at most 255 characters are kept.
        """
        now = self.run_status()
        if (now == ExecutionStatus.PAUSED and status == "completed") or self._is_anothers(now):
            return
        runs = [*self._unfinished_children(), *([] if now.is_finished else [self.pipeline_run_id])]
        if status == "completed" and not runs:
            return
        for run_id in {self.pipeline_run_id, *runs}:
            self._end(self._unfinished_rows(run_id), status)
        ended = ExecutionStatus.STOPPED if status == "stopped" else ExecutionStatus.FAILED
        why = (reason or ("Stopped." if status == "stopped" else "The orchestration ended without a word."))[:255]
        for run_id in runs:
            self._set_status(run_id, ended, why)

    def _set_status(self, run_id: UUID, status: ExecutionStatus, reason: str) -> None:
        self._quietly(lambda: publish_pipeline_run_status_update(run_id, status, status_reason=reason))

    def _unfinished_children(self) -> list[UUID]:
        unfinished, parents = [], [self.pipeline_run_id]
        while parents:
            parent = parents.pop()
            runs: list[Any] = patiently(
                partial(depaginate, self._client.list_pipeline_runs, parent_run_id=parent, size=_PAGE, hydrate=False)
            )
            parents += [run.id for run in runs]
            unfinished += [run.id for run in runs if not run.status.is_finished]
        return unfinished

    def _unfinished_rows(self, run_id: UUID) -> list[StepRunResponse]:
        return [row for row in patiently(partial(newest_rows, run_id)) if not row.status.is_finished]

    def _end(self, rows: Iterable[StepRunResponse], status: str) -> None:
        for row in rows:
            if row.status.is_finished:
                continue
            if status != "stopped":
                self._quietly(partial(publish_failed_step_run, row.id))
                ended = patiently(partial(self._client.get_run_step, row.id, hydrate=False))
                if ended.status.is_finished:
                    continue
            # Also one that the server would have tried again: nobody will.
            self._quietly(partial(publish_stopped_step_run, row.id))
