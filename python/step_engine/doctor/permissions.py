"""What roles and the client may do, by IAM's policy simulator; who may take a role, by its trust policy."""

from __future__ import annotations

import json
import re
from typing import Any

from step_engine.doctor.account import Account, RefusedError
from step_engine.doctor.target import Finding, Statement


def judge(account: Account, arn: str, who: str, statements: list[Statement]) -> list[Finding]:
    """Asks the simulator about every statement.

    Args:
        account: The session.
        arn: ARN of a role or user.
        who: What it is, for people.
        statements: What it needs.

    Returns:
        One finding for each statement that is missing in part or as a whole; else one for all.
    """
    findings = []
    for statement in statements:
        try:
            denied = _denied(account, arn, statement)
        except RefusedError as error:
            if error.code == "NoSuchEntity":
                return [Finding("missing", f"{who} {arn} does not exist.")]
            action = {"Sid": "Simulate", "Effect": "Allow", "Action": "iam:SimulatePrincipalPolicy", "Resource": arn}
            return [
                Finding(
                    "unknown",
                    f"What {who} {arn} may do cannot be judged: {error}",
                    json.dumps(action, indent=2) if error.denied else "",
                )
            ]
        if denied and statement.without:
            words = (
                f"{who} {arn} may not {', '.join(denied)} (statement {statement.sid}): {statement.without}. "
                "Where they are wanted, add to its policy:"
            )
            findings.append(Finding("optional", words, json.dumps(statement.document(tuple(denied)), indent=2)))
        elif denied:
            words = f"{who} {arn} may not {', '.join(denied)} (statement {statement.sid}); add to its policy:"
            findings.append(Finding.lacking(words, statement.document(tuple(denied))))
    if any(finding.status == "missing" for finding in findings):
        return findings
    return [
        *findings,
        Finding("ok", f"{who} {arn} may do what it has to ({len(statements) - len(findings)} statements)."),
    ]


def _denied(account: Account, arn: str, statement: Statement) -> list[str]:
    context = [
        {"ContextKeyName": key, "ContextKeyType": "string", "ContextKeyValues": [value]}
        for key, value in statement.context.items()
    ]
    answer = account.call(
        "iam",
        "simulate_principal_policy",
        PolicySourceArn=arn,
        ActionNames=list(statement.actions),
        ResourceArns=statement.tried_on(),
        ContextEntries=context,
    )
    denied = {
        result["EvalActionName"]
        for result in answer["EvaluationResults"]
        if result["EvalDecision"] != "allowed" or _denied_on_a_resource(result)
    }
    return [action for action in statement.actions if action in denied]


def _denied_on_a_resource(result: dict[str, Any]) -> bool:
    """With several resources IAM may answer once per action, and once more for each resource in it."""
    parts = result.get("ResourceSpecificResults") or []
    return any(part["EvalResourceDecision"] != "allowed" for part in parts)


def trust(account: Account, arn: str, who: str, service: str) -> list[Finding]:
    """Looks at who may take a role.

    Args:
        account: The session.
        arn: The role.
        who: What it is, for people.
        service: Who has to be able to.

    Returns:
        What is wrong with it; nothing if it is right.
    """
    try:
        role = account.call("iam", "get_role", RoleName=arn.rsplit("/", 1)[-1])["Role"]
    except RefusedError as error:
        if error.code == "NoSuchEntity":
            return [Finding("missing", f"{who} {arn} does not exist.")]
        return [Finding("unknown", f"Who may take {who} {arn} cannot be seen: {error}")]
    if _trusts(role["AssumeRolePolicyDocument"], service):
        return []
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return [Finding.lacking(f"{service} may not take {who} {arn}; add to its trust policy:", statement)]


def _trusts(document: Any, service: str) -> bool:
    found = json.loads(document) if isinstance(document, str) else document
    for statement in _list(found.get("Statement", [])):
        principal = statement.get("Principal", {})
        services = ["*"] if principal == "*" else _list(principal.get("Service", []))
        if statement.get("Effect") == "Allow" and {service, "*"} & set(services):
            return True
    return False


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def principal_of(account: Account, caller_arn: str) -> str | None:
    """Finds the user or role behind a caller, whose policies count.

    Args:
        account: The session.
        caller_arn: What GetCallerIdentity says.

    Returns:
        Its ARN; none for an account's root user, which may do everything.
    """
    session = re.fullmatch(r"arn:([a-z-]+):sts::(\d+):assumed-role/([^/]+)/.+", caller_arn)
    if session is None:
        return None if caller_arn.endswith(":root") else caller_arn
    try:
        return account.call("iam", "get_role", RoleName=session[3])["Role"]["Arn"]
    except RefusedError:
        # A role's path does not stand in the ARN of its session; most have none.
        return f"arn:{session[1]}:iam::{session[2]}:role/{session[3]}"
