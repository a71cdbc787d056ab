"""What AWS's own checker is known to refuse in a definition, and moto's parser lets through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import botocore.session
import jsonata
from moto.core.exceptions import AWSError
from moto.core.responses import ActionResult
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser, ASLParserException
from moto.stepfunctions.parser.models import StepFunctionsParserBackend
from moto.stepfunctions.responses import StepFunctionResponse

DEFINITION_BYTES = 1_048_576
MAX_SECONDS = 99_999_999
RUN_TASK = botocore.session.get_session().get_service_model("ecs").operation_model("RunTask").input_shape
SCHEMA, TARGET = "SCHEMA_VALIDATION_FAILED", "MISSING_TRANSITION_TARGET"


class Finding(NamedTuple):
    """One thing that is wrong."""

    code: str
    message: str
    location: str


def diagnose(definition: str) -> list[Finding]:
    """Checks a definition.

    Args:
        definition: The JSON text.

    Returns:
        What is wrong with it.
    """
    try:
        AmazonStateLanguageParser.parse(definition)
    except ASLParserException as error:
        code = SCHEMA if definition.lstrip().startswith("{") else "INVALID_JSON_DESCRIPTION"
        return [Finding(code, repr(error), "")]
    except Exception as error:  # The parser raises whatever its grammar stumbles over.
        return [Finding(SCHEMA, str(error), "")]
    return list(_machine(json.loads(definition), "", set()))


def refuse(definition: str) -> None:
    """Raises what AWS would for a definition that is wrong."""
    if len(definition.encode()) > DEFINITION_BYTES:
        raise AWSError(
            "1 validation error detected: Value at 'definition' failed to satisfy constraint: "
            f"Member must have length less than or equal to {DEFINITION_BYTES}",
            "ValidationException",
        )
    found = diagnose(definition)
    if found:
        text = ", ".join(f"{finding.code}: {finding.message} at {finding.location}" for finding in found)
        raise AWSError(f"Invalid State Machine Definition: '{text}'", "InvalidDefinition")


def _machine(machine: dict[str, Any], at: str, names: set[str]) -> Iterator[Finding]:
    states = machine.get("States") or {}
    start = machine.get("StartAt")
    if start not in states:
        yield Finding(TARGET, f"Missing 'Next' target: {start}", f"{at}/StartAt")
    for name, state in states.items():
        where = f"{at}/States/{name}"
        if name in names:
            yield Finding("DUPLICATE_STATE_NAME", f"Duplicate state name '{name}'", where)
        names.add(name)
        yield from _state(name, state, states, where)
        for index, branch in enumerate(state.get("Branches", [])):
            yield from _machine(branch, f"{where}/Branches[{index}]", names)
        if "ItemProcessor" in state:
            yield from _machine(state["ItemProcessor"], f"{where}/ItemProcessor", names)
    if states and not any(state.get("End") or state.get("Type") in ("Succeed", "Fail") for state in states.values()):
        yield Finding("MISSING_END_STATE", "No terminal state", at or "/")
    reached = _reachable(start, states)
    for name in states:
        if name not in reached:
            yield Finding(TARGET, f'State "{name}" is not reachable.', f"{at}/States/{name}")


def _state(name: str, state: dict[str, Any], states: dict[str, Any], where: str) -> Iterator[Finding]:
    kind = state.get("Type")
    if len(name) > 80:
        yield Finding("INVALID_STATE_NAME", "State name must be at most 80 characters", where)
    if kind in ("Succeed", "Fail") and ("Next" in state or "End" in state):
        yield Finding(SCHEMA, "A terminal state has neither Next nor End", where)
    if kind not in ("Choice", "Succeed", "Fail") and not ("Next" in state or state.get("End")):
        yield Finding(SCHEMA, "One of Next or End is required", where)
    seconds = state.get("TimeoutSeconds", 1)
    if not 0 < seconds <= MAX_SECONDS:
        yield Finding(SCHEMA, f"TimeoutSeconds must be between 1 and {MAX_SECONDS}", where)
    for target in _targets(state):
        if target not in states:
            yield Finding(TARGET, f"Missing 'Next' target: {target}", where)
    for clause in ("Retry", "Catch"):
        for rule in state.get(clause, [])[:-1]:
            if "States.ALL" in rule["ErrorEquals"]:
                yield Finding(SCHEMA, "States.ALL must come last", f"{where}/{clause}")
    if state.get("Resource", "").startswith("arn:aws:states:::ecs:runTask"):
        yield from _run_task(state.get("Parameters") or state.get("Arguments") or {}, f"{where}/Parameters")
    for text in _strings(state):
        if text.startswith("{%") and text.endswith("%}"):
            try:
                jsonata.Jsonata(text[2:-2])
            except Exception as error:  # The library raises its own and plain ones.
                yield Finding(SCHEMA, f"Invalid JSONata expression: {error}", where)


def _run_task(given: dict[str, Any], where: str) -> Iterator[Finding]:
    for name in _unknown_fields(given, RUN_TASK):
        yield Finding(SCHEMA, f"The field '{name}' is not supported by Step Functions", where)
    if "TaskDefinition" not in {name.removesuffix(".$") for name in given}:
        yield Finding(SCHEMA, "The field 'TaskDefinition' is required but was missing", where)


def _unknown_fields(value: Any, shape: Any) -> Iterator[str]:
    """Step Functions wants the API's fields in PascalCase."""
    if shape.type_name == "structure" and isinstance(value, dict):
        members = {name[0].upper() + name[1:]: member for name, member in shape.members.items()}
        for key, inner in value.items():
            name = key.removesuffix(".$")
            if name not in members:
                yield name
            elif name == key:
                yield from _unknown_fields(inner, members[name])
    elif shape.type_name == "list" and isinstance(value, list):
        for inner in value:
            yield from _unknown_fields(inner, shape.member)


def _targets(state: dict[str, Any]) -> list[str]:
    found = [state.get("Next"), state.get("Default")]
    found += [rule.get("Next") for rule in (*state.get("Choices", []), *state.get("Catch", []))]
    return [target for target in found if target is not None]


def _reachable(start: str | None, states: dict[str, Any]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name is not None and name in states and name not in seen:
            seen.add(name)
            waiting += _targets(states[name])
    return seen


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("Branches", "ItemProcessor"):
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def validate_state_machine_definition(self: StepFunctionResponse) -> ActionResult:
    """The call of that name, which moto lacks."""
    found = diagnose(self._get_param("definition"))
    findings = [{"severity": "ERROR", **finding._asdict()} for finding in found]
    return ActionResult({"result": "FAIL" if found else "OK", "truncated": False, "diagnostics": findings})


StepFunctionsParserBackend._validate_definition = staticmethod(refuse)
StepFunctionResponse.validate_state_machine_definition = validate_state_machine_definition
