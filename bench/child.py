"""One process of `compare.py`, in a ZenML configuration of its own.

Arguments: `setup COLUMNS`, or `run STACK WORK IMAGE SETTINGS`.

Prints one JSON line, marked so that it is found among ZenML's own output.
"""

import json
import sys
import time

MARK = "compare.py: "


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


def run(stack: str, work: str, image: str, settings: dict[str, object]) -> dict[str, float]:
    """Runs a work without caching and checks that every step of it completed."""
    from works import STEPS, WORKS
    from zenml.client import Client
    from zenml.config import DockerSettings

    Client().activate_stack(stack)
    options = {"docker": DockerSettings(parent_image=image, skip_build=True)}
    if settings:
        options["orchestrator"] = settings
    configured = WORKS[work].with_options(enable_cache=False, settings=options)
    begun = time.monotonic()
    response = configured()
    seconds = time.monotonic() - begun
    finished = Client().get_pipeline_run(response.id)
    statuses = [step.status.value for step in finished.steps.values()]
    if finished.status.value != "completed" or statuses != ["completed"] * STEPS[work]:
        raise SystemExit(f"{work} on {stack} ended as {finished.status.value}: {statuses}")
    return {"seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1] == "setup":
        answer = setup(json.loads(sys.argv[2]))
    else:
        answer = run(sys.argv[2], sys.argv[3], sys.argv[4], json.loads(sys.argv[5]))
    print(MARK + json.dumps(answer), flush=True)
