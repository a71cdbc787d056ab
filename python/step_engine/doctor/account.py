"""The calls to AWS: clients, and errors as findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from step_engine.errors import AwsError

Result = TypeVar("Result")

DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
NO_BOTO3 = "step-engine doctor needs boto3: pip install boto3 (`zenml integration install aws s3` brings it, too)."


class RefusedError(Exception):
    """AWS answered with an error.

    Attributes:
        code: Its code.
        message: Its message.
        operation: The call.
    """

    def __init__(self, code: str, message: str, operation: str) -> None:
        """Stores the answer."""
        super().__init__(f"{operation}: {message or code}")
        self.code, self.message, self.operation = code, message, operation

    @property
    def denied(self) -> bool:
        """Whether a permission is missing, or something else."""
        return self.code in DENIED


class Account:
    """A session in one region."""

    def __init__(self, region: str, profile: str | None = None, credentials: dict[str, Any] | None = None) -> None:
        """Opens the session, without a call.

        Args:
            region: Region.
            profile: Profile of the shared AWS files.
            credentials: `access_key_id`, `secret_access_key` and perhaps `session_token`, instead of AWS's own chain.

        Raises:
            AwsError: boto3 is missing, or there is no such profile.
        """
        try:
            import boto3
            import botocore.exceptions
            import botocore.parsers
        except ImportError as error:
            raise AwsError(NO_BOTO3, "configure") from error
        given = credentials or {}
        try:
            self._session = boto3.Session(
                region_name=region,
                profile_name=profile,
                aws_access_key_id=given.get("access_key_id"),
                aws_secret_access_key=given.get("secret_access_key"),
                aws_session_token=given.get("session_token"),
            )
        except botocore.exceptions.BotoCoreError as error:
            raise AwsError(f"AWS is not configured: {error}.", "configure") from error
        self._clients: dict[str, Any] = {}
        self._errors = botocore.exceptions
        # A proxy or a broken endpoint answers with something else; botocore's error for that is of no family.
        self._unreadable = botocore.parsers.ResponseParserError

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """Makes a call; all pages of it, if it has pages.

        Args:
            service: boto3's name of the service.
            operation: boto3's name of the call.
            **parameters: Its parameters.

        Returns:
            The answer.

        Raises:
            RefusedError: AWS refuses.
            AwsError: AWS cannot be reached, or there are no credentials.
        """
        client = self._client(service)

        def make() -> dict[str, Any]:
            if client.can_paginate(operation):
                return client.get_paginator(operation).paginate(**parameters).build_full_result()
            return getattr(client, operation)(**parameters)

        return self._guarded(f"{service}:{operation}", make)

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._guarded(service, lambda: self._session.client(service))
        return self._clients[service]

    def _guarded(self, name: str, make: Callable[[], Result]) -> Result:
        try:
            return make()
        except self._errors.ClientError as error:
            answer = error.response["Error"]
            raise RefusedError(answer.get("Code", ""), answer.get("Message", ""), error.operation_name) from error
        except self._errors.BotoCoreError as error:
            raise AwsError(f"AWS cannot be asked ({name}): {error}.", name) from error
        except self._unreadable as error:
            raise AwsError(
                f"AWS cannot be asked ({name}): the answer is none of AWS's. Look at AWS_ENDPOINT_URL and HTTPS_PROXY.",
                name,
            ) from error
