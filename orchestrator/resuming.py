"""Going on with a run whose owner died, and running again what failed of one that ended."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from zenml.logger import get_logger

if TYPE_CHECKING:
    from uuid import UUID

    from zenml.client import Client
    from zenml.models import PipelineRunResponse, PipelineSnapshotRequest, PipelineSnapshotResponse
    from zenml.stack import Stack

logger = get_logger(__name__)

PINS = "pinned.json"
"""In a run's directory: what must be the same if another process goes on with it."""

GIVEN_UP = "given-up"
"""In a run's directory: somebody ended the run after its owner had died."""


def resume(directory: str) -> None:
    """Goes on with a run to its end.

    Args:
        directory: The run's directory.

    Raises:
        RunOwnedError: Its owner lives.
        StepEngineError: It left no journal, has ended, or ran on another orchestrator.
        StepFailedError: A step failed.
        RunInterruptedError: The run was stopped.
    """
    from step_engine import read_run
    from step_engine.errors import StepEngineError, UnresumableError
    from step_engine.lease import refuse_living
    from zenml.client import Client
    from zenml.enums import ExecutionStatus
    from zenml.stack import Stack

    from orchestrator.my_docker_orchestrator import LocalDockerOrchestrator
    from orchestrator.publishing import patiently

    refuse_living(directory)
    record = read_run(directory)
    if record is None:
        raise StepEngineError(f"There is no journal in {directory}, so nobody knows what became of the run.")
    client, run_id = Client(), record["run_id"]
    _refuse_other_store(run_id, directory)
    try:
        run = patiently(lambda: client.get_pipeline_run(run_id))
    except KeyError:
        if "store_id" not in (read_pins(directory) or {}):
            raise StepEngineError(
                f"The ZenML store that is active has no run {run_id}, and {directory} does not say with which one it "
                "began: connect to that one and resume it again, or let `step-engine gc` remove it when it is old."
            ) from None
        _put_away(directory, run_id)
        raise StepEngineError(f"ZenML has no run {run_id} any more; its containers were removed.") from None
    # ZenML calls a run completed when the last step has reported, and failed with the first step that failed for good:
    # on this machine there may be more to do. What somebody has stopped stays so.
    goes_on = is_resumable(directory) and run.status != ExecutionStatus.STOPPED
    if run.status.is_finished and not goes_on:
        _put_away(directory, run_id, is_over=record["summary"] is not None)
        raise StepEngineError(
            f"Run {run_id} has ended ({run.status.value}); `step-engine retry {run_id}` runs what did not complete."
        )
    if run.snapshot is None or run.stack is None:
        raise StepEngineError(f"ZenML has no snapshot or no stack of run {run_id} any more; it cannot be resumed.")
    snapshot_id = run.snapshot.id
    snapshot = patiently(lambda: client.zen_store.get_snapshot(snapshot_id))
    _activate(client, run.stack.id, run.project_id)
    stack = Stack.from_model(run.stack)
    orchestrator = stack.orchestrator
    if not isinstance(orchestrator, LocalDockerOrchestrator):
        raise StepEngineError(f"Run {run_id} is not one of the Docker orchestrator.")
    _refuse_other_engine(run_id, directory)
    try:
        if snapshot.is_dynamic:
            orchestrator.resume_dynamic_run(run, snapshot, stack, record)
            return
        for name in set(snapshot.step_configurations) - set(record["steps"]):
            # Cached, or skipped by a replay: done before the run began.
            del snapshot.step_configurations[name]
        orchestrator.resume_static_run(run, snapshot, stack, record)
    except UnresumableError:
        # Never: nobody knows what it began with. ZenML would not stop it, and nobody else would take its containers.
        if run.status.is_finished and snapshot.is_dynamic and not tells_of_secrets(read_pins(directory)):
            _put_away(directory, run_id)
        raise


def _put_away(directory: str, run_id: str, *, is_over: bool = False) -> None:
    """Removes the containers of a run that somebody else has ended, such as in ZenML's store.

    Of one whose journal is whole, those that its owner did not come to remove.
    """
    from step_engine import DockerEngine
    from step_engine.lease import Lease

    lease = Lease.take(directory)
    try:
        engine = DockerEngine()
        if not is_over:
            engine.stop_run(run_id, force=True)
        engine.clear_run(run_id)
        if not is_over:
            give_up(directory)
    finally:
        lease.release()


