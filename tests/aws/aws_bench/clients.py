"""Clients of the bench itself, with the credentials that the AWS service would hold: policies judge them, too."""

from __future__ import annotations

import threading
from typing import Any

import boto3
from botocore.config import Config
from moto.sts.models import sts_backends

from aws_bench import sessions
from aws_bench.settings import SERVICE_AGENT, SETTINGS

# Making a session is not thread safe in botocore.
_MAKING = threading.Lock()


def role_credentials(role_arn: str, session: str, region: str) -> dict[str, str]:
    """Assumes a role as its service does.

    Args:
        role_arn: The role; it need not exist while policies are not enforced.
        session: Name of the session, as it stands in the caller's ARN.
        region: Region of the caller.

    Returns:
        Access key id, secret access key and session token, under boto3's names.
    """
    account = role_arn.split(":")[4]
    backend = sts_backends[account]["aws"]
    role = sessions.assume_for_service(backend, region, session[:64], role_arn, "", 3600, "")
    return {
        "aws_access_key_id": role.access_key_id,
        "aws_secret_access_key": role.secret_access_key,
        "aws_session_token": role.session_token,
    }


def client(service: str, region: str, role_arn: str, session: str) -> Any:
    """Makes a client that calls the bench as a role.

    Args:
        service: boto3's name of the service.
        region: Region.
        role_arn: Whose credentials.
        session: Name of the session.

    Returns:
        The client. It does not retry.
    """
    with _MAKING:
        return boto3.session.Session().client(
            service,
            region_name=region,
            endpoint_url=SETTINGS.endpoint,
            config=Config(
                parameter_validation=False, retries={"total_max_attempts": 1}, user_agent_extra=SERVICE_AGENT
            ),
            **role_credentials(role_arn, session, region),
        )
