"""One process of `compare.py`, in a ZenML configuration of its own.

Arguments: `setup COLUMNS`, or `run STACK WORK IMAGE SETTINGS`.

Prints one JSON line, marked so that it is found among ZenML's own output.
"""

import importlib
import json
import sys
import time

MARK = "compare.py: "

PIPELINES = {
    "chain": ("works", "chain", 8),
    "fan_out": ("works", "fan_out", 17),
    "tutorial": ("pipelines.sklearn_pipeline", "sklearn_pipeline", 3),
    "heavy": ("heavy", "heavy", 2),
    "paced": ("works", "paced", 11),
    "crowd": ("works", "crowd", 64),
    "multitude": ("works", "multitude", 200),
}
"""Module, name and number of steps of each work."""


def setup(columns: dict[str, dict[str, str]]) -> dict[str, str]:
    """Registers an orchestrator and a stack for each column."""
    import zenml
    from zenml.client import Client
    from zenml.enums import StackComponentType

    client = Client()
    client.create_flavor(
        source="orchestrator.my_docker_orchestrator_flavor.LocalDockerOrchestratorFlavor",
        component_type=StackComponentType.ORCHESTRATOR,
    )
    for name, column in columns.items():
        client.create_stack_component(
            name=name, flavor=column["flavor"], component_type=StackComponentType.ORCHESTRATOR, configuration={}
        )
        client.create_stack(
            name=name,
            components={StackComponentType.ORCHESTRATOR: name, StackComponentType.ARTIFACT_STORE: "default"},
        )
    return {"zenml": zenml.__version__}


class Attempts:
    """What the core tells of attempts, overheard between it and the orchestrator."""

    def __init__(self) -> None:
        import step_engine

        self._kind = step_engine.DockerRun
        self._launched: dict[str, bool] = {}
        self.warm_seconds: dict[str, float] = {}
        step_engine.DockerRun = self._make

    def _make(self, *arguments: object, **options: object) -> "Overheard":
        return Overheard(self._kind(*arguments, **options), self)

    def note(self, event: dict) -> None:
        if event["kind"] == "attempt_started":
            self._launched[event["step"]] = event["details"].get("warm", False)
        elif event["kind"] == "attempt_ended" and self._launched.get(event["step"]):
            self.warm_seconds[event["step"]] = event["duration"]


class Overheard:
    """A `DockerRun` whose events are noted."""

    def __init__(self, run: object, attempts: Attempts) -> None:
        self._run, self._attempts = run, attempts

    def __getattr__(self, name: str) -> object:
        return getattr(self._run, name)

    def next_events(self, timeout_seconds: float) -> list[dict]:
        events = self._run.next_events(timeout_seconds)
        for event in events:
            self._attempts.note(event)
        return events


def run(stack: str, work: str, image: str, settings: dict[str, object]) -> dict[str, object]:
    """Runs a work without caching and checks that every step of it completed."""
    from zenml.client import Client
    from zenml.config import DockerSettings

    Client().activate_stack(stack)
    options = {"docker": DockerSettings(parent_image=image, skip_build=True)}
    if settings:
        options["orchestrator"] = settings
    module, name, steps = PIPELINES[work]
    configured = getattr(importlib.import_module(module), name).with_options(enable_cache=False, settings=options)
    attempts = Attempts()
    begun = time.monotonic()
    response = configured()
    seconds = time.monotonic() - begun
    finished = Client().get_pipeline_run(response.id)
    statuses = [step.status.value for step in finished.steps.values()]
    if finished.status.value != "completed" or statuses != ["completed"] * steps:
        raise SystemExit(f"{work} on {stack} ended as {finished.status.value}: {statuses}")
    return {"seconds": seconds, "warm_seconds": attempts.warm_seconds, "snapshot": str(finished.snapshot.id)}


if __name__ == "__main__":
    if sys.argv[1] == "setup":
        answer = setup(json.loads(sys.argv[2]))
    else:
        answer = run(sys.argv[2], sys.argv[3], sys.argv[4], json.loads(sys.argv[5]))
    print(MARK + json.dumps(answer), flush=True)
