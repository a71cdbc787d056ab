"""Pipelines that show what steps in warm workers see of each other. Copied into a folder of its own."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy
from zenml import pipeline, save_artifact, step
from zenml.config import DockerSettings, ResourceSettings
from zenml.config.retry_config import StepRetryConfig

SCRATCH = os.environ.get("TEST_SCRATCH", "/scratch")
DOCKER = DockerSettings(parent_image=os.environ.get("TEST_IMAGE", "none"), skip_build=True)
SETTINGS = {
    "docker": DOCKER,
    "orchestrator": {
        "volumes": [f"{SCRATCH}:/scratch"],
        "isolation": os.environ.get("TEST_ISOLATION", "container"),
        "max_parallelism": 3,
    },
}


@step
def plain() -> int:
    print("plain works")
    return 1


@step
def after(value: int) -> int:
    print(f"after {value}")
    return value + 1


@step
def raises() -> int:
    raise ValueError("on purpose")


@step
def leaves_by_exit() -> None:
    sys.exit(7)


@step
def probe() -> None:
    facts = {
        "pid": os.getpid(),
        "leads_session": os.getsid(0) == os.getpid(),
        "temporary": tempfile.gettempdir(),
        "in_tmp": sorted(path.name for path in Path("/tmp").iterdir()),
        "in_cwd": sorted(path.name for path in Path().iterdir()),
        "cwd": str(Path.cwd()),
        "umask": os.umask(0o22),
        "argv": sys.argv,
        "main": sys.modules["__main__"].__file__,
        "left": os.environ.get("LEFT"),
        "stdin": sys.stdin.read(),
        "python_random": random.random(),
        "numpy_random": numpy.random.random(),
    }
    print("FACTS " + json.dumps(facts))


@step
def leaves_things() -> None:
    os.environ["LEFT"] = "in the environment"
    os.umask(0)
    Path("left-in-cwd").write_text("x")
    Path("/tmp/left-in-tmp").mkdir()
    with tempfile.NamedTemporaryFile(delete=False) as file:
        print("TEMPORARY " + file.name)
    os.chdir("/")


@step
def leaves_a_child() -> None:
    subprocess.Popen(["sleep", "300"], start_new_session=True)


@step
def removes_the_code() -> None:
    shutil.rmtree(Path.cwd())


@step
def fills_temporary() -> None:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        try:
            while True:
                file.write(bytes(1_000_000))
                file.flush()
        except OSError as error:
            print(f"FULL {error.errno}")


@step
def greedy() -> int:
    hoard = bytearray(2_000_000_000)
    return len(hoard)


@step
def sleeps() -> None:
    print("asleep")
    time.sleep(120)


@step
def ends_with_a_thread() -> None:
    def late() -> None:
        time.sleep(1)
        print("the thread ends")

    threading.Thread(target=late).start()


def hello() -> None:
    print("INIT")


def succeeded() -> None:
    print("SUCCEEDED")


@step(on_success=succeeded)
def begins() -> int:
    return 1


@step
def fails_with_artifact(value: int) -> None:
    save_artifact(value + 41, name="what_was_left")
    raise ValueError("after saving")


@step(retry=StepRetryConfig(max_retries=2, delay=1))
def second_time_lucky(value: int) -> int:
    marker = Path(f"/scratch/lucky-{os.environ['ZENML_STEP_ENGINE_RUN_ID']}")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@step(settings={"orchestrator": {"timeout_seconds": 12, "stop_grace_seconds": 2}})
def too_slow(value: int) -> None:
    time.sleep(120)


@step(settings={"resources": ResourceSettings(memory="600MB")})
def too_large(value: int) -> int:
    Path(f"/scratch/large-{os.environ['ZENML_STEP_ENGINE_RUN_ID']}").touch()
    return len(bytearray(2_000_000_000))


@step
def neighbour(value: int) -> int:
    marker = Path(f"/scratch/large-{os.environ['ZENML_STEP_ENGINE_RUN_ID']}")
    deadline = time.monotonic() + 100
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    return value


@step
def leaves_a_child_behind(value: int) -> None:
    subprocess.Popen(["sleep", "300"], start_new_session=True)


@step(step_operator=True)
def elsewhere(value: int) -> int:
    print(f"ELSEWHERE as {os.getpid()} with {value}")
    return value + 1


@pipeline(enable_cache=False, settings=SETTINGS, on_init=hello)
def trials() -> None:
    # Not for the other steps' containers.
    from broken_steps import broken

    value = begins()
    neighbour(value)
    too_large(value)
    too_slow(value)
    second_time_lucky(value)
    fails_with_artifact(value)
    leaves_a_child_behind(value)
    broken(after="begins")
    after(value)


@step
def where(value: int = 0) -> int:
    print(f"WHERE {socket.gethostname()} {os.environ.get('GREETING')} {os.getpid()}")
    return value


@pipeline(enable_cache=False, settings=SETTINGS)
def places() -> None:
    value = where(id="a")
    value = where(value, id="b")
    value = where.with_options(settings={"orchestrator": {"environment": {"GREETING": "hello"}}})(value, id="c")
    where.with_options(settings={"orchestrator": {"warm_start": False}})(value, id="d")


@step
def lasts() -> int:
    Path("/scratch/lasts").touch()
    time.sleep(20)
    return 1


@pipeline(enable_cache=False, settings=SETTINGS)
def abandoned() -> None:
    after(lasts())


@pipeline(enable_cache=False, settings=SETTINGS)
def many() -> None:
    value = begins()
    for at in range(64):
        after(value, id=f"after_{at}")


@pipeline(enable_cache=False, settings=SETTINGS)
def two() -> None:
    after(plain())


@pipeline(enable_cache=False, settings=SETTINGS)
def operated() -> None:
    after(elsewhere(plain()))


@pipeline(enable_cache=False, settings=SETTINGS)
def zoo() -> None:
    # Not for the other steps' containers.
    from broken_steps import broken

    for each in (
        plain,
        raises,
        leaves_by_exit,
        leaves_things,
        leaves_a_child,
        fills_temporary,
        removes_the_code,
        greedy,
        sleeps,
        ends_with_a_thread,
        broken,
    ):
        each(id=each.name)
    for name in ("probe", "probe_2"):
        probe(id=name)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
