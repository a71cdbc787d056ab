"""The `step-engine` command: the engine, runs, state machines, AWS accounts. What needs ZenML is in `orchestrator`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from step_engine.cli import asl, doctor, durable, runs
from step_engine.errors import StepEngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from step_engine import DockerEngine


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0 if it worked, 1 if the engine refused or something still runs, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    from step_engine import DockerEngine

    try:
        if not options.needs_engine:
            return int(options.handle(options))
        return int(options.handle(DockerEngine(), options))
    except StepEngineError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from step_engine import __version__

    parser = argparse.ArgumentParser(
        prog="step-engine",
        description="Looks at the Docker engine that steps run on, and at state machines before they are deployed.",
    )
    parser.add_argument("--version", action="version", version=f"step-engine {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    engine = commands.add_parser("engine", help="show which engine is used and what it has")
    engine.add_argument("--json", action="store_true", help="print JSON")
    engine.set_defaults(handle=_engine)

    containers = commands.add_parser("containers", help="list the containers of a run")
    containers.add_argument("run", help="run id, as `zenml pipeline runs list` shows it")
    containers.set_defaults(handle=_containers)

    for command in (engine, containers):
        command.set_defaults(needs_engine=True)
    runs.add_to(commands)
    durable.add_to(commands)
    asl.add_to(commands)
    doctor.add_to(commands)
    return parser


def _engine(engine: DockerEngine, options: argparse.Namespace) -> int:
    info = engine.info()
    if options.json:
        print(json.dumps(info, indent=2, sort_keys=True))
        return 0
    gibibytes = info["memory_bytes"] / 2**30
    where = "this machine" if info["local"] else "another machine"
    print(f"Docker {info['server_version']} (API {info['api_version']}, {info['platform']}) at {info['address']}")
    print(f"{info['cpu_millis'] / 1000:g} CPUs, {gibibytes:.1f} GiB of memory, {info['gpus']} GPUs, on {where}")
    if info["rootless"]:
        print("The engine is rootless: steps run as root in their containers, which is this user outside.")
    return 0


def _containers(engine: DockerEngine, options: argparse.Namespace) -> int:
    found = engine.containers(options.run)
    if not found:
        print("The engine has no containers of this run.", file=sys.stderr)
    for container in found:
        print(f"{container['name']}\t{container['step']}\tattempt {container['attempt']}\t{container['state']}")
    return 0
