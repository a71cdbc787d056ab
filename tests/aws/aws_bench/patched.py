"""Imports everything that replaces a part of moto's, and turns its interpreter on."""

from __future__ import annotations

import logging

from moto.core.config import default_user_config

from aws_bench import definitions, ecs_api, executions, integrations, interpreter, machines, scheduling, stacks, tasks

__all__ = [
    "definitions",
    "ecs_api",
    "executions",
    "integrations",
    "interpreter",
    "machines",
    "scheduling",
    "stacks",
    "tasks",
]


def execute() -> None:
    """Lets Step Functions execute; without it moto answers from a script."""
    # It prints the whole parsed machine with every error of a state.
    logging.getLogger("moto.stepfunctions").setLevel(logging.CRITICAL)
    default_user_config["stepfunctions"] = {"execute_state_machine": True}
