"""Registers the tutorial's stack with the values of a template's outputs, then lets `step-engine doctor` look at it."""

import json
import sys

from step_engine.cli import main
from zenml.client import Client
from zenml.enums import StackComponentType

given = json.load(sys.stdin)
client = Client()
client.create_flavor(
    source="orchestrator.my_aws_orchestrator_flavor.StepFunctionsOrchestratorFlavor",
    component_type=StackComponentType.ORCHESTRATOR,
)
parts = {
    StackComponentType.ORCHESTRATOR: ("aws_step_functions", given["orchestrator"]),
    StackComponentType.ARTIFACT_STORE: ("s3", {"path": given["path"]}),
    StackComponentType.CONTAINER_REGISTRY: ("aws", {"uri": given["uri"]}),
}
for kind, (flavor, configuration) in parts.items():
    client.create_stack_component(name="aws", flavor=flavor, component_type=kind, configuration=configuration)
client.create_stack("aws_stack", components=dict.fromkeys(parts, "aws"))
assert main(["doctor", "--stack", "default"]) == 1
assert main(["doctor", "--stack", "none"]) == 1
sys.exit(main(["doctor", "--stack", "aws_stack"]))
