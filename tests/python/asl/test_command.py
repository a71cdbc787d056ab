"""`step-engine asl`, from plans and from ZenML's pipelines, without AWS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from step_engine import cli

ROOT = Path(__file__).parents[3]
PLANS = ROOT / "examples" / "plans"
MODULE = """
from zenml import pipeline, step

@step
def load() -> int:
    return 1

@step
def train(x: int, rounds: int) -> None: ...

@pipeline
def training(rounds: int):
    train(load(), rounds)

@pipeline
def nothing():
    pass

@pipeline(dynamic=True)
def later():
    load()
"""
CONFIG = """
parameters: {rounds: 3}
settings:
  orchestrator: {synchronization: auto, auto_threshold: 0.1, execution_timeout_seconds: 77, stop_grace_seconds: 5}
steps:
  train:
    retry: {max_retries: 2, delay: 4}
    settings:
      orchestrator.aws_step_functions: {timeout_seconds: 33, launch_type: EC2}
      resources: {gpu_count: 1}
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "asl_command_pipelines.py"
    path.write_text(MODULE)
    return path


@pytest.fixture
def shown(capsys):
    """Runs the command; its exit code, output and errors."""

    def show(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["asl", *map(str, arguments)])
        return code, *capsys.readouterr()

    return show


def test_a_plan_in_every_format(shown):
    plan = PLANS / "n_graph.json"
    asl = json.loads(shown(plan)[1])
    machines = json.loads(shown(plan, "--format", "machines")[1])
    assert list(machines.values()) == [asl]
    assert shown(plan, "--format", "mermaid")[1].count("-. token .->") == 1
    assert shown(plan, "--format", "svg")[1].startswith("<svg ")
    assert "token edge          a -> d" in shown(plan, "--format", "report")[1]
    policy = json.loads(shown(plan, "--format", "policy")[1])
    assert json.loads(shown(plan, "--format", "json")[1])["policy"] == policy
    assert "added wait" in shown(plan, "--format", "report", "--synchronization", "barrier")[1]
    assert '"Bucket": "mine"' in shown(plan, "--signal-bucket", "mine")[1]


def test_a_pipeline_and_its_configuration(shown, module, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    code, out, error = shown(f"{module}:training", "--config", config)
    assert code == 0, error
    machine = json.loads(out)
    load, train = machine["States"]["load"], machine["States"]["train"]
    assert machine["TimeoutSeconds"] == 77
    assert "TimeoutSeconds" not in load
    assert train["TimeoutSeconds"] == 33
    assert (load["Parameters"]["LaunchType"], train["Parameters"]["LaunchType"]) == ("FARGATE", "EC2")
    assert (train["Retry"][-1]["MaxAttempts"], train["Retry"][-1]["IntervalSeconds"]) == (2, 4)
    assert "$$.Execution.Input.snapshot_id" in train["Parameters"]["Overrides"]["ContainerOverrides"][0]["Command.$"]
    assert (
        json.loads(shown(f"{module}:training", "--config", config, "--format", "json")[1])["synchronization"] == "auto"
    )


def test_the_tutorials_machine_in_the_documentation_is_current(shown, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["pipelines/sklearn_pipeline.py:sklearn_pipeline", "--config", "configs/training_pipeline.yaml"]
    printed = {"machines/tutorial.asl.json": "asl", "pictures/tutorial.svg": "svg", "pictures/tutorial.mmd": "mermaid"}
    for file, kind in printed.items():
        assert shown(*arguments, "--format", kind)[1] == (ROOT / "docs" / file).read_text(), file


@pytest.mark.parametrize("plan", ["n_graph", "ml_40"])
def test_the_other_machines_in_the_documentation_are_current(shown, plan):
    for file, kind in {
        f"machines/{plan}.asl.json": "asl",
        f"pictures/{plan}.svg": "svg",
        f"pictures/{plan}.mmd": "mermaid",
    }.items():
        assert shown(PLANS / f"{plan}.json", "--format", kind)[1] == (ROOT / "docs" / file).read_text(), file


@pytest.mark.parametrize(
    ("pipeline", "config", "says"),
    [
        ("training", None, "`training` cannot be compiled: "),
        ("nothing", None, "has no steps"),
        ("later", None, "`later` is a dynamic pipeline"),
        ("step", None, "has no pipeline `step`"),
        ("training", "settings: [1\n", "`training` cannot be compiled: "),
        ("training", "parameters: {rounds: 3}\nsettings: {resources: {gpu_count: 1}}\n", "Fargate has none"),
        ("training", "parameters: {rounds: 3}\nsettings: {orchestrator: {synchronization: soon}}\n", "soon"),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_one_sentence(shown, module, tmp_path, pipeline, config, says):
    arguments = [f"{module}:{pipeline}"]
    if config:
        (tmp_path / "config.yaml").write_text(config)
        arguments += ["--config", tmp_path / "config.yaml"]
    code, out, error = shown(*arguments)
    assert (code, out) == (1, "")
    assert says in error
    assert len(error.splitlines()) == 1, error


def test_what_is_wrong_with_the_arguments_is_one_sentence(shown, module, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name")
    options = tmp_path / "options.json"
    options.write_text('{"task": [], "signals": 3}')
    plan = PLANS / "n_graph.json"
    for arguments, says in [
        ([f"{broken}:p"], "No module named 'nothing_of_that_name'"),
        ([f"{tmp_path}/none.py:p"], "there is no module"),
        ([module], "name one, as in"),
        ([f"{module}:training", "--config", "none.yaml"], "there is no file none.yaml"),
        ([plan, "--config", "any.yaml"], "--config belongs to a pipeline"),
        ([plan, "--options", options], "task: "),
        ([tmp_path / "none.json"], "cannot be read as JSON"),
    ]:
        code, out, error = shown(*arguments)
        assert (code, out) == (1, ""), arguments
        assert says in error
        assert len(error.splitlines()) == 1, error
