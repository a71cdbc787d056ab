"""A module that can be imported where the pipeline is compiled, but not in a step container."""

import os

from zenml import step

if "ZENML_STEP_ENGINE_RUN_ID" in os.environ:
    import does_not_exist  # noqa: F401  # pyright: ignore


@step
def broken() -> None:
    print("never printed")
