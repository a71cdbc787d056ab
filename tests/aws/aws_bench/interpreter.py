"""Repairs to moto's Step Functions interpreter, a port of LocalStack's: what the port left out, and what both have wrong."""

from __future__ import annotations

import functools
from typing import Any

import botocore.session
import jsonata
from moto.core.exceptions import AWSError
from moto.stepfunctions.parser import api
from moto.stepfunctions.parser import utils as parser_utils
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import CustomErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration import iteration_worker
from moto.stepfunctions.parser.asl.component.state.exec.state_parallel import branches_decl
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service,
    state_task_service_aws_sdk,
    state_task_service_callback,
    state_task_service_ecs,
    state_task_service_sfn,
)
from moto.stepfunctions.parser.asl.eval.environment import Environment, ProgramStopped, ProgramTimedOut
from moto.stepfunctions.parser.asl.eval.event.event_manager import EventManager
from moto.stepfunctions.parser.asl.jsonata import jsonata as asl_jsonata
from moto.stepfunctions.parser.asl.parse.preprocessor import Preprocessor

from aws_bench.clients import client

MAX_EVENTS = 25_000
ENDINGS = ("ExecutionSucceeded", "ExecutionFailed", "ExecutionAborted", "ExecutionTimedOut")


def repair_parser() -> None:
    """Moto keeps a list on the class: one refused definition, or two read at once, breaks every later one."""

    def begin(self: Preprocessor) -> None:
        self.__dict__["_query_language_per_scope"] = []

    Preprocessor.__init__ = begin
    # An expression arrives with its variables already in it.
    asl_jsonata._eval_jsonata = lambda expression: jsonata.Jsonata(expression).evaluate(None)
    # Moto answers these with an empty name on the wire.
    for error in vars(api).values():
        if isinstance(error, type) and issubclass(error, AWSError) and isinstance(vars(error).get("code"), str):
            error.TYPE = error.code


def repair_parameters() -> None:
    """A state machine writes the API's fields in PascalCase; moto hands them on as they are."""

    @functools.cache
    def operation(service: str, action: str) -> Any:
        model = botocore.session.get_session().get_service_model(service)
        snake = parser_utils.camel_to_snake_case
        return model.operation_model(next(name for name in model.operation_names if snake(name) == snake(action)))

    def shape(self: Any, which: str, service: str | None, action: str | None) -> Any:
        return getattr(operation(self._get_boto_service_name(service), self._get_boto_service_action(action)), which)

    def parameters(
        self: Any,
        parameters: dict[str, Any],
        boto_service_name: str | None = None,
        service_action_name: str | None = None,
    ) -> None:
        found = shape(self, "input_shape", boto_service_name, service_action_name)
        if found is not None:
            self._to_boto_request(parameters, found)

    def response(
        self: Any, response: Any, boto_service_name: str | None = None, service_action_name: str | None = None
    ) -> None:
        found = shape(self, "output_shape", boto_service_name, service_action_name)
        if found is not None:
            self._from_boto_response(response, found)

    service = state_task_service.StateTaskService
    service._normalise_parameters, service._normalise_response = parameters, response
    # Newer than the port.
    state_task_service_ecs._SUPPORTED_API_PARAM_BINDINGS["runtask"] |= {"CapacityProviderStrategy", "Tags"}

    def as_role(region: str, service: str, state_credentials: Any = None) -> Any:
        return client(service, region, state_credentials.role_arn, "states")

    for module in (state_task_service_ecs, state_task_service_sfn, state_task_service_aws_sdk):
        module.boto_client_for = as_role


def error_name(error_name: str) -> Any:
    """The name of an error, also of AWS's own, which the interpreter refuses when they leave a Parallel or a Map."""
    known = next((kind for kind in StatesErrorNameType if kind.to_name() == error_name), None)
    return StatesErrorName(known) if known else CustomErrorName(error_name)


def repair_errors() -> None:
    """Errors of AWS's own can be caught, also outside the Parallel or Map that they leave."""
    for module in (branches_decl, iteration_worker, state_task_service_callback):
        module.CustomErrorName = error_name
    # Errors of SDK integrations begin with the name of AWS's Java client.
    state_task_service_aws_sdk._SERVICE_ERROR_NAMES |= {"s3": "S3", "sfn": "Sfn", "ecs": "Ecs"}


def repair_endings() -> None:
    """Once an execution was stopped or timed out, nothing else decides its end or writes its history."""

    def guarded(method: str) -> Any:
        original = getattr(Environment, method)

        def guard(self: Environment, *values: Any, **named: Any) -> Any:
            if isinstance(self._program_state, (ProgramStopped, ProgramTimedOut)):
                return None
            if method in ("set_stop", "set_timed_out") and not self.is_frame():
                self.event_manager.over = True
            return original(self, *values, **named)

        return guard

    for method in ("set_error", "set_ended", "set_stop", "set_timed_out"):
        setattr(Environment, method, guarded(method))
    original = EventManager.add_event

    def add_event(self: EventManager, context: Any, event_type: Any, event_details: Any = None, **named: Any) -> Any:
        name, over = event_type.value, getattr(self, "over", False)
        ends = name.startswith("Execution")
        if over and (over == "done" or not (ends or name.endswith("Aborted"))):
            return context.last_published_event_id
        if len(self._history_event_list) >= MAX_EVENTS - 1 and not ends:
            raise RuntimeError("The execution reached the maximum number of history events (25000).")
        if name in ENDINGS:
            self.over = "done"
        details = None if name.endswith("StateAborted") else event_details
        return original(self, context, event_type, event_details=details, **named)

    EventManager.add_event = add_event


repair_parser()
repair_parameters()
repair_errors()
repair_endings()
