"""A dynamic run on the host: answers the orchestration container, and starts what it may ask for.

The orchestration container runs ZenML's `DynamicPipelineRunner`. Its inline steps run in it. For an isolated step it
names a step run; the step, its image and its settings are read out of ZenML's records here, held against what was said
before the run began (`permits.py`), and handed to the same core that runs the steps of static pipelines.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.logger import get_logger
from zenml.orchestrators.publish_utils import publish_step_run_status_update
from zenml.orchestrators.utils import get_step_entrypoint_command
from zenml.utils.env_utils import get_runtime_environment

from orchestrator import resuming
from orchestrator.control import ControlServer, RefusedError
from orchestrator.driving import Driver
from orchestrator.dynamic_publishing import DynamicRunPublisher
from orchestrator.images import Pins
from orchestrator.permits import Permits, image_of, permitted_images, plan_name
from orchestrator.plan import LEADER, build_container, step_spec
from orchestrator.publishing import patiently

if TYPE_CHECKING:
    from step_engine import DockerEngine, DockerRun
    from step_engine.lease import Lease
    from zenml.models import PipelineSnapshotResponse, StepRunResponse
    from zenml.stack import Stack

    from orchestrator.my_docker_orchestrator import LocalDockerOrchestrator
    from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings

logger = get_logger(__name__)

MAX_STEPS = 10_000
"""So many step runs a dynamic run may ask for."""

MAX_NAME = 255
"""The longest name of a step, in characters."""

FINAL = ("completed", "failed", "stopped")

_STILL_ENDING_SECONDS = 60.0
"""A step that is asked for again while its last attempt is being cleaned up waits so long."""


def drive_dynamic(run: DockerRun, engine: DockerEngine, job: Mapping[str, Any], lease: Lease | None = None) -> None:
    """Drives a dynamic run to its end.

    Args:
        run: The run, not started yet.
        engine: Its engine.
        job: What was submitted, see `LocalDockerOrchestrator.submit_dynamic_pipeline`.
        lease: Says already that this process drives the run.

    Raises:
        StepFailedError: The pipeline failed.
        RunInterruptedError: The run was stopped.
        RunOwnedError: Another process drives the run; nothing was changed.
    """
    session = DynamicSession(engine, job)
    session.attend(run)
    Driver(run, session.publisher(), [LEADER], job["run_directory"], session=session, lease=lease).drive()


def resume_dynamic(
    engine: DockerEngine,
    job: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    snapshot: PipelineSnapshotResponse,
    stack: Stack,
) -> None:
    """Goes on with a dynamic run whose owner died, to its end.

    Args:
        engine: Its engine.
        job: What would be submitted now, see `LocalDockerOrchestrator.resume_dynamic_run`.
        record: What its journal says, see `step_engine.read_run`.
        snapshot: What the job was made from.
        stack: Its stack.

    Raises:
        UnresumableError: What its steps may have is not what it was when the run began.
        StepEngineError: A step that may run cannot be described, or another process went on with the run meanwhile.
        StepFailedError: The pipeline failed.
        RunInterruptedError: The run was stopped.
        RunOwnedError: Another process drives the run; nothing was changed.
    """
    from step_engine import DockerRun
    from step_engine.lease import last_beat

    directory = job["run_directory"]
    # Nothing is read a second time: what is held against the permits is what containers are made from.
    session = DynamicSession(engine, job, snapshot=snapshot, stack=stack)
    session.refuse_changed_permits(resuming.read_pins(directory) or {})
    session.recall(record)
    publisher = session.publisher()
    finished = {event["step"] for event in record["events"] if event["kind"] == "step_finished"}
    unfinished = [name for name in record["steps"] if name not in finished]
    run = DockerRun.resume(
        engine,
        {**job["containers"], **session.containers(unfinished, in_flight(record["events"]))},
        run_directory=directory,
        component=job["component"],
        alive_until_unix_seconds=last_beat(directory),
        completed=publisher.completed(unfinished),
    )
    session.attend(run)
    Driver(run, publisher, record["steps"], directory, record, session=session).drive()


def in_flight(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """Finds the steps of which a container may run.

    Args:
        events: Of the run.

    Returns:
        Names of steps with an attempt that was launched and has not ended.
    """
    launched: set[str] = set()
    for event in events:
        if event["kind"] == "attempt_launched":
            launched.add(event["step"])
        elif event["kind"] in ("attempt_ended", "step_finished"):
            launched.discard(event["step"])
    return launched


class DynamicSession:
    """What a dynamic run has asked for and what became of it.

    Args:
        engine: Its engine.
        job: What was submitted.
        snapshot: The run's snapshot, if the run is resumed.
        stack: Its stack.
    """

    def __init__(
        self,
        engine: DockerEngine,
        job: Mapping[str, Any],
        *,
        snapshot: PipelineSnapshotResponse | None = None,
        stack: Stack | None = None,
    ) -> None:
        """Reads the snapshot, while nothing of the run can have changed it."""
        from zenml.stack import Stack

        dynamic = job["dynamic"]
        self._run: DockerRun | None = None
        self._run_id = UUID(job["pipeline_run_id"])
        self._job = job
        self._dynamic: Mapping[str, Any] = dynamic
        self._pins = Pins(engine, dynamic["images"], resumed=snapshot is not None)
        self._pins_written: dict[str, Any] = {}
        snapshot_id = UUID(dynamic["snapshot_id"])
        self._snapshot: PipelineSnapshotResponse = snapshot or patiently(
            lambda: Client().zen_store.get_snapshot(snapshot_id)
        )
        if stack is None:
            if self._snapshot.stack is None:
                raise RuntimeError("The stack of the run was deleted.")
            stack = Stack.from_model(self._snapshot.stack)
        self._stack: Stack = stack
        self._component = cast("LocalDockerOrchestrator", self._stack.orchestrator)
        known = [self._settings(self._snapshot)]
        known += [self._settings(step) for step in self._snapshot.step_configurations.values()]
        self._permits = Permits(known, permitted_images(self._snapshot, known))
        self._pins.look(self._permits.images)
        self._submitting = threading.Lock()
        self._changed = threading.Condition()
        self._states: dict[UUID, str] = {}
        # By name in the plan: the step runs of its attempts; how often another one was promised; what is over for good.
        self._attempts: dict[str, list[UUID]] = {}
        self._retries: Counter[str] = Counter()
        self._over: set[str] = set()
        self._name_of: dict[tuple[UUID, str], str] = {}
        self._open = ExitStack()

    def attend(self, run: DockerRun) -> None:
        """Says which run asks for steps.

        Args:
            run: The run, not started yet.
        """
        self._run = run

    def publisher(self) -> DynamicRunPublisher:
        """Makes what reads and writes the run's rows.

        Returns:
            It knows the step runs of this session.
        """
        return DynamicRunPublisher(
            UUID(self._job["pipeline_run_id"]), UUID(self._job["component_id"]), self.step_run_of
        )

    def __enter__(self) -> DynamicSession:
        """Opens the control socket, if the engine can reach it. The caller is the run's only owner by now.

        Returns:
            This session.
        """
        directory = self._job["run_directory"]
        earlier = resuming.read_pins(directory) or {}
        digests = list(earlier.get("secret_digests", []))
        if digest := self._dynamic["secret_digest"]:
            digests.append(digest)
        self._pins.known.update(earlier.get("images", {}))
        self._pins_written = {
            "component_id": self._job["component_id"],
            "store_id": self._job["store_id"],
            "engine_id": self._dynamic["engine_id"],
            "default_user": self._dynamic["default_user"],
            "permits": self._permits.digest(),
            # An orchestration that a former owner started has the secret that it was given.
            "secret_digests": digests,
        }
        self._write_pins()
        if digests:
            self._open.enter_context(ControlServer(directory, digests, self, self._dynamic["user"]))
        return self

    def _write_pins(self) -> None:
        images = dict(self._pins.known)
        if self._pins_written and self._pins_written.get("images") != images:
            pins = {**self._pins_written, "images": images}
            # What could not be written is tried again with the next step.
            if resuming.write_pins({"run_directory": self._job["run_directory"], "pins": pins}):
                self._pins_written = pins

    def refuse_changed_permits(self, pins: Mapping[str, Any]) -> None:
        """Checks that steps may have what they might have when the run began: its containers can write ZenML's store.

        Args:
            pins: What was written down then.

        Raises:
            UnresumableError: They may have something else now.
        """
        resuming.refuse_changed(str(self._run_id), pins, self._permits.digest())

    def recall(self, record: Mapping[str, Any]) -> None:
        """Takes over what a former owner knew.

        Args:
            record: What the run's journal says, see `step_engine.read_run`.
        """
        with self._changed:
            for request in record["requests"]:
                step_run_id, run_id, invocation_id = request["reference"].split("/", 2)
                self._name_of[UUID(run_id), invocation_id] = request["step"]
                self._attempts.setdefault(request["step"], []).append(UUID(step_run_id))
                self._states[UUID(step_run_id)] = "provisioning"
        for event in record["events"]:
            self.handle(event)

    def containers(self, names: Iterable[str], running: Container[str]) -> dict[str, dict[str, Any]]:
        """Describes steps again that were asked for under a former owner.

        Args:
            names: Names in the plan.
            running: Those that may run already.

        Returns:
            Their containers, as far as they may be had.

        Raises:
            StepEngineError: One that may run cannot be described; it would be taken for one that never started.
        """
        from step_engine.errors import StepEngineError

        described = {}
        for name in names:
            if (step_run_id := self.step_run_of(name)) is None:
                continue
            try:
                row = patiently(partial(Client().get_run_step, step_run_id))
                described[name] = self._described(row, name)[1]
            except (KeyError, RefusedError) as error:
                if name in running:
                    raise StepEngineError(
                        f"Step `{name}` of run {self._run_id} may still run and cannot be taken over: {error} Resume "
                        f"the run when that is mended, or end it with `zenml pipeline runs stop {self._run_id}`."
                    ) from None
                logger.warning("Step %s cannot be started again: %s", name, error)
        return described

    def __exit__(self, *_: object) -> None:
        """Closes the control socket."""
        self._open.close()

    def handle(self, event: Mapping[str, Any]) -> None:
        """Takes note of an event of the run.

        Args:
            event: As `DockerRun.next_events` gives it.
        """
        kind, name = event["kind"], event.get("step", "")
        with self._changed:
            attempts = self._attempts.get(name)
            if not attempts:
                return
            if kind == "attempt_started":
                self._states[attempts[event["attempt"] - 1]] = "running"
            elif kind == "attempt_ended":
                ended = event["outcome"]["kind"]
                final = ended if ended in ("completed", "stopped") else "failed"
                self._states[attempts[event["attempt"] - 1]] = final
            elif kind == "retry_scheduled":
                self._retries[name] += 1
            elif kind == "step_finished":
                self._over.add(name)
                if self._states[attempts[-1]] not in FINAL:
                    # Never started.
                    self._states[attempts[-1]] = "failed" if event["status"] == "failed" else "stopped"
            else:
                return
            self._changed.notify_all()

    def _may_be_tried_again(self, name: str) -> bool:
        return name not in self._over and self._retries[name] == len(self._attempts[name])

    def step_run_of(self, name: str) -> UUID | None:
        """The step run of a step's newest attempt.

        Args:
            name: Name in the plan.

        Returns:
            Its id; none for the orchestration.
        """
        with self._changed:
            attempts = self._attempts.get(name)
            return attempts[-1] if attempts else None

    def status(self, step_run_id: UUID, wait_seconds: float) -> str:
        """Tells where a step run stands.

        Args:
            step_run_id: Step run.
            wait_seconds: How long to wait for its end.

        Returns:
            `provisioning`, `running`, `completed`, `failed` or `stopped`.

        Raises:
            RefusedError: This run did not submit it.
        """
        with self._changed:
            if step_run_id not in self._states:
                raise RefusedError(f"step run {step_run_id} is none that this run has submitted.", unknown=True)
            self._changed.wait_for(lambda: self._states[step_run_id] in FINAL, timeout=wait_seconds)
            return self._states[step_run_id]

    def stop(self, step_run_id: UUID) -> str:
        """Stops a step run, wherever it stands.

        Args:
            step_run_id: Step run.

        Returns:
            Where it stood before.
        """
        state = self.status(step_run_id, 0)
        if state not in FINAL:
            try:
                # The step looks there when it gets SIGTERM, and ends as stopped rather than as failed.
                patiently(lambda: publish_step_run_status_update(step_run_id, ExecutionStatus.STOPPING), 10)
            except Exception as error:
                logger.debug("ZenML did not take that a step is being stopped: %s", error)
            with self._changed:
                names = [name for name, attempts in self._attempts.items() if attempts[-1] == step_run_id]
            for name in names:
                self._attended().drop_step(name)
        return state

    def submit(self, step_run_id: UUID, invocation_id: str) -> str:
        """Runs a step run in a container of its own.

        Args:
            step_run_id: Step run.
            invocation_id: The step's name in its run.

        Returns:
            Where it stands.

        Raises:
            RefusedError: It is none of this run, it has ended, or it asks for what it may not have.
        """
        # One after the other: the same request, repeated, must find the first one done.
        with self._submitting:
            with self._changed:
                if step_run_id in self._states:
                    return self._states[step_run_id]
                if len(self._states) >= MAX_STEPS:
                    raise RefusedError(f"a run may ask for {MAX_STEPS} isolated steps.")
            row = self._row(step_run_id, invocation_id)
            name = self._name(row)
            spec, container = self._described(row, name)
            spec["reference"] = f"{row.id}/{row.pipeline_run_id}/{row.name}"
            self._request(name, row.id, spec, container)
        return self.status(step_run_id, 0)

    def _request(self, name: str, step_run_id: UUID, spec: dict[str, Any], container: dict[str, Any]) -> None:
        from step_engine.errors import StepEngineError

        with self._changed:
            if name in self._attempts:
                # The word on whether it may be tried again comes after that on its end.
                self._changed.wait_for(
                    lambda: self._may_be_tried_again(name) or name in self._over, timeout=_STILL_ENDING_SECONDS
                )
                if not self._may_be_tried_again(name):
                    raise RefusedError(f"step {name!a} runs already, or has ended for good.")
            # Before it is asked for: its first event must find it here.
            self._attempts.setdefault(name, []).append(step_run_id)
            self._states[step_run_id] = "provisioning"
        try:
            warning = self._attended().request_step(spec, container)
        except StepEngineError as error:
            with self._changed:
                del self._states[step_run_id]
                self._attempts[name].pop()
                if not self._attempts[name]:
                    del self._attempts[name]
            raise RefusedError(str(error)) from None
        if warning:
            logger.warning(warning)

    def _attended(self) -> DockerRun:
        if self._run is None:
            raise RuntimeError("the session attends no run")
        return self._run

    def _row(self, step_run_id: UUID, invocation_id: str) -> StepRunResponse:
        """The record of a step run, if it is one of this run that may start."""
        try:
            row = patiently(lambda: Client().get_run_step(step_run_id))
        except KeyError:
            raise RefusedError(f"there is no step run {step_run_id}.") from None
        run_id = row.pipeline_run_id
        if run_id != self._run_id:
            run = patiently(lambda: Client().get_pipeline_run(run_id, hydrate=False))
            if run.root_run_id != self._run_id:
                raise RefusedError(f"step run {step_run_id} belongs to another run.")
        if row.name != invocation_id:
            raise RefusedError(f"step run {step_run_id} is one of another step.")
        if row.status.is_finished or row.status in (ExecutionStatus.STOPPING, ExecutionStatus.RETRYING):
            raise RefusedError(f"step run {step_run_id} is {row.status.value} already.")
        if row.config.step_operator:
            raise RefusedError(f"step run {step_run_id} belongs to a step operator.")
        return row

    def _name(self, row: StepRunResponse) -> str:
        key = (row.pipeline_run_id, row.name)
        if key not in self._name_of:
            child = None
            if row.pipeline_run_id != self._run_id:
                run_id = row.pipeline_run_id
                run = patiently(lambda: Client().get_pipeline_run(run_id))
                child = run.child_key or run.name
            name = plan_name(row.name, child, dict.fromkeys(self._name_of.values()))
            if not name.isprintable() or len(name) > MAX_NAME:
                # It goes to terminals, file names and labels.
                raise RefusedError(f"{name[:60]!a} cannot be the name of a step here.")
            self._name_of[key] = name
        return self._name_of[key]

    def _described(self, row: StepRunResponse, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Step and container: out of the record and what was said before the run began, not out of the request."""
        from step_engine.errors import DockerError

        try:
            settings = self._settings(row)
        except ValueError as error:
            raise RefusedError(f"the settings of step {row.name!a} are not valid: {type(error).__name__}.") from None
        image = image_of(self._snapshot, row.config, settings)
        self._permits.check(row.name, settings, image)
        snapshot_id = row.snapshot_id or self._snapshot.id
        from zenml.step_operators.step_operator_entrypoint_configuration import StepOperatorEntrypointConfiguration

        process = get_step_entrypoint_command(
            invocation_id=row.name,
            config=row.config,
            entrypoint_config_class=StepOperatorEntrypointConfiguration,
            snapshot_id=snapshot_id,
            step_run_id=str(row.id),
        )
        try:
            container = build_container(
                row.name,
                self._snapshot,
                settings=settings,
                environment={
                    **self._dynamic["environment"],
                    **get_runtime_environment(config=row.config, stack=self._stack),
                },
                image=self._pins.pin(image, settings),
                image_reference=image,
                run_id=str(self._job["plan"]["run_id"]),
                local_stores_path=self._dynamic["local_stores_path"],
                default_user=self._dynamic["default_user"],
                same_machine=True,
                process=process,
            )
        except (ValueError, DockerError) as error:
            raise RefusedError(f"step {row.name!a}: {error}") from None
        self._write_pins()
        return step_spec(name, row.config, settings), container

    def _settings(self, described: Any) -> LocalDockerOrchestratorSettings:
        return cast("LocalDockerOrchestratorSettings", self._component.get_settings(described))
