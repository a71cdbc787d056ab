"""The HTTP server: the bench's own routes, faults and policies first, then moto."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from aws_bench import control, policies, sessions, wire
from aws_bench.calls import REGISTER, Fault
from aws_bench.settings import SETTINGS

MOTO = DomainDispatcherApplication(create_backend_app)
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class QuietHandler(MotoRequestHandler):
    """Logs no requests: their query strings hold signatures."""

    def log_request(self, *_: Any) -> None:
        """Says nothing."""


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answers a request."""
    path = environ.get("PATH_INFO", "")
    if path.startswith("/bench/"):
        status, body = control.answer(environ)
        return _send(start_response, status, "application/json", json.dumps(body, default=str).encode())
    if path.startswith("/moto-api/"):
        return MOTO(environ, start_response)
    call = wire.read(environ)
    if not call.action:
        return MOTO(environ, start_response)
    fault = REGISTER.meet(call)
    if fault is not None and fault.kind != "lose_reply":
        answer = _fail(call, fault)
        if answer is not None:
            return _send(start_response, *answer)
    refused = sessions.check(call) or policies.check(call)
    if refused is not None:
        return _send(start_response, *refused)
    if call.name in control.OWN_CALLS:
        return _send(start_response, *control.OWN_CALLS[call.name](call))
    answer = MOTO(environ, start_response)
    if fault is not None and fault.kind == "lose_reply":
        # The call has been carried out; its caller never learns of it.
        b"".join(answer)
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError
    return answer


def serve(host: str) -> Any:
    """Makes the server; its `serve_forever` serves, its `shutdown` ends that.

    Args:
        host: Address to listen on.

    Returns:
        The server, with a thread for each request.
    """
    return make_server(host, SETTINGS.port, application, threaded=True, request_handler=QuietHandler)


def _send(start_response: StartResponse, status: int, kind: str, body: bytes) -> Iterable[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("x-amzn-RequestId", "aws-bench")]
    start_response(f"{status} bench", headers)
    return [body]


def _fail(call: wire.Call, fault: Fault) -> tuple[int, str, bytes] | None:
    if fault.kind == "delay":
        time.sleep(fault.seconds)
        return None
    if fault.kind == "reply":
        return 200, "application/x-amz-json-1.1", json.dumps(fault.body).encode()
    if fault.kind == "deny":
        caller = policies.principal(call.access_key)
        who = caller[0] if caller else "arn:aws:iam::123456789012:user/bench"
        return wire.denied(call, policies.text(who, call.name, policies.resource(call)))
    code = fault.code
    if code == "ThrottlingException" and call.service in ("ec2", "iam", "sts", "cloudformation"):
        code = "Throttling"
    elif code == "ThrottlingException" and call.service == "s3":
        code = "SlowDown"
    return wire.error(call, code, fault.message, 503 if code == "SlowDown" else fault.status)
