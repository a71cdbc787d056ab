"""State machines and their versions: AWS's limits, and the calls that moto lacks or gets wrong."""

from __future__ import annotations

from typing import Any

from moto.core.exceptions import AWSError
from moto.core.responses import ActionResult, EmptyResult
from moto.stepfunctions.parser.models import StepFunctionsParserBackend as Backend
from moto.stepfunctions.responses import StepFunctionResponse as Response

MAX_TAGS = 50
NOT_IN_EXPRESS = ('.sync"', '.sync:2"', '.waitForTaskToken"')
_create = Backend.create_state_machine


def create_state_machine(
    self: Backend,
    name: str,
    definition: str,
    roleArn: str,
    tags: list[dict[str, str]] | None = None,
    sm_type: str | None = None,
    **rest: Any,
) -> Any:
    """The same name with another definition is refused; moto answers the old machine."""
    if len(tags or []) > MAX_TAGS:
        raise AWSError("Tag limit exceeded", "TooManyTags")
    if sm_type == "EXPRESS" and any(word in definition for word in NOT_IN_EXPRESS):
        raise AWSError("Express state machine does not support '.sync' service integration", "InvalidDefinition")
    old = next((machine for machine in self.state_machines if machine.name == name), None)
    if old is not None and (old.definition, old.roleArn) != (definition, roleArn):
        raise AWSError(f"State Machine Already Exists: '{old.arn}'", "StateMachineAlreadyExists")
    return _create(self, name, definition, roleArn, tags=tags, sm_type=sm_type, **rest)


def publish_state_machine_version(self: Response) -> ActionResult:
    """Publishes what there is, unless it is published already."""
    machine = self.stepfunction_backend.describe_state_machine(self._get_param("stateMachineArn"))
    if not machine.latest_version or machine.latest_version.definition != machine.definition:
        machine.publish(self._get_param("description"))
    version = machine.latest_version
    return ActionResult({"creationDate": version.creation_date, "stateMachineVersionArn": version.arn})


def list_state_machine_versions(self: Response) -> ActionResult:
    """Newest first."""
    machine = self.stepfunction_backend.describe_state_machine(self._get_param("stateMachineArn"))
    versions = [
        {"stateMachineVersionArn": version.arn, "creationDate": version.creation_date}
        for version in reversed(machine.versions.values())
    ]
    return ActionResult({"stateMachineVersions": versions})


def delete_state_machine_version(self: Response) -> EmptyResult:
    """One that is not there counts as deleted."""
    arn, _, number = self._get_param("stateMachineVersionArn").rpartition(":")
    self.stepfunction_backend.describe_state_machine(arn).versions.pop(int(number), None)
    return EmptyResult()


Backend.create_state_machine = create_state_machine
Response.publish_state_machine_version = publish_state_machine_version
Response.list_state_machine_versions = list_state_machine_versions
Response.delete_state_machine_version = delete_state_machine_version
