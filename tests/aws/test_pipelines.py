"""Real pipelines on the bench: Step Functions executes, every step is a container, artifacts are in S3."""

from __future__ import annotations

from bench_client import Bench
from stack import Project, aws_project, parent_image, until, zenml_server  # noqa: F401 (fixtures)


def test_a_chain_runs_with_its_artifacts_in_s3(aws_project: Project, bench: Bench) -> None:  # noqa: F811
    code, output = aws_project.run("aws_scenarios.py", "chain")
    assert code == 0, output
    run = aws_project.newest("chain")
    assert run.status.value == "completed", output
