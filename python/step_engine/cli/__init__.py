"""The `step-engine` command."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; the process's own by default.

    Returns:
        Exit code: 0, or 1 after an error that was explained.
    """
    from step_engine import DockerEngine, __version__, errors

    parser = argparse.ArgumentParser(prog="step-engine", description="Looks after runs of the step engine.")
    parser.add_argument("--version", action="version", version=f"step-engine {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("engine", help="show which Docker engine is used and what it offers")
    containers = commands.add_parser("containers", help="list the containers of a run")
    containers.add_argument("run_id", help="orchestrator run id (ZenML's id of the pipeline run)")
    stop = commands.add_parser("stop", help="stop the containers of a run")
    stop.add_argument("run_id", help="orchestrator run id (ZenML's id of the pipeline run)")
    stop.add_argument("--force", action="store_true", help="kill at once")
    arguments = parser.parse_args(argv)
    try:
        engine = DockerEngine()
        if arguments.command == "engine":
            for key, value in engine.info().items():
                print(f"{key}: {value}")
        elif arguments.command == "containers":
            for container in engine.containers(arguments.run_id):
                print(f"{container['id'][:12]}  {container['state']:<10}  {container['name']}")
        elif left := engine.stop_run(arguments.run_id, force=arguments.force):
            print(f"Still running: {', '.join(left)}", file=sys.stderr)
            return 1
    except errors.StepEngineError as error:
        print(f"step-engine: {error}", file=sys.stderr)
        return 1
    return 0
