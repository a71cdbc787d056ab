"""Steps that do nothing, and their pipelines. Nothing else is imported here: it would be imported by each step.

Copied by `compare.py` into a source root of its own, with `heavy.py` and the tutorial's pipeline beside it.
"""

import time

from zenml import pipeline, step

UPSTREAM_SECONDS = 20
"""How long the step before the one with heavy imports takes."""

PACE_SECONDS = 8
"""How long each step of `paced` takes: longer than a worker needs to warm up."""


@step
def one() -> int:
    return 1


@step
def add_one(value: int) -> int:
    return value + 1


@step
def waits() -> int:
    time.sleep(UPSTREAM_SECONDS)
    return 1


@step
def keeps_pace(value: int) -> int:
    time.sleep(PACE_SECONDS)
    return value


@pipeline
def chain() -> None:
    value = one()
    for _ in range(7):
        value = add_one(value)


@pipeline
def fan_out() -> None:
    value = one()
    for _ in range(16):
        add_one(value)


@pipeline
def paced() -> None:
    value = one()
    for _ in range(10):
        value = keeps_pace(value)


@pipeline
def crowd() -> None:
    for _ in range(64):
        one()


@pipeline
def multitude() -> None:
    for _ in range(200):
        one()
