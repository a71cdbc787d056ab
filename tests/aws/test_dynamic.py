"""Dynamic pipelines on the bench: the orchestration is the only task of an execution, and starts the isolated ones."""

from __future__ import annotations

from bench_client import Bench
from stack import Project

MODULE = "dynamic_scenarios.py"


def test_inline_mapped_and_retried_steps(aws_project: Project, bench: Bench) -> None:
    code, output = aws_project.run(MODULE, "everything")
    assert code == 0, output
    run = aws_project.newest("everything")
    assert run.status.value == "completed"
    print(output)
    assert aws_project.steps(run) == {}
