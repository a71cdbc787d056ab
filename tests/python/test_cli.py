"""The `step-engine` command on a real engine."""

import json
import subprocess
import sys
import time
import uuid

import pytest
from step_engine import DockerEngine, DockerRun, __version__, cli
from step_engine.lease import Lease


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"step-engine {__version__}\n"


def test_engine_tells_what_the_engine_has(capsys):
    assert cli.main(["engine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == DockerEngine().info()


def test_no_engine_is_one_sentence_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert cli.main(["engine"]) == 1
    error = capsys.readouterr().err
    assert "/nowhere/docker.sock" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf", "soon"])
def test_a_grace_that_is_no_time_is_refused(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["stop", "x", "--grace-seconds", seconds])
    assert ended.value.code == 2
    assert "--grace-seconds" in capsys.readouterr().err


def test_stopping_a_run_that_has_no_containers_works():
    assert cli.main(["stop", str(uuid.uuid4())]) == 0


def test_the_command_knows_nothing_of_zenml():
    code = "import step_engine.cli, sys; sys.exit(any(name.split('.')[0] == 'zenml' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def story(image, label, tmp_path):
    """A run that is over: `a` completed at its second attempt, `b` failed, `c` was skipped."""
    directory = tmp_path / "step_engine" / "runs" / label
    steps = [
        {"name": "a", "retry": {"max_retries": 1}},
        {"name": "b", "upstream": ["a"]},
        {"name": "c", "upstream": ["b"]},
    ]
    flag = "test -e /mark/x || { touch /mark/x; echo first; exit 1; }; echo second; printf unfinished"
    (tmp_path / "mark").mkdir()
    volumes = {"volumes": [{"source": str(tmp_path / "mark"), "target": "/mark"}]}
    containers = {
        "a": {"image": image, "entrypoint": ["sh", "-c"], "command": [flag], **volumes},
        "b": {"image": image, "entrypoint": ["sh", "-c"], "command": ["echo oh; exit 2"]},
        "c": {"image": image, "entrypoint": ["sh", "-c"], "command": ["true"]},
    }
    run = DockerRun(
        DockerEngine(), {"run_id": label, "pipeline": "story", "steps": steps}, containers, run_directory=str(directory)
    )
    lease = Lease.take(directory)
    run.start()
    while not run.finished:
        for event in run.next_events(1.0):
            if event["kind"] == "judge":
                run.judge(event["step"], event["attempt"], event["outcome"], True)
    lease.release()
    return label, tmp_path


def test_runs_and_their_steps_are_listed(story, capsys):
    label, config = story
    assert cli.main(["runs", "--config-path", str(config)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "PIPELINE", "BEGAN", "STATUS", "STEPS", "TOOK"]
    assert line.split()[:2] == [label, "story"]
    assert line.split()[4:6] == ["failed", "3/3"]
    assert cli.main(["runs", label[:-2], "--config-path", str(config)]) == 0
    steps = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert steps == [["a", "completed", "2"], ["b", "failed", "1"], ["c", "skipped", "0"]]


def test_logs_are_printed_as_they_were_or_with_their_step_in_front(story, capsys):
    label, config = story
    assert cli.main(["logs", label, "a", "--config-path", str(config)]) == 0
    assert capsys.readouterr().out == "first\nsecond\nunfinished\n"
    assert cli.main(["logs", "-f", "--config-path", str(config)]) == 0
    assert capsys.readouterr().out == "a | first\na | second\na | unfinished\nb | oh\n"
    assert cli.main(["logs", label, "x", "--config-path", str(config)]) == 1
    assert "has no step `x`; it has a, b, c" in capsys.readouterr().err
    assert cli.main(["logs", "nobody", "--config-path", str(config)]) == 1
    assert "no run nobody" in capsys.readouterr().err


def test_a_run_is_followed_from_another_process_and_an_abandoned_one_is_called_so(image, label, tmp_path):
    directory = tmp_path / "step_engine" / "runs" / label
    code = f"""
import sys, time
from step_engine import DockerEngine, DockerRun
from step_engine.lease import Lease
lease = Lease.take({str(directory)!r})
command = ["for i in 1 2 3 4; do echo line $i; sleep 0.5; done; echo over; exec sleep 600"]
containers = {{"a": {{"image": {image!r}, "entrypoint": ["sh", "-c"], "command": command}}}}
run = DockerRun(DockerEngine(), {{"run_id": {label!r}, "steps": [{{"name": "a"}}]}}, containers,
                run_directory={str(directory)!r})
run.start()
while not run.finished:
    run.next_events(1.0)
"""
    owner = subprocess.Popen([sys.executable, "-c", code])
    command = [sys.executable, "-c", "import sys; from step_engine.cli import main; sys.exit(main())"]
    where = ["--config-path", str(tmp_path)]
    try:
        deadline = time.monotonic() + 60
        while "running" not in (listed := subprocess.check_output([*command, "runs", *where], text=True)):
            assert time.monotonic() < deadline, listed
            time.sleep(0.2)
        follower = subprocess.Popen([*command, "logs", "-f", *where], stdout=subprocess.PIPE, text=True)
        lines = []
        for line in follower.stdout:
            lines.append(line)
            if line.endswith("over\n"):
                break
        assert lines == [*(f"a | line {i}\n" for i in range(1, 5)), "a | over\n"]
        owner.kill()
        owner.wait()
        assert follower.wait(timeout=30) == 0
        assert "abandoned" in subprocess.check_output([*command, "runs", *where], text=True)
    finally:
        owner.kill()
        cli.main(["stop", label, "--force"])
        for found in DockerEngine().containers(label):
            subprocess.run(["docker", "rm", "-f", found["id"]], capture_output=True, check=True)
