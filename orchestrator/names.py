"""Names and addresses that the client and the step containers share. Small: a task definition of AWS holds it."""

from __future__ import annotations

import re

ENV_RUN_ID = "ZENML_STEP_ENGINE_RUN_ID"
"""Tells a step container the orchestrator's run id."""

ENV_EXECUTION = "ZENML_STEP_ENGINE_EXECUTION"
"""Tells a task the ARN of its execution."""

_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):(?P<service>[a-z0-9-]+):(?P<region>[a-z0-9-]*):(?P<account>\d*):(?P<rest>.+)"
)


def parse_arn(text: str) -> dict[str, str] | None:
    """Takes an ARN apart.

    Args:
        text: Perhaps an ARN.

    Returns:
        `partition`, `service`, `region`, `account` and `rest`; none when it is no ARN.
    """
    match = _ARN.fullmatch(text)
    return match.groupdict() if match else None


def console_url(region: str, execution_arn: str) -> str:
    """Page of an execution in the AWS console.

    Args:
        region: Region.
        execution_arn: The execution.

    Returns:
        The address.
    """
    host = _console(region, (parse_arn(execution_arn) or {}).get("partition", "aws"))
    return f"https://{host}/states/home?region={region}#/v2/executions/details/{execution_arn}"


def log_url(region: str, group: str, stream: str, partition: str = "aws") -> str:
    """Page of a log stream in the AWS console.

    Args:
        region: Region.
        group: Log group.
        stream: Log stream.
        partition: Partition of the account.

    Returns:
        The address.
    """
    # The console's own way of quoting: twice, with `$` for the percent sign.
    quoted = [re.sub(r"[^A-Za-z0-9_.-]", lambda sign: f"$25{ord(sign[0]):02X}", part) for part in (group, stream)]
    where = f"region={region}#logsV2:log-groups/log-group/{quoted[0]}/log-events/{quoted[1]}"
    return f"https://{_console(region, partition)}/cloudwatch/home?{where}"


def _console(region: str, partition: str) -> str:
    if partition == "aws-cn":
        return "console.amazonaws.cn"
    if partition == "aws-us-gov":
        return "console.amazonaws-us-gov.com"
    return f"{region}.console.aws.amazon.com"


METADATA_EXECUTION = "execution_arn"
METADATA_SCHEDULE = "schedule_name"
METADATA_SCHEDULE_GROUP = "schedule_group"
"""Names under which ZenML keeps what stopping, refreshing and schedules need."""
