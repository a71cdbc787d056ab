"""Pipelines that the tests run as a user would: `python scenarios.py NAME`. Copied into a folder of its own."""

import atexit
import json
import os
import signal
import sys
import time
from pathlib import Path

from zenml import pipeline, step
from zenml.config import DockerSettings, ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.config.schedule import Schedule
from zenml.enums import ExecutionMode

SCRATCH = os.environ.get("TEST_SCRATCH", "/scratch")
DOCKER = DockerSettings(parent_image=os.environ.get("TEST_IMAGE", "none"), skip_build=True)
SCRATCH_VOLUME = {
    "orchestrator": {
        "volumes": [f"{SCRATCH}:/scratch"],
        "environment": {"GREETING": "hello"},
        "isolation": os.environ.get("TEST_ISOLATION", "container"),
    }
}
SETTINGS = {"docker": DOCKER, **SCRATCH_VOLUME}


def _leave(name: str) -> None:
    Path("/scratch", name).write_text(f"{time.time()}")


OTHER = {
    "docker": DockerSettings(parent_image=os.environ.get("TEST_OTHER_IMAGE", "none"), skip_build=True),
    "orchestrator": {
        "environment": {"GREETING": "bonjour"},
        "keep_containers": "always",
        "labels": {"team": "a"},
        "user": "12345:54321",
    },
}


@step
def source() -> int:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return 1


@step(settings={"orchestrator": {"environment": {"GREETING": "bonjour"}}})
def child(value: int, name: str) -> int:
    _leave(f"begin-{name}")
    print(f"uid {os.getuid()} says {os.environ['GREETING']} in {Path('/.dockerenv').exists()}")
    time.sleep(2)
    _leave(f"end-{name}")
    return value


@step(settings=OTHER)
def other() -> int:
    Path("/scratch/token").write_text(os.environ.get("ZENML_STORE_API_TOKEN", ""))
    print(f"{os.getuid()}:{os.getgid()} says {os.environ['GREETING']} in image {os.environ['OTHER_IMAGE']}")
    return 1


@step
def usual(value: int) -> int:
    print(f"{os.getuid()}:{os.getgid()} says {os.environ['GREETING']}, other image: {'OTHER_IMAGE' in os.environ}")
    return value


@step
def lingers() -> int:
    _leave("lingering")
    time.sleep(5)
    return 1


@step(settings={"orchestrator": {"warm_start": False}})
def ends_slowly() -> int:
    # After ZenML knows that the step completed.
    atexit.register(time.sleep, 10)
    return 1


@step
def waits() -> int:
    _leave("waits")
    while not Path("/scratch/open").exists():
        time.sleep(0.1)
    return 1


@step
def talks() -> None:
    _leave("talking")
    for at in range(60):
        print(f"word {at} {'.' * 200}")
        time.sleep(0.1)


@step
def listens() -> None:
    print("heard")


@step
def fails() -> int:
    print("about to fail")
    raise ValueError("on purpose")


@step
def sleeps(marker: str = "sleeping") -> int:
    _leave(marker)
    time.sleep(300)
    return 1


@step
def stubborn() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave("stubborn")
    for _ in range(1200):
        time.sleep(0.1)
    return 1


@step(retry=StepRetryConfig(max_retries=2, delay=1))
def second_time_lucky() -> int:
    if not Path("/scratch/first").exists():
        _leave("first")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@step(settings={"resources": ResourceSettings(memory="600MB")})
def greedy() -> int:
    hoard = bytearray(2_000_000_000)
    return len(hoard)


@step(settings={"orchestrator": {"timeout_seconds": 15, "stop_grace_seconds": 2}})
def too_slow() -> int:
    time.sleep(120)
    return 1


@pipeline(enable_cache=False, settings=SETTINGS)
def fan_out() -> None:
    value = source()
    for name in ("left", "right"):
        child(value, name, id=name)