def retry(run_id: str) -> None:
    """Replays a run, in ZenML's sense, from its own snapshot: what completed is skipped, the rest runs in a new run.

    The pipeline's source is not needed: image, code, parameters and settings are those of the first run.

    Args:
        run_id: ZenML's id of the run.

    Raises:
        StepEngineError: The run goes on, completed, or ran on another orchestrator.
    """
    from step_engine.errors import StepEngineError
    from zenml.client import Client
    from zenml.execution.pipeline.utils import submit_pipeline
    from zenml.pipelines.run_utils import create_placeholder_run
    from zenml.stack import Stack

    from orchestrator.my_docker_orchestrator import LocalDockerOrchestrator

    client = Client()
    try:
        run = client.get_pipeline_run(run_id)
    except KeyError:
        raise StepEngineError(f"ZenML has no run {run_id}; there is nothing to run again.") from None
    if not run.status.is_finished:
        raise StepEngineError(f"Run {run_id} has not ended ({run.status.value}).")
    if run.status.is_successful:
        raise StepEngineError(f"Run {run_id} completed; there is nothing to run again.")
    if run.snapshot is None or run.stack is None or run.pipeline is None:
        raise StepEngineError(
            f"ZenML does not have the snapshot, stack or pipeline of run {run_id} any more; it cannot be run again."
        )
    stack = Stack.from_model(run.stack)
    if not isinstance(stack.orchestrator, LocalDockerOrchestrator):
        raise StepEngineError(f"Run {run_id} is not one of the Docker orchestrator.")
    # ZenML looks for artifacts to reuse with the active stack.
    client = _activate(client, run.stack.id, run.project_id)
    source = client.zen_store.get_snapshot(run.snapshot.id)
    snapshot = client.zen_store.create_snapshot(_again(source, run.stack.id, run.pipeline.id))
    again = create_placeholder_run(snapshot=snapshot, original_run_id=run.id)
    logger.info("Run %s runs again what did not complete of run %s.", again.id, run_id)
    submit_pipeline(snapshot=snapshot, stack=stack, placeholder_run=again)


def _activate(client: Client, stack_id: UUID, project_id: UUID) -> Client:
    """A client whose active stack and project are those of a run, in this process only.

    Containers are given the active ones, and rows are looked for in the active project.
    """
    if client.active_stack_model.id == stack_id and client.active_project.id == project_id:
        return client
    os.environ["ZENML_ACTIVE_STACK_ID"] = str(stack_id)
    os.environ["ZENML_ACTIVE_PROJECT_ID"] = str(project_id)
    type(client)._reset_instance()
    return type(client)()


def _refuse_other_engine(run_id: str, directory: str) -> None:
    """Another engine knows nothing of the run's containers: everything would begin a second time there."""
    from step_engine import DockerEngine
    from step_engine.errors import UnresumableError

    began_on = (read_pins(directory) or {}).get("engine_id")
    info = DockerEngine().info()
    if began_on and info["id"] and info["id"] != began_on:
        raise UnresumableError(
            f"Run {run_id} began on another Docker engine than the one at {info['address']}. Choose that one, with "
            "`DOCKER_HOST` or `docker context use`, and resume it again.",
            run_id,
        )


def _refuse_other_store(run_id: str, directory: str) -> None:
    """Another store knows nothing of the run, which is no reason to take its containers for left over."""
    from step_engine.errors import UnresumableError

    began_with = (read_pins(directory) or {}).get("store_id")
    if began_with and began_with != store_id():
        raise UnresumableError(
            f"Run {run_id} began with another ZenML store than the one that is active. Connect to that one, with "
            "`zenml login` or `zenml logout`, and resume it again.",
            run_id,
        )


def store_id() -> str:
    """Which of ZenML's stores is active.

    Returns:
        Its id, which a SQLite file has as a server does.
    """
    from zenml.client import Client

    from orchestrator.publishing import patiently

    # The store may be opened here, which is a call, too.
    return str(patiently(lambda: Client().zen_store.get_store_info().id))


