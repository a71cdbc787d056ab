"""A Rust core that runs the steps of a pipeline in containers.

`step_engine` knows nothing of ZenML; the `orchestrator` package brings the two together.
"""

from step_engine import errors
from step_engine._native import (
    RUN_ARGS,
    AwsRun,
    AwsSession,
    DockerEngine,
    DockerRun,
    __version__,
    asl_report,
    compile_asl,
    draw_asl,
    read_run,
)

__all__ = [
    "RUN_ARGS",
    "AwsRun",
    "AwsSession",
    "DockerEngine",
    "DockerRun",
    "__version__",
    "asl_report",
    "compile_asl",
    "draw_asl",
    "errors",
    "read_run",
]
