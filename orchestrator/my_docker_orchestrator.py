"""The Docker orchestrator: ZenML's interface on the step engine's core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from zenml.config.global_config import GlobalConfiguration
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID
from zenml.enums import ExecutionMode, ExecutionStatus, StackComponentType
from zenml.exceptions import IllegalOperationError
from zenml.logger import get_logger
from zenml.orchestrators import SubmissionResult
from zenml.stack import StackValidator

from orchestrator.isolated_steps import IsolatedSteps
from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorConfig, LocalDockerOrchestratorSettings
from orchestrator.plan import ENV_RUN_ID, build_container, build_plan, default_user, plan_warm_starts
from orchestrator.resuming import (
    give_up,
    is_resumable,
    read_pins,
    refuse_changed,
    step_environments,
    store_id,
    tells_of_secrets,
    write_pins,
)

if TYPE_CHECKING:
    from step_engine import DockerEngine
    from step_engine.lease import Lease
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.metadata.metadata_types import MetadataType
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
    from zenml.stack import Stack

logger = get_logger(__name__)

_NO_SCHEDULES = "The Docker orchestrator does not support schedules; run the pipeline without one."


class LocalDockerOrchestrator(IsolatedSteps):
    """Runs every step of a pipeline in a Docker container on one host, in parallel."""

    @property
    def config(self) -> LocalDockerOrchestratorConfig:
        """The component's config.

        Returns:
            The config.
        """
        return cast(LocalDockerOrchestratorConfig, self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """Class of the settings.

        Returns:
            The class.
        """
        return LocalDockerOrchestratorSettings

    @property
    def validator(self) -> StackValidator:
        """Checks the stack.

        Returns:
            A validator that asks for an image builder; ZenML adds a local one to stacks that have none.
        """
        return StackValidator(required_components={StackComponentType.IMAGE_BUILDER})

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        """What a failure may do to the rest of a run.

        Returns:
            All of ZenML's modes.
        """
        return [ExecutionMode.FAIL_FAST, ExecutionMode.STOP_ON_FAILURE, ExecutionMode.CONTINUE_ON_FAILURE]

    def get_orchestrator_run_id(self) -> str:
        """The orchestrator's id of the run, inside a step container.

        Returns:
            The id.

        Raises:
            RuntimeError: This is not a step container of ours.
        """
        try:
            return os.environ[ENV_RUN_ID]
        except KeyError:
            raise RuntimeError(f"{ENV_RUN_ID} is not set: this process is not a step of a Docker run.") from None

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """What a step container that was started the plain way tells of itself, right after the step's function.

        Args:
            info: The step. Not used.

        Returns:
            The peak of its memory so far. A warm worker reports its own to the client, at its end.
        """
        if ENV_RUN_ID not in os.environ or "orchestrator.container.warmup" in sys.modules:
            return {}
        from orchestrator.container import memory

        peak = memory.peak_bytes()
        return {} if peak is None else {"peak_memory_bytes": peak}

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Runs a static pipeline. Blocks until its end when synchronous.

        Args:
            snapshot: The snapshot, pruned of cached steps.
            stack: The stack.
            base_environment: Not used: every step has its own environment.
            step_environments: Environment of each step. Not changed.
            placeholder_run: The run as ZenML created it.

        Returns:
            The run's metadata.

        Raises:
            RuntimeError: There is no run to report to.
        """
        from step_engine import DockerEngine

        from orchestrator.publishing import set_orchestrator_run_id

        if placeholder_run is None:
            raise RuntimeError(_NO_SCHEDULES)
        stack.check_local_paths()
        run_id = str(placeholder_run.id)
        engine = DockerEngine()
        # `zenml pipeline runs stop` refuses a run without this id, so it comes before anything that takes time.
        set_orchestrator_run_id(placeholder_run.id, run_id)
        job = self._job(engine, snapshot, stack, step_environments, run_id)
        return self._carry_out(engine, job, snapshot)

    def submit_dynamic_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        environment: dict[str, str],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Runs a dynamic pipeline: its function in a container, its isolated steps in others. Blocks when synchronous.

        Args:
            snapshot: The snapshot.
            stack: The stack.
            environment: Environment of the orchestration. Not changed.
            placeholder_run: The run as ZenML created it, or one that is resumed.

        Returns:
            The run's metadata.

        Raises:
            RuntimeError: There is no run to report to.
            RunOwnedError: The run has an owner that lives.
            StepEngineError: The run began before, and containers of it cannot be removed.
        """
        from step_engine import DockerEngine
        from step_engine.errors import StepEngineError

        from orchestrator.driving import owner_lock
        from orchestrator.dynamic_publishing import DynamicRunPublisher
        from orchestrator.publishing import set_orchestrator_run_id

        if placeholder_run is None:
            raise RuntimeError(_NO_SCHEDULES)
        stack.check_local_paths()
        run_id = own_run_id(placeholder_run)
        engine = DockerEngine()
        if placeholder_run.orchestrator_run_id is None:
            set_orchestrator_run_id(placeholder_run.id, run_id)
        else:
            # As its owner: nobody is to resume meanwhile what is being put away.
            with owner_lock(run_directory(run_id)):
                # What a dead owner left running has nobody to ask, and two orchestrations of a run must not be.
                engine.stop_run(run_id, force=True)
                # Also what was kept: attempts are counted from 1 again, and one of then would be taken for one of now.
                if left := engine.remove_run(run_id):
                    raise StepEngineError(
                        f"These containers of run {run_id} cannot be removed, and it is not begun again beside them: "
                        f"{', '.join(left)}. Remove them with `docker rm -f`, and try it again."
                    )
                # Only now: until then it is the journal that tells of them.
                set_aside(run_id)
                DynamicRunPublisher(placeholder_run.id, self.id).fail_unfinished()
        job = self._dynamic_job(engine, snapshot, placeholder_run, stack, environment=environment, run_id=run_id)
        return self._carry_out(engine, job, snapshot)

    def _dynamic_job(
        self,
        engine: DockerEngine,
        snapshot: PipelineSnapshotResponse,
        run: PipelineRunResponse,
        stack: Stack,
        *,
        environment: dict[str, str],
        run_id: str,
        pins: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        from orchestrator.dynamic_job import dynamic_job
        from orchestrator.images import Pins

        info = engine.info()
        settings = cast(LocalDockerOrchestratorSettings, self.get_settings(snapshot))
        return {
            **self._identity(run_id, run.id),
            **dynamic_job(
                snapshot,
                run,
                settings=settings,
                environment=environment,
                image=settings.run_args.get("image") or self.get_image(snapshot=snapshot),
                pins=Pins(engine, pins["images"] if pins else None, resumed=pins is not None),
                engine=info,
                local_stores_path=self._local_stores(stack, info),
                run_id=run_id,
                run_directory=run_directory(run_id),
                user=pins["default_user"] if pins else default_user(info),
            ),
        }

    def _identity(self, run_id: str, pipeline_run_id: UUID) -> dict[str, Any]:
        return {
            "run_directory": run_directory(run_id),
            "pipeline_run_id": str(pipeline_run_id),
            "component_id": str(self.id),
            "component": self.name,
            "store_id": store_id(),
        }

    def _carry_out(
        self, engine: DockerEngine, job: dict[str, Any], snapshot: PipelineSnapshotResponse
    ) -> SubmissionResult:
        """Drives a run to its end, or hands it to a process in the background."""
        from step_engine import DockerRun
        from step_engine.errors import StepEngineError

        settings = cast(LocalDockerOrchestratorSettings, self.get_settings(snapshot))
        metadata: dict[str, Any] = {
            METADATA_ORCHESTRATOR_RUN_ID: job["plan"]["run_id"],
            "log_directory": job["run_directory"],
        }
        # Validates everything before anything starts, also what another process will run.
        run = DockerRun(
            engine,
            job["plan"],
            job["containers"],
            run_directory=job["run_directory"],
            component=self.name,
        )
        for warning in run.warnings:
            logger.warning(warning)
        if "pins" in job:
            write_pins(job)
        if settings.synchronous:
            from orchestrator.driving import Driver
            from orchestrator.publishing import RunPublisher

            publisher = RunPublisher(UUID(job["pipeline_run_id"]), self.id)
            publisher.publish_run_metadata(metadata)
            if "dynamic" in job:
                from orchestrator.dynamic import drive_dynamic

                try:
                    drive_dynamic(run, engine, job)
                except StepEngineError as error:
                    if run.summary is None or not publisher.is_over_or_anothers():
                        # ZenML writes down that it failed.
                        raise
                    # ZenML writes `failed` over the status of whoever goes on with the run if this is raised here.
                    return SubmissionResult(metadata=metadata, wait_for_completion=partial(_raise, error))
            else:
                Driver(run, publisher, list(snapshot.step_configurations), job["run_directory"]).drive()
        else:
            self._detach(job)
        return SubmissionResult(metadata=metadata)

    def _job(
        self,
        engine: DockerEngine,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        step_environments: dict[str, dict[str, str]],
        run_id: str,
        *,
        pins: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        # `pins` is what was found out about the run when it began, see `write_pins`.
        from step_engine.errors import PlanError

        from orchestrator.images import Pins
        from orchestrator.permits import digest_by_step
        from orchestrator.publishing import expected_seconds

        info = engine.info()
        user = pins["default_user"] if pins else default_user(info)
        stores = self._local_stores(stack, info)
        pipeline_settings = cast(LocalDockerOrchestratorSettings, self.get_settings(snapshot))
        step_settings = {
            name: cast(LocalDockerOrchestratorSettings, self.get_settings(step))
            for name, step in snapshot.step_configurations.items()
        }
        permits = digest_by_step(step_settings)
        if pins and "permits" in pins:
            refuse_changed(run_id, pins, permits)
        images = Pins(engine)
        containers: dict[str, Any] = {}
        for name, settings in step_settings.items():
            reference = settings.run_args.get("image") or self.get_image(snapshot=snapshot, step_name=name)
            try:
                containers[name] = build_container(
                    name,
                    snapshot,
                    settings=settings,
                    environment=step_environments[name],
                    image=pins["images"][name] if pins and name in pins["images"] else images.pin(reference, settings),
                    image_reference=reference,
                    run_id=run_id,
                    local_stores_path=stores,
                    default_user=user,
                    same_machine=info["local"],
                )
            except ValueError as error:
                raise PlanError(f"step `{name}`: {error}", name) from None
        for name, warm in plan_warm_starts(containers, snapshot, step_settings).items():
            containers[name]["warm"] = warm
        plan = build_plan(
            snapshot, run_id, pipeline_settings.max_parallelism, step_settings, expected_seconds(snapshot)
        )
        identity = self._identity(run_id, UUID(run_id))
        return {
            "plan": plan,
            "containers": containers,
            **identity,
            "pins": {
                "component_id": identity["component_id"],
                "store_id": identity["store_id"],
                "engine_id": info["id"],
                "default_user": user,
                "permits": permits,
                "images": {name: container["image"] for name, container in containers.items()},
            },
        }

    def resume_static_run(
        self, run: PipelineRunResponse, snapshot: PipelineSnapshotResponse, stack: Stack, record: dict[str, Any]
    ) -> None:
        """Goes on with a run whose owner died, to its end.

        Args:
            run: The run.
            snapshot: Its snapshot, pruned as it was when the run began.
            stack: Its stack.
            record: What its journal says, see `step_engine.read_run`.

        Raises:
            UnresumableError: What its containers would get is not what they got when the run began.
        """
        from step_engine import DockerEngine, DockerRun
        from step_engine.lease import last_beat

        from orchestrator.driving import Driver
        from orchestrator.publishing import RunPublisher

        run_id = str(run.id)
        directory = run_directory(run_id)
        alive_until = last_beat(directory)
        engine = DockerEngine()
        environments = step_environments(run, snapshot, stack)
        job = self._job(engine, snapshot, stack, environments, run_id, pins=read_pins(directory))
        publisher = RunPublisher(run.id, self.id)
        finished = {event["step"] for event in record["events"] if event["kind"] == "step_finished"}
        docker_run = DockerRun.resume(
            engine,
            job["containers"],
            run_directory=directory,
            component=self.name,
            alive_until_unix_seconds=alive_until,
            completed=publisher.completed(set(record["steps"]) - finished),
        )
        Driver(docker_run, publisher, record["steps"], directory, record).drive()

    def resume_dynamic_run(
        self, run: PipelineRunResponse, snapshot: PipelineSnapshotResponse, stack: Stack, record: dict[str, Any]
    ) -> None:
        """Goes on with a dynamic run whose owner died, to its end.

        Args:
            run: The run.
            snapshot: Its snapshot.
            stack: Its stack.
            record: What its journal says, see `step_engine.read_run`.

        Raises:
            UnresumableError: Nobody knows what it began with, or that has changed.
        """
        from step_engine import DockerEngine
        from step_engine.errors import UnresumableError

        from orchestrator.dynamic import resume_dynamic
        from orchestrator.resuming import base_environment

        run_id = str(record["run_id"])
        pins = read_pins(run_directory(run_id))
        if not tells_of_secrets(pins):
            raise UnresumableError(
                f"{run_directory(run_id)} does not say what run {run_id} began with, so it cannot be resumed; `zenml "
                f"pipeline runs stop {run_id}` ends it.",
                run_id,
            )
        engine = DockerEngine()
        job = self._dynamic_job(
            engine, snapshot, run, stack, environment=base_environment(run), run_id=run_id, pins=pins
        )
        resume_dynamic(engine, job, record, snapshot=snapshot, stack=stack)

    @staticmethod
    def _local_stores(stack: Stack, engine: dict[str, Any]) -> str | None:
        """Path of ZenML's local stores as far as the steps need them. An engine elsewhere must have it, too."""
        configuration = GlobalConfiguration()
        if engine["local"]:
            # A mount whose source is missing is refused.
            Path(configuration.local_stores_path).mkdir(parents=True, exist_ok=True)
        elif not configuration.uses_sql_store and not any(part.local_path for part in stack.components.values()):
            return None
        else:
            logger.warning(
                "The Docker engine at %s is on another machine and the steps use ZenML's local stores: the folder %s "
                "must be the same there, or use a ZenML server and a remote artifact store.",
                engine["address"],
                configuration.local_stores_path,
            )
        return configuration.local_stores_path

    def _detach(self, job: dict[str, Any]) -> None:
        """Hands a run to a process in a session of its own. Secrets go through a pipe, never a file."""
        from orchestrator.driving import take_order

        directory = Path(job["run_directory"])
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        package_parent = str(Path(__file__).resolve().parent.parent)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, environment.get("PYTHONPATH")]))
        output_path = directory / "supervisor.log"
        with ExitStack() as stack:
            lease = _lease_to_hand_over(directory)
            if lease is not None:
                stack.callback(lease.release)
                # From now on, an order is meant for the process in the background.
                take_order(str(directory))
                job = {**job, "lease_descriptor": lease.descriptor}
            with os.fdopen(os.open(output_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "orchestrator.supervisor"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment,
                    pass_fds=() if lease is None else (lease.descriptor,),
                )
            if process.stdin is None:
                raise RuntimeError("The background process has no standard input.")
            with process.stdin as pipe:
                pipe.write(json.dumps(job).encode())
            if lease is not None:
                stack.pop_all()
                lease.hand_over()
        logger.info(
            "The run goes on in the background (process %d). Watch it: step-engine attach %s "
            "Stop it: zenml pipeline runs stop %s What the process says is in %s",
            process.pid,
            job["pipeline_run_id"],
            job["pipeline_run_id"],
            output_path,
        )

    def stop_run(self, run: PipelineRunResponse, graceful: bool = False) -> None:
        """Stops a run.

        Args:
            run: The run.
            graceful: SIGTERM and a grace first, rather than SIGKILL.

        Raises:
            IllegalOperationError: It is part of another run, whose containers it has, or did not begin yet.
        """
        if run.root_run_id not in (None, run.id):
            raise IllegalOperationError(
                f"Run {run.id} is part of run {run.root_run_id}, whose orchestration runs it: `zenml pipeline runs "
                f"stop {run.root_run_id}` stops both."
            )
        super().stop_run(run, graceful)

    def _stop_run(self, run: PipelineRunResponse, graceful: bool = False) -> None:
        """Stops a run from any process that reaches the engine. ZenML has published `stopping` before.

        Args:
            run: The run.
            graceful: SIGTERM and a grace first, rather than SIGKILL.
        """
        from step_engine import DockerEngine

        from orchestrator.dynamic_publishing import DynamicRunPublisher
        from orchestrator.publishing import RunPublisher, newest_rows

        run_id = own_run_id(run)
        engine = DockerEngine()
        left = engine.stop_run(run_id, force=not graceful)
        if left:
            logger.warning("These containers could not be stopped: %s", ", ".join(left))
        alive = owner_is_alive(run_id)
        if alive:
            return  # It sees what happened and writes it down.
        if alive is False:
            engine.clear_run(run_id)
            # Whoever finds its directory is not to go on with it.
            give_up(run_directory(run_id))
        is_dynamic = run.snapshot is not None and run.snapshot.is_dynamic
        publisher = (DynamicRunPublisher if is_dynamic else RunPublisher)(run.id, self.id)
        for row in newest_rows(run.id):
            publisher.ensure_stopped(row.name)
        publisher.finish("stopped", "Manual stop requested.")

    def fetch_status(
        self, run: PipelineRunResponse, include_steps: bool = False
    ) -> tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]:
        """Looks at the engine and the owner to tell where a run stands.

        Args:
            run: The run.
            include_steps: Whether to tell of the steps.

        Returns:
            Status of the run and of its steps; none where ZenML knows better already.
        """
        from step_engine import DockerEngine

        from orchestrator.publishing import newest_rows

        # Nothing runs of one that is paused, or about to go on after that, and that is as it should be.
        if run.orchestrator_run_id is None or run.status.is_finished or run.status.value in ("paused", "resuming"):
            return None, None
        run_id = own_run_id(run)
        steps = {row.name: row.status for row in newest_rows(run.id)}
        engine = DockerEngine()
        is_dynamic = run.snapshot is not None and run.snapshot.is_dynamic
        alive = owner_is_alive(run_id)
        waits = alive is False and run.status != ExecutionStatus.STOPPING and is_resumable(run_directory(run_id))
        if waits:
            logger.warning(
                "The process that drove the run is dead. `step-engine resume %s` goes on with it; `zenml pipeline runs "
                "stop %s` gives it up.",
                run_id,
                run_id,
            )
        if (
            waits
            or alive is not False
            or any(
                # Without an owner nobody starts one that was only created.
                container["state"] == "running"
                for container in engine.containers(run_id)
            )
        ):
            return run.status, (steps if include_steps else None)
        engine.clear_run(run_id)
        # Nobody drives the run and nothing of it runs: what is unfinished will never finish.
        ended = ExecutionStatus.STOPPED if run.status == ExecutionStatus.STOPPING else ExecutionStatus.FAILED
        steps = {name: status if status.is_finished else ended for name, status in steps.items()}
        # A static run's status is computed: `stopping` gives `stopped` once no step is unfinished.
        status = ExecutionStatus.STOPPING if ended == ExecutionStatus.STOPPED and not is_dynamic else ended
        return status, (steps if include_steps else None)


