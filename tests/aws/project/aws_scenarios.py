"""Pipelines of the end-to-end tests on the AWS bench: `python aws_scenarios.py NAME`."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Annotated

from zenml import pipeline, step
from zenml.config import DockerSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.config.schedule import Schedule
from zenml.enums import ExecutionMode

DOCKER = DockerSettings(
    parent_image=os.environ.get("TEST_IMAGE"), install_stack_requirements=False, python_package_installer="pip"
)
MODE = ExecutionMode(os.environ.get("TEST_MODE", "continue_on_failure"))
SETTINGS = {"docker": DOCKER}
SLOW_SETTINGS = {
    **SETTINGS,
    "orchestrator": {"environment": {"SLOW_SECONDS": os.environ.get("SLOW_SECONDS", "120")}},
}
NAME = os.environ.get("TEST_PIPELINE_NAME")


@step(enable_cache=False)
def numbers() -> Annotated[list[int], "numbers"]:
    print("numbers are made")
    return [1, 2, 3]


@step(enable_cache=False)
def total(values: list[int]) -> Annotated[int, "total"]:
    print(f"the total is {sum(values)}")
    return sum(values)


@step(enable_cache=False)
def broken(values: list[int]) -> int:
    """Fails once `slow` runs: some modes let no step begin in ZenML after that, and which comes first is a race."""
    from zenml import get_step_context
    from zenml.client import Client

    print("about to break")
    run, deadline = get_step_context().pipeline_run.id, time.monotonic() + 60
    while not Client().list_run_steps(pipeline_run_id=run, name="slow").items and time.monotonic() < deadline:
        time.sleep(0.5)
    raise RuntimeError("broken on purpose")


@step(enable_cache=False)
def killed(values: list[int]) -> int:
    print("about to be killed", flush=True)
    # How a killed container ends. Its first process, which this is, cannot kill itself.
    os._exit(137)


@step(enable_cache=False, retry=StepRetryConfig(max_retries=2, delay=1))
def second_time(values: list[int]) -> int:
    """Fails once: the attempt's number is the version of its row."""
    from zenml import get_step_context

    version = get_step_context().step_run.version
    print(f"attempt {version}")
    if version < 2:
        raise RuntimeError("not yet")
    return version


@step(enable_cache=False)
def slow(values: list[int]) -> int:
    print("slow begins", flush=True)
    time.sleep(float(os.environ.get("SLOW_SECONDS", "120")))
    print("slow ends", flush=True)
    return 1


@step(enable_cache=False)
def after(value: int) -> int:
    print("after runs")
    return value


@step(enable_cache=False)
def tells_secrets() -> Annotated[str, "seen"]:
    """What a step sees of its secrets, without telling them."""
    import hashlib

    names = ("MY_API_KEY", "ZENML_STORE_API_TOKEN", "PLAIN")
    return ";".join(f"{name}={hashlib.sha256(os.environ.get(name, '').encode()).hexdigest()[:8]}" for name in names)


@pipeline(name=NAME, settings=SETTINGS)
def chain() -> None:
    total(numbers())


@pipeline(settings=SLOW_SETTINGS, execution_mode=MODE)
def failing() -> None:
    """A branch that breaks, one that is slower, and what follows on each."""
    values = numbers()
    after(broken(values))
    after(slow(values), id="after_slow")


@step(enable_cache=False)
def one_of_many(number: int) -> int:
    time.sleep(2)
    if number == 0:
        raise RuntimeError("broken on purpose")
    return number


@pipeline(settings={**SETTINGS, "orchestrator": {"max_parallelism": 2}})
def limited() -> None:
    for number in range(5):
        one_of_many(number, id=f"part_{number}")


@step(enable_cache=False)
def waits() -> int:
    time.sleep(float(os.environ.get("SLOW_SECONDS", "120")))
    return 1


@step(enable_cache=False)
def both(values: list[int], value: int) -> int:
    return sum(values) + value


@pipeline(settings={**SETTINGS, "orchestrator": {**SLOW_SETTINGS["orchestrator"], "synchronization": "exact"}})
def n_graph() -> None:
    """Not series-parallel: `total` waits for one of the two that begin, `both` for both."""
    values = numbers()
    both(values, waits())
    total(values)


@pipeline(settings=SETTINGS)
def dying() -> None:
    killed(numbers())


@pipeline(settings=SETTINGS)
def retried() -> None:
    second_time(numbers())


@pipeline(name=NAME, settings=SLOW_SETTINGS)
def waiting() -> None:
    after(slow(numbers()))


@pipeline(
    settings={
        **SETTINGS,
        "orchestrator": {"environment": {"MY_API_KEY": os.environ.get("TEST_SECRET", "x"), "PLAIN": "1"}},
    }
)
def secretive() -> None:
    tells_secrets()


@pipeline(settings=SETTINGS)
def scheduled() -> None:
    total(numbers())


def main() -> None:
    name = sys.argv[1]
    if name == "scheduled":
        scheduled.with_options(schedule=Schedule(name=sys.argv[2], cron_expression="0 8 * * 1-5"))()
    elif name == "interval":
        scheduled.with_options(
            schedule=Schedule(
                name=sys.argv[2], interval_second=timedelta(seconds=90), start_time=datetime.now(timezone.utc)
            )
        )()
    else:
        globals()[name]()


if __name__ == "__main__":
    main()
