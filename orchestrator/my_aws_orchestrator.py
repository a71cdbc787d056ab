"""The Step Functions orchestrator: ZenML's interface on the step engine's core."""

from __future__ import annotations

import os
from datetime import timezone
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID, METADATA_ORCHESTRATOR_URL
from zenml.enums import ExecutionMode, StackComponentType
from zenml.logger import get_logger
from zenml.metadata.metadata_types import Uri
from zenml.orchestrators import ContainerizedOrchestrator, SubmissionResult
from zenml.stack import StackValidator

from orchestrator import names
from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorConfig, StepFunctionsOrchestratorSettings

if TYPE_CHECKING:
    from uuid import UUID

    from step_engine import AwsSession
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.enums import ExecutionStatus
    from zenml.metadata.metadata_types import MetadataType
    from zenml.models import (
        PipelineRunResponse,
        PipelineSnapshotResponse,
        ScheduleResponse,
        ScheduleUpdate,
        StepRunResponse,
    )
    from zenml.stack import Stack

    from orchestrator.aws_deployment import Deployment

logger = get_logger(__name__)


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
        # For the run's secret, see `orchestrator.container.begin`.
        return {*super().requirements, "boto3"}

    @property
    def validator(self) -> StackValidator:
        """Checks the stack.

        Returns:
            A validator that asks for a container registry, an image builder, and components that tasks can reach.
        """

        def check(stack: Stack) -> tuple[bool, str]:
            from orchestrator import aws_plan

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
            return os.environ[names.ENV_RUN_ID]
        except KeyError:
            raise RuntimeError(f"{names.ENV_RUN_ID} is not set: this process is not a step of an execution.") from None

    def get_pipeline_run_metadata(self, run_id: UUID) -> dict[str, MetadataType]:
        """What the first task of a run tells of it. For scheduled runs nobody else does.

        Args:
            run_id: ZenML's id of the run. Not used.

        Returns:
            The execution and its page.
        """
        arn = os.environ.get(names.ENV_EXECUTION)
        return self.run_metadata(self.get_orchestrator_run_id(), arn) if arn else {}

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """What a task tells of itself, right after the step's function.

        Args:
            info: The step. Not used.

        Returns:
            The task, its log, and the peak of its memory.
        """
        if names.ENV_EXECUTION not in os.environ:
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
            partition = (names.parse_arn(os.environ[names.ENV_EXECUTION]) or {}).get("partition", "aws")
            metadata["log_url"] = Uri(names.log_url(region, found["log_group"], found["log_stream"], partition))
        return metadata

    def run_metadata(self, run_id: str, execution_arn: str) -> dict[str, MetadataType]:
        """What ZenML's page of a run tells of its execution.

        Args:
            run_id: The orchestrator's id of the run.
            execution_arn: The execution.

        Returns:
            Metadata.
        """
        return {
            METADATA_ORCHESTRATOR_RUN_ID: run_id,
            METADATA_ORCHESTRATOR_URL: Uri(names.console_url(self.config.region, execution_arn)),
            names.METADATA_EXECUTION: execution_arn,
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
            # A connector that takes what the machine has (`implicit`) does not know when that ends; botocore does.
            expires = connector.expires_at or getattr(credentials, "_expiry_time", None)
            if expires and expires.tzinfo is None:
                expires = expires.replace(tzinfo=timezone.utc)
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

    def renew(self, session: AwsSession) -> None:
        """Gives a session new credentials while a run is watched.

        Args:
            session: The session.
        """
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
        from zenml.orchestrators.exceptions import PipelineSubmissionError

        from orchestrator import aws_submission

        def prepared(session: AwsSession) -> Deployment:
            return aws_submission.prepare(self, session, snapshot, stack, step_environments)

        if snapshot.schedule:
            try:
                session = self._session()
                return aws_submission.make_schedule(self, session, snapshot, partial(prepared, session))
            except (Exception, KeyboardInterrupt) as error:
                # For any other error ZenML keeps a schedule that never acts.
                why = "it was interrupted" if isinstance(error, KeyboardInterrupt) else error
                raise PipelineSubmissionError(f"The schedule was not made: {why}") from error
        if placeholder_run is None:
            raise RuntimeError("There is neither a run nor a schedule to report to.")
        session = self._session()
        return aws_submission.start(self, session, snapshot, prepared(session), placeholder_run)

    def submit_dynamic_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        environment: dict[str, str],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Runs a dynamic pipeline: its function in the only task of an execution, which starts those of isolated steps.

        Args:
            snapshot: The snapshot.
            stack: The stack.
            environment: Environment of the orchestration. Not changed.
            placeholder_run: The run as ZenML created it, or one that is resumed.

        Returns:
            Metadata of the run, and how to watch it.

        Raises:
            PipelineSubmissionError: The pipeline has a schedule; ZenML removes its row.
            PlanError: A setting is for static pipelines only.
            RuntimeError: There is no run to report to.
        """
        from step_engine.errors import PlanError
        from zenml.orchestrators.exceptions import PipelineSubmissionError

        from orchestrator import aws_dynamic

        if snapshot.schedule:
            raise PipelineSubmissionError(
                "The schedule was not made: dynamic pipelines on Step Functions cannot be scheduled."
            )
        if placeholder_run is None:
            raise RuntimeError("There is no run to report to.")
        settings = cast(StepFunctionsOrchestratorSettings, self.get_settings(snapshot))
        if settings.max_parallelism is not None:
            raise PlanError(
                "max_parallelism: a dynamic pipeline on Step Functions starts an isolated step when its code does. "
                "Remove the setting, and let the pipeline's function wait for results before it submits more.",
                None,
                "max_parallelism",
            )
        return aws_dynamic.submit(
            self, self._session(), snapshot, placeholder_run, stack=stack, environment=environment
        )

    # In the orchestration's task of a dynamic run. What they need is in no other task.

    def submit_isolated_step(self, step_run_info: StepRunInfo, environment: dict[str, str]) -> None:
        """Runs a step in a task of its own.

        Args:
            step_run_info: The step.
            environment: Not used: ZenML's part of it is in the task definitions.
        """
        from orchestrator import aws_isolated_steps

        aws_isolated_steps.submit(self, step_run_info)

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """Asks ECS where an isolated step stands.

        Args:
            step_run: The step run.

        Returns:
            What became of its task.
        """
        from orchestrator import aws_isolated_steps

        return aws_isolated_steps.status(self, step_run)

    def wait_for_isolated_step(self, step_run: StepRunResponse) -> ExecutionStatus:
        """Waits for an isolated step.

        Args:
            step_run: The step run.

        Returns:
            What became of its task; what ZenML knows while ECS cannot tell.
        """
        from orchestrator import aws_isolated_steps

        return aws_isolated_steps.wait(self, step_run)

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """Stops an isolated step.

        Args:
            step_run: The step run.
        """
        from orchestrator import aws_isolated_steps

        aws_isolated_steps.stop(self, step_run)

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Changes when a schedule acts, or whether it does.

        Args:
            schedule: The schedule.
            update: What is to change.
        """
        from orchestrator import aws_submission

        aws_submission.change_schedule(self.config, self._session(), schedule, update)

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Deletes a schedule, and the secret of its runs. Executions that run go on.

        Args:
            schedule: The schedule.
        """
        from orchestrator import aws_submission

        aws_submission.remove_schedule(self.config, self._session(), schedule)

    def _stop_run(self, run: PipelineRunResponse, graceful: bool = False) -> None:
        """Stops the execution and its tasks. ZenML has published `stopping` before.

        Args:
            run: The run.
            graceful: Wait longer for the tasks to end by themselves; they get SIGTERM first in any case.
        """
        from orchestrator import aws_status

        aws_status.stop(self, self._session(), run, graceful)

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
        from orchestrator import aws_status

        return aws_status.status(self, self._session(), run, include_steps)


def _without_none(values: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: value for name, value in values.items() if value is not None} if values else None
