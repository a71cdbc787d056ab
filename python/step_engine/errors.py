"""Exceptions of the step engine. The Rust core raises them, too.

Every message is one sentence for the user; the fields are for programs. No environment value ever stands in either.
"""

from __future__ import annotations


class StepEngineError(Exception):
    """Base of every exception of the step engine."""


class PlanError(StepEngineError):
    """A plan that cannot be run.

    Attributes:
        step: Name of the step to blame, if one is.
        field: Path of the wrong field, such as `steps[3].retry.delay_seconds`; empty when no field is to blame.
    """

    def __init__(self, message: str, step: str | None = None, field: str = "") -> None:
        """Stores the place that is wrong."""
        super().__init__(message)
        self.step = step
        self.field = field


class DockerError(StepEngineError):
    """The engine could not do something.

    Attributes:
        operation: What was tried, such as `connect` or `pull`.
    """

    def __init__(self, message: str, operation: str = "") -> None:
        """Stores the operation."""
        super().__init__(message)
        self.operation = operation


class AwsError(StepEngineError):
    """AWS could not or would not do something.

    Attributes:
        operation: What was tried: the API's name of it, such as `StartExecution`, or `configure`.
        code: The service's code, such as `AccessDeniedException`; `NoCredentials`, `NoAnswer` or `Timeout` when no
            service answered.
        request_id: The service's name of the request, for support; empty when none answered.
    """

    def __init__(self, message: str, operation: str = "", code: str = "", request_id: str = "") -> None:
        """Stores what AWS answered."""
        super().__init__(message)
        self.operation = operation
        self.code = code
        self.request_id = request_id


class AslError(StepEngineError):
    """A plan that cannot become a state machine.

    Attributes:
        step: Name of the step to blame, if one is.
        field: Path of the setting to change; empty when none is to blame.
    """

    def __init__(self, message: str, step: str | None = None, field: str = "") -> None:
        """Stores the place that is wrong."""
        super().__init__(message)
        self.step = step
        self.field = field


class AslLimitError(AslError):
    """A plan that exceeds a limit of Step Functions or ECS although it was split as far as it goes.

    Attributes:
        limit: The limit.
        actual: What the plan needs.
    """

    def __init__(self, message: str, limit: int = 0, actual: int = 0, step: str | None = None) -> None:
        """Stores both numbers."""
        super().__init__(message, step)
        self.limit = limit
        self.actual = actual


class StepFailedError(StepEngineError):
    """A step failed for good, and with it the run.

    Attributes:
        step: Name of the first step that failed.
        outcome: How its last attempt ended: a dict with `kind` (`exited`, `out_of_memory`, `timed_out`,
            `launch_failed`, `lost`) and what belongs to it, such as `code`.
        log_tail: Last lines of its log, oldest first.
    """

    def __init__(
        self, message: str, step: str = "", outcome: dict[str, object] | None = None, log_tail: list[str] | None = None
    ) -> None:
        """Stores what is known of the failure."""
        super().__init__(message)
        self.step = step
        self.outcome = outcome or {}
        self.log_tail = log_tail or []


class RunInterruptedError(StepEngineError):
    """The run was stopped before its end.

    Attributes:
        stopped: Names of the steps that were running.
        left_running: Names of steps whose containers could not be stopped.
    """

    def __init__(self, message: str, stopped: list[str] | None = None, left_running: list[str] | None = None) -> None:
        """Stores what was stopped and what was not."""
        super().__init__(message)
        self.stopped = stopped or []
        self.left_running = left_running or []


class UnresumableError(StepEngineError):
    """A run whose owner died and that cannot be gone on with as it began.

    Attributes:
        run_id: The run.
    """

    def __init__(self, message: str, run_id: str = "") -> None:
        """Stores the run."""
        super().__init__(message)
        self.run_id = run_id


class RunOwnedError(StepEngineError):
    """Another process drives the run.

    Attributes:
        run_directory: The run's directory.
        owner: `pid` and `host` of that process; none when it left no name.
    """

    def __init__(self, message: str, run_directory: str = "", owner: dict[str, object] | None = None) -> None:
        """Stores who it is."""
        super().__init__(message)
        self.run_directory = run_directory
        self.owner = owner
