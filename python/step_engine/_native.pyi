"""The Rust core. This file is its API reference."""

from collections.abc import Callable
from typing import Any, final

__version__: str

RUN_ARGS: list[str]
"""Names that `run_args` of a container takes: docker-py's keywords of `containers.run`."""

def read_run(run_directory: str) -> dict[str, Any] | None:
    """Reads the journal that a run keeps in its directory, also while the run goes on or after its process died.

    Args:
        run_directory: The run's directory.

    Returns:
        `run_id`, `pipeline`, `began_unix_seconds`, `seconds` (from there to the last thing that is known), `steps`
        (names, in the plan's order), `events` (as `DockerRun.next_events` gives them, without output) and `summary`
        (none while steps are unfinished). None when the run kept no journal.

    Raises:
        StepEngineError: The journal is damaged, or another version wrote it.
    """

@final
class DockerEngine:
    """A Docker engine, found as the `docker` command finds it.

    `DOCKER_HOST` with the TLS variables, else the active context, else the default socket.

    Raises:
        DockerError: No engine answers (`operation` is `connect`), or it is too old.
    """

    def __new__(cls) -> DockerEngine: ...
    def info(self) -> dict[str, Any]:
        """Describes the engine.

        Returns:
            `server_version`, `api_version`, `cpu_millis` (thousandths of a CPU), `memory_bytes`, `gpus`, `rootless`,
            `local` (whether it shares this machine's file system), `platform` (`os/architecture`), `address`.

        Raises:
            DockerError: The engine does not answer.
        """

    def image_id(
        self,
        reference: str,
        *,
        pull_policy: str = "missing",
        platform: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> str:
        """Pins an image.

        Args:
            reference: Image name or id.
            pull_policy: `missing`, `always` or `never`.
            platform: `os/architecture[/variant]` to pull.
            progress: Takes lines that tell how a pull goes on.

        Returns:
            The image's id, `sha256:…`.

        Raises:
            DockerError: It is not there and must not or cannot be pulled.
        """

    def containers(self, run_id: str) -> list[dict[str, Any]]:
        """Lists the containers of a run, whoever started them.

        Returns:
            Dicts with `id`, `name`, `step` (empty for a warm worker that serves several), `attempt`, `state`
            (`created`, `running`, `exited`, …), `exit_code`, `kept` (whether it is to stay for inspection), `warm`.

        Raises:
            DockerError: The engine does not answer.
        """

    def stop_run(self, run_id: str, *, force: bool, grace_seconds: float | None = None) -> list[str]:
        """Stops every container of a run from outside its owner.

        Args:
            run_id: Run id, as in the plan.
            force: Kill at once rather than ask first.
            grace_seconds: Time between asking and killing; none is each container's own, from its step's settings.

        Returns:
            Names of the containers that still run.

        Raises:
            DockerError: The engine does not answer.
        """

    def remove_run(self, run_id: str) -> list[str]:
        """Removes every container of a run, running or not, kept or not.

        Args:
            run_id: Run id, as in the plan.

        Returns:
            Names of the containers that could not be removed.

        Raises:
            DockerError: The engine does not answer.
        """

    def clear_run(self, run_id: str) -> list[str]:
        """Removes the containers of a run whose owner is gone: all that do not run, except those that are to be kept.

        Args:
            run_id: Run id, as in the plan.

        Returns:
            Names of the containers that could not be removed.

        Raises:
            DockerError: The engine does not answer.
        """

@final
class DockerRun:
    """One run of a plan on an engine. Validates everything at construction; nothing is started until `start`.

    Args:
        engine: The engine.
        plan: `PlanSpec` as a dict: `run_id`, `pipeline`, `execution_mode` (`fail_fast`, `stop_on_failure`,
            `continue_on_failure`), `max_parallelism`, `steps` with `name`, `upstream`, `resources` (`cpu_millis`,
            `memory_bytes`, `gpus`), `retry` (`max_retries`, `delay_seconds`, `backoff`), `timeout_seconds`,
            `stop_grace_seconds`, `expected_seconds`; `leader` (none, or the name of the step that asks for further ones
            while it runs: it takes no slot of `max_parallelism`, the run lasts as long as it does and ends as it ends).
        containers: For each step's name its container: `image`, `image_reference`, `entrypoint`, `command`,
            `environment`, `volumes`, `user`, `network`, `extra_hosts`, `shm_size_bytes`, `labels`, `platform`,
            `keep_containers`, `enforce_limits`, `stop_grace_seconds`, `working_dir`, `pull_policy`, `run_args`; `files`
            (dicts with `source`, a directory of this machine, and `target`, where it is copied to in the container);
            `warm` (none, or `isolation` `container` or `process`, `entrypoint` and `command` of a worker that gets
            ready ahead of need).
        run_directory: Where logs are kept, created with mode 0700.
        component: Name of the stack component, for a label.

    Raises:
        PlanError: The plan is invalid, or a step asks for more memory or GPUs than the host has.
        DockerError: A container is described wrongly, or the engine does not answer.
    """

    def __new__(
        cls,
        engine: DockerEngine,
        plan: dict[str, Any],
        containers: dict[str, dict[str, Any]],
        *,
        run_directory: str | None = None,
        component: str = "",
    ) -> DockerRun: ...
    @staticmethod
    def resume(
        engine: DockerEngine,
        containers: dict[str, dict[str, Any]],
        *,
        run_directory: str,
        component: str = "",
        alive_until_unix_seconds: float | None = None,
        completed: set[str] | None = None,
    ) -> DockerRun:
        """Goes on with a run whose owner died, from the journal in its directory. The caller must be its only owner.

        Containers that still run are adopted, the end of those that ended meanwhile is read, what never began is
        started. Events of the past are not delivered again, see `read_run`.

        Args:
            engine: The engine.
            containers: As for a new run.
            run_directory: The run's directory.
            component: Name of the stack component, for a label.
            alive_until_unix_seconds: When its owner was last seen to live: from then on the run's clock stands still.
                None: at the last line of the journal.
            completed: Steps that are known to have done their work. Only asked where nothing else is left of an
                attempt.

        Returns:
            A run that was not started yet.

        Raises:
            StepEngineError: The journal is missing or damaged, or another version wrote it.
            PlanError: A step has no container.
            DockerError: A container is described wrongly.
        """

    @property
    def warnings(self) -> list[str]:
        """Requests that were changed so that they can run."""

    @property
    def max_parallelism(self) -> int:
        """How many steps may run at once."""

    @property
    def finished(self) -> bool:
        """Whether the run is over and every event was delivered."""

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run amounted to, once it is over: among others `warm_starts` (attempts that a warm worker took) and
        `longest_start` (seconds from the launch of an attempt to its start; none when nothing started)."""

    def start(self) -> None:
        """Starts the run on threads of its own.

        Raises:
            StepEngineError: It was started already.
        """

    def next_events(self, timeout_seconds: float = 1.0) -> list[dict[str, Any]]:
        """Waits for events, running Python's signal handlers meanwhile.

        Returns:
            What happened, oldest first; empty when the time is up. Each has a `kind`: those of the core
            (`run_started`, `step_added`, `attempt_launched`, `attempt_started` with `details.warm` and
            `details.go_to_started`, `attempt_measured` with `usage.peak_memory_bytes`, `attempt_ended`,
            `retry_scheduled`, `step_finished`, `stop_requested`, `run_finished`), `log` (`step`, `attempt`, `stream`,
            `text`), `warning` (`step`, `message`), `progress` (`message`, how the pull of an image goes on), or `judge`
            (`step`, `attempt`, `outcome`, `log_tail`), which `judge` must answer.
        """

    def judge(self, step: str, attempt: int, outcome: dict[str, Any], may_retry: bool) -> None:
        """Answers a `judge` event.

        Args:
            step: Step name.
            attempt: Attempt number.
            outcome: How the attempt ended after all, such as `{"kind": "exited", "code": 1}`.
            may_retry: Whether another attempt makes sense if the step has retries left.

        Raises:
            StepEngineError: Nothing waits for this verdict.
        """

    def cancel(self, reason: str) -> None:
        """Ends the run early; only a worse reason than the present one acts.

        Args:
            reason: `interrupt` (stop what runs, with its grace), `kill`, or `abandon` (return and name what is left).
        """

    def request_step(self, step: dict[str, Any], container: dict[str, Any]) -> str | None:
        """Runs a step that the run's leader asks for. One that failed and may be tried again gets its next attempt.

        Args:
            step: As in `steps` of a plan, with no `upstream`.
            container: Its container, as in `containers`; it always starts cold.

        Returns:
            How the request was changed so that it can run, if it was.

        Raises:
            PlanError: The step is described wrongly, or asks for more memory or GPUs than the host has.
            DockerError: The container is described wrongly.
        """

    def drop_step(self, step: str) -> None:
        """Stops a step that the leader asked for, or does not start it.

        Args:
            step: Step name.
        """

def compile_asl(plan: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Compiles a plan to Amazon States Language. Pure: no AWS call, equal input gives equal bytes.

    Args:
        plan: A plan, see `DockerRun`.
        options: Fields of `AslOptions`: `name`, `synchronization` (`exact`, `barrier`, `auto`), `auto_threshold`,
            `signals` (`bucket`, `prefix`), `recheck_seconds`, `timeout_seconds`, `task` and `steps.<name>` (`cluster`,
            `task_definition`, `launch_type`, `capacity_providers`, `platform_version`, `network`, `container`,
            `command`, `environment`, `tags`, `enable_execute_command`), `infrastructure_retries`, `account`
            (`partition`, `region`, `id`), `pass_roles`, `limits`. A value of `command`, `environment` and `tags` is a
            string, `{"input": "<field of the execution's input>"}` or `{"execution": "name" | "id"}`.

    Returns:
        `machines` (dicts with `name`, `definition`, `hash`, `steps`, `events`, `transitions`; those inside others
        first, the root last) and `report`.

    Raises:
        PlanError: The plan or the options are malformed.
        AslLimitError: A limit is exceeded; `limit`, `actual` and `step` say which.
        AslError: A setting is missing or a step asks for what the launch type does not have.
    """

def draw_asl(plan: dict[str, Any], options: dict[str, Any], picture: str) -> str:
    """Draws a plan's machine.

    Args:
        plan: A plan.
        options: As for `compile_asl`.
        picture: `mermaid` or `svg`.

    Returns:
        The text of the picture.

    Raises:
        PlanError: The plan or the options are malformed.
        AslError: As for `compile_asl`.
    """

def asl_report(plan: dict[str, Any], options: dict[str, Any]) -> str:
    """Tells people what a compilation amounts to: waits, token edges, events, price, sizes.

    Args:
        plan: A plan.
        options: As for `compile_asl`.

    Returns:
        Lines of text.

    Raises:
        PlanError: The plan or the options are malformed.
        AslError: As for `compile_asl`.
    """
