"""Drives a run in the background: reads its job from standard input, writes to the run directory's `supervisor.log`."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from step_engine import DockerRun


def main() -> int:
    """Runs the job on standard input.

    Returns:
        Exit code: 0 if the run completed, 1 otherwise.
    """
    from step_engine import DockerEngine, DockerRun
    from step_engine.errors import RunOwnedError, StepEngineError
    from step_engine.lease import Lease

    from orchestrator.driving import Driver
    from orchestrator.dynamic_publishing import DynamicRunPublisher
    from orchestrator.publishing import RunPublisher

    job = json.load(sys.stdin)
    kind = DynamicRunPublisher if "dynamic" in job else RunPublisher
    publisher = kind(UUID(job["pipeline_run_id"]), UUID(job["component_id"]))
    run = lease = None
    try:
        if (descriptor := job.get("lease_descriptor")) is not None:
            lease = Lease.inherit(descriptor, job["run_directory"])
        engine = DockerEngine()
        run = DockerRun(
            engine,
            job["plan"],
            job["containers"],
            run_directory=job["run_directory"],
            component=job["component"],
        )
        if "dynamic" in job:
            from orchestrator.dynamic import drive_dynamic

            drive_dynamic(run, engine, job, lease)
            return 0
        names = [step["name"] for step in job["plan"]["steps"]]
        Driver(run, publisher, names, job["run_directory"], lease=lease).drive()
    except RunOwnedError as error:
        # The run is the other process's to report.
        _say(error)
        return 1
    except StepEngineError as error:
        _say(error)
        if not _has_another_owner(job, run):
            publisher.finish("failed", str(error))
        return 1
    except BaseException as error:
        if not _has_another_owner(job, run):
            publisher.finish("failed", f"The background process failed: {type(error).__name__}")
        raise
    return 0


def _has_another_owner(job: dict[str, Any], run: DockerRun | None) -> bool:
    """Whether ZenML may be going on with a run that has come to its end here, which it does with dynamic ones only."""
    return "dynamic" in job and run is not None and run.summary is not None


def _say(error: Exception) -> None:
    # A full disk must not keep the run's status from ZenML.
    with contextlib.suppress(OSError):
        print(error, flush=True)


if __name__ == "__main__":
    sys.exit(main())
