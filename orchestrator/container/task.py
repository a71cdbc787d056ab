"""What ECS tells a task of itself. Pure standard library: it runs in step containers."""

from __future__ import annotations

import json
import os
import urllib.request

ENDPOINT = "ECS_CONTAINER_METADATA_URI_V4"
"""<https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4-fargate.html>"""


def describe() -> dict[str, str]:
    """Asks the task's metadata endpoint.

    Returns:
        `task_arn`, and `log_group`, `log_stream`, `log_region` where the log goes to CloudWatch; empty when there is no
        endpoint or it does not answer.
    """
    address = os.environ.get(ENDPOINT, "")
    if not address.startswith("http://"):
        return {}
    found: dict[str, str] = {}
    try:
        container = _get(address)
        options = container.get("LogOptions") or {}
        found = {
            "task_arn": (container.get("Labels") or {}).get("com.amazonaws.ecs.task-arn", ""),
            "log_group": options.get("awslogs-group", ""),
            "log_stream": options.get("awslogs-stream", ""),
            "log_region": options.get("awslogs-region", ""),
        }
    except (OSError, ValueError, AttributeError):
        return {}
    return {name: value for name, value in found.items() if value}


def _get(address: str) -> dict:
    with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310 (ECS's own address, checked above)
        return json.load(answer)
