"""The step of `chaos.py`'s pipelines."""

import time

from zenml import step


@step
def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
