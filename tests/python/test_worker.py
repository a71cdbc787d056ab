"""The runtime of warm workers in real containers, spoken to as its client would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from worker_client import Worker, alive, processes, wait_until_running

if TYPE_CHECKING:
    from conftest import Ended, Project

Look = Callable[[str], "Ended"]
Job = dict[str, Any]

SECONDS_TO_END = 10


def capture(project: Project, module: str, pipeline: str) -> Job:
    """Submits a pipeline without running it."""
    file = project.folder.parent / f"{pipeline}.json"
    command = [sys.executable, "capture.py", module, pipeline, str(file)]
    done = subprocess.run(command, cwd=project.folder, env=project.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.fixture
def zoo(project: Project) -> Job:
    return capture(project, "warm_scenarios", "zoo")


def test_the_plan_groups_what_can_share_a_process(zoo: Job) -> None:
    for name, container in zoo["containers"].items():
        warm = container["warm"]
        assert warm["isolation"] == "container"
        assert warm["command"][-2:] == ["--step_name", name]
        assert warm["command"].count("--step_name") == 1


def test_steps_run_in_containers_of_their_own(project: Project, ended: Look, label: str) -> None:
    job = capture(project, "warm_scenarios", "two")
    for name, text in (("plain", "plain works"), ("after", "after 1")):
        worker = Worker(job, [name], "container", label)
        assert worker.frame("ready")["seconds"] > 0
        done, output = worker.serve(name)
        assert (done["code"], done["signal"], done["oom"], done["damaged"]) == (0, None, False, None)
        assert done["peak_memory_bytes"] > 50_000_000
        assert text in output
        assert worker.process.wait(60) == 0
    run = ended("two")
    assert run.status == "completed"
    assert run.attempts == {"plain": ["completed"], "after": ["completed"]}
    assert run.run.steps["after"].outputs
    from zenml.client import Client

    listed = Client().zen_store.get_run(run.run.id, include_python_packages=True)
    assert "zenml==" in listed.orchestrator_environment["python_packages"]


def test_how_a_step_ends_in_a_container_of_its_own(zoo: Job, ended: Look, label: str) -> None:
    worker = Worker(zoo, ["raises"], "container", label)
    worker.go("raises")  # While it warms up: it is read when it is ready.
    worker.frame("ready")
    worker.frame("started")
    assert worker.frame("done")["code"] == 1
    worker.frame("done", "stderr")
    assert worker.process.wait(60) == 1
    assert worker.text().count("ValueError: on purpose") == 1
    assert "orchestrator/container" not in worker.text()

    worker = Worker(zoo, ["ends_with_a_thread"], "container", label)
    worker.frame("ready")
    done, output = worker.serve("ends_with_a_thread")
    assert done["code"] == 0
    assert "the thread ends" in output
    assert ended("zoo").attempts["raises"] == ["failed"]
    assert ended("zoo").attempts["ends_with_a_thread"] == ["completed"]


def test_a_module_that_cannot_be_imported_makes_a_worker_unfit(zoo: Job, label: str) -> None:
    worker = Worker(zoo, ["broken"], "container", label)
    assert "does_not_exist" in worker.frame("unfit")["reason"]
    assert worker.process.wait(60) not in (0, 75)
    assert "Traceback" not in worker.text()


def test_another_version_of_the_conversation_is_refused(zoo: Job, label: str) -> None:
    worker = Worker(zoo, ["plain"], "container", label, version=99)
    assert worker.process.wait(60) not in (0, 75)
    assert "version 99" in worker.text()


@pytest.mark.parametrize("isolation", ["container", "process"])
def test_without_a_client_a_worker_ends(zoo: Job, label: str, until: Callable[..., None], isolation: str) -> None:
    for warm in (False, True):
        worker = Worker(zoo, ["plain"], isolation, label)
        if warm:
            worker.frame("ready")
        else:
            wait_until_running(label)
            until(lambda: processes(alive(label)[0]) > 2, "the watcher")
        assert worker.end() == 75
        # The client is killed: the engine closes its end.
        worker = Worker(zoo, ["plain"], isolation, label)
        if warm:
            worker.frame("ready")
        else:
            wait_until_running(label)
        worker.process.kill()
        until(lambda: not alive(label), "the worker to end", SECONDS_TO_END)


def test_a_step_that_has_begun_outlives_its_client(
    zoo: Job, ended: Look, label: str, until: Callable[..., None]
) -> None:
    worker = Worker(zoo, ["ends_with_a_thread"], "process", label)
    worker.frame("ready")
    worker.go("ends_with_a_thread")
    worker.frame("started")
    worker.process.kill()
    until(lambda: not alive(label), "the worker to end")
    assert ended("zoo").attempts["ends_with_a_thread"][-1] == "completed"


def facts(output: str) -> dict[str, Any]:
    return json.loads(next(line for line in output.splitlines() if "FACTS " in line).split("FACTS ", 1)[1])


def test_nothing_of_a_step_reaches_the_next_process(zoo: Job, ended: Look, label: str) -> None:
    names = ["plain", "probe", "probe_2", "leaves_things", "raises", "leaves_by_exit", "broken"]
    worker = Worker(zoo, names, "process", label)
    worker.frame("ready")
    done, output = worker.serve("probe")
    assert (done["code"], done["damaged"]) == (0, None)
    first = facts(output)
    done, output = worker.serve("leaves_things")
    assert (done["code"], done["damaged"]) == (0, None)
    assert first["temporary"] not in output
    done, output = worker.serve("probe_2")
    assert done["code"] == 0
    second = facts(output)
    assert first["pid"] != second["pid"]
    assert first["leads_session"]
    assert first["temporary"] != second["temporary"]
    assert first["argv"][-1] == "probe"
    assert second["argv"][-1] == "probe_2"
    assert first["main"].endswith("zenml/entrypoints/entrypoint.py")
    assert first["python_random"] != second["python_random"]
    assert first["numpy_random"] != second["numpy_random"]
    assert (second["left"], second["stdin"]) == (None, "")
    assert second["in_tmp"] == [name for name in second["in_tmp"] if not name.startswith("left")]
    assert second["in_cwd"] == first["in_cwd"]
    assert (second["cwd"], second["umask"]) == (first["cwd"], first["umask"])

    done, output = worker.serve("raises")
    assert (done["code"], done["signal"]) == (1, None)
    assert output.count("ValueError: on purpose") == 1
    assert "orchestrator/container" not in output
    assert worker.serve("leaves_by_exit")[0]["code"] == 7
    # A module that cannot be imported is its own step's failure, told once.
    done, output = worker.serve("broken")
    assert done["code"] == 1
    assert output.count("ModuleNotFoundError: No module named 'does_not_exist'") == 1
    assert worker.serve("plain")[0]["code"] == 0
    assert worker.end() == 0
    statuses = ended("zoo").attempts
    assert {name: statuses[name][-1] for name in names} == {
        "plain": "completed",
        "probe": "completed",
        "probe_2": "completed",
        "leaves_things": "completed",
        "raises": "failed",
        "leaves_by_exit": "failed",
        "broken": "failed",
    }


def test_damage_is_told_and_outcomes_are_right(zoo: Job, label: str) -> None:
    names = ["leaves_a_child", "fills_temporary", "sleeps", "greedy", "removes_the_code"]
    worker = Worker(zoo, names, "process", label, "--memory", "1g", "--tmpfs", "/tmp:size=64m,mode=1777")
    worker.frame("ready")
    done, _ = worker.serve("leaves_a_child")
    assert done["code"] == 0
    assert "sleep" in done["damaged"]
    assert processes(alive(label)[0]) <= 3

    done, output = worker.serve("fills_temporary")
    assert (done["code"], done["damaged"]) == (0, None)
    assert "FULL 28" in output

    for number in (15, 9):
        worker.go("sleeps")
        worker.frame("started")
        deadline = time.monotonic() + 60
        while worker.text().count("asleep") < (1 if number == 15 else 2):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        worker.say({"signal": {"number": number}})
        done = worker.frame("done")
        worker.frame("done", "stderr")
        # ZenML's handler makes an error of SIGTERM.
        assert (done["code"], done["signal"]) == ((1, None) if number == 15 else (137, 9))
        assert done["oom"] is False

    done, _ = worker.serve("greedy")
    assert (done["code"], done["signal"], done["oom"]) == (137, 9, True)

    done, _ = worker.serve("removes_the_code")
    assert done["code"] == 0
    assert "working directory" in done["damaged"]
    worker.end()


def test_seeds_of_the_users_modules_are_kept(project: Project, label: str) -> None:
    worker = Worker(capture(project, "seeded_steps", "seeds"), ["seeded", "seeded_2"], "process", label)
    worker.frame("ready")
    drawn = [worker.serve(name)[1].split("DRAWN", 1)[1].splitlines()[0] for name in ("seeded", "seeded_2")]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(" 0.134364244112401")
    worker.end()


@pytest.mark.parametrize("isolation", ["container", "process"])
def test_workers_run_as_other_users_and_without_an_init(zoo: Job, label: str, isolation: str) -> None:
    worker = Worker(zoo, ["probe"], isolation, label, "--user", "0:0", "--init=false")
    worker.frame("ready")
    done, output = worker.serve("probe")
    assert done["code"] == 0
    assert "FACTS" in output
    worker.end()


@pytest.fixture(scope="session")
def open_image(image: str) -> Iterator[str]:
    """An image whose /app anybody may write to, as ZenML builds them."""
    tag = "step-engine-test-open"
    recipe = f"FROM {image}\nRUN mkdir -p /app && chmod 777 /app\n"
    subprocess.run(["docker", "build", "--tag", tag, "-"], input=recipe.encode(), capture_output=True, check=True)
    yield tag
    subprocess.run(["docker", "rmi", tag], capture_output=True, check=True)


@pytest.mark.parametrize("isolation", ["container", "process"])
def test_workers_run_without_root_rights_on_a_read_only_image(
    project: Project, zoo: Job, label: str, open_image: str, isolation: str
) -> None:
    # The store belongs to the tests' user; another one is to use it here.
    stores = zoo["containers"]["probe"]["environment"]["ZENML_LOCAL_STORES_PATH"]
    subprocess.run(["chmod", "-R", "a+rwX", stores, os.environ["ZENML_CONFIG_PATH"]], check=True)
    options = ["--user", "12345:12345", "--env", "HOME=/tmp", "--read-only", "--tmpfs", "/tmp:mode=1777"]
    options += ["--tmpfs", "/app:mode=1777"]
    worker = Worker(zoo, ["probe", "plain"], isolation, label, *options, image=open_image)
    worker.frame("ready")
    done, output = worker.serve("probe")
    assert (done["code"], done["damaged"]) == (0, None), output
    worker.end()


STORM = """
import os, sys
from orchestrator.container.ending import exit_code_of
from orchestrator.container.warmup import WarmSteps, as_entrypoint, forget_connections

