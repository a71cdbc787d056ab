"""Measures a submission: calls, and the time from the run's row in ZenML to its first task.

`pytest tests/aws/bench_submit.py -s` prints a table; it is not one of the tests.
"""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from uuid import uuid4

from bench_client import Bench
from stack import Project

TASKS_OWN = ("s3:", "logs:", "secretsmanager:GetSecretValue")
"""Calls that the tasks make as well, and artifacts, which ZenML stores: no part of a submission."""


def test_submit(aws_project: Project, bench: Bench) -> None:
    """A pipeline of two steps that nobody submitted before, and the same twice more; nobody watches."""
    pipeline = f"submitted_{uuid4().hex[:8]}"
    aws_project.zenml("orchestrator", "update", f"sf_{aws_project.name}", "--synchronous=false")
    rows = []
    calls: dict[str, dict[str, int]] = {}
    for which in ("first", "second", "third"):
        bench.reset_calls()
        code, output = aws_project.run("aws_scenarios.py", "chain", TEST_PIPELINE_NAME=pipeline)
        assert code == 0, output
        # Before anything is asked here.
        calls[which] = {name: n for name, n in bench.calls().items() if not name.startswith(TASKS_OWN)}
        run = aws_project.newest(pipeline)
        arn = aws_project.execution(run)["executionArn"]
        assert bench.wait_for(arn, 300)["status"] == "SUCCEEDED"
        begun = run.created.replace(tzinfo=timezone.utc)
        moments = {event["type"]: event["timestamp"] for event in reversed(bench.events(arn))}
        steps = [row for rows_of_step in aws_project.rows(run).values() for row in rows_of_step]
        first = min(row.start_time for row in steps if row.start_time).replace(tzinfo=timezone.utc)
        times = (moments["ExecutionStarted"], moments["TaskSubmitted"], first)
        rows.append((which, sum(calls[which].values()), *(_seconds(begun, time) for time in times)))

    print(f"\n{os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print("| run | calls | execution started | first task taken by ECS | first step runs |\n|---|---|---|---|---|")
    for which, count, *seconds in rows:
        print(f"| {which} | {count} | " + " | ".join(f"{value:.1f} s" for value in seconds) + " |")
    print("\n| call | " + " | ".join(calls) + " |\n|---|" + "---|" * len(calls))
    for name in sorted({name for counts in calls.values() for name in counts}):
        print(f"| `{name}` | " + " | ".join(str(counts.get(name, 0)) for counts in calls.values()) + " |")


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()
