"""Executions: starting versions, names, stopping, paged histories, redriving."""

from __future__ import annotations

import copy
import datetime
import json
import uuid
from typing import Any

from moto.core.exceptions import AWSError
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.stepfunctions.parser.api import HistoryEventType
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str
from moto.stepfunctions.parser.backend.execution import Execution
from moto.stepfunctions.parser.backend.execution_worker import ExecutionWorker
from moto.stepfunctions.parser.models import StepFunctionsParserBackend as Backend
from moto.stepfunctions.responses import StepFunctionResponse as Response

INPUT_BYTES = 262_144
PAGE, MAX_PAGE = 100, 1000
REDRIVABLE = ("FAILED", "ABORTED", "TIMED_OUT")
_describe, _environment = Response.describe_execution, ExecutionWorker._get_evaluation_environment


def start_execution(
    self: Backend,
    state_machine_arn: str,
    name: str | None = None,
    execution_input: str | None = None,
    trace_header: str | None = None,
) -> Execution:
    """Starts a machine, a version or an alias (its first route, without weights)."""
    parts, text = state_machine_arn.split(":"), execution_input or "{}"
    name = name or str(uuid.uuid4())
    self._validate_name(name)
    if len(text.encode()) > INPUT_BYTES:
        raise AWSError(
            f"1 validation error detected: Value at 'input' failed to satisfy constraint: at most {INPUT_BYTES} bytes",
            "ValidationException",
        )
    try:
        json.loads(text)
    except ValueError as error:
        raise AWSError(f"Invalid State Machine Execution Input: '{error}'", "InvalidExecutionInput") from error
    machine = self.describe_state_machine(":".join(parts[:7]))
    used = machine
    if len(parts) > 7:
        number = parts[7]
        if not number.isnumeric():
            alias = self.describe_state_machine_alias(state_machine_arn)
            number = alias.routing_configuration[0]["stateMachineVersionArn"].rsplit(":", 1)[1]
        if int(number) not in machine.versions:
            raise AWSError(f"State Machine Does Not Exist: '{state_machine_arn}'", "StateMachineDoesNotExist")
        used = machine.versions[int(number)]
    old = machine._handle_name_input_idempotency(name, text)
    if old:
        return old
    snapshot = copy.copy(machine)
    snapshot.definition, snapshot.roleArn = used.definition, used.roleArn
    execution = Execution(
        name=name,
        sm_type=machine.type,
        role_arn=used.roleArn,
        exec_arn=f"{machine.arn.replace(':stateMachine:', ':execution:')}:{name}",
        account_id=self.account_id,
        region_name=self.region_name,
        state_machine=snapshot,
        start_date=datetime.datetime.now(datetime.timezone.utc),
        cloud_watch_logging_session=None,
        input_data=text,
        trace_header=trace_header,
        activity_store={},
    )
    execution.version_arn = used.arn if used is not machine else None
    machine.executions.append(execution)
    execution.start()
    return execution


def describe_execution(self: Response) -> ActionResult:
    """With the output as it is (moto stumbles over dates), the end, and what can be redriven."""
    execution = self.stepfunction_backend.describe_execution(self._get_param("executionArn"))
    output, execution.output = execution.output, ""
    try:
        answer = _describe(self)
    finally:
        execution.output = output
    if execution.stop_date:
        answer.result["stopDate"] = execution.stop_date
    if execution.status == "SUCCEEDED":
        answer.result["output"] = to_json_str(output, separators=(",", ":"))
    answer.result["redriveCount"] = getattr(execution, "redrives", 0)
    answer.result["redriveStatus"] = "REDRIVABLE" if execution.status in REDRIVABLE else "NOT_REDRIVABLE"
    if getattr(execution, "version_arn", None):
        answer.result["stateMachineVersionArn"] = execution.version_arn
    return answer


def stop_execution(self: Response) -> ActionResult:
    """Keeps error and cause, which moto drops; one that is over stays as it is."""
    execution = self.stepfunction_backend.describe_execution(self._get_param("executionArn"))
    if execution.status == "RUNNING":
        execution.error, execution.cause = self._get_param("error"), self._get_param("cause")
        execution.stop(utcnow(), execution.error, execution.cause)
    return ActionResult({"stopDate": execution.stop_date or utcnow()})


def get_execution_history(self: Response) -> ActionResult:
    """In pages, in either order."""
    events = list(self.stepfunction_backend.get_execution_history(self._get_param("executionArn"))["events"])
    if self._get_param("reverseOrder"):
        events.reverse()
    begin = int(self._get_param("nextToken") or 0)
    end = begin + min(int(self._get_param("maxResults") or PAGE), MAX_PAGE)
    more = {"nextToken": str(end)} if end < len(events) else {}
    return ActionResult({"events": events[begin:end], **more})


def environment(self: ExecutionWorker) -> Any:
    """Adds the count of redrives to the context object."""
    found = _environment(self)
    found.states.context_object.context_object_data["Execution"]["RedriveCount"] = getattr(self, "count", 0)
    return found


class Redrive(ExecutionWorker):
    """Goes on from the last state entered of the outermost level; AWS repeats only the failed branches of a Parallel."""

    def _execution_logic(self) -> None:
        definition = json.loads(self._evaluation_details.state_machine_details.definition)
        entered = [
            event["stateEnteredEventDetails"]
            for event in self.old.event_manager.get_event_history()
            if event.get("stateEnteredEventDetails", {}).get("name") in definition["States"]
        ]
        last = entered[-1]
        program = AmazonStateLanguageParser.parse(json.dumps({**definition, "StartAt": last["name"]}))[0]
        env = self.env = self._get_evaluation_environment()
        env.event_manager, env.variable_store = self.old.event_manager, self.old.variable_store
        env.event_manager.over = False
        env.states.reset(input_value=json.loads(last["input"]))
        env.event_manager.add_event(context=env.event_history_context, event_type=HistoryEventType.ExecutionRedriven)
        program.eval(env)
        self._execution_communication.terminated()


def redrive_execution(self: Response) -> ActionResult:
    """The call of that name, which moto lacks."""
    execution = self.stepfunction_backend.describe_execution(self._get_param("executionArn"))
    if execution.status not in REDRIVABLE:
        raise AWSError(f"Execution is {execution.status} and is not redrivable", "ExecutionNotRedrivable")
    worker = execution._get_start_execution_worker()
    execution.redrives = getattr(execution, "redrives", 0) + 1
    worker.__class__, worker.old, worker.count = Redrive, execution.exec_worker.env, execution.redrives
    execution.exec_worker, execution.exec_status = worker, type(execution.exec_status).RUNNING
    execution.stop_date = execution.error = execution.cause = None
    worker.start()
    return ActionResult({"redriveDate": utcnow()})


Backend.start_execution = start_execution
ExecutionWorker._get_evaluation_environment = environment
Response.describe_execution = describe_execution
Response.stop_execution = stop_execution
Response.get_execution_history = get_execution_history
Response.redrive_execution = redrive_execution
