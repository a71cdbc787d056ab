"""The step of `chaos.py`'s pipelines, and the dynamic one of them, whose function runs in a container."""

import random
import time

from zenml import pipeline, step
from zenml.config.retry_config import StepRetryConfig

RETRIES = 3


@step
def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def random_dag(seed: int, count: int) -> tuple[list[list[int]], list[float]]:
    """Upstreams and seconds of each step; the same seed gives the same."""
    chance = random.Random(seed)
    upstream = [sorted(chance.sample(range(at), min(at, chance.choice((0, 1, 1, 2))))) for at in range(count)]
    return upstream, [round(chance.uniform(0.1, 3.0), 1) for _ in range(count)]


def again() -> StepRetryConfig:
    return StepRetryConfig(max_retries=RETRIES, delay=1, backoff=1)


@pipeline(dynamic=True, enable_cache=False)
def grown(seed: int, count: int) -> None:
    upstream, seconds = random_dag(seed, count)
    isolated = work.with_options(retry=again(), runtime="isolated")
    steps = []
    for at in range(count):
        steps.append(isolated.submit(seconds[at], id=f"s{at}", after=[steps[up] for up in upstream[at]]))
    for each in steps:
        each.result()
