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
        (names, in the plan's order), `events` (as `DockerRun.next_events` gives them, without output), `requests` (each
        with `step` and `reference`: what `DockerRun.request_step` was asked for, the n-th of a step being its n-th
        attempt) and `summary` (none while steps are unfinished). None when the run kept no journal.

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
            `id` (tells it from other engines), `server_version`, `api_version`, `cpu_millis` (thousandths of a CPU),
            `memory_bytes`, `gpus`, `rootless`, `local` (whether it shares this machine's file system), `platform`
            (`os/architecture`), `address`.

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
            containers: As for a new run. Steps that the run's leader asked for need one as far as they are unfinished;
                a further attempt of one without fails.
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

        Returns once the request is in the run's journal, or the run is over.

        Args:
            step: As in `steps` of a plan, with no `upstream`. Its `reference` is kept in the journal, see `read_run`.
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

@final
class AwsSession:
    """Calls AWS in one account and region. Makes no call by itself.

    Every call retries throttling, transient errors and lost answers with jitter, and is paced to the documented rates.
    `AWS_ENDPOINT_URL`, the endpoint variables of single services, profiles and the region of the environment are
    honoured as by the AWS tools.

    Args:
        region: Region; none takes that of the environment or the profile.
        profile: Profile of the shared AWS files; none takes `AWS_PROFILE` or the default one.
        credentials: `access_key_id`, `secret_access_key`, and if they are temporary `session_token` and
            `expires_at_unix_seconds`. None takes the default chain: environment, profile (SSO, role, process), web
            identity, container, instance.

    Raises:
        AwsError: No region is known, or the credentials are incomplete (`operation` is `configure`).
    """

    def __new__(
        cls,
        *,
        region: str | None = None,
        profile: str | None = None,
        credentials: dict[str, Any] | None = None,
    ) -> AwsSession: ...
    @property
    def region(self) -> str:
        """Region of every call."""

    @property
    def credentials_expire_in_seconds(self) -> float | None:
        """Time until the credentials that were given end, negative afterwards; none when they do not or when the
        default chain renews its own."""

    @property
    def calls(self) -> dict[str, int]:
        """How often each operation was called; tries that the SDK repeats by itself count once."""

    def set_credentials(self, credentials: dict[str, Any]) -> None:
        """Takes new credentials for every call from now on, those of a watch that goes on included.

        Args:
            credentials: As at construction.

        Raises:
            AwsError: The session was made without credentials, or these are incomplete.
        """

    def identity(self) -> dict[str, str]:
        """Tells who the credentials belong to.

        Returns:
            `account`, `arn`, `user_id`, `region`, `partition`.

        Raises:
            AwsError: The credentials are missing, wrong or expired.
        """

    def describe_task_definition(self, task_definition: str) -> dict[str, Any]:
        """Reads a task definition.

        Args:
            task_definition: Family, `family:revision` or ARN.

        Returns:
            `taskDefinition` and `tags`, spelled as in the ECS API.

        Raises:
            AwsError: It does not exist or may not be read.
        """

    def ensure_task_definition(self, template: str, overlay: dict[str, Any]) -> dict[str, Any]:
        """Registers what a template becomes with some changes, unless that was done before.

        The family's name is the template's family, `-se-` and a hash of the content, so equal content is found by its
        name. The template is read once per session. What the overlay does not mention is kept: network mode, roles,
        volumes, log configuration, platform, other containers, settings of the container.

        Args:
            template: Family, `family:revision` or ARN of the template.
            overlay: What to change, all optional: `container_name` (which container runs steps; the only one that is
                essential if left out), `image`, `cpu` (CPU units) and `memory_mib` of the task, `environment` (name to
                value, merged over the container's own), `secrets` (name to `valueFrom`, merged; a name in `secrets` is
                taken out of the environment and the other way round), `gpus`, `task_role_arn`, `execution_role_arn`,
                `ephemeral_storage_gib`, `entry_point`, `command`, `stop_timeout_seconds`, `init_process` (whether an
                init passes signals on to it), `log_configuration` (in the API's spelling; takes the place of the
                container's), `default_log_configuration` (only where the template has none), `tags` (name to value,
                merged; not part of the content).

        Returns:
            `arn`, `family`, `created`, `container_name`, `log` (none, or `group`, `region`, `stream_prefix`: where the
            container logs to in CloudWatch; the stream is `<stream_prefix>/<container>/<task id>`), `network_mode`.

        Raises:
            PlanError: The overlay has an unknown field or a wrong value, or names a container that the template lacks.
            AwsError: The template does not exist, or the registration was refused.
        """

    def deploy(
        self,
        machines: list[dict[str, Any]],
        *,
        role_arn: str,
        tags: dict[str, str] | None = None,
        log_group_arn: str | None = None,
        publish: bool = False,
        role_wait_seconds: float = 20.0,
    ) -> dict[str, Any]:
        """Creates the state machines of a compilation, unless they exist.

        The root is named after the pipeline and a hash of its definition, role and log group, so an unchanged pipeline
        creates nothing; nested machines have hashes in their names already. A machine that exists is found with one
        call for all of them.

        Args:
            machines: `machines` of `compile_asl`.
            role_arn: Role that the machines take.
            tags: Tags of the machines; `step-engine:pipeline` (the root's name without hash) and `step-engine:machine`
                (`root` or `nested`) are added.
            log_group_arn: Where Step Functions logs errors of executions, without data; none logs nothing.
            publish: Whether a version is published. A machine named by its content never changes, so nothing here needs
                one.
            role_wait_seconds: How long to try again while IAM does not know the role or its policies yet.

        Returns:
            `arn` of the root, `name`, `created` (ARNs), `calls` (how many requests that took), `version_arn`.

        Raises:
            AwsError: The definition, the role or the caller is refused.
        """

    def collect_machines(self, pipeline: str, *, keep: int = 5, min_age_seconds: float = 86_400.0) -> list[str]:
        """Deletes root machines of a pipeline that were deployed here, and nested ones that no machine starts any more.

        Never one with running executions, one that a schedule of this account starts, one of the `keep` newest, or a
        young one.

        Args:
            pipeline: Name of the root machine before the hash.
            keep: How many of the newest stay.
            min_age_seconds: Younger machines stay.

        Returns:
            ARNs of what was deleted.

        Raises:
            AwsError: Something may not be listed or deleted.
        """

    def collect_task_definitions(
        self, template: str, *, keep: int = 20, min_age_seconds: float = 2_592_000.0
    ) -> list[str]:
        """Deregisters task definitions that `ensure_task_definition` made from a template.

        Never one that a state machine of this account mentions, one of the `keep` newest, or a young one.

        Args:
            template: Family, `family:revision` or ARN of the template.
            keep: How many of the newest stay.
            min_age_seconds: Younger definitions stay.

        Returns:
            ARNs of what was deregistered.

        Raises:
            AwsError: Something may not be listed or deregistered.
        """

    def start(self, state_machine_arn: str, *, name: str, input: dict[str, Any]) -> str:
        """Starts an execution, once: the same name and input give the same execution, also after a lost answer.

        Args:
            state_machine_arn: The machine.
            name: Name of the execution, 1 to 80 letters, digits, `-` and `_`.
            input: Its input. Anyone who may describe executions can read it.

        Returns:
            ARN of the execution.

        Raises:
            AwsError: It was refused; code `ExecutionAlreadyExists` when the name was used with another input.
        """

    def stop(
        self,
        execution_arn: str,
        *,
        cause: str = "",
        grace_seconds: float = 30.0,
        others: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Stops an execution with its nested ones, and every task that Step Functions leaves running.

        Args:
            execution_arn: The root execution.
            cause: Why, for people.
            grace_seconds: How long to wait for tasks to end.
            others: `cluster` and `name` (`startedBy`) of tasks that the execution's own have started; they are stopped,
                too, at once. This alone needs `ecs:ListTasks`.

        Returns:
            `was_running` (of the execution), `stopped_tasks`, `left_running` (ARNs of tasks that still run), `others`
            (ARNs of those that the execution's own had started and that were running).

        Raises:
            AwsError: It does not exist or may not be stopped.
        """

    def describe_execution(self, execution_arn: str) -> dict[str, Any]:
        """Describes an execution.

        Returns:
            `arn`, `name`, `state_machine_arn`, `status` (`RUNNING`, `SUCCEEDED`, `FAILED`, `TIMED_OUT`, `ABORTED`,
            `PENDING_REDRIVE`), `started_at_unix_seconds`, `stopped_at_unix_seconds`, `error`, `cause`, `failed_steps`
            and `skipped_steps` (labels from the cause of a run that went on after failures), `input`, `output`,
            `redrive_count`.

        Raises:
            AwsError: It does not exist (code `ExecutionDoesNotExist`) or may not be read.
        """

    def execution_steps(self, execution_arn: str, steps: list[str]) -> dict[str, dict[str, Any]]:
        """Reads from the histories of an execution and its nested ones where its steps stand.

        Args:
            execution_arn: The root execution.
            steps: Names of the steps.

        Returns:
            For each step `status` (`waiting`, `running`, `retrying`, `completed`, `failed`, `stopped`, `skipped`),
            `attempts` and `task` (of the last attempt, none before the first: `arn`, `cluster`, `task_definition`,
            `container`, `state_entered_at_unix_seconds`, `submitted_at_unix_seconds`, `started_at_unix_seconds`,
            `stopped_at_unix_seconds`, `outcome` as in `attempt_ended`, `exit_code`, `stopped_reason`, `stop_code`,
            `cpu`, `memory`, `launch_type`, `capacity_provider`). A value that is not known is none.

        Raises:
            AwsError: The execution does not exist or may not be read.
        """

    def put_secret(
        self,
        backend: str,
        name: str,
        value: str,
        *,
        tags: dict[str, str] | None = None,
        kms_key: str | None = None,
        overwrite: bool = True,
    ) -> str:
        """Keeps a secret.

        Args:
            backend: `secretsmanager` or `ssm` (a SecureString; the name begins with `/`, else one is put before it).
            name: Its name.
            value: The secret.
            tags: Tags for a new secret.
            kms_key: Key to encrypt it with; none takes the service's own.
            overwrite: Whether the value of one that exists is replaced.

        Returns:
            Its ARN, fit for `valueFrom`.

        Raises:
            AwsError: It was refused. The value stands in no message.
        """

    def delete_secret(self, backend: str, name: str) -> bool:
        """Deletes a secret at once, without a recovery window.

        Args:
            backend: `secretsmanager` or `ssm`.
            name: Its name or ARN.

        Returns:
            False when there was none; Secrets Manager does not tell and is always true.

        Raises:
            AwsError: It may not be deleted.
        """

    def log_lines(
        self, group: str, stream: str, *, limit: int = 1_000, from_head: bool = False, region: str | None = None
    ) -> list[str]:
        """Reads lines of a log stream.

        Args:
            group: Log group.
            stream: Log stream.
            limit: At most so many.
            from_head: The first lines rather than the last ones.
            region: Region of the group; none is the session's.

        Returns:
            Lines, oldest first; none when the stream does not exist.

        Raises:
            AwsError: They may not be read.
        """

    def run_task(self, request: dict[str, Any]) -> dict[str, Any]:
        """Starts a single task outside any execution, once: a lost answer starts nothing twice.

        Args:
            request: A request of ECS `RunTask` in the API's spelling.

        Returns:
            The task, in the API's spelling.

        Raises:
            AwsError: It was refused, or there is no capacity for it.
        """

    def describe_tasks(self, cluster: str, tasks: list[str]) -> list[dict[str, Any]]:
        """Describes tasks; those that ECS has forgotten (about an hour after their end) are left out.

        Args:
            cluster: Name or ARN of the cluster.
            tasks: ARNs.

        Returns:
            Tasks in the API's spelling.

        Raises:
            AwsError: They may not be read.
        """

    def stop_task(self, cluster: str, task: str, *, reason: str = "") -> None:
        """Asks a task to end.

        Args:
            cluster: Name or ARN of the cluster.
            task: ARN.
            reason: Why, for people.

        Raises:
            AwsError: It may not be stopped.
        """

    def put_schedule(
        self,
        name: str,
        *,
        expression: str,
        state_machine_arn: str,
        role_arn: str,
        input: dict[str, Any],
        group: str | None = None,
        timezone: str | None = None,
        start_at_unix_seconds: float | None = None,
        end_at_unix_seconds: float | None = None,
        enabled: bool = True,
        flexible_minutes: int | None = None,
        description: str = "",
        delete_after_completion: bool = False,
        create: bool = True,
    ) -> dict[str, Any]:
        """Creates a schedule that starts executions, or replaces the one of this name.

        Args:
            name: 1 to 64 letters, digits, `-`, `_` and `.`.
            expression: `cron(…)` (six fields), `rate(…)` or `at(…)`.
            state_machine_arn: What to start.
            role_arn: Role that EventBridge Scheduler takes; it may start the machine.
            input: Input of each execution. `<aws.scheduler.scheduled-time>` and `<aws.scheduler.execution-id>` in it
                are filled in by the service.
            group: Schedule group; none is `default`.
            timezone: Such as `Europe/Berlin`; none is UTC.
            start_at_unix_seconds: Nothing happens before.
            end_at_unix_seconds: Nothing happens after.
            enabled: Whether it acts.
            flexible_minutes: Starts may be delayed by so many minutes.
            description: For people.
            delete_after_completion: Whether it is deleted after its last start.
            create: Whether there need not be one yet. If there must, a start that is over is left out.

        Returns:
            `arn`, `created`.

        Raises:
            AwsError: It was refused.
        """

    def get_schedule(self, name: str, *, group: str | None = None) -> dict[str, Any] | None:
        """Reads a schedule.

        Returns:
            The arguments of `put_schedule` under their names, and `arn`; none when there is no such schedule.

        Raises:
            AwsError: It may not be read.
        """

    def set_schedule_enabled(self, name: str, enabled: bool, *, group: str | None = None) -> bool:
        """Pauses a schedule or lets it go on, changing nothing else.

        Returns:
            Whether there is such a schedule.

        Raises:
            AwsError: It may not be read or changed.
        """

    def delete_schedule(self, name: str, *, group: str | None = None) -> bool:
        """Deletes a schedule.

        Returns:
            Whether there was one.

        Raises:
            AwsError: It may not be deleted.
        """

@final
class AwsRun:
    """Watches one execution. Watching changes nothing: dropping this object or a dead client leave the run alone.

    Args:
        session: The session, whose credentials may be renewed meanwhile.
        execution_arn: The root execution, running or over.
        plan: The plan that it was compiled from, see `DockerRun`.
        logs: Whether what the steps write is followed.
        others: `cluster` and `name` (`startedBy`) of tasks that the execution's own task starts. They are shown as
            steps, under the name that `ZENML_STEP_ENGINE_STEP` in their overrides gives (`step_added` comes first).

    Raises:
        PlanError: The plan is malformed.
    """

    def __new__(
        cls,
        session: AwsSession,
        execution_arn: str,
        plan: dict[str, Any],
        *,
        logs: bool = True,
        others: dict[str, str] | None = None,
    ) -> AwsRun: ...
    @property
    def finished(self) -> bool:
        """Whether nothing more is to come and every event was delivered."""

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run amounted to, as `DockerRun.summary`; none until it is over, or when watching was ended
        before."""

    def start(self) -> None:
        """Begins to watch, from the execution's first event on.

        Raises:
            StepEngineError: It was started already.
        """

    def next_events(self, timeout_seconds: float = 1.0) -> list[dict[str, Any]]:
        """Waits for events, running Python's signal handlers meanwhile.

        Returns:
            What happened, oldest first; empty when the time is up. Kinds as of `DockerRun.next_events`: `run_started`,
            `attempt_launched` (with Step Functions), `attempt_started` (its container runs; `details.task` has `arn`,
            `cluster`, `task_definition`, `container`, `log_group`, `log_stream`), `attempt_ended`, `retry_scheduled`,
            `step_finished`, `stop_requested`, `run_finished`, `log` (`stream` is always `stdout`: the log driver does
            not keep them apart), `warning`. Besides `task_ended`, once the log of a task is complete, after its
            `attempt_ended` and before `run_finished`: `step`, `attempt`, `log_tail` and the fields of `task` of
            `AwsSession.execution_steps`. `execution_ended` comes right before `run_finished`, with the fields of
            `AwsSession.describe_execution`, except `input` and `output`.

        Raises:
            AwsError: The execution cannot be watched any longer; it goes on.
        """

    def cancel(self, reason: str = "interrupt") -> None:
        """Ends the watching; the execution goes on. `AwsSession.stop` is what stops it.

        Args:
            reason: `interrupt`, `kill` or `abandon`, which are the same here.
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