def _lease_to_hand_over(directory: Path) -> Lease | None:
    """Takes a run for the process that will drive it, where a process can be given an open file.

    So there is no moment in which nobody drives the run.
    """
    from step_engine.lease import Lease

    if os.name != "posix":
        return None
    try:
        return Lease.take(directory)
    except OSError as error:
        logger.debug("The run cannot be taken yet: %s", error)
        return None


def _raise(error: Exception) -> None:
    raise error


def own_run_id(run: PipelineRunResponse) -> str:
    """The orchestrator's id of a run, which names its folder and its containers.

    Args:
        run: The run as ZenML has it, where steps may have written.

    Returns:
        ZenML's id of the run, or of the run that it is part of.

    Raises:
        StepEngineError: ZenML has another one, which is that of something else.
    """
    from step_engine.errors import StepEngineError

    run_id = str(run.root_run_id or run.id)
    if run.orchestrator_run_id not in (None, run_id):
        raise StepEngineError(
            f"ZenML's store has run {run.id} under an orchestrator's id that is not its own, so nothing was done: "
            "somebody has changed it there."
        )
    return run_id


def run_directory(run_id: str) -> str:
    """Where a run keeps its logs: under ZenML's config directory, readable by its owner only.

    Args:
        run_id: The orchestrator's id of the run.

    Returns:
        Absolute path.
    """
    return str(Path(GlobalConfiguration().config_directory).resolve() / "step_engine" / "runs" / run_id)


def set_aside(run_id: str) -> None:
    """Moves what an earlier owner of a run left in its directory, such as its journal, into `earlier-<n>` there.

    To be called by the run's owner of now.

    Args:
        run_id: The orchestrator's id of the run.
    """
    from step_engine.lease import FILE_NAME

    directory = Path(run_directory(run_id))
    if not directory.is_dir():
        return
    left = [path for path in directory.iterdir() if path.name != FILE_NAME and not path.name.startswith("earlier-")]
    if left:
        aside = directory / f"earlier-{len(list(directory.glob('earlier-*'))) + 1}"
        aside.mkdir(mode=0o700)
        for path in left:
            path.rename(aside / path.name)


def owner_is_alive(run_id: str) -> bool | None:
    """Whether the process that drives a run lives; None when this machine cannot tell.

    Args:
        run_id: The orchestrator's id of the run.

    Returns:
        True, False or None.
    """
    from step_engine.lease import owner_lives

    return owner_lives(run_directory(run_id))