def tells_of_secrets(pins: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether a dynamic run can be gone on with.

    Args:
        pins: What was written down when it began.

    Returns:
        True if they say by which secrets its orchestration may ask.
    """
    return pins is not None and "secret_digests" in pins


def refuse_changed(run_id: str, pins: Mapping[str, Any], digest: str) -> None:
    """Checks that containers get what they got when the run began: its steps can write ZenML's store.

    Args:
        run_id: The run.
        pins: What was written down then.
        digest: Of what they would get now.

    Raises:
        UnresumableError: It is something else.
    """
    from step_engine.errors import UnresumableError

    if pins.get("permits") != digest:
        raise UnresumableError(
            f"The settings of run {run_id} in ZenML, or of its stack component, are not those that it began with, so "
            "it cannot be resumed. Put the component's configuration back, or end the run with `zenml pipeline runs "
            f"stop {run_id}` (`step-engine stop {run_id}` stops what still runs of one that ZenML calls failed).",
            run_id,
        )


def _again(source: PipelineSnapshotResponse, stack_id: UUID, pipeline_id: UUID) -> PipelineSnapshotRequest:
    """The same snapshot, with the order to skip what succeeded."""
    from zenml.models import CodeReferenceRequest, PipelineSnapshotRequest

    code = source.code_reference
    return PipelineSnapshotRequest(
        project=source.project_id,
        is_dynamic=source.is_dynamic,
        run_name_template=source.run_name_template,
        pipeline_configuration=source.pipeline_configuration.model_copy(update={"skip_successful_steps": True}),
        step_configurations=source.step_configurations,
        client_environment=source.client_environment,
        client_version=source.client_version,
        server_version=source.server_version,
        stack=stack_id,
        pipeline=pipeline_id,
        build=source.build.id if source.build else None,
        code_reference=CodeReferenceRequest(
            commit=code.commit, subdirectory=code.subdirectory, code_repository=code.code_repository.id
        )
        if code
        else None,
        code_path=source.code_path,
        pipeline_version_hash=source.pipeline_version_hash,
        pipeline_spec=source.pipeline_spec,
        source_code=source.source_code,
    )


def write_pins(job: dict[str, Any]) -> bool:
    """Writes down what a run must have again if its owner dies and another one goes on. No secrets.

    These are the ids of its images, the user of its containers, and a digest of what they get.

    Args:
        job: The run, see `LocalDockerOrchestrator`.

    Returns:
        Whether it could be written.
    """
    path = Path(job["run_directory"]) / PINS
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(job["pins"], file)
        # In one go: what was there is what counts until then.
        new.replace(path)
    except OSError as error:
        # As with the journal: no reason not to run.
        logger.warning("%s cannot be written (%s): the run could not be resumed as it began.", path, error.strerror)
        return False
    return True


def read_pins(directory: str) -> dict[str, Any] | None:
    """Reads what `write_pins` wrote.

    Args:
        directory: The run's directory.

    Returns:
        The pins, if there are any.
    """
    try:
        pins = json.loads((Path(directory) / PINS).read_text())
    except (OSError, ValueError):
        return None
    return pins if isinstance(pins, dict) and {"images", "default_user"} <= pins.keys() else None


def give_up(directory: str) -> None:
    """Says that nobody is to go on with a run.

    Args:
        directory: The run's directory.
    """
    with contextlib.suppress(OSError):
        (Path(directory) / GIVEN_UP).touch(mode=0o600)


def is_given_up(directory: str) -> bool:
    """Whether somebody has said that nobody is to go on with a run.

    Args:
        directory: The run's directory.

    Returns:
        True if so.
    """
    return (Path(directory) / GIVEN_UP).exists()


def is_resumable(directory: str) -> bool:
    """Whether another process could go on with a run whose owner is dead.

    Args:
        directory: The run's directory.

    Returns:
        True if its journal is whole and unfinished, and nobody has given the run up.
    """
    from step_engine import read_run
    from step_engine.errors import StepEngineError

    try:
        record = read_run(directory)
    except StepEngineError:
        return False
    return record is not None and record["summary"] is None and not is_given_up(directory)


def step_environments(
    run: PipelineRunResponse, snapshot: PipelineSnapshotResponse, stack: Stack
) -> dict[str, dict[str, str]]:
    """Makes the environments of steps as ZenML does when a run begins. They hold secrets and are kept nowhere.

    Args:
        run: The run.
        snapshot: Its snapshot.
        stack: Its stack.

    Returns:
        The environment of every step.
    """
    from zenml.utils.env_utils import get_runtime_environment

    base = base_environment(run)
    return {
        name: {**base, **get_runtime_environment(config=step.config, stack=stack)}
        for name, step in snapshot.step_configurations.items()
    }


def base_environment(run: PipelineRunResponse) -> dict[str, str]:
    """Makes what all containers of a run see of ZenML. It holds secrets and is kept nowhere.

    Args:
        run: The run.

    Returns:
        Variables. Nothing for a run that is over for ZenML: a server gives no token for it, and nothing of it starts.
    """
    from zenml.orchestrators.utils import get_config_environment_vars

    if run.status.is_finished and not run.in_progress:
        return {}
    environment, secrets = get_config_environment_vars(pipeline_run_id=run.id)
    return {**environment, **secrets}
