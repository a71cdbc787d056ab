"""Dynamic pipelines of the end-to-end tests on the AWS bench: `python dynamic_scenarios.py NAME`."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Annotated

from aws_scenarios import MODE, SETTINGS
from zenml import pipeline, step
from zenml.client import Client
from zenml.config import ResourceSettings
from zenml.config.retry_config import StepRetryConfig

SECRETIVE = {"orchestrator": {"environment": {"MY_API_KEY": os.environ.get("TEST_SECRET", "x"), "PLAIN": "1"}}}


@step
def numbers() -> list[int]:
    print(f"inline in {_task()}")
    return [1, 2]


@step(settings={"resources": ResourceSettings(memory="600MB")})
def double(value: int) -> int:
    limit = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = next((path.read_text().strip() for path in limit if path.exists()), "")
    print(f"isolated {value} in {_task()} within {found}")
    return 2 * value


@step
def total(values: list[int]) -> Annotated[int, "total"]:
    print(f"the total is {sum(values)}")
    return sum(values)


@step(runtime="isolated", retry=StepRetryConfig(max_retries=2, delay=1))
def second_time() -> int:
    """Dies once without a word: the attempt's number is the version of its row."""
    from zenml import get_step_context

    version = get_step_context().step_run.version
    print(f"attempt {version}", flush=True)
    if version < 2:
        os._exit(137)
    return version


@step(runtime="isolated")
def tells_secrets() -> Annotated[str, "seen"]:
    """What a step sees of its secrets, without telling them."""
    names = ("MY_API_KEY", "ZENML_STORE_API_TOKEN", "PLAIN", "ADDED")
    return ";".join(f"{name}={hashlib.sha256(os.environ.get(name, '').encode()).hexdigest()[:8]}" for name in names)


@step(runtime="isolated")
def broken() -> None:
    print("about to break", flush=True)
    raise RuntimeError("broken on purpose")


@step(runtime="isolated")
def dies() -> None:
    print("about to die", flush=True)
    os._exit(139)


@step(runtime="isolated", settings={"orchestrator": {"timeout_seconds": 20}})
def too_slow() -> None:
    time.sleep(600)


@step(runtime="isolated")
def sleeps() -> None:
    print("sleep begins", flush=True)
    time.sleep(float(os.environ.get("SLEEP_SECONDS", "600")))


def _task() -> str:
    from orchestrator.container import task

    return task.describe().get("task_arn", "no task")


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def everything() -> None:
    """A mapped step with resources, an inline one, one that is retried."""
    again = second_time.submit()
    total(double.map(value=numbers()))
    again.result()


@pipeline(dynamic=True, enable_cache=False, settings={**SETTINGS, **SECRETIVE})
def secretive() -> None:
    added = {"orchestrator": {"environment": {"ADDED": "2"}}}
    tells_secrets.with_options(settings=added)()
    unknown = {"orchestrator": {"environment": {"OTHER_API_KEY": os.environ["MY_API_KEY"] + "-other"}}}
    try:
        tells_secrets.with_options(settings=unknown)(id="refused")
    except Exception as error:
        print(f"TRIED {type(error).__name__} {error}")


SLEEPING = {"orchestrator": {"environment": {"SLEEP_SECONDS": os.environ.get("SLEEP_SECONDS", "600")}}}


@pipeline(dynamic=True, enable_cache=False, settings={**SETTINGS, **SLEEPING}, execution_mode=MODE)
def failing() -> None:
    sleeping = sleeps.submit()
    broken.submit().result()
    sleeping.result()


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def dying() -> None:
    for doomed in (dies, too_slow):
        try:
            doomed()
        except Exception as error:
            print(f"TRIED {type(error).__name__} {error}")
    dies(id="last")


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def waiting() -> None:
    others = [sleeps.submit(id=f"sleeps_{number}") for number in range(2)]
    for other in others:
        other.result()


@step(runtime="isolated")
def counted() -> int:
    return 1


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def continued() -> None:
    counted()
    store = Client().active_stack.artifact_store
    if not store.exists(f"{store.path}/the-file"):
        raise RuntimeError("the file is missing")
    counted(id="follows")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
