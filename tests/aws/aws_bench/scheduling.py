"""EventBridge Scheduler: expressions are checked, and a schedule fires when a test says so; moto does neither."""

from __future__ import annotations

import datetime
import json
import re
import uuid
import zoneinfo
from typing import Any

from moto.scheduler.exceptions import ValidationException
from moto.scheduler.models import EventBridgeSchedulerBackend as Backend
from moto.scheduler.models import scheduler_backends

from aws_bench.clients import client
from aws_bench.settings import ACCOUNT

# Minutes, hours, day of month, month, day of week, year; one of the two days has to be a question mark.
CRON = re.compile(r"^cron\((?P<fields>[^()]+)\)$")
FIELD = re.compile(r"^[0-9A-Z*?,/\-#L]+W?$")
RATE = re.compile(r"^rate\((?:1 (?:minute|hour|day)|(?:[2-9]|[1-9]\d+) (?:minutes|hours|days))\)$")
ONCE = re.compile(r"^at\(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\)$")
UNIVERSAL = "arn:aws:scheduler:::aws-sdk:sfn:startExecution"
_create, _update = Backend.create_schedule, Backend.update_schedule


def check(schedule_expression: str, schedule_expression_timezone: str | None) -> None:
    """Refuses what AWS refuses."""
    cron = CRON.match(schedule_expression)
    fields = cron["fields"].split() if cron else []
    good = len(fields) == 6 and all(FIELD.match(field) for field in fields) and "?" in (fields[2], fields[4])
    if not (good or RATE.match(schedule_expression) or ONCE.match(schedule_expression)):
        raise ValidationException(f"Invalid Schedule Expression {schedule_expression}.")
    if schedule_expression_timezone and schedule_expression_timezone not in zoneinfo.available_timezones():
        raise ValidationException(f"Invalid time zone {schedule_expression_timezone}.")


def create_schedule(self: Backend, **given: Any) -> Any:
    """Checks, then lets moto create it."""
    check(given["schedule_expression"], given["schedule_expression_timezone"])
    return _create(self, **given)


def update_schedule(self: Backend, **given: Any) -> Any:
    """Checks, then lets moto update it; what is not given goes back to its default, as on AWS."""
    check(given["schedule_expression"], given["schedule_expression_timezone"])
    return _update(self, **{**given, "state": given["state"] or "ENABLED"})


def fire(name: str, group: str, region: str) -> str:
    """Does what the schedule does when its time has come.

    Args:
        name: The schedule.
        group: Its group.
        region: Its region.

    Returns:
        ARN of the execution that was started.

    Raises:
        ValueError: It is paused, or its target starts no execution.
    """
    schedule = scheduler_backends[ACCOUNT][region].get_schedule(group, name)
    if schedule.state != "ENABLED":
        raise ValueError(f"the schedule {name} is paused")
    target = schedule.target
    # Scheduler fills these in wherever they stand in the input.
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    identifier = str(uuid.uuid4())
    text = target.get("Input") or "{}"
    for word, value in (
        ("schedule-arn", schedule.arn),
        ("scheduled-time", now),
        ("execution-id", identifier),
        ("attempt-number", "1"),
    ):
        text = text.replace(f"<aws.scheduler.{word}>", value)
    states = client("stepfunctions", region, target["RoleArn"], "scheduler")
    if target["Arn"] == UNIVERSAL:
        given = json.loads(text)
        wanted = {key[0].lower() + key[1:]: value for key, value in given.items()}
    elif ":stateMachine:" in target["Arn"]:
        wanted = {"stateMachineArn": target["Arn"], "name": identifier, "input": text}
    else:
        raise ValueError(f"the target starts no execution: {target['Arn']}")
    return states.start_execution(**wanted)["executionArn"]


Backend.create_schedule = create_schedule
Backend.update_schedule = update_schedule
