"""Judges an action by policy documents, as IAM does for identity policies."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Any

ALLOWED, EXPLICIT_DENY, IMPLICIT_DENY = "allowed", "explicitDeny", "implicitDeny"


def decide(
    documents: Iterable[dict[str, Any]], action: str, resource: str, context: dict[str, Any] | None = None
) -> str:
    """Judges one action on one resource.

    Args:
        documents: Policy documents, all of one principal.
        action: Such as `ecs:RunTask`.
        resource: Its ARN, or `*` for actions that have none.
        context: Values of condition keys; a list for keys with several.

    Returns:
        The decision under the name that the policy simulator gives it.
    """
    decision = IMPLICIT_DENY
    for document in documents:
        for statement in _list(document.get("Statement", [])):
            if not _applies(statement, action, resource, context or {}):
                continue
            if statement["Effect"] == "Deny":
                return EXPLICIT_DENY
            decision = ALLOWED
    return decision


def trusts(document: dict[str, Any], principal: str, context: dict[str, Any] | None = None) -> bool:
    """Whether a role's trust policy lets somebody assume it.

    Args:
        document: The trust policy.
        principal: A service such as `states.amazonaws.com`, or an ARN.
        context: Values of condition keys.

    Returns:
        Whether it does.
    """
    for statement in _list(document.get("Statement", [])):
        given = statement.get("Principal", {})
        names = ["*"] if given == "*" else [name for group in given.values() for name in _list(group)]
        root = re.sub(r"^(arn:aws[^:]*):(?:sts|iam)::(\d+):.*", r"\1:iam::\2:root", principal)
        # A condition about a request that is not in the context is not judged: services set them as they like.
        conditions = {
            operator: {key: value for key, value in keys.items() if key in (context or {})}
            for operator, keys in statement.get("Condition", {}).items()
        }
        if {"*", principal, root} & set(names) and _conditions_hold(conditions, context or {}):
            return statement["Effect"] == "Allow"
    return False


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matches(value: str, pattern: str, *, ignore_case: bool = False) -> bool:
    # Policies know * and ?, but fnmatch would read [ as a set, too.
    pattern = pattern.replace("[", "[[]")
    if ignore_case:
        return fnmatch.fnmatchcase(value.lower(), pattern.lower())
    return fnmatch.fnmatchcase(value, pattern)


def _applies(statement: dict[str, Any], action: str, resource: str, context: dict[str, Any]) -> bool:
    if "Action" in statement:
        hit = any(_matches(action, pattern, ignore_case=True) for pattern in _list(statement["Action"]))
    else:
        hit = not any(_matches(action, pattern, ignore_case=True) for pattern in _list(statement["NotAction"]))
    if not hit:
        return False
    if "Resource" in statement:
        hit = any(_matches(resource, pattern) for pattern in _list(statement["Resource"]))
    elif "NotResource" in statement:
        hit = not any(_matches(resource, pattern) for pattern in _list(statement["NotResource"]))
    return hit and _conditions_hold(statement.get("Condition", {}), context)


def _conditions_hold(conditions: dict[str, Any], context: dict[str, Any]) -> bool:
    present = {key.lower(): value for key, value in context.items()}
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            if not _holds(operator, present.get(key.lower()), [str(value) for value in _list(wanted)]):
                return False
    return True


def _holds(operator: str, value: Any, wanted: list[str]) -> bool:
    name = operator
    for_all = name.startswith("ForAllValues:")
    name = name.removeprefix("ForAllValues:").removeprefix("ForAnyValue:")
    if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    if name == "Null":
        return (value is None) == (wanted == ["true"])
    if value is None:
        return if_exists or for_all or "Not" in name
    test = {
        "StringEquals": lambda one: one in wanted,
        "StringEqualsIgnoreCase": lambda one: one.lower() in [word.lower() for word in wanted],
        "StringLike": lambda one: any(_matches(one, word) for word in wanted),
        "ArnEquals": lambda one: any(_matches(one, word) for word in wanted),
        "ArnLike": lambda one: any(_matches(one, word) for word in wanted),
        "Bool": lambda one: one.lower() in wanted,
    }
    positive = name.replace("Not", "")
    if positive not in test:
        raise ValueError(f"the bench does not know the condition operator {operator}")
    # Booleans come as Python's.
    values = [str(one) if not isinstance(one, bool) else str(one).lower() for one in _list(value)]
    results = [test[positive](one) != ("Not" in name) for one in values]
    return all(results) if for_all or "Not" in name else any(results)
