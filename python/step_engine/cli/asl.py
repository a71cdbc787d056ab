"""`step-engine asl`: the state machine of a pipeline, printed without touching AWS."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_engine.errors import PlanError

if TYPE_CHECKING:
    import argparse

FORMATS = ("asl", "machines", "mermaid", "svg", "report", "policy", "json")

PREVIEW_TASK: dict[str, Any] = {
    "cluster": "cluster-to-be-named",
    "task_definition": "task-definition-to-be-named",
    "container": "main",
    "launch_type": "FARGATE",
}
"""Stands in for what only the stack knows, so that a machine can be looked at before there is one."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "asl", help="print the Step Functions machine of a pipeline", description="Prints; AWS is not touched."
    )
    parser.add_argument("source", help="plan.json, `-` for standard input, or path/to/module.py:pipeline")
    parser.add_argument("--config", help="YAML file of the pipeline's run configuration")
    parser.add_argument("--options", help="JSON file with compile options, see `step_engine.compile_asl`")
    parser.add_argument("--format", choices=FORMATS, default="asl", help="what to print (default: the root machine)")
    parser.add_argument(
        "--synchronization", choices=("exact", "barrier", "auto"), help="how dependencies are kept that need signals"
    )
    parser.add_argument("--signal-bucket", help="S3 bucket for the signals of token edges")
    parser.set_defaults(handle=show, needs_engine=False)


def show(options: argparse.Namespace) -> int:
    """Prints what was asked for.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0.

    Raises:
        PlanError: A file cannot be read or is no plan.
        AslError: The plan cannot become a state machine.
    """
    from step_engine import asl_report, compile_asl, draw_asl

    plan, own = _source(options.source, options.config)
    settings = {**own, **(_json(options.options) if options.options else {})}
    # What is no object the compiler refuses with the path of the field.
    task = settings.get("task", {})
    if isinstance(task, dict):
        without = {"launch_type": None} if task.get("capacity_providers") else {}
        settings["task"] = {**PREVIEW_TASK, **without, **task}
    if options.synchronization:
        settings["synchronization"] = options.synchronization
    if options.signal_bucket:
        signals = settings.get("signals") or {}
        settings["signals"] = {**signals, "bucket": options.signal_bucket} if isinstance(signals, dict) else signals
    elif settings.get("synchronization", "exact") != "barrier" and not settings.get("signals"):
        settings["signals"] = {"bucket": "bucket-to-be-named"}

    if options.format in ("mermaid", "svg"):
        text = draw_asl(plan, settings, options.format)
    elif options.format == "report":
        text = asl_report(plan, settings)
    else:
        compiled = compile_asl(plan, settings)
        if options.format == "asl":
            text = json.dumps(json.loads(compiled["machines"][-1]["definition"]), indent=2, ensure_ascii=False)
        elif options.format == "machines":
            machines = {machine["name"]: json.loads(machine["definition"]) for machine in compiled["machines"]}
            text = json.dumps(machines, indent=2, ensure_ascii=False)
        elif options.format == "policy":
            text = json.dumps(compiled["report"]["policy"], indent=2)
        else:
            text = json.dumps(compiled["report"], indent=2, ensure_ascii=False)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    return 0


def _source(source: str, config: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the plan and the compile options that the pipeline itself brings."""
    module, colon, pipeline = source.rpartition(":")
    if colon and module.endswith(".py"):
        # Only this package knows ZenML. What ZenML has to say must not end up in the machine.
        with contextlib.redirect_stdout(sys.stderr):
            from orchestrator.preview import preview

            return preview(module, pipeline, config)
    if source.endswith(".py"):
        raise PlanError(f"{source} may hold several pipelines: name one, as in {source}:my_pipeline")
    if config:
        raise PlanError("--config belongs to a pipeline; a plan brings its settings in --options")
    return _json(source), {}


def _json(path: str) -> dict[str, Any]:
    name = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise PlanError(f"{name} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise PlanError(f"{name} must hold a JSON object")
    return value
