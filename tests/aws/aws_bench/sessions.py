"""Credentials of assumed roles end when they are said to; moto's never do. A test can have them end sooner than AWS lets them."""

from __future__ import annotations

from typing import Any

from moto.core.utils import utcnow
from moto.sts.models import STSBackend, sts_backends

from aws_bench import wire
from aws_bench.settings import ACCOUNT

assume_for_service = STSBackend.assume_role
"""What the bench's own services assume ends as AWS's do, whatever the limit."""
_limit: float | None = None


def limit(seconds: float | None) -> None:
    """Lets what clients assume from now on end after so many seconds at most; none leaves it to them."""
    global _limit  # noqa: PLW0603
    _limit = seconds


def assume_role(self: STSBackend, *given: Any, duration: int, **more: Any) -> Any:
    """Assumes a role for as long as the limit allows."""
    allowed = duration if _limit is None else min(duration, _limit)
    return assume_for_service(self, *given, duration=allowed, **more)  # type: ignore[arg-type]


def check(call: wire.Call) -> tuple[int, str, bytes] | None:
    """Refuses a call with credentials that have ended.

    Args:
        call: The call.

    Returns:
        The refusal to answer with; none if the call may go on.
    """
    for assumed in sts_backends[ACCOUNT]["aws"].assumed_roles:
        if assumed.access_key_id == call.access_key and assumed.expiration < utcnow():
            code = (
                "ExpiredToken"
                if call.service == "s3" or call.service in wire.QUERY_SERVICES
                else "ExpiredTokenException"
            )
            return wire.error(call, code, "The security token included in the request is expired", 403)
    return None


STSBackend.assume_role = assume_role  # type: ignore[method-assign]
