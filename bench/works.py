"""What `compare.py` runs: a chain, a fan-out and the tutorial's pipeline. Copied into a source root of its own."""

from zenml import pipeline, step

from pipelines.sklearn_pipeline import sklearn_pipeline


@step
def one() -> int:
    return 1


@step
def add_one(value: int) -> int:
    return value + 1


@pipeline
def chain() -> None:
    value = one()
    for _ in range(4):
        value = add_one(value)


@pipeline
def fan_out() -> None:
    value = one()
    for _ in range(16):
        add_one(value)


WORKS = {"chain": chain, "fan_out": fan_out, "tutorial": sklearn_pipeline}
STEPS = {"chain": 5, "fan_out": 17, "tutorial": 3}