def _failing(mode: ExecutionMode):
    @pipeline(name=f"failing_{mode.value}", enable_cache=False, settings=SETTINGS, execution_mode=mode)
    def failing() -> None:
        child(fails(), "below", id="below")
        sibling = source()
        child(sibling, "beside", id="beside", after="long")
        sleeps.with_options(parameters={"marker": f"sleeping-{mode.value}"})(id="long") if (
            mode == ExecutionMode.FAIL_FAST
        ) else source(id="long")

    return failing


@pipeline(enable_cache=False, settings=SETTINGS)
def endings() -> None:
    fails()
    greedy()
    too_slow()
    second_time_lucky()


@pipeline(enable_cache=False, settings=SETTINGS)
def differing() -> None:
    usual(other())


@pipeline(enable_cache=False, settings=SETTINGS)
def single() -> None:
    source()


@pipeline(enable_cache=False, settings=SETTINGS)
def lingering() -> None:
    usual(lingers())


@pipeline(enable_cache=False, settings=SETTINGS)
def reported() -> None:
    ends_slowly()


@pipeline(enable_cache=False, settings=SETTINGS)
def half_failed() -> None:
    fails()
    usual(waits())


@pipeline(enable_cache=False, settings=SETTINGS)
def talking() -> None:
    before = "talks"
    talks()
    for at in range(5):
        listens(after=before, id=f"listens_{at}")
        before = f"listens_{at}"


@pipeline(enable_cache=False, settings=SETTINGS)
def interrupted() -> None:
    child(sleeps(), "after", id="after")


@pipeline(enable_cache=False, settings=SETTINGS)
def killed() -> None:
    stubborn()


@pipeline(enable_cache=False, settings={"docker": DOCKER, "orchestrator": {"synchronous": False}})
def background() -> None:
    source()


@pipeline(
    enable_cache=False,
    settings={"docker": DOCKER, "orchestrator": {**SCRATCH_VOLUME["orchestrator"], "synchronous": False}},
)
def watched() -> None:
    usual(sleeps())


@step
def mends() -> int:
    if not Path("/scratch/mended").exists():
        raise ValueError("not yet")
    return 1


@pipeline(enable_cache=False, settings=SETTINGS)
def mended() -> None:
    source()
    usual(mends())


REFUSED = {
    "memory": {"resources": ResourceSettings(memory="900TB")},
    "image": {
        "docker": DockerSettings(parent_image="step-engine-test/no-such-image:1", skip_build=True),
        "orchestrator": {"pull_policy": "never"},
    },
    "argument": {"orchestrator": {"run_args": {"no_such_argument": 1}}},
    "detached": {"orchestrator": {"run_args": {"detach": True}}},
    "volume": {"orchestrator": {"volumes": ["/no/such/folder:/data"]}},
    "volume_form": {"orchestrator": {"volumes": ["/data"]}},
    "size": {"orchestrator": {"shm_size": "much"}},
    "network": {"orchestrator": {"network": "no-such-network"}},
    "schedule": {},
    "engine": {},
}


def refused() -> None:
    """Runs pipelines that cannot run and prints what each was refused with."""
    for reason, settings in REFUSED.items():

        @pipeline(name=f"refused_{reason}", enable_cache=False, settings={"docker": DOCKER, **settings})
        def impossible() -> None:
            source()

        if reason == "schedule":
            impossible = impossible.with_options(schedule=Schedule(cron_expression="0 * * * *"))
        if reason == "engine":
            os.environ["DOCKER_HOST"] = "unix:///no/such/docker.sock"
        try:
            impossible()
        except Exception as error:
            print(f"REFUSED {json.dumps([reason, type(error).__name__, str(error)])}")


if __name__ == "__main__":
    name = sys.argv[1]
    if name.startswith("failing_"):
        _failing(ExecutionMode(name.removeprefix("failing_")))()
    else:
        globals()[name]()
