"""The container's end of the control socket: how the orchestration of a dynamic pipeline asks for isolated steps.

One request per connection: a line of JSON there, a line of JSON back. A request names a step run and nothing else; what
its container looks like is the host's to find out. The host's end is `orchestrator/control.py`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from typing import Any

VERSION = 1
"""Of the protocol. The host refuses any other."""

ENV_SOCKET = "ZENML_STEP_ENGINE_CONTROL"
"""Tells the orchestration container where the socket is."""

ENV_SECRET = "ZENML_STEP_ENGINE_CONTROL_SECRET"  # noqa: S105
"""The run's own secret."""

MAX_REQUEST_BYTES = 1024
MAX_ANSWER_BYTES = 8192

WAIT_SECONDS = 20.0
"""A host that is asked to wait for a step answers at the latest after so long."""

_ANSWER_SECONDS = 150.0
"""The host asks ZenML's store first, which may be busy."""

_PATIENCE_SECONDS = 120.0
"""So long a host that is away is waited for, such as one that is being resumed."""

_ABSENCE_SECONDS = 24 * 3600.0
"""So long a host that has answered before, or takes its time, is waited for where the run could only fail without."""

_NOBODY = (ConnectionRefusedError, FileNotFoundError)
"""What is raised where nobody listens."""

_ABSENT = (
    "Nobody drives this run at the moment. On the machine where it began, `step-engine resume` goes on with it and "
    "`zenml pipeline runs stop` ends it."
)

_NO_SOCKET = (
    "Isolated steps need the control socket of the run, which a Docker engine on another machine cannot reach: use an "
    "engine on the client's machine, or run the step inline (no runtime='isolated', no resources, no image of its own)."
)


logger = logging.getLogger(__name__)
_answered = threading.Event()


class ControlError(RuntimeError):
    """The host did not do what it was asked for; the message says why.

    Attributes:
        unknown: Whether the host was never asked for this step run.
    """

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        """Stores what can be done about it."""
        super().__init__(message)
        self.unknown = unknown


def call(operation: str, step_run_id: object, invocation_id: str = "", wait_seconds: float = 0.0) -> str:
    """Asks the host of the run for something.

    Args:
        operation: `submit`, `status` or `stop`.
        step_run_id: Id of the step run that it is about.
        invocation_id: The step's name in its run, with `submit`.
        wait_seconds: How long the host may wait for the step's end before it answers `status`.

    Returns:
        Where the step run stands: `provisioning`, `running`, `completed`, `failed` or `stopped`.

    Raises:
        ControlError: The host refused, or it is not there.
    """
    path, secret = os.environ.get(ENV_SOCKET), os.environ.get(ENV_SECRET)
    if not path or not secret:
        raise ControlError(_NO_SOCKET)
    request: dict[str, Any] = {
        "version": VERSION,
        "secret": secret,
        "operation": operation,
        "step_run_id": str(step_run_id),
    }
    if invocation_id:
        request["invocation_id"] = invocation_id
    if wait_seconds:
        request["wait_seconds"] = wait_seconds
    # ZenML asks once for a stop.
    waits = operation in ("submit", "stop")
    answer = _patiently(path, json.dumps(request).encode() + b"\n", wait_seconds, waits_for_owner=waits)
    if answer.get("ok") is not True:
        message = str(answer.get("message") or "The host of the run gave no answer.")
        raise ControlError(message, unknown=answer.get("unknown") is True)
    return str(answer.get("status"))


def _patiently(path: str, request: bytes, wait_seconds: float, *, waits_for_owner: bool) -> dict[str, Any]:
    """Repeats a request whose host is away: each may be repeated without harm."""
    begin, pause, told = time.monotonic(), 0.2, False
    while True:
        try:
            answer = _exchange(path, request, wait_seconds)
        except (OSError, ValueError) as error:
            is_owner_away = isinstance(error, _NOBODY) and _answered.is_set()
            # One that listens and does not answer may be pulling an image, one that breaks off may have died.
            is_waited_for = waits_for_owner and (_answered.is_set() or isinstance(error, TimeoutError))
            away = time.monotonic() + pause - begin
            if away > (_ABSENCE_SECONDS if is_waited_for else _PATIENCE_SECONDS):
                raise ControlError(f"The host of the run does not answer: {type(error).__name__}.") from None
            if is_owner_away and away > _PATIENCE_SECONDS and not told:
                logger.warning(_ABSENT)
                told = True
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
        else:
            _answered.set()
            return answer


def _exchange(path: str, request: bytes, wait_seconds: float) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(wait_seconds + _ANSWER_SECONDS)
        line.connect(path)
        line.sendall(request)
        answer = read_line(line, MAX_ANSWER_BYTES)
    value = json.loads(answer)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_line(line: socket.socket, limit_bytes: int) -> bytes:
    """Reads a line.

    Args:
        line: A connected socket.
        limit_bytes: The most that is read.

    Returns:
        The line without its end.

    Raises:
        ValueError: It is too long, or ends early.
    """
    data = bytearray()
    while b"\n" not in data:
        if len(data) > limit_bytes:
            raise ValueError("too long")
        piece = line.recv(min(4096, limit_bytes + 2 - len(data)))
        if not piece:
            raise ValueError("ends early")
        data += piece
    first, _, rest = bytes(data).partition(b"\n")
    if rest or len(first) > limit_bytes:
        raise ValueError("more than one line" if rest else "too long")
    return first
