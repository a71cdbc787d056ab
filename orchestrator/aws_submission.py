"""Starts executions and makes schedules: what the Step Functions orchestrator does in the client."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from zenml.client import Client
from zenml.logger import get_logger
from zenml.orchestrators import SubmissionResult

from orchestrator import aws_plan, aws_schedule, aws_secrets
from orchestrator.aws_deployment import Deployment, collect, deploy
from orchestrator.names import METADATA_SCHEDULE, METADATA_SCHEDULE_GROUP
from orchestrator.publishing import RunPublisher, expected_seconds, set_orchestrator_run_id

if TYPE_CHECKING:
    from step_engine import AwsSession
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, ScheduleResponse, ScheduleUpdate
    from zenml.stack import Stack

    from orchestrator.my_aws_orchestrator import StepFunctionsOrchestrator
    from orchestrator.my_aws_orchestrator_flavor import (
        StepFunctionsOrchestratorConfig,
        StepFunctionsOrchestratorSettings,
    )

logger = get_logger(__name__)


def prepare(
    orchestrator: StepFunctionsOrchestrator,
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    stack: Stack,
    step_environments: dict[str, dict[str, str]],
) -> Deployment:
    """Deploys a pipeline, unless it is as it was before.

    Args:
        orchestrator: The component.
        session: The session.
        snapshot: The snapshot, pruned of cached steps.
        stack: The stack.
        step_environments: Environment of each step. Not changed.

    Returns:
        The deployment.

    Raises:
        PlanError: The component's config or a setting is wrong.
        AwsError: AWS refused something.
        AslError: The pipeline cannot become a state machine.
    """
    check(orchestrator)
    deployment = deploy(
        session,
        snapshot,
        config=orchestrator.config,
        settings=settings_of(orchestrator, snapshot),
        step_settings={name: settings_of(orchestrator, step) for name, step in snapshot.step_configurations.items()},
        step_environments=step_environments,
        image=lambda name: orchestrator.get_image(snapshot=snapshot, step_name=name),
        bucket=aws_plan.bucket_of(stack.artifact_store.path),
        component_id=orchestrator.id,
        expected_seconds=expected_seconds(snapshot),
    )
    for arn in deployment.created:
        logger.info("Created %s", arn)
    return deployment


def check(orchestrator: StepFunctionsOrchestrator) -> None:
    """Looks at the component's config before anything is made.

    Args:
        orchestrator: The component.

    Raises:
        PlanError: It is wrong.
    """
    from step_engine.errors import PlanError

    mistakes = aws_plan.check_config(orchestrator.config)
    if mistakes:
        raise PlanError(f"The orchestrator `{orchestrator.name}` is not set up rightly: {' '.join(mistakes)}")
    if orchestrator.config.secrets_backend == "none":
        logger.warning(
            "secrets_backend is none: the token with which steps talk to ZenML, and other secrets, can be read by "
            "everybody who may read task definitions and executions."
        )


def settings_of(orchestrator: StepFunctionsOrchestrator, container: Any) -> StepFunctionsOrchestratorSettings:
    """Reads the settings of a pipeline or a step.

    Args:
        orchestrator: The component.
        container: A snapshot or a step.

    Returns:
        The settings, with those of the component as defaults.
    """
    from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorSettings

    return cast(StepFunctionsOrchestratorSettings, orchestrator.get_settings(container))


def start(
    orchestrator: StepFunctionsOrchestrator,
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    deployment: Deployment,
    placeholder_run: PipelineRunResponse,
) -> SubmissionResult:
    """Starts an execution.

    Args:
        orchestrator: The component.
        session: The session.
        snapshot: The snapshot, pruned of cached steps.
        deployment: The deployment.
        placeholder_run: The run as ZenML created it.

    Returns:
        The run's metadata, and how to watch it.
    """
    run_id = str(placeholder_run.id)
    return launch(
        orchestrator,
        session,
        snapshot,
        deployment,
        run=placeholder_run,
        publisher=RunPublisher(placeholder_run.id, orchestrator.id),
        orchestrator_run_id=run_id,
        name=run_id,
        execution_input=lambda secret: aws_plan.execution_input(snapshot.id, secret),
        step_names=list(snapshot.step_configurations),
    )


def launch(
    orchestrator: StepFunctionsOrchestrator,
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    deployment: Deployment,
    *,
    run: PipelineRunResponse,
    publisher: RunPublisher,
    orchestrator_run_id: str,
    name: str,
    execution_input: Callable[[str], dict[str, str]],
    step_names: list[str],
    others: dict[str, str] | None = None,
    at_end: Callable[[str], None] = lambda _: None,
) -> SubmissionResult:
    """Starts an execution of a static or a dynamic pipeline.

    Args:
        orchestrator: The component.
        session: The session.
        snapshot: The snapshot.
        deployment: The deployment.
        run: The run in ZenML.
        publisher: The run's rows in ZenML.
        orchestrator_run_id: The orchestrator's id of the run.
        name: Name of the execution.
        execution_input: Gives the input for where the run's secret is.
        step_names: Names of the machine's steps.
        others: Tasks that the machine's own start, see `step_engine.AwsRun`.
        at_end: What else to do with the execution once its end was seen.

    Returns:
        The run's metadata, and how to watch it.
    """
    config, run_id = orchestrator.config, str(run.id)
    is_watched = settings_of(orchestrator, snapshot).synchronous

    def tidy() -> None:
        if deployment.created:
            collect(session, config, aws_plan.pipeline_name(snapshot.pipeline_configuration.name))

    if not is_watched:
        # Not after the start: a Ctrl-C there would make ZenML believe that nothing runs.
        tidy()
    # Of the execution: a run that is gone on with has another one, whose secret must outlive this one's end.
    secret = aws_secrets.run_secret_name(config.secrets_prefix, name)
    location = _keep_secret(config, session, secret, deployment)
    try:
        # Before the start: the first task must find the run, and `zenml pipeline runs stop` needs it.
        if run.orchestrator_run_id is None:
            set_orchestrator_run_id(run.id, orchestrator_run_id)
        arn = session.start(deployment.machine_arn, name=name, input=execution_input(location))
    except BaseException as error:
        if _is_unanswered(error):
            _stop_unanswered(session, deployment.machine_arn, name)
        forget_secret(config, session, secret)
        raise
    metadata: dict[str, Any] = orchestrator.run_metadata(orchestrator_run_id, arn)
    if deployment.estimated_dollars is not None:
        metadata["estimated_cost_usd"] = round(deployment.estimated_dollars, 6)
    # At once, so that the run can be stopped.
    publisher.publish_run_metadata(metadata)
    url = str(metadata["orchestrator_url"])
    logger.info("The execution: %s", url)

    if not is_watched:
        logger.info("Its status: zenml pipeline runs refresh %s", run_id)
        return SubmissionResult(metadata=metadata)

    def clean_up() -> None:
        at_end(arn)
        forget_secret(config, session, secret)
        # Not between the start and the watch: a Ctrl-C there would make ZenML believe that nothing runs.
        tidy()

    def watch() -> None:
        from step_engine import AwsRun

        from orchestrator import aws_status
        from orchestrator.watching import Watcher

        Watcher(
            session,
            AwsRun(session, arn, deployment.plan, others=others),
            publisher,
            step_names,
            url=url,
            renew=lambda: orchestrator.renew(session),
            is_current=lambda: aws_status.is_current(run, arn),
            clean_up=clean_up,
        ).watch()

    return SubmissionResult(metadata=metadata, wait_for_completion=watch)


def _keep_secret(
    config: StepFunctionsOrchestratorConfig, session: AwsSession, name: str, deployment: Deployment
) -> str:
    """Stores what is new for each run; gives where the tasks find it."""
    if config.secrets_backend != "none" and deployment.run_secrets:
        session.put_secret(
            config.secrets_backend,
            name,
            aws_secrets.secret_text(deployment.run_secrets),
            tags={"step-engine": "run-secret"},
            kms_key=config.kms_key,
        )
    return aws_secrets.secret_location(config.secrets_backend, name, deployment.run_secrets)


def _is_unanswered(error: BaseException) -> bool:
    """Whether nobody knows what AWS made of the request: it did not answer, or nobody waited for that."""
    from step_engine.errors import AwsError

    if isinstance(error, AwsError):
        # The service may have failed after it had done what it was asked for.
        return error.code in ("NoAnswer", "Timeout") or error.code.startswith(("Internal", "Server", "ServiceUnavail"))
    return not isinstance(error, Exception)


def _stop_unanswered(session: AwsSession, machine_arn: str, name: str) -> None:
    """Stops an execution that may have been started, for a run that ZenML will call failed."""
    from step_engine.errors import AwsError

    arn = f"{machine_arn.replace(':stateMachine:', ':execution:')}:{name}"
    try:
        session.stop(arn, cause="Nobody knew whether it had been started.", grace_seconds=0.0)
    except AwsError as error:
        if error.code != "ExecutionDoesNotExist":
            logger.warning("Whether an execution was started is not known; look for %s: %s", arn, error)


def forget_secret(config: StepFunctionsOrchestratorConfig, session: AwsSession, name: str) -> None:
    """Deletes the secret of a run that is over.

    Args:
        config: The component's config.
        session: The session.
        name: Name of the secret.
    """
    from step_engine.errors import AwsError

    if config.secrets_backend == "none":
        return
    try:
        session.delete_secret(config.secrets_backend, name)
    except AwsError as error:
        logger.warning("The secret %s could not be deleted (its token ends with the run): %s", name, error)


def make_schedule(
    orchestrator: StepFunctionsOrchestrator,
    session: AwsSession,
    snapshot: PipelineSnapshotResponse,
    prepared: Callable[[], Deployment],
) -> SubmissionResult:
    """Makes a schedule that starts executions.

    Args:
        orchestrator: The component.
        session: The session.
        snapshot: The snapshot.
        prepared: Deploys the pipeline; not called for a schedule that cannot be.

    Returns:
        The schedule's metadata.

    Raises:
        ValueError: EventBridge Scheduler cannot express the schedule.
        AwsError: AWS refused something.
    """
    schedule, config = snapshot.schedule, orchestrator.config
    if schedule is None:
        raise ValueError("there is no schedule")
    arguments = aws_schedule.schedule_arguments(schedule, config.schedule_timezone, datetime.now(timezone.utc))
    deployment = prepared()
    name = aws_schedule.schedule_name(aws_plan.pipeline_name(snapshot.pipeline_configuration.name), schedule.id)
    # Its runs have one token, which ends with the schedule.
    secret = aws_secrets.run_secret_name(config.secrets_prefix, str(schedule.id), schedule=True)
    location = _keep_secret(config, session, secret, deployment)
    try:
        made = session.put_schedule(
            name,
            state_machine_arn=deployment.machine_arn,
            role_arn=config.scheduler_role or config.state_machine_role or config.execution_role,
            input=aws_plan.execution_input(snapshot.id, location),
            group=config.schedule_group,
            description=f"ZenML schedule {schedule.name}"[:512],
            **arguments,
        )
        if schedule.catchup:
            logger.warning("EventBridge Scheduler does not catch up on missed starts.")
        logger.info("The schedule `%s` acts: %s", name, arguments["expression"])
        metadata: dict[str, Any] = {METADATA_SCHEDULE: name, "schedule_arn": made["arn"]}
        if config.schedule_group:
            metadata[METADATA_SCHEDULE_GROUP] = config.schedule_group
        return SubmissionResult(metadata=metadata)
    except BaseException as error:
        if _is_unanswered(error):
            _remove_unanswered(session, name, config.schedule_group)
        forget_secret(config, session, secret)
        raise


def _remove_unanswered(session: AwsSession, name: str, group: str | None) -> None:
    """Removes a schedule that may have been made, of which ZenML will know nothing."""
    from step_engine.errors import AwsError

    try:
        session.delete_schedule(name, group=group)
    except AwsError as error:
        logger.warning("Whether a schedule was made is not known; look for %s in EventBridge: %s", name, error)


def _scheduled(config: StepFunctionsOrchestratorConfig, schedule: ScheduleResponse) -> tuple[str, str | None]:
    """Name and group of a schedule in EventBridge. ZenML may not have been told: then those that it would be given."""
    name = schedule.run_metadata.get(METADATA_SCHEDULE)
    if name:
        group = schedule.run_metadata.get(METADATA_SCHEDULE_GROUP)
        return str(name), str(group) if group else None
    if schedule.pipeline_id is None:
        raise RuntimeError(f"ZenML does not know which schedule of EventBridge `{schedule.name}` is.")
    pipeline = Client().get_pipeline(schedule.pipeline_id, hydrate=False).name
    return aws_schedule.schedule_name(aws_plan.pipeline_name(pipeline), schedule.id), config.schedule_group


def change_schedule(
    config: StepFunctionsOrchestratorConfig, session: AwsSession, schedule: ScheduleResponse, update: ScheduleUpdate
) -> None:
    """Changes when a schedule acts, or whether it does.

    Args:
        config: The component's config.
        session: The session.
        schedule: The schedule.
        update: What is to change.

    Raises:
        RuntimeError: EventBridge has no such schedule.
        ValueError: EventBridge cannot express the new cron expression.
    """
    name, group = _scheduled(config, schedule)
    missing = RuntimeError(f"EventBridge Scheduler has no schedule `{name}` any more; delete this one.")
    if update.cron_expression is not None:
        expression = aws_schedule.cron_expression(update.cron_expression)
        found = session.get_schedule(name, group=group)
        if found is None:
            raise missing
        found.pop("arn", None)
        found["expression"] = expression
        if update.active is not None:
            found["enabled"] = update.active
        session.put_schedule(**found, create=False)
    elif update.active is not None and not session.set_schedule_enabled(name, update.active, group=group):
        raise missing


def remove_schedule(config: StepFunctionsOrchestratorConfig, session: AwsSession, schedule: ScheduleResponse) -> None:
    """Deletes a schedule, and the secret of its runs. Executions that run go on.

    Args:
        config: The component's config.
        session: The session.
        schedule: The schedule.
    """
    name, group = _scheduled(config, schedule)
    if not session.delete_schedule(name, group=group):
        logger.warning("EventBridge Scheduler has no schedule `%s` any more.", name)
    forget_secret(config, session, aws_secrets.run_secret_name(config.secrets_prefix, str(schedule.id), schedule=True))
