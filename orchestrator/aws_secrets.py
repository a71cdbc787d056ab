"""Which parts of the steps' environment are secrets, where they are kept, and how they reach a task. Pure functions.

What is new for each run (the token with which steps talk to ZenML) is stored under the run's name and fetched in the
container, so that task definitions stay the same. Other secrets are stored once under a name that follows from their
content, and task definitions refer to them (`valueFrom`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.container.begin import SECRET

ENV_RUN_SECRET = SECRET
"""Tells a task where the run's secret environment is."""

ENV_STORE_TOKEN = "ZENML_STORE_API_TOKEN"  # noqa: S105
"""ZenML's workload token: another one for each run."""

_TELLING = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET_?KEY|KEY)$",
    re.IGNORECASE,
)
_NO_SECRETS = re.compile(r"^ZENML_STEP_ENGINE_|^ZENML_DISABLE_|_CACHING$")


def is_secret(name: str, declared: Collection[str] = ()) -> bool:
    """Tells from a variable's name whether its value is a secret.

    Args:
        name: Name of the variable.
        declared: Names that the user says are secrets.

    Returns:
        True for what was declared, and for names such as `WANDB_API_KEY` or `DB_PASSWORD`.
    """
    return name in declared or (bool(_TELLING.search(name)) and not _NO_SECRETS.search(name))


@dataclass
class Environment:
    """A step's environment, by how it reaches the task.

    Attributes:
        plain: Stands in the task definition.
        stable: Secrets that do not change from run to run, by name.
        run: Secrets that are new for each run.
    """

    plain: dict[str, str] = field(default_factory=dict)
    stable: dict[str, str] = field(default_factory=dict)
    run: dict[str, str] = field(default_factory=dict)


def split_environment(environment: Mapping[str, str], declared: Collection[str] = ()) -> Environment:
    """Sorts the variables of a step.

    Args:
        environment: All of them.
        declared: Names that the user says are secrets.

    Returns:
        The three kinds.
    """
    parts = Environment()
    for name, value in environment.items():
        if name == ENV_STORE_TOKEN:
            parts.run[name] = value
        # An empty secret cannot be stored, and is none.
        elif value and is_secret(name, declared):
            parts.stable[name] = value
        else:
            parts.plain[name] = value
    return parts


def stable_secret_name(prefix: str, component_id: object, name: str, value: str) -> str:
    """Names a secret by its content, so that an unchanged one is neither stored nor referred to anew.

    Args:
        prefix: Beginning of all names.
        component_id: The orchestrator component, so that nobody can compare secrets across components.
        name: Variable.
        value: Secret.

    Returns:
        The name. The hash in it is slow on purpose: names can be read by many, and some secrets are short.
    """
    salt = f"{component_id}/{name}".encode()
    digest = hashlib.scrypt(value.encode(), salt=salt, n=2**14, r=8, p=1, maxmem=64 * 2**20, dklen=10).hex()
    return f"{prefix}/environment/{name}-{digest}"


def run_secret_name(prefix: str, run_id: str, schedule: bool = False) -> str:
    """Names the secret of a run, or that of all runs of a schedule.

    Args:
        prefix: Beginning of all names.
        run_id: Name of the run's execution, or ZenML's id of the schedule.
        schedule: Which of the two.

    Returns:
        The name.
    """
    return f"{prefix}/{'schedules' if schedule else 'runs'}/{run_id}"


def secret_location(backend: str, name: str, values: Mapping[str, str]) -> str:
    """Says where a task finds the run's secret environment, see `orchestrator.container.begin`.

    Args:
        backend: `none`, `secretsmanager` or `ssm`.
        name: Name of the secret.
        values: Variables.

    Returns:
        A field of the execution's input.
    """
    if not values:
        return ""
    if backend == "none":
        return f"plain:{secret_text(values)}"
    return f"{backend}:{'/' if backend == 'ssm' else ''}{name}"


def secret_text(values: Mapping[str, Any]) -> str:
    """Writes variables as the container reads them.

    Args:
        values: Variables.

    Returns:
        The secret's text.
    """
    return json.dumps(dict(values), sort_keys=True)
