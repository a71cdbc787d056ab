"""The bench's own routes under /bench/, and calls of AWS that moto lacks."""

from __future__ import annotations

import datetime
import json
from typing import Any
from xml.sax.saxutils import escape

from botocore.exceptions import ClientError

from aws_bench import dump, ecs_api, evaluator, policies, requirements, scheduling, sessions, wire
from aws_bench.calls import REGISTER
from aws_bench.clients import role_credentials
from aws_bench.settings import SETTINGS


def answer(environ: dict[str, Any]) -> tuple[int, Any]:
    """Answers a request for a route of the bench.

    Args:
        environ: The WSGI environment.

    Returns:
        Status and JSON body.
    """
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = json.loads(environ["wsgi.input"].read(length) or b"{}")
    _, _, what, *rest = environ["PATH_INFO"].split("/")
    method = environ["REQUEST_METHOD"]
    if what == "tasks":
        return _task(*rest)
    if what == "ready":
        return 200, {"endpoint": SETTINGS.endpoint, "registry": SETTINGS.registry}
    if what == "dump":
        return 200, dump.everything()
    if what == "calls":
        if method == "DELETE":
            REGISTER.reset_counts()
        return 200, REGISTER.counts()
    if what == "faults":
        if method == "DELETE":
            REGISTER.remove(rest[0] if rest else None)
            return 200, {}
        return 200, {"id": REGISTER.add(body)}
    if what == "policies":
        policies.enforce(body["enforce"])
        return 200, {}
    if what == "sessions":
        sessions.limit(body["seconds"])
        return 200, {}
    if what == "stop-task":
        task = ecs_api.find_task(body["task"])
        if task is None:
            return 404, {"message": "no such task"}
        task.stop(body["code"], body["reason"])
        return 200, {}
    if what == "fire":
        try:
            return 200, {"executionArn": scheduling.fire(body["name"], body["group"], body["region"])}
        except (ValueError, ClientError) as error:
            return 400, {"message": str(error)}
    return 404, {"message": f"no such route: {what}"}


def _task(identifier: str, what: str, *rest: str) -> tuple[int, Any]:
    """What a container asks about its task: the role's credentials and metadata."""
    task = ecs_api.find_task(identifier)
    if task is None:
        return 404, {"message": "no such task"}
    if what == "metadata":
        if rest == ("task",):
            return 200, {
                "Cluster": task.cluster_arn,
                "TaskARN": task.task_arn,
                "Family": task.task_definition_arn.rsplit("/", 1)[1].rsplit(":", 1)[0],
                "Revision": task.task_definition_arn.rsplit(":", 1)[1],
                "LaunchType": task.launch_type or "FARGATE",
            }
        return 200, {"Labels": {"com.amazonaws.ecs.task-arn": task.task_arn}}
    if not task.role:
        return 404, {"message": "the task has no role"}
    given = role_credentials(task.role, task.id, task.region_name)
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    return 200, {
        "RoleArn": task.role,
        "AccessKeyId": given["aws_access_key_id"],
        "SecretAccessKey": given["aws_secret_access_key"],
        "Token": given["aws_session_token"],
        "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def simulate(call: wire.Call) -> tuple[int, str, bytes]:
    """iam:SimulatePrincipalPolicy, which moto lacks."""
    arn, actions, resources, context = requirements.parse_simulation(call.parameters)
    documents = policies.documents_of(arn)
    if documents is None:
        return wire.error(call, "NoSuchEntity", f"The principal {arn} cannot be found.", 404)
    members = "".join(
        f"<member><EvalActionName>{escape(action)}</EvalActionName><EvalResourceName>{escape(resource)}</EvalResourceName>"
        f"<EvalDecision>{evaluator.decide(documents, action, resource, context)}</EvalDecision></member>"
        for action in actions
        for resource in resources
    )
    space = "https://iam.amazonaws.com/doc/2010-05-08/"
    body = (
        f'<SimulatePrincipalPolicyResponse xmlns="{space}"><SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated>'
        f"<EvaluationResults>{members}</EvaluationResults></SimulatePrincipalPolicyResult>"
        "<ResponseMetadata><RequestId>bench</RequestId></ResponseMetadata></SimulatePrincipalPolicyResponse>"
    )
    return 200, "text/xml", body.encode()


def quota(call: wire.Call) -> tuple[int, str, bytes]:
    """servicequotas:GetServiceQuota, of which moto knows few."""
    found = {"ServiceCode": call.parameters["ServiceCode"], "QuotaCode": call.parameters["QuotaCode"], "Value": 64.0}
    return 200, "application/x-amz-json-1.1", json.dumps({"Quota": found}).encode()


OWN_CALLS = {"iam:SimulatePrincipalPolicy": simulate, "servicequotas:GetServiceQuota": quota}
