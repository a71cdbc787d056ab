"""Dynamic pipelines that the tests run as a user would: `python dynamic_scenarios.py NAME`."""

import json
import os
import socket
import sys
import time
from pathlib import Path

from scenarios import DOCKER, SETTINGS, _leave
from zenml import pipeline, step
from zenml.config import ResourceSettings

DYNAMIC = {"dynamic": True, "enable_cache": False, "settings": SETTINGS}


@step
def numbers() -> list[int]:
    return [1, 2, 3, 4]


@step
def double(value: int) -> int:
    print(f"doubling {value} beside {os.environ['ZENML_STEP_ENGINE_RUN_ID']}")
    return 2 * value


@step(runtime="isolated")
def isolated_double(value: int) -> int:
    _leave(f"begin-double-{value}")
    print(f"isolated {value}: socket {Path('/run/step-engine').exists()}")
    time.sleep(2)
    _leave(f"end-double-{value}")
    return 2 * value


@step
def total(values: list[int]) -> int:
    print(f"the total is {sum(values)}")
    return sum(values)


@pipeline(**DYNAMIC)
def inline_map() -> None:
    doubled = double.map(value=numbers())
    total(doubled)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
