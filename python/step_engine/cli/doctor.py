"""`step-engine doctor`: what an AWS account lacks for a first run, and what mends it."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from step_engine.errors import PlanError

if TYPE_CHECKING:
    import argparse

    from step_engine.doctor import Target

MARKS = {"ok": "ok     ", "missing": "MISSING", "optional": "-      ", "unknown": "?      "}
NEEDED = ("region", "account_id", "cluster", "task_definition", "execution_role", "subnet_ids")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "doctor",
        help="look at the AWS account of a stack before a first run",
        description="Only looks. Give a ZenML stack, or the parts one by one. Exit code 1 if something is missing.",
    )
    parser.add_argument("--stack", help="name of a ZenML stack with the orchestrator aws_step_functions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print only what is missing or cannot be seen")
    parser.add_argument("--profile", help="profile of the shared AWS files")
    parts = parser.add_argument_group("without a stack")
    parts.add_argument("--region")
    parts.add_argument("--account-id")
    parts.add_argument("--cluster", help="ECS cluster, ARN or name")
    parts.add_argument("--task-definition", help="template task definition")
    parts.add_argument("--execution-role", help="ARN")
    parts.add_argument("--task-role", help="ARN (default: the task definition's)")
    parts.add_argument("--state-machine-role", help="ARN (default: the execution role)")
    parts.add_argument("--scheduler-role", help="ARN (default: the state machines')")
    parts.add_argument("--subnet-ids", help="subnets, with commas between them")
    parts.add_argument("--security-group-ids", help="security groups, with commas between them")
    parts.add_argument("--bucket", help="bucket of the artifact store")
    parts.add_argument("--registry", help="address of the container registry")
    parts.add_argument("--repository", help="repository of the images (default: zenml)")
    parts.add_argument("--log-group", help="log group of the steps (default: the task definition's)")
    parts.add_argument("--secrets-backend", choices=("secretsmanager", "ssm", "none"))
    parts.add_argument("--secrets-prefix")
    parts.add_argument("--signals-prefix")
    parts.add_argument("--container-name")
    parts.add_argument("--assign-public-ip", action="store_true", default=None)
    parser.set_defaults(handle=examine, needs_engine=False)


def examine(options: argparse.Namespace) -> int:
    """Looks at the account and prints what is found.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0 if nothing is missing, else 1.

    Raises:
        PlanError: Neither a stack nor all of its parts are given.
        AwsError: AWS cannot be asked.
    """
    from step_engine.doctor import Examination

    target, credentials, profile = _target(options)
    examination = Examination.of(target, profile=options.profile or profile, credentials=credentials)
    found = []
    for finding in examination.findings():
        found.append(finding)
        if options.json or (options.quiet and finding.status == "ok"):
            continue
        print(f"{MARKS[finding.status]}  {finding.what}")
        if finding.fix:
            print("\n".join(f"         {line}" for line in finding.fix.splitlines()))
        sys.stdout.flush()
    missing = sum(finding.status == "missing" for finding in found)
    unknown = sum(finding.status == "unknown" for finding in found)
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    elif missing or unknown:
        right = sum(finding.status == "ok" for finding in found)
        print(f"{missing} missing, {unknown} cannot be seen, {right} right.")
    else:
        print("Nothing is missing.")
    return 1 if missing else 0


def _target(options: argparse.Namespace) -> tuple[Target, dict[str, Any] | None, str | None]:
    """Returns what to look at, and with whose credentials."""
    from step_engine.doctor import Target

    names = [field.name for field in dataclasses.fields(Target)]
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    if options.stack:
        if given:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise PlanError(f"Give either --stack or the parts of one, not both: {words}")
        # Only this package knows ZenML.
        from orchestrator.doctor import target_of

        return target_of(options.stack)
    missing = [f"--{name.replace('_', '-')}" for name in NEEDED if name not in given]
    if missing:
        raise PlanError(f"Give --stack, or also {', '.join(missing)}.")
    for name in ("subnet_ids", "security_group_ids"):
        if name in given:
            given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    return Target(**given), None, None
