"""Where a run on Step Functions stands, and how it is stopped, from any process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.logger import get_logger

from orchestrator import aws_dynamic, aws_secrets
from orchestrator.aws_submission import forget_secret
from orchestrator.dynamic_publishing import DynamicRunPublisher
from orchestrator.names import METADATA_EXECUTION
from orchestrator.publishing import RunPublisher, newest_rows, patiently
from orchestrator.watching import execution_reason

if TYPE_CHECKING:
    from step_engine import AwsSession
    from zenml.models import PipelineRunResponse

    from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator

logger = get_logger(__name__)

STOP_SECONDS = 60.0
"""How long a graceful stop waits for the tasks, at least."""

_STATUSES = {
    "running": ExecutionStatus.RUNNING,
    "retrying": ExecutionStatus.RETRYING,
    "completed": ExecutionStatus.COMPLETED,
    "failed": ExecutionStatus.FAILED,
    "stopped": ExecutionStatus.STOPPED,
}


def execution_of(run: PipelineRunResponse) -> str | None:
    """Finds the execution of a run.

    Args:
        run: The run.

    Returns:
        Its ARN; none when ZenML was not told.
    """
    arn = run.run_metadata.get(METADATA_EXECUTION)
    return str(arn) if arn else None


def is_current(run: PipelineRunResponse, execution_arn: str) -> bool:
    """Tells whether an execution is the newest one of its run, as far as ZenML knows by now.

    Args:
        run: The run as it was when the execution was started.
        execution_arn: The execution.

    Returns:
        False when somebody goes on with the run, or is about to.
    """
    now = patiently(lambda: Client().get_pipeline_run(run.id))
    if now.status == ExecutionStatus.RESUMING and run.status != ExecutionStatus.RESUMING:
        return False
    return execution_of(now) in (None, execution_arn)


def stop(
    orchestrator: StepFunctionsOrchestrator, session: AwsSession, run: PipelineRunResponse, graceful: bool
) -> None:
    """Stops the execution and its tasks. ZenML has published `stopping` before.

    Args:
        orchestrator: The component.
        session: The session.
        run: The run.
        graceful: Wait longer for the tasks to end by themselves after SIGTERM; ECS kills them after their grace anyway.

    Raises:
        RuntimeError: ZenML does not know the execution.
        AwsError: It cannot be stopped.
    """
    from step_engine.errors import AwsError

    arn = execution_of(run)
    if arn is None:
        raise RuntimeError("ZenML does not know which execution this run is; stop it in the AWS console.")
    grace = aws_dynamic.seconds_to_end(orchestrator.config)
    wait = max(STOP_SECONDS, grace * 2) if graceful else grace
    others = aws_dynamic.others(orchestrator.config, run)
    try:
        stopped = session.stop(arn, cause="zenml pipeline runs stop", grace_seconds=wait, others=others)
        if stopped["left_running"]:
            logger.warning("These tasks are still stopping: %s", ", ".join(stopped["left_running"]))
    except AwsError as error:
        if others is None or error.operation not in ("ListTasks", "StopTask"):
            raise
        # The execution is stopped nevertheless.
        logger.warning("Isolated steps may still run: %s", error)
    publisher = _publisher(orchestrator, run)
    for row in newest_rows(run.id):
        publisher.ensure_stopped(row.name)
    publisher.finish("stopped", "Manual stop requested.")
    _forget_run_secret(orchestrator, session, run)


def status(
    orchestrator: StepFunctionsOrchestrator, session: AwsSession, run: PipelineRunResponse, include_steps: bool
) -> tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]:
    """Asks Step Functions where a run stands, and puts right what its containers could not report.

    Args:
        orchestrator: The component.
        session: The session.
        run: The run.
        include_steps: Whether to tell of the steps.

    Returns:
        Status of the run and of its steps; none where ZenML knows better already.
    """
    arn = execution_of(run)
    if arn is None:
        return None, None
    if run.status == ExecutionStatus.RESUMING:
        # What is known of it may be the execution before; who resumes it tells the new one in a moment.
        return run.status, None
    execution = session.describe_execution(arn)
    running = execution["status"] in ("RUNNING", "PENDING_REDRIVE")
    others = aws_dynamic.others(orchestrator.config, run)
    if others and not running:
        aws_dynamic.stop_others(session, arn, others)
    if run.status.is_finished:
        # Its last step told ZenML itself, while nobody watched who would have deleted the secret.
        if not running:
            _forget_run_secret(orchestrator, session, run)
        return None, None
    found: dict[str, dict[str, Any]] = {}
    # The steps of a dynamic run are none of its machine's, and their rows are what ZenML knows of them.
    include_steps = include_steps and not others
    if (include_steps or not running) and not others:
        names = list(run.snapshot.step_configurations) if run.snapshot else [row.name for row in newest_rows(run.id)]
        found = session.execution_steps(arn, names)
    steps = {name: _STATUSES[step["status"]] for name, step in found.items() if step["status"] in _STATUSES}
    if running:
        return run.status, (steps if include_steps else None)
    publisher = _publisher(orchestrator, run)
    for name, step in found.items():
        if step["status"] == "failed":
            # A container that was killed or never started left no word, or too few.
            publisher.ensure_failed(name)
        elif step["status"] in ("stopped", "running", "retrying"):
            publisher.ensure_stopped(name)
    stopped = execution["status"] == "ABORTED" or run.status == ExecutionStatus.STOPPING
    ended = "completed" if execution["status"] == "SUCCEEDED" else "failed"
    publisher.finish("stopped" if stopped else ended, execution_reason(execution))
    _forget_run_secret(orchestrator, session, run)
    return publisher.run_status(), (steps if include_steps else None)


def _publisher(orchestrator: StepFunctionsOrchestrator, run: PipelineRunResponse) -> RunPublisher:
    is_dynamic = run.snapshot is not None and run.snapshot.is_dynamic
    return (DynamicRunPublisher if is_dynamic else RunPublisher)(run.id, orchestrator.id)


def _forget_run_secret(orchestrator: StepFunctionsOrchestrator, session: AwsSession, run: PipelineRunResponse) -> None:
    # Runs of a schedule share a secret, which ends with the schedule.
    if run.schedule is None:
        config = orchestrator.config
        name = (execution_of(run) or str(run.id)).rpartition(":")[2]
        forget_secret(config, session, aws_secrets.run_secret_name(config.secrets_prefix, name))
