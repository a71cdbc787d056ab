"""The Step Functions orchestrator: ZenML's interface on the step engine's core."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from zenml.client import Client
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID, METADATA_ORCHESTRATOR_URL
from zenml.enums import ExecutionMode, ExecutionStatus, StackComponentType
from zenml.logger import get_logger
from zenml.metadata.metadata_types import Uri
from zenml.orchestrators import ContainerizedOrchestrator, SubmissionResult
from zenml.stack import StackValidator

from orchestrator import aws_plan, aws_schedule, aws_secrets
from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorConfig, StepFunctionsOrchestratorSettings
from orchestrator.plan import ENV_RUN_ID

if TYPE_CHECKING:
    from uuid import UUID

    from step_engine import AwsSession
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.metadata.metadata_types import MetadataType
    from zenml.models import (
        PipelineRunResponse,
        PipelineSnapshotResponse,
        ScheduleResponse,
        ScheduleUpdate,
    )
    from zenml.stack import Stack

    from orchestrator.aws_deployment import Deployment

logger = get_logger(__name__)

METADATA_EXECUTION = "execution_arn"
METADATA_SCHEDULE = "schedule_name"
METADATA_SCHEDULE_GROUP = "schedule_group"
"""Names under which ZenML keeps what stopping and refreshing need."""

STOP_SECONDS = 60.0
"""How long a graceful stop waits for the tasks, at least."""


class StepFunctionsOrchestrator(ContainerizedOrchestrator):
    """Runs a pipeline as an execution of AWS Step Functions, every step as an ECS task."""

    @property
    def config(self) -> StepFunctionsOrchestratorConfig:
        """The component's config.

        Returns:
            The config.
        """
        return cast(StepFunctionsOrchestratorConfig, self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """Class of the settings.

        Returns:
            The class.
        """
        return StepFunctionsOrchestratorSettings

    @property
    def requirements(self) -> set[str]:
        """What a step's image needs for this component.

        Returns:
            Packages.
        """
        # For the run's secret, see `orchestrator.container.run_secret`.
        return {*super().requirements, "boto3"}

    @property
    def validator(self) -> StackValidator:
        """Checks the stack.

        Returns:
            A validator that asks for a container registry, an image builder, and components that tasks can reach.
        """

        def check(stack: Stack) -> tuple[bool, str]:
            mistakes = aws_plan.check_config(self.config)
            if mistakes:
                return False, f"The orchestrator `{self.name}` is not set up rightly: {' '.join(mistakes)}"
            for part in getattr(stack, "all_components", None) or stack.components.values():
                if part.local_path is not None:
                    return False, (
                        f"The {part.type.value} `{part.name}` keeps its data on this machine, where tasks on AWS "
                        "cannot reach it; use one in S3."
                    )
            registry = stack.container_registry
            if registry is not None and registry.config.is_local:
                return (
                    False,
                    f"The container registry `{registry.name}` is on this machine; use one that ECS can reach.",
                )
            return True, ""

        return StackValidator(
            required_components={StackComponentType.CONTAINER_REGISTRY, StackComponentType.IMAGE_BUILDER},
            custom_validation_function=check,
        )

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        """What a failure may do to the rest of a run.

        Returns:
            All of ZenML's modes.
        """
        return [ExecutionMode.FAIL_FAST, ExecutionMode.STOP_ON_FAILURE, ExecutionMode.CONTINUE_ON_FAILURE]

    def get_orchestrator_run_id(self) -> str:
        """The orchestrator's id of the run, inside a task.

        Returns:
            Name of the execution.

        Raises:
            RuntimeError: This is no task of ours.
        """
        try:
            return os.environ[ENV_RUN_ID]
        except KeyError:
            raise RuntimeError(f"{ENV_RUN_ID} is not set: this process is not a step of an execution.") from None

    def get_pipeline_run_metadata(self, run_id: UUID) -> dict[str, MetadataType]:
        """What the first task of a run tells of it. For scheduled runs nobody else does.

        Args:
            run_id: ZenML's id of the run. Not used.

        Returns:
            The execution and its page.
        """
        arn = os.environ.get(aws_plan.ENV_EXECUTION)
        return self._run_metadata(self.get_orchestrator_run_id(), arn) if arn else {}

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """What a task tells of itself, right after the step's function.

        Args:
            info: The step. Not used.

        Returns:
            The task, its log, and the peak of its memory.
        """
        if aws_plan.ENV_EXECUTION not in os.environ:
            return {}
        from orchestrator.container import memory, task

        metadata: dict[str, MetadataType] = {}
        peak = memory.peak_bytes()
        if peak is not None:
            metadata["peak_memory_bytes"] = peak
        found = task.describe()
        if "task_arn" in found:
            metadata["task_arn"] = found["task_arn"]
        if "log_group" in found and "log_stream" in found:
            region = found.get("log_region") or self.config.region
            metadata["log_url"] = Uri(aws_plan.log_url(region, found["log_group"], found["log_stream"]))
        return metadata

    def _run_metadata(self, run_id: str, execution_arn: str) -> dict[str, MetadataType]:
        return {
            METADATA_ORCHESTRATOR_RUN_ID: run_id,
            METADATA_ORCHESTRATOR_URL: Uri(aws_plan.console_url(self.config.region, execution_arn)),
            METADATA_EXECUTION: execution_arn,
        }

    def _credentials(self, renew: bool = False) -> dict[str, Any] | None:
        """Credentials of the service connector, or those in the config; none leaves it to AWS's own chain."""
        if renew:
            # ZenML keeps a connector until its credentials have ended, which is too late for a watch.
            self._connector_instance = None
        if connector := self.get_connector():
            session = connector.connect()
            credentials = session.get_credentials()
            if credentials is None:
                raise RuntimeError("The service connector gives no AWS credentials.")
            frozen = credentials.get_frozen_credentials()
            expires = connector.expires_at
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "session_token": frozen.token,
                "expires_at_unix_seconds": expires.timestamp() if expires else None,
            }
        if self.config.aws_access_key_id:
            return {
                "access_key_id": self.config.aws_access_key_id,
                "secret_access_key": self.config.aws_secret_access_key,
                "session_token": self.config.aws_session_token,
            }
        return None

    def _session(self) -> AwsSession:
        from step_engine import AwsSession

        credentials = self._credentials()
        profile = None if credentials else self.config.aws_profile
        return AwsSession(region=self.config.region, profile=profile, credentials=_without_none(credentials))

    def _renew(self, session: AwsSession) -> None:
        credentials = self._credentials(renew=True)
        if credentials:
            session.set_credentials(_without_none(credentials) or {})

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Starts an execution, or makes a schedule that does.

        Args:
            snapshot: The snapshot, pruned of cached steps.
            stack: The stack.
            base_environment: Not used: every step has its own environment.
            step_environments: Environment of each step. Not changed.
            placeholder_run: The run as ZenML created it; none for a schedule.

        Returns:
            Metadata of the run or of the schedule, and how to watch the run.

        Raises:
            PipelineSubmissionError: A schedule could not be made; ZenML removes its row.
        """
        from step_engine.errors import StepEngineError
        from zenml.orchestrators.exceptions import PipelineSubmissionError

        session = self._session()
        if snapshot.schedule:
            try:
                return self._schedule(session, snapshot, self._deploy(session, snapshot, stack, step_environments))
            except (StepEngineError, ValueError) as error:
                raise PipelineSubmissionError(f"The schedule was not made: {error}") from error
        if placeholder_run is None:
            raise RuntimeError("There is neither a run nor a schedule to report to.")
        deployment = self._deploy(session, snapshot, stack, step_environments)
        return self._start(session, snapshot, deployment, placeholder_run)

    def _deploy(
        self,
        session: AwsSession,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        step_environments: dict[str, dict[str, str]],
    ) -> Deployment:
        from step_engine.errors import PlanError

        from orchestrator.aws_deployment import deploy
        from orchestrator.publishing import expected_seconds

        mistakes = aws_plan.check_config(self.config)
        if mistakes:
            raise PlanError(f"The orchestrator `{self.name}` is not set up rightly: {' '.join(mistakes)}")
        if self.config.secrets_backend == "none":
            logger.warning(
                "secrets_backend is none: the token with which steps talk to ZenML, and other secrets, can be read by "
                "everybody who may read task definitions and executions."
            )
        settings = cast(StepFunctionsOrchestratorSettings, self.get_settings(snapshot))
        step_settings = {
            name: cast(StepFunctionsOrchestratorSettings, self.get_settings(step))
            for name, step in snapshot.step_configurations.items()
        }
        deployment = deploy(
            session,
            snapshot,
            config=self.config,
            settings=settings,
            step_settings=step_settings,
            step_environments=step_environments,
            image=lambda name: self.get_image(snapshot=snapshot, step_name=name),
            bucket=aws_plan.bucket_of(stack.artifact_store.path),
            component_id=self.id,
            expected_seconds=expected_seconds(snapshot),
        )
        for arn in deployment.created:
            logger.info("Created %s", arn)
        return deployment

    def _keep_run_secret(self, session: AwsSession, name: str, deployment: Deployment) -> str:
        """Stores what is new for each run; gives where the tasks find it."""
        backend = self.config.secrets_backend
        if backend != "none" and deployment.run_secrets:
            session.put_secret(
                backend,
                name,
                aws_secrets.secret_text(deployment.run_secrets),
                tags={"step-engine": "run-secret"},
                kms_key=self.config.kms_key,
            )
        return aws_secrets.secret_location(backend, name, deployment.run_secrets)

    def _forget_secret(self, session: AwsSession, name: str) -> None:
        from step_engine.errors import AwsError

        if self.config.secrets_backend == "none":
            return
        try:
            session.delete_secret(self.config.secrets_backend, name)
        except AwsError as error:
            logger.warning("The secret %s could not be deleted (its token ends with the run): %s", name, error)

    def _start(
        self,
        session: AwsSession,
        snapshot: PipelineSnapshotResponse,
        deployment: Deployment,
        placeholder_run: PipelineRunResponse,
    ) -> SubmissionResult:
        from orchestrator.aws_deployment import collect
        from orchestrator.publishing import RunPublisher, set_orchestrator_run_id

        run_id = str(placeholder_run.id)
        secret = aws_secrets.run_secret_name(self.config.secrets_prefix, run_id)
        location = self._keep_run_secret(session, secret, deployment)
        try:
            # Before the start: the first task must find the run, and `zenml pipeline runs stop` needs it.
            set_orchestrator_run_id(placeholder_run.id, run_id)
            arn = session.start(
                deployment.machine_arn, name=run_id, input=aws_plan.execution_input(snapshot.id, location)
            )
        except BaseException:
            self._forget_secret(session, secret)
            raise
        metadata: dict[str, Any] = self._run_metadata(run_id, arn)
        if deployment.estimated_dollars is not None:
            metadata["estimated_cost_usd"] = round(deployment.estimated_dollars, 6)
        publisher = RunPublisher(placeholder_run.id, self.id)
        # At once, so that the run can be stopped.
        publisher.publish_run_metadata(metadata)
        url = str(metadata[METADATA_ORCHESTRATOR_URL])
        logger.info("The execution: %s", url)
        if deployment.created:
            collect(session, self.config, aws_plan.pipeline_name(snapshot.pipeline_configuration.name))
        if not cast(StepFunctionsOrchestratorSettings, self.get_settings(snapshot)).synchronous:
            logger.info("Its status: zenml pipeline runs refresh %s", run_id)
            return SubmissionResult(metadata=metadata)

        def watch() -> None:
            from step_engine import AwsRun

            from orchestrator.watching import Watcher

            Watcher(
                session,
                AwsRun(session, arn, deployment.plan),
                publisher,
                list(snapshot.step_configurations),
                url=url,
                renew=lambda: self._renew(session),
                clean_up=lambda: self._forget_secret(session, secret),
            ).watch()

        return SubmissionResult(metadata=metadata, wait_for_completion=watch)

    def _schedule(
        self, session: AwsSession, snapshot: PipelineSnapshotResponse, deployment: Deployment
    ) -> SubmissionResult:
        schedule = snapshot.schedule
        if schedule is None:
            raise RuntimeError("There is no schedule.")
        config = self.config
        arguments = aws_schedule.schedule_arguments(schedule, config.schedule_timezone, datetime.now(timezone.utc))
        pipeline = aws_plan.pipeline_name(snapshot.pipeline_configuration.name)
        name = aws_schedule.schedule_name(pipeline, schedule.id)
        secret = aws_secrets.run_secret_name(config.secrets_prefix, str(schedule.id), schedule=True)
        location = self._keep_run_secret(session, secret, deployment)
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
        except BaseException:
            self._forget_secret(session, secret)
            raise
        if schedule.catchup:
            logger.warning("EventBridge Scheduler does not catch up on missed starts.")
        logger.info("The schedule `%s` acts: %s", name, arguments["expression"])
        metadata: dict[str, Any] = {METADATA_SCHEDULE: name, "schedule_arn": made["arn"]}
        if config.schedule_group:
            metadata[METADATA_SCHEDULE_GROUP] = config.schedule_group
        return SubmissionResult(metadata=metadata)

    def _scheduled(self, schedule: ScheduleResponse) -> tuple[str, str | None]:
        """Name and group of a schedule in EventBridge."""
        name = schedule.run_metadata.get(METADATA_SCHEDULE)
        if not name:
            raise RuntimeError(f"ZenML does not know which schedule of EventBridge `{schedule.name}` is.")
        group = schedule.run_metadata.get(METADATA_SCHEDULE_GROUP)
        return str(name), str(group) if group else None

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Changes when a schedule acts, or whether it does.

        Args:
            schedule: The schedule.
            update: What is to change.

        Raises:
            RuntimeError: EventBridge has no such schedule.
        """
        name, group = self._scheduled(schedule)
        session = self._session()
        missing = RuntimeError(f"EventBridge Scheduler has no schedule `{name}` any more; delete this one.")
        if update.cron_expression is not None:
            found = session.get_schedule(name, group=group)
            if found is None:
                raise missing
            found.pop("arn", None)
            found["expression"] = aws_schedule.cron_expression(update.cron_expression)
            if update.active is not None:
                found["enabled"] = update.active
            session.put_schedule(**found)
        elif update.active is not None and not session.set_schedule_enabled(name, update.active, group=group):
            raise missing

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Deletes a schedule, and the secret of its runs. Executions that run go on.

        Args:
            schedule: The schedule.
        """
        name, group = self._scheduled(schedule)
        session = self._session()
        if not session.delete_schedule(name, group=group):
            logger.warning("EventBridge Scheduler has no schedule `%s` any more.", name)
        self._forget_secret(
            session, aws_secrets.run_secret_name(self.config.secrets_prefix, str(schedule.id), schedule=True)
        )

    def _execution_of(self, run: PipelineRunResponse) -> str | None:
        arn = run.run_metadata.get(METADATA_EXECUTION)
        return str(arn) if arn else None

    def _stop_run(self, run: PipelineRunResponse, graceful: bool = False) -> None:
        """Stops the execution and its tasks. ZenML has published `stopping` before.

        Args:
            run: The run.
            graceful: Wait for the tasks to end by themselves after SIGTERM; ECS kills them after their grace anyway.

        Raises:
            RuntimeError: ZenML does not know the execution.
        """
        from orchestrator.publishing import RunPublisher

        arn = self._execution_of(run)
        if arn is None:
            raise RuntimeError("ZenML does not know which execution this run is; stop it in the AWS console.")
        session = self._session()
        grace = max(STOP_SECONDS, self.config.stop_grace_seconds * 2) if graceful else self.config.stop_grace_seconds
        stopped = session.stop(arn, cause="zenml pipeline runs stop", grace_seconds=grace)
        if stopped["left_running"]:
            logger.warning("These tasks are still stopping: %s", ", ".join(stopped["left_running"]))
        publisher = RunPublisher(run.id, self.id)
        for row in _rows(run):
            publisher.ensure_stopped(row.name)
        publisher.finish("stopped", "Manual stop requested.")
        self._forget_run_secret(session, run)

    def _forget_run_secret(self, session: AwsSession, run: PipelineRunResponse) -> None:
        # Runs of a schedule share a secret, which ends with the schedule.
        if run.schedule is None:
            self._forget_secret(session, aws_secrets.run_secret_name(self.config.secrets_prefix, str(run.id)))

    def fetch_status(
        self, run: PipelineRunResponse, include_steps: bool = False
    ) -> tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]:
        """Asks Step Functions where a run stands, and puts right what its containers could not report.

        Args:
            run: The run.
            include_steps: Whether to tell of the steps.

        Returns:
            Status of the run and of its steps; none where ZenML knows better already.
        """
        from orchestrator.publishing import RunPublisher

        arn = self._execution_of(run)
        if arn is None or run.status.is_finished:
            return None, None
        session = self._session()
        execution = session.describe_execution(arn)
        names = list(run.snapshot.step_configurations) if run.snapshot else [row.name for row in _rows(run)]
        running = execution["status"] in ("RUNNING", "PENDING_REDRIVE")
        found = session.execution_steps(arn, names) if include_steps or not running else {}
        steps = {name: _STATUSES[step["status"]] for name, step in found.items() if step["status"] in _STATUSES}
        if running:
            return run.status, (steps if include_steps else None)
        publisher = RunPublisher(run.id, self.id)
        stopped = execution["status"] == "ABORTED" or run.status == ExecutionStatus.STOPPING
        for name, step in found.items():
            if step["status"] == "failed":
                publisher.ensure_failed(name)
            elif step["status"] in ("stopped", "running", "retrying"):
                publisher.ensure_stopped(name)
        self._forget_run_secret(session, run)
        status = {"SUCCEEDED": "completed", "ABORTED": "stopped"}.get(execution["status"], "failed")
        from orchestrator.watching import execution_reason

        publisher.finish("stopped" if stopped else status, execution_reason(execution))
        now = publisher.run_status()
        if now.is_finished and now != run.status:
            # ZenML publishes what is returned, and refuses to do so for a run that is over.
            return now, (steps if include_steps else None)
        return now, (steps if include_steps else None)


_STATUSES = {
    "running": ExecutionStatus.RUNNING,
    "retrying": ExecutionStatus.RETRYING,
    "completed": ExecutionStatus.COMPLETED,
    "failed": ExecutionStatus.FAILED,
    "stopped": ExecutionStatus.STOPPED,
}


def _rows(run: PipelineRunResponse) -> list[Any]:
    page = Client().list_run_steps(pipeline_run_id=run.id, exclude_retried=True, size=1000, hydrate=False)
    return list(page.items)


def _without_none(values: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: value for name, value in values.items() if value is not None} if values else None
