"""A pipeline's plan without a run: what `step-engine asl` compiles."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.pipelines.pipeline_definition import Pipeline

from orchestrator.aws_plan import command
from orchestrator.plan import build_plan

if TYPE_CHECKING:
    from types import ModuleType

    from zenml.config.base_settings import BaseSettings

SETTINGS_KEYS = ("orchestrator", "orchestrator.aws_step_functions")
"""Where a pipeline or a step says how its state machine is to be made. The stack that is active need not have one."""

_MACHINE = {
    "synchronization": "synchronization",
    "auto_threshold": "auto_threshold",
    "execution_timeout_seconds": "timeout_seconds",
}
_TASK = {
    "launch_type": "launch_type",
    "capacity_provider_strategy": "capacity_providers",
    "platform_version": "platform_version",
    "enable_execute_command": "enable_execute_command",
}
"""Settings of the orchestrator by what the compiler calls them."""


def preview(path: str, name: str, config: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compiles a pipeline as a run would and stops there.

    Args:
        path: File of the module.
        name: Name of the pipeline in it.
        config: YAML file of the run configuration, if any.

    Returns:
        The plan, and the compile options that follow from the pipeline: its settings and the commands of its steps.

    Raises:
        PlanError: There is no such file or pipeline, it is a dynamic one, or it cannot be compiled.
    """
    from step_engine.errors import PlanError

    with _in_one_sentence(f"{path} cannot be loaded"):
        pipeline = getattr(_load(path), name, None)
    if not isinstance(pipeline, Pipeline):
        raise PlanError(f"{path} has no pipeline `{name}`")
    if pipeline.is_dynamic:
        raise PlanError(f"`{name}` is a dynamic pipeline: its steps are known only while it runs")
    if config and not Path(config).is_file():
        raise PlanError(f"there is no file {config}")
    with _in_one_sentence(f"`{name}` cannot be compiled"):
        return _compiled(pipeline, config)


def _compiled(pipeline: Pipeline, config: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorSettings

    configured = pipeline.with_options(config_path=config) if config else pipeline
    configured.prepare()
    # What `Pipeline.run` does before it stores anything. Settings for components that the stack lacks get lost here.
    own = {key: value for key, value in configured._run_args.items() if key in ("config_path", "step_configurations")}
    snapshot, *_ = configured._compile(**own)
    file = PipelineRunConfiguration.from_yaml(config) if config else PipelineRunConfiguration()
    everywhere = [configured.configuration.settings, file.settings or {}]
    whole = _settings(everywhere)
    timed, steps = {}, {}
    for step in snapshot.step_configurations:
        in_file = (file.steps or {}).get(step)
        levels = [*everywhere, configured.invocations[step].step.configuration.settings]
        settings = _settings([*levels, (in_file.settings if in_file else None) or {}])
        timed[step] = StepFunctionsOrchestratorSettings(timeout_seconds=settings.get("timeout_seconds"))
        steps[step] = {**_renamed(settings, _TASK), "command": command(step)}
    limit = whole.get("max_parallelism")
    plan = build_plan(snapshot, "", limit, timed, {})  # pyright: ignore[reportArgumentType] (the same fields)
    return plan, {**_renamed(whole, _MACHINE), "steps": steps}


def _settings(levels: Sequence[Mapping[str, BaseSettings]]) -> dict[str, Any]:
    """Merges what the orchestrator is told on several levels, the last wins."""
    merged: dict[str, Any] = {}
    for level in levels:
        for key in SETTINGS_KEYS:
            if key in level:
                merged.update(level[key].model_dump(exclude_unset=True))
    return merged


def _renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[name]: value for name, value in settings.items() if name in names and value is not None}


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


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    """Turns whatever a pipeline's code or ZenML raises into one sentence.

    ZenML's hints are left out: they speak of the stack that is active, which does not matter here.
    """
    from step_engine.errors import PlanError, StepEngineError

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except StepEngineError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise PlanError(
            f"{what}: {type(error).__name__}: {text}" if text else f"{what}: {type(error).__name__}"
        ) from error
    finally:
        logging.disable(before)
