"""Enforces policies: who makes a call, what the call needs, whether that is allowed. Off until a test turns it on.

Everything is judged, also what Step Functions and ECS do with the roles that were passed to them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

from aws_bench import evaluator, requirements, wire
from aws_bench.settings import ACCOUNT, ADMIN_ACCESS_KEY

enforcing = False
"""Whether policies are judged."""
# What anybody may call, whatever the policies.
FREE = ("sts:GetCallerIdentity", "sts:GetSessionToken")


def enforce(on: bool) -> None:
    """Turns the enforcement on or off."""
    global enforcing  # noqa: PLW0603
    enforcing = on


def check(call: wire.Call) -> tuple[int, str, bytes] | None:
    """Judges a call.

    Args:
        call: The call.

    Returns:
        The refusal to answer with; none if the call may go on.
    """
    if not enforcing or not call.action or call.name in FREE:
        return None
    if call.access_key == ADMIN_ACCESS_KEY:
        # The roles that the administrator gives to services are judged all the same.
        return _check_roles(call)
    caller = principal(call.access_key)
    if caller is None:
        code = "InvalidClientTokenId" if call.service in wire.QUERY_SERVICES else "UnrecognizedClientException"
        if call.service == "s3":
            code = "InvalidAccessKeyId"
        return wire.error(call, code, "The security token included in the request is invalid.", 403)
    arn, documents = caller
    for need in requirements.of(call):
        if evaluator.decide(documents, need.action, need.resource, need.context) != evaluator.ALLOWED:
            return wire.denied(call, text(arn, need.action, need.resource))
    return _check_roles(call)


def refusal(role_arn: str, action: str, resource: str, context: dict[str, Any] | None = None) -> str:
    """Judges what a role does.

    Args:
        role_arn: The role.
        action: Action.
        resource: ARN of what it is done to.
        context: Values of condition keys.

    Returns:
        What AWS says if the role may not; empty if it may.
    """
    if not enforcing:
        return ""
    documents = _role_documents(role_arn)
    if documents is None:
        return f"the role {role_arn} does not exist"
    if evaluator.decide(documents, action, resource, context) == evaluator.ALLOWED:
        return ""
    return text(role_arn, action, resource)


def trusted(role_arn: str, service: str) -> bool:
    """Whether a service may assume a role; always while policies are not enforced."""
    if not enforcing:
        return True
    role = _role(role_arn)
    if role is None:
        return False
    context = {"aws:SourceAccount": ACCOUNT}
    return evaluator.trusts(_document(role.assume_role_policy_document), service, context)


def principal(access_key: str) -> tuple[str, list[dict[str, Any]]] | None:
    """Finds whose access key it is.

    Args:
        access_key: The id.

    Returns:
        The ARN and the policy documents; none if nobody has this key.
    """
    for assumed in sts_backends[ACCOUNT]["aws"].assumed_roles:
        if assumed.access_key_id == access_key:
            return assumed.arn, _role_documents(assumed.role_arn) or []
    for user in iam_backends[ACCOUNT]["aws"].users.values():
        if any(key.access_key_id == access_key and key.status == "Active" for key in user.access_keys):
            return user.arn, _user_documents(user)
    return None


def documents_of(arn: str) -> list[dict[str, Any]] | None:
    """The policy documents of a user or role; none if there is no such principal."""
    if ":user/" in arn:
        user = iam_backends[ACCOUNT]["aws"].users.get(arn.rsplit("/", 1)[1])
        return _user_documents(user) if user else None
    return _role_documents(arn)


def text(arn: str, action: str, resource: str) -> str:
    """The words of a refusal."""
    return (
        f"User: {arn} is not authorized to perform: {action} on resource: {resource} "
        f"because no identity-based policy allows the {action} action"
    )


def resource(call: wire.Call) -> str:
    """The ARN that a call is about."""
    return requirements.of(call)[0].resource


def _check_roles(call: wire.Call) -> tuple[int, str, bytes] | None:
    """What AWS does with a role before it accepts it."""
    role = call.parameters.get("roleArn")
    if call.name not in ("states:CreateStateMachine", "states:UpdateStateMachine") or not role:
        return None
    if not trusted(role, "states.amazonaws.com"):
        return wire.denied(
            call,
            "Neither the global service principal states.amazonaws.com, nor the regional one is authorized to assume the provided role.",
        )
    for rule in requirements.managed_rules(call):
        for action in ("events:PutRule", "events:PutTargets", "events:DescribeRule"):
            if refusal(role, action, rule):
                return wire.denied(call, f"'{role}' is not authorized to create managed-rule.")
    return None


def _role(arn: str) -> Any:
    backend = iam_backends[ACCOUNT]["aws"]
    # The ARN may be that of a session.
    name = re.sub(r"^arn:aws:sts::\d+:assumed-role/([^/]+)/.*$", r"\1", arn).rsplit("/", 1)[-1]
    return next((role for role in backend.roles.values() if role.name == name), None)


def _role_documents(arn: str) -> list[dict[str, Any]] | None:
    role = _role(arn)
    if role is None:
        return None
    inline = [_document(document) for document in role.policies.values()]
    return inline + [_managed(policy) for policy in role.managed_policies.values()]


def _user_documents(user: Any) -> list[dict[str, Any]]:
    inline = [_document(document) for document in user.policies.values()]
    return inline + [_managed(policy) for policy in user.managed_policies.values()]


def _managed(policy: Any) -> dict[str, Any]:
    return _document(next(version.document for version in policy.versions if version.is_default))


def _document(document: Any) -> dict[str, Any]:
    return json.loads(document) if isinstance(document, str) else document
