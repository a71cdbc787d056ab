"""The `step-engine` command on a real engine."""

import json
import subprocess
import sys
import uuid

import pytest
from step_engine import DockerEngine, __version__, cli


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