def start(name):
    pid = os.fork()
    if pid == 0:
        forget_connections()
        code = exit_code_of(lambda: steps.run(name))
        sys.stdout.flush()
        os._exit(code)
    return pid

with as_entrypoint():
    snapshot, first, *rest = sys.argv[1:]
    steps = WarmSteps(snapshot, [first, *rest])
    steps.settle()
    codes = [os.waitpid(start(first), 0)[1]]
    codes += [os.waitpid(pid, 0)[1] for pid in [start(name) for name in rest]]
    print("FAILED", sum(code != 0 for code in codes), "OF", len(codes))
"""


def test_sixty_four_steps_use_the_sqlite_store_at_once(project: Project, ended: Look, label: str) -> None:
    """In one container, so that the test needs little memory: each process has a connection of its own all the same."""
    job = capture(project, "warm_scenarios", "many")
    container = job["containers"]["begins"]
    snapshot = container["command"][container["command"].index("--snapshot_id") + 1]
    command = ["docker", "run", "--rm", "--init", "--label", f"step-engine.run={label}", "--user", container["user"]]
    for name, value in container["environment"].items():
        command += ["--env", f"{name}={value}"]
    for volume in container["volumes"]:
        command += ["--volume", f"{volume['source']}:{volume['target']}"]
    command += ["--entrypoint", "python", container["image"], "-c", STORM, snapshot, *job["containers"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert "FAILED 0 OF 65" in done.stdout, done.stdout[-5000:] + done.stderr[-5000:]
    assert "database is locked" not in done.stdout + done.stderr
    assert ended("many").status == "completed"
