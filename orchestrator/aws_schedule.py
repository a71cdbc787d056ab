"""From ZenML's schedules to those of EventBridge Scheduler. Pure functions."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from datetime import timedelta

    from zenml.models import ScheduleResponse

_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_RANGES = {"minute": (0, 59), "hour": (0, 23), "day of the month": (1, 31), "month": (1, 12), "day of the week": (0, 7)}
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def cron_expression(text: str) -> str:
    """Translates a cron expression.

    Args:
        text: Five fields as in crontab(5); a nickname such as `@daily`; or an expression of EventBridge Scheduler
            (`cron(…)` or `rate(…)`), which is taken as it is.

    Returns:
        `cron(…)` with six fields.

    Raises:
        ValueError: It is neither, or asks for days of the month or of the week, which EventBridge cannot express.
    """
    text = text.strip()
    if re.fullmatch(r"(cron|rate)\(.+\)", text):
        return text
    fields = _NICKNAMES.get(text.lower(), text).split()
    if len(fields) != 5:
        raise ValueError(
            f"the cron expression {text!r} must have five fields: minute, hour, day of the month, month, weekday"
        )
    minute, hour, day, month, weekday = (
        _field(text, name, value) for (name, value) in zip(_RANGES, fields, strict=True)
    )
    if day != "*" and weekday != "*":
        raise ValueError(
            f"the cron expression {text!r} names days of the month and of the week, which EventBridge Scheduler cannot "
            "combine; make two schedules"
        )
    # One of the two must be a question mark.
    day, weekday = ("?", weekday) if weekday != "*" else (day, "?")
    return f"cron({minute} {hour} {day} {month} {weekday} *)"


def _field(text: str, name: str, field: str) -> str:
    """Writes out a field: EventBridge counts weekdays from 1 and knows fewer steps than cron does."""
    first, last = _RANGES[name]
    weekday = name == "day of the week"
    if field in {"*", "?"}:
        return "*"
    values: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        begin, dash, end = span.partition("-")
        try:
            low = first if span == "*" else _number(begin, weekday, name == "month")
            high = _number(end, weekday, name == "month") if dash else (last if span == "*" or slash else low)
            stride = int(step) if slash else 1
        except ValueError:
            raise ValueError(f"the cron expression {text!r} has a {name} that is none: {part!r}") from None
        if span == "*" and weekday:
            high = 6
        if not first <= low <= high <= last or stride < 1:
            raise ValueError(f"the cron expression {text!r} has a {name} that is none: {part!r}")
        values.update(range(low, high + 1, stride))
    if weekday:
        days = sorted({value % 7 for value in values})
        return "*" if len(days) == 7 else ",".join(_DAYS[value] for value in days)
    ordered = sorted(values)
    return "*" if len(ordered) == last - first + 1 else ",".join(map(str, ordered))


def _number(text: str, weekday: bool, month: bool) -> int:
    upper = text.upper()
    if weekday and upper in _DAYS:
        return _DAYS.index(upper)
    if month and upper in _MONTHS:
        return _MONTHS.index(upper) + 1
    return int(text)


def rate_expression(interval: timedelta) -> str:
    """Translates an interval.

    Args:
        interval: The interval.

    Returns:
        `rate(…)`.

    Raises:
        ValueError: It is not a whole number of minutes.
    """
    minutes, rest = divmod(interval.total_seconds(), 60)
    if rest or minutes < 1:
        raise ValueError(f"EventBridge Scheduler counts in whole minutes, at least one; the interval is {interval}")
    for unit, size in (("day", 1440), ("hour", 60), ("minute", 1)):
        count, left = divmod(int(minutes), size)
        if not left:
            return f"rate({count} {unit}{'s' if count != 1 else ''})"
    raise AssertionError("a whole number of minutes")


def schedule_arguments(schedule: ScheduleResponse, timezone_name: str | None, now: datetime) -> dict[str, Any]:
    """Translates a schedule.

    Args:
        schedule: ZenML's schedule.
        timezone_name: Time zone in which cron expressions are meant; none is UTC.
        now: The time, with a time zone.

    Returns:
        `expression`, `timezone`, `start_at_unix_seconds`, `end_at_unix_seconds`, `delete_after_completion` of
        `step_engine.AwsSession.put_schedule`.

    Raises:
        ValueError: EventBridge Scheduler cannot express it.
    """
    if timezone_name:
        try:
            ZoneInfo(timezone_name)
        except Exception:
            raise ValueError(f"there is no time zone {timezone_name!r}; use a name such as Europe/Berlin") from None
    arguments: dict[str, Any] = {"timezone": timezone_name}
    if schedule.cron_expression:
        arguments["expression"] = cron_expression(schedule.cron_expression)
    elif schedule.interval_second:
        arguments["expression"] = rate_expression(schedule.interval_second)
    elif schedule.run_once_start_time:
        moment = _aware(schedule.run_once_start_time).astimezone(timezone.utc)
        if moment <= now:
            raise ValueError(f"the schedule's only start, {moment:%Y-%m-%d %H:%M:%S} UTC, is over")
        return {
            "expression": f"at({moment:%Y-%m-%dT%H:%M:%S})",
            "timezone": "UTC",
            "delete_after_completion": False,
        }
    else:
        raise ValueError("the schedule has no cron expression, no interval and no start")
    # A start in the past is refused, and means nothing.
    if schedule.start_time and _aware(schedule.start_time) > now:
        arguments["start_at_unix_seconds"] = _aware(schedule.start_time).timestamp()
    if schedule.end_time:
        if _aware(schedule.end_time) <= now:
            raise ValueError("the schedule's end is over")
        arguments["end_at_unix_seconds"] = _aware(schedule.end_time).timestamp()
    return arguments


def _aware(moment: datetime) -> datetime:
    # ZenML's store keeps UTC and drops the zone.
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def schedule_name(pipeline: str, schedule_id: object) -> str:
    """Names a schedule in EventBridge.

    Args:
        pipeline: The pipeline's name, fit for state machines.
        schedule_id: ZenML's id of the schedule.

    Returns:
        At most 64 letters, digits, `-`, `_` and `.`.
    """
    return f"{pipeline[:27]}-{schedule_id}"
