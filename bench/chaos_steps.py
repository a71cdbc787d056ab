"""The step of `chaos.py`'s pipelines, and the dynamic one of them, whose function runs in a container."""

import os
import random
import time
import uuid
from pathlib import Path

from zenml import get_step_context, pipeline, step
from zenml.config.retry_config import StepRetryConfig

RETRIES = 3


@step
def work(seconds: float) -> float:
    """Leaves a mark before and after, of which `chaos.py` learns what really ran."""
    context = get_step_context()
    place = Path(os.environ["ZENML_LOCAL_STORES_PATH"], "chaos", str(context.pipeline_run.id))
    place.mkdir(parents=True, exist_ok=True)
    execution = uuid.uuid4().hex[:8]
    _mark(place / context.step_run.name, f"begin {execution}")
    time.sleep(seconds)
    _mark(place / context.step_run.name, f"end {execution}")
    return seconds


def _mark(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, f"{text}\n".encode())
    os.close(file)


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
