"""A module that seeds the global random generators when it is imported. Copied into a folder of its own."""

import os
import random
import sys

import numpy
from zenml import pipeline, step
from zenml.config import DockerSettings

random.seed(1)
numpy.random.seed(1)


@step
def seeded() -> None:
    print("DRAWN", random.random(), numpy.random.random())


@pipeline(
    enable_cache=False,
    settings={"docker": DockerSettings(parent_image=os.environ.get("TEST_IMAGE", "none"), skip_build=True)},
)
def seeds() -> None:
    for name in ("seeded", "seeded_2"):
        seeded(id=name)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
