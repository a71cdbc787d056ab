"""The `.sync` integrations: a task counts as its containers' exit codes say, and ends with the state that started it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError
from moto.stepfunctions.parser import api
from moto.stepfunctions.parser.asl.component.common.error_name import failure_event
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_aws_sdk,
    state_task_service_callback,
    state_task_service_ecs,
    state_task_service_sfn,
)
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str

from aws_bench.interpreter import error_name

# Beginning of the errors of `aws-sdk:s3` states, such as `S3.NoSuchKeyException`.
state_task_service_aws_sdk._SERVICE_ERROR_NAMES["s3"] = "S3"

Callback = state_task_service_callback.StateTaskServiceCallback
Ecs = state_task_service_ecs.StateTaskServiceEcs
Nested = state_task_service_sfn.StateTaskServiceSfn


class AbortedError(Exception):
    """The state is over before its job was (stopped, timed out, a sibling failed): the job has been stopped."""


def failed(self: Any, env: Any, error: str, cause: str, event: str = "TaskFailed") -> failure_event.FailureEvent:
    """Builds the event of a state that failed."""
    return failure_event.FailureEvent(
        env=env,
        error_name=error_name(error),
        event_type=api.HistoryEventType(event),
        event_details=EventDetails(
            taskFailedEventDetails=api.TaskFailedEventDetails(
                error=error,
                cause=cause,
                resource=self._get_sfn_resource(),
                resourceType=self._get_sfn_resource_type(),
            )
        ),
    )


_callback_from_error = Callback._from_error


def from_error(self: Any, env: Any, ex: Exception) -> failure_event.FailureEvent:
    """Names ECS's errors as Step Functions does."""
    if isinstance(ex, AbortedError):
        return failed(self, env, "Aborted", "", "TaskStateAborted")
    if isinstance(ex, ClientError) and isinstance(self, Ecs):
        code, status = ex.response["Error"]["Code"], ex.response["ResponseMetadata"]["HTTPStatusCode"]
        known = code.endswith("Exception") and code != "ThrottlingException"
        name = f"ECS.{code}" if known else "ECS.AmazonECSException"
        service = f"(Service: AmazonECS; Status Code: {status}; Error Code: {code})"
        return failed(self, env, name, f"{ex.response['Error']['Message']} {service}")
    return _callback_from_error(self, env=env, ex=ex)


_run = Ecs._eval_service_task


def run_task(
    self: Any, env: Any, resource_runtime_part: Any, normalised_parameters: Any, state_credentials: Any
) -> None:
    """An answer without a task, such as for want of capacity, is an error of the state."""
    try:
        _run(
            self,
            env=env,
            resource_runtime_part=resource_runtime_part,
            normalised_parameters=normalised_parameters,
            state_credentials=state_credentials,
        )
    except IndexError as error:
        cause = to_json_str({"Failures": [{"Reason": "Capacity is unavailable at this time"}], "Tasks": []})
        raise failure_event.FailureEventException(failed(self, env, "AmazonECS.Unknown", cause)) from error


def task_resolver(
    self: Any, env: Any, resource_runtime_part: Any, normalised_parameters: Any, state_credentials: Any
) -> Callable[[], Any]:
    """Watches the task; it has to end by itself and every container with 0."""
    task = env.stack.pop()["Tasks"][0]
    ecs = state_task_service_ecs.boto_client_for(resource_runtime_part.region, "ecs", state_credentials)

    def resolve() -> Any:
        answer = ecs.describe_tasks(cluster=task["ClusterArn"], tasks=[task["TaskArn"]])
        if answer["tasks"][0]["lastStatus"] != "STOPPED":
            return None
        self._normalise_response(response=answer, service_action_name="describe_tasks")
        done = answer["Tasks"][0]
        ended = done.get("StopCode") == "EssentialContainerExited"
        if ended and all(container.get("ExitCode") == 0 for container in done["Containers"]):
            return done
        cause = to_json_str(done, separators=(",", ":"))
        raise failure_event.FailureEventException(failed(self, env, "States.TaskFailed", cause))

    resolve.stop = lambda: ecs.stop_task(
        cluster=task["ClusterArn"], task=task["TaskArn"], reason="Stopped by AWS Step Functions"
    )
    return resolve


def nested_resolver(build: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a nested execution be stopped with the state that started it."""

    def resolver(
        self: Any, env: Any, resource_runtime_part: Any, normalised_parameters: Any, state_credentials: Any
    ) -> Any:
        arn = env.stack[-1]["ExecutionArn"]
        found = build(
            self,
            env=env,
            resource_runtime_part=resource_runtime_part,
            normalised_parameters=normalised_parameters,
            state_credentials=state_credentials,
        )
        region = resource_runtime_part.region
        found.stop = lambda: state_task_service_sfn.boto_client_for(
            region, "stepfunctions", state_credentials
        ).stop_execution(executionArn=arn)
        return found

    return resolver


_sync = Callback._eval_sync


def wait_for_job(self: Any, env: Any, sync_resolver: Any, **given: Any) -> Any:
    """Waits for the job and stops it when the state is over first."""
    # A stale token would make every retry of a .sync state time out at once.
    given["callback_endpoint"] = None
    outcome = _sync(self, env=env, sync_resolver=sync_resolver, **given)
    if outcome is None:
        stop = getattr(sync_resolver, "stop", None)
        if stop is not None:
            try:
                stop()
            except ClientError:
                # Best effort, as on AWS: the role may lack the permission.
                raise AbortedError from None
        raise AbortedError
    return outcome


_execution = Callback._eval_execution


def evaluate(self: Any, env: Any) -> Any:
    """Gives every new attempt of a state that waits for a token a token of its own."""
    context = env.states.context_object
    if context.context_object_data["State"].get("RetryCount") and self._is_integration_pattern():
        env.callback_pool_manager.add(context.update_task_token())
    return _execution(self, env)


Callback._from_error = from_error
Callback._eval_sync = wait_for_job
Callback._eval_execution = evaluate
Ecs._eval_service_task = run_task
Ecs._build_sync_resolver = task_resolver
Nested._build_sync_resolver = nested_resolver(Nested._build_sync_resolver)
Nested._build_sync2_resolver = nested_resolver(Nested._build_sync2_resolver)
