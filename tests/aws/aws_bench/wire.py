"""Which call an HTTP request is, and errors as each protocol writes them."""

from __future__ import annotations

import functools
import io
import json
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

import botocore.session

from aws_bench.settings import SERVICE_AGENT

QUERY_SERVICES = ("iam", "sts", "ec2", "cloudformation")
# Names of services in policies, where they are not those of the signature.
POLICY_NAMES = {"monitoring": "cloudwatch"}


@dataclass(frozen=True)
class Call:
    """One request."""

    service: str
    action: str
    region: str
    access_key: str
    parameters: dict[str, Any] = field(default_factory=dict)
    internal: bool = False
    """Made by a service of the bench and not by a client or a task."""

    @property
    def name(self) -> str:
        """As policies write it, such as `states:StartExecution`."""
        return f"{POLICY_NAMES.get(self.service, self.service)}:{self.action}"


def read(environ: dict[str, Any]) -> Call:
    """Reads the request of a WSGI environment, leaving its body to be read again.

    Args:
        environ: The WSGI environment.

    Returns:
        The call. Its action is empty if the request is none of AWS's.
    """
    access_key, region, service = _credential(environ)
    body = b""
    if service != "s3":
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
    action, parameters = "", {}
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        action = target.rsplit(".", 1)[1]
        parameters = _json(body)
    elif service == "s3":
        action, parameters = _s3(environ)
    elif service == "scheduler":
        action, parameters = _rest(service, environ)
        parameters |= _json(body)
    elif body:
        form = urllib.parse.parse_qs(body.decode(errors="replace"), keep_blank_values=True)
        parameters = {key: values[0] for key, values in form.items()}
        action = parameters.get("Action", "")
        if not service and action in ("AssumeRoleWithWebIdentity", "AssumeRoleWithSAML"):
            service = "sts"
    internal = SERVICE_AGENT in environ.get("HTTP_USER_AGENT", "")
    return Call(service, action, region, access_key, parameters, internal)


def error(call: Call, code: str, message: str, status: int = 400) -> tuple[int, str, bytes]:
    """Writes an error the way the call's service does.

    Args:
        call: What is refused.
        code: AWS's error code.
        message: For the user.
        status: HTTP status.

    Returns:
        Status, content type and body.
    """
    text = escape(message)
    if call.service == "s3":
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message><RequestId>bench</RequestId></Error>"
    elif call.service == "ec2":
        body = f"<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message></Error></Errors><RequestID>bench</RequestID></Response>"
    elif call.service in QUERY_SERVICES:
        body = f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{text}</Message></Error><RequestId>bench</RequestId></ErrorResponse>"
    else:
        body = json.dumps({"__type": code, "message": message, "Message": message})
        return status, "application/x-amz-json-1.1", body.encode()
    return status, "text/xml", body.encode()


def denied(call: Call, message: str) -> tuple[int, str, bytes]:
    """Writes a refusal under the code that the call's service uses for one.

    Args:
        call: What is refused.
        message: For the user.

    Returns:
        Status, content type and body.
    """
    if call.service == "ec2":
        return error(call, "UnauthorizedOperation", message, 403)
    if call.service == "s3" or call.service in QUERY_SERVICES:
        return error(call, "AccessDenied", message, 403)
    return error(call, "AccessDeniedException", message, 400)


def _credential(environ: dict[str, Any]) -> tuple[str, str, str]:
    found = re.search(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request", environ.get("HTTP_AUTHORIZATION", ""))
    if found is None:
        query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
        scope = (query.get("X-Amz-Credential") or [""])[0].split("/")
        if len(scope) == 5:
            return scope[0], scope[2], scope[3]
        return "", "us-east-1", ""
    return found[1], found[2], found[3].lower()


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _s3(environ: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The action that a policy has to allow, which is not always the operation's name."""
    bucket, _, key = environ.get("PATH_INFO", "/").lstrip("/").partition("/")
    query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    parameters = {"Bucket": bucket, "Key": key, "Prefix": (query.get("prefix") or [""])[0]}
    method = environ["REQUEST_METHOD"]
    if key:
        action = {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}.get(method, "PutObject")
        if method == "DELETE" and "uploadId" in query:
            action = "AbortMultipartUpload"
        return action, parameters
    if not bucket:
        return "ListAllMyBuckets", parameters
    if method == "POST" and "delete" in query:
        return "DeleteObject", parameters
    special = {
        "location": "BucketLocation",
        "encryption": "EncryptionConfiguration",
        "publicAccessBlock": "BucketPublicAccessBlock",
    }
    for word, name in special.items():
        if word in query:
            return ("Get" if method == "GET" else "Put") + name, parameters
    return {"PUT": "CreateBucket", "DELETE": "DeleteBucket"}.get(method, "ListBucket"), parameters


@functools.cache
def _routes(service: str) -> list[tuple[str, re.Pattern[str], str]]:
    model = botocore.session.get_session().get_service_model(service)
    routes = []
    for name in model.operation_names:
        http = model.operation_model(name).http
        path = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(http["requestUri"]))
        routes.append((http["method"], re.compile(path + r"/?$"), name))
    return routes


def _rest(service: str, environ: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for method, path, name in _routes(service):
        found = path.match(environ.get("PATH_INFO", ""))
        if found and method == environ["REQUEST_METHOD"]:
            query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
            return name, {key: values[0] for key, values in query.items()} | found.groupdict()
    return "", {}
