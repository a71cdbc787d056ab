"""A pipeline's plan without a run: what `step-engine asl` compiles."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenml.pipelines.pipeline_definition import Pipeline

from orchestrator.aws_plan import command
from orchestrator.plan import build_plan

if TYPE_CHECKING:
    from types import ModuleType


def preview(path: str, name: str, config: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compiles a pipeline as a run would and stops there.

    Args:
        path: File of the module.
        name: Name of the pipeline in it.
        config: YAML file of the run configuration, if any.

    Returns:
        The plan, and the compile options that follow from the pipeline: the commands of its steps.

    Raises:
        PlanError: There is no such file or pipeline, or it is a dynamic one.
    """
    from step_engine.errors import PlanError

    pipeline = getattr(_load(path), name, None)
    if not isinstance(pipeline, Pipeline):
        raise PlanError(f"{path} has no pipeline `{name}`")
    if pipeline.is_dynamic:
        raise PlanError(f"`{name}` is a dynamic pipeline: its steps are known only while it runs")
    if config and not Path(config).is_file():
        raise PlanError(f"there is no file {config}")
    configured = pipeline.with_options(config_path=config) if config else pipeline
    configured.prepare()
    snapshot, *_ = configured._compile()  # what `Pipeline.run` does before it stores anything
    from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorSettings

    plain = {step: StepFunctionsOrchestratorSettings() for step in snapshot.step_configurations}
    plan = build_plan(snapshot, "", None, plain, {})  # pyright: ignore[reportArgumentType] (the same fields)
    return plan, {"steps": {step: {"command": command(step)} for step in snapshot.step_configurations}}


def _load(path: str) -> ModuleType:
    from step_engine.errors import PlanError

    file = Path(path).resolve()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise PlanError(f"there is no module {path}")
    # Its own imports are found as when it is run from the project's root, or from where it lies.
    sys.path[:0] = [str(Path.cwd()), str(file.parent)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module
