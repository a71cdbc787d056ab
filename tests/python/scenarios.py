"""Pipelines that the tests run as a user would: `python scenarios.py NAME`. Copied into a folder of its own."""

import os
import signal
import sys
import time
from pathlib import Path

from zenml import pipeline, step
from zenml.config import DockerSettings, ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode

SCRATCH = os.environ.get("TEST_SCRATCH", "/scratch")
DOCKER = DockerSettings(parent_image=os.environ.get("TEST_IMAGE", "none"), skip_build=True)
SCRATCH_VOLUME = {"orchestrator": {"volumes": [f"{SCRATCH}:/scratch"], "environment": {"GREETING": "hello"}}}
SETTINGS = {"docker": DOCKER, **SCRATCH_VOLUME}


def _leave(name: str) -> None:
    Path("/scratch", name).write_text(f"{time.time()}")


@step
def source() -> int:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return 1


@step(settings={"orchestrator": {"environment": {"GREETING": "bonjour"}}})
def child(value: int, name: str) -> int:
    _leave(f"begin-{name}")
    print(f"uid {os.getuid()} says {os.environ['GREETING']} in {Path('/.dockerenv').exists()}")
    time.sleep(2)
    _leave(f"end-{name}")
    return value


@step
def fails() -> int:
    print("about to fail")
    raise ValueError("on purpose")


@step
def sleeps(marker: str = "sleeping") -> int:
    _leave(marker)
    time.sleep(120)
    return 1


@step
def stubborn() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave("stubborn")
    for _ in range(1200):
        time.sleep(0.1)
    return 1


@step(retry=StepRetryConfig(max_retries=2, delay=1))
def second_time_lucky() -> int:
    if not Path("/scratch/first").exists():
        _leave("first")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@step(settings={"resources": ResourceSettings(memory="600MB")})
def greedy() -> int:
    hoard = bytearray(2_000_000_000)
    return len(hoard)


@step(settings={"orchestrator": {"timeout_seconds": 15, "stop_grace_seconds": 2}})
def too_slow() -> int:
    time.sleep(120)
    return 1


@pipeline(enable_cache=False, settings=SETTINGS)
def fan_out() -> None:
    value = source()
    for name in ("left", "right"):
        child(value, name, id=name)


def _failing(mode: ExecutionMode):
    @pipeline(name=f"failing_{mode.value}", enable_cache=False, settings=SETTINGS, execution_mode=mode)
    def failing() -> None:
        child(fails(), "below", id="below")
        sibling = source()
        child(sibling, "beside", id="beside", after="long")
        sleeps.with_options(parameters={"marker": f"sleeping-{mode.value}"})(id="long") if (
            mode == ExecutionMode.FAIL_FAST
        ) else source(id="long")

    return failing


@pipeline(enable_cache=False, settings=SETTINGS)
def retried() -> None:
    second_time_lucky()


@pipeline(enable_cache=False, settings=SETTINGS)
def out_of_memory() -> None:
    greedy()


@pipeline(enable_cache=False, settings=SETTINGS)
def timed_out() -> None:
    too_slow()


@pipeline(enable_cache=False, settings=SETTINGS)
def interrupted() -> None:
    child(sleeps(), "after", id="after")


@pipeline(enable_cache=False, settings=SETTINGS)
def killed() -> None:
    stubborn()


@pipeline(enable_cache=False, settings={"docker": DOCKER, "orchestrator": {"synchronous": False}})
def background() -> None:
    source()


@pipeline(enable_cache=False, settings={**SETTINGS, "resources": ResourceSettings(memory="900TB")})
def impossible() -> None:
    source()


if __name__ == "__main__":
    name = sys.argv[1]
    if name.startswith("failing_"):
        _failing(ExecutionMode(name.removeprefix("failing_")))()
    else:
        globals()[name]()
