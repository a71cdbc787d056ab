"""Dynamic pipelines that the tests run as a user would: `python dynamic_scenarios.py NAME`."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from uuid import uuid4

from scenarios import SETTINGS, _leave
from zenml import CommandStep, pipeline, step
from zenml.client import Client
from zenml.config import DockerSettings, ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode

LIMITED = {**SETTINGS, "orchestrator": {**SETTINGS["orchestrator"], "max_parallelism": 2}}
BEHIND = {**SETTINGS, "orchestrator": {**SETTINGS["orchestrator"], "synchronous": False}}


def _sees() -> str:
    """What this container has of the control socket."""
    variables = [name for name in os.environ if name.startswith("ZENML_STEP_ENGINE_CONTROL")]
    return f"{Path('/run/step-engine').exists()} {len(variables)} {Path('/var/run/docker.sock').exists()}"


@step
def numbers() -> list[int]:
    print(f"orchestration sees {_sees()}")
    return [1, 2]


@step(settings={"resources": ResourceSettings(memory="600MB")})
def double(value: int) -> int:
    _leave(f"begin-double-{value}")
    limit = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = next((path.read_text().strip() for path in limit if path.exists()), "")
    print(f"isolated {value} sees {_sees()} within {found}")
    time.sleep(1)
    _leave(f"end-double-{value}")
    return 2 * value


@step
def total(values: list[int]) -> int:
    return sum(values)


@step(runtime="isolated", retry=StepRetryConfig(max_retries=2, delay=1))
def lucky() -> int:
    if not Path("/scratch/dynamic-first").exists():
        _leave("dynamic-first")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@step
def never() -> None:
    raise AssertionError("the condition does not hold")


@pipeline(dynamic=True, enable_cache=False, settings=LIMITED)
def everything() -> None:
    again = lucky.submit()
    summed = total(double.map(value=numbers()))
    command = CommandStep(["sh", "-c", 'echo the command runs; test -z "$ZENML_STEP_ENGINE_CONTROL"'])
    if summed.load() == 6:
        command.with_options(runtime="isolated")()
    else:
        never()
    again.result()


@step(runtime="isolated")
def sleeps() -> None:
    _leave("dynamic-sleeping")
    time.sleep(300)


@step(runtime="isolated")
def fails_late() -> None:
    while not Path("/scratch/dynamic-sleeping").exists():
        time.sleep(0.1)
    raise ValueError("on purpose, isolated")


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS, execution_mode=ExecutionMode.FAIL_FAST)
def failing() -> None:
    sleeping = sleeps.submit()
    failed = fails_late.submit()
    failed.result()
    sleeping.result()


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def interrupted() -> None:
    sleeps()


@pipeline(dynamic=True, enable_cache=False, settings=BEHIND)
def behind() -> None:
    sleeps()


@step
def dies_once() -> int:
    if not Path("/scratch/orchestration-first").exists():
        _leave("orchestration-first")
        # The orchestration, all of it.
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@step(runtime="isolated")
def counted() -> int:
    with Path("/scratch/counted").open("a") as file:
        file.write("x")
    return 1


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def restarted() -> None:
    counted()
    dies_once.with_options(retry=StepRetryConfig(max_retries=1))()


@step(runtime="isolated")
def follows() -> int:
    return 1


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def retried() -> None:
    counted()
    if not Path("/scratch/the-file").exists():
        raise RuntimeError("the file is missing")
    follows()


@step(runtime="isolated")
def gated() -> int:
    _leave("gated-began")
    while not Path("/scratch/gate").exists():
        time.sleep(0.1)
    with Path("/scratch/gated").open("a") as file:
        file.write("y")
    return 1


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def outlived() -> None:
    counted()
    waiting = gated.submit()
    waiting.result()
    follows()


@step(runtime="isolated")
def doubled(value: int) -> int:
    if value > 2:
        raise ValueError("on purpose, in a child")
    return 2 * value


# Settings that depend on where this is imported, as those above do, would be others in the orchestration.
@pipeline(dynamic=True, enable_cache=False)
def child(value: int) -> None:
    doubled(value)


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def family() -> None:
    doubled(0)
    children = [child.submit(value) for value in (1, 2)]
    for one in children:
        one.result()
    child(3)


def _asks(request: bytes) -> str:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(60)
        line.connect(os.environ["ZENML_STEP_ENGINE_CONTROL"])
        line.sendall(request + b"\n")
        return json.loads(line.makefile().readline()).get("message", "granted")


@step
def malicious() -> None:
    secret = os.environ["ZENML_STEP_ENGINE_CONTROL_SECRET"]
    other = Client().list_run_steps(sort_by="asc:created", size=1).items[0]
    plain = {
        "version": 1,
        "secret": secret,
        "operation": "submit",
        "step_run_id": str(other.id),
        "invocation_id": other.name,
    }
    for what, request in {
        "another run": plain,
        "another secret": {**plain, "secret": "x"},
        "an image": {**plain, "image": "alpine"},
        "a mount": {**plain, "volumes": ["/:/host"]},
        "no step": {**plain, "step_run_id": str(uuid4())},
        "another version": {**plain, "version": 2},
        "a stop": {"version": 1, "secret": secret, "operation": "stop", "step_run_id": str(other.id)},
    }.items():
        print(f"ASKED {what}: {_asks(json.dumps(request).encode())}")
    print(f"ASKED too much: {_asks(b'x' * 5000)}")


@step(runtime="isolated")
def reaches() -> None:
    _leave("reached")


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS, depends_on=[double])
def refused() -> None:
    malicious()
    other = DockerSettings(parent_image="alpine:latest", skip_build=True)
    for what, settings in {
        "mount": {"orchestrator": {"volumes": ["/:/host"]}},
        "privileges": {"orchestrator": {"run_args": {"privileged": True}}},
        "user": {"orchestrator": {"user": "0:0"}},
        "network": {"orchestrator": {"network": "host"}},
        "image": {"docker": other},
        "argument": {"orchestrator": {"run_args": {"image": "alpine:latest"}}},
        "memory": {"resources": ResourceSettings(memory="900TB")},
    }.items():
        try:
            reaches.with_options(settings=settings)(id=f"reaches_{what}")
        except Exception as error:
            print(f"TRIED {what}: {type(error).__name__} {error}")


@pipeline(dynamic=True, enable_cache=False, settings=SETTINGS)
def remote() -> None:
    total(numbers())
    reaches()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
