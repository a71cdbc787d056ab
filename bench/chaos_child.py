"""One process of `chaos.py`, in a ZenML configuration of its own.

Arguments: `setup`, `run SEED STEPS ISOLATION IMAGE`, or `check RUN`.
"""

from __future__ import annotations

import json
import sys
import time

MARK = "chaos.py: "


def setup() -> dict[str, str]:
    """Registers the orchestrator and a stack."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    client = Client()
    client.create_flavor(
        source="orchestrator.my_docker_orchestrator_flavor.LocalDockerOrchestratorFlavor",
        component_type=StackComponentType.ORCHESTRATOR,
    )
    client.create_stack_component(
        name="chaos", flavor="my_docker", component_type=StackComponentType.ORCHESTRATOR, configuration={}
    )
    components = {StackComponentType.ORCHESTRATOR: "chaos", StackComponentType.ARTIFACT_STORE: "default"}
    stack = client.create_stack(name="chaos", components=components)
    client.activate_stack(stack.id)
    return {}


def run(seed: int, count: int, isolation: str, image: str) -> dict[str, str]:
    """Runs a random DAG; the same seed gives the same."""
    from chaos_steps import again, grown, random_dag, work
    from zenml import pipeline
    from zenml.config import DockerSettings

    docker = DockerSettings(parent_image=image, skip_build=True)
    if isolation == "dynamic":
        grown.with_options(settings={"docker": docker, "orchestrator": {"max_parallelism": 3}})(seed, count)
        return {}
    upstream, seconds = random_dag(seed, count)

    @pipeline(
        enable_cache=False,
        settings={"docker": docker, "orchestrator": {"isolation": isolation, "max_parallelism": 3}},
    )
    def chaos() -> None:
        each = work.with_options(retry=again())
        for at in range(count):
            each(seconds[at], id=f"s{at}", after=[f"s{up}" for up in upstream[at]])

    chaos()
    return {}


def check(run_id: str) -> dict[str, object]:
    """What ZenML's rows say."""
    from zenml.client import Client

    found = Client().get_pipeline_run(run_id)
    rows = Client().list_run_steps(pipeline_run_id=found.id, size=1000)
    attempts: dict[str, list[str]] = {}
    for row in rows.items:
        attempts.setdefault(row.name, []).append(row.status.value)
    return {"status": found.status.value, "attempts": attempts}


if __name__ == "__main__":
    begun = time.monotonic()
    if sys.argv[1] == "setup":
        answer: dict = setup()
    elif sys.argv[1] == "run":
        answer = run(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        answer = check(sys.argv[2])
    print(MARK + json.dumps({**answer, "seconds": time.monotonic() - begun}), flush=True)
