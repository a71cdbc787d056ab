"""What the Docker orchestrator does inside the orchestration container of a dynamic run: it asks the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.enums import ExecutionStatus
from zenml.logger import get_logger
from zenml.orchestrators import ContainerizedOrchestrator

from orchestrator.container import control

if TYPE_CHECKING:
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import StepRunResponse

logger = get_logger(__name__)


class IsolatedSteps(ContainerizedOrchestrator):
    """Isolated steps by way of the control socket."""

    def submit_isolated_step(self, step_run_info: StepRunInfo, environment: dict[str, str]) -> None:
        """Has the host run a step in a container of its own. Called in the orchestration container.

        Args:
            step_run_info: The step.
            environment: Not used: the host takes nothing from here but the step's name.
        """
        control.call("submit", step_run_info.step_run_id, step_run_info.pipeline_step_name)

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """Asks the host where an isolated step stands. Called in the orchestration container.

        Args:
            step_run: The step run.

        Returns:
            What became of its container.
        """
        return ExecutionStatus(_status(step_run, 0.0))

    def wait_for_isolated_step(self, step_run: StepRunResponse) -> ExecutionStatus:
        """Waits for an isolated step. Called in the orchestration container; returns at the moment that the step ends.

        Args:
            step_run: The step run.

        Returns:
            What became of its container; what ZenML knows when the host cannot tell.
        """
        while True:
            try:
                status = ExecutionStatus(_status(step_run, control.WAIT_SECONDS))
            except control.ControlError as error:
                logger.warning("%s", error)
                return super().wait_for_isolated_step(step_run)
            if status.is_finished:
                return status

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """Has the host stop an isolated step. Called in the orchestration container.

        Args:
            step_run: The step run.
        """
        control.call("stop", step_run.id)


def _status(step_run: StepRunResponse, wait_seconds: float) -> str:
    try:
        return control.call("status", step_run.id, wait_seconds=wait_seconds)
    except control.ControlError as error:
        if not error.unknown:
            raise
        # An orchestration before this one made its row, and died before it could ask for it.
        return control.call("submit", step_run.id, step_run.name)
