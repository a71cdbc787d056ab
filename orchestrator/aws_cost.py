"""What runs cost on Fargate and Step Functions. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# <https://aws.amazon.com/fargate/pricing/>, Linux on x86 in us-east-1. Other regions are up to a third dearer, ARM is a
# fifth cheaper; Spot has prices of its own that change, about 70 % off.
DOLLARS_PER_VCPU_HOUR = 0.04048
DOLLARS_PER_GIB_HOUR = 0.004445

LEAST_SECONDS = 60.0
"""A task is billed for a minute at least."""


def task_dollars(cpu_units: float, memory_mib: float, seconds: float) -> float:
    """Price of a Fargate task.

    Args:
        cpu_units: CPU units; 1024 are one vCPU.
        memory_mib: Memory in MiB.
        seconds: From the pull of its image to its end.

    Returns:
        US dollars.
    """
    hourly = cpu_units / 1024 * DOLLARS_PER_VCPU_HOUR + memory_mib / 1024 * DOLLARS_PER_GIB_HOUR
    return hourly * max(seconds, LEAST_SECONDS) / 3600


def tasks_dollars(tasks: Iterable[Mapping[str, Any]]) -> float | None:
    """Price of tasks that are over.

    Args:
        tasks: Fields of `task_ended` events, see `step_engine.AwsRun.next_events`.

    Returns:
        US dollars at on-demand prices; none when a task did not run on Fargate or its size is not known.
    """
    total = 0.0
    for task in tasks:
        submitted, started = task.get("submitted_at_unix_seconds"), task.get("started_at_unix_seconds")
        began = started if submitted is None else submitted
        ended = task.get("stopped_at_unix_seconds")
        if began is None or ended is None:
            continue
        provider = task.get("capacity_provider")
        if task.get("launch_type") not in (None, "FARGATE") and provider not in ("FARGATE", "FARGATE_SPOT"):
            return None
        if not task.get("cpu") or not task.get("memory"):
            return None
        total += task_dollars(float(task["cpu"]), float(task["memory"]), float(ended) - float(began))
    return total


def estimate_dollars(
    sizes: Iterable[Mapping[str, Any]], expected_seconds: Mapping[str, float], transitions_dollars: float
) -> float:
    """Estimates a run's price before it starts.

    Args:
        sizes: `step`, `cpu_units` and `memory_mib` of the steps that run on Fargate.
        expected_seconds: Durations of earlier runs; the least that is billed otherwise.
        transitions_dollars: Price of the state machine's transitions.

    Returns:
        US dollars.
    """
    tasks = sum(
        task_dollars(size["cpu_units"], size["memory_mib"], expected_seconds.get(size["step"], LEAST_SECONDS))
        for size in sizes
    )
    return tasks + transitions_dollars
