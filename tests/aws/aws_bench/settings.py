"""What the process was told when it started. Imported first: moto reads some of it from the environment at import."""

from __future__ import annotations

import os
from dataclasses import dataclass

ADMIN_ACCESS_KEY = "AKIABENCHADMIN000000"
"""May do everything, also while policies are enforced."""
ACCOUNT = "123456789012"
SERVICE_AGENT = "aws-bench-service"
"""In the user agent of calls that a service of the bench makes itself, such as Step Functions calling ECS."""


@dataclass
class Settings:
    """Where the server listens and how it runs tasks."""

    port: int = 0
    network: str = "host"
    """Docker network of the tasks; in any other than the host's the server cannot be reached at 127.0.0.1."""
    stop_timeout_seconds: int = 30
    limit_cpus: bool = False
    """Fargate gives a task no more than its CPUs; by default a task here may use what is idle, as on EC2."""
    registry: str = ""
    """host:port that stands in for `<account>.dkr.ecr.<region>.amazonaws.com`."""

    @property
    def endpoint(self) -> str:
        """The address for clients on this machine."""
        return f"http://127.0.0.1:{self.port}"


SETTINGS = Settings()


def configure(port: int) -> None:
    """Tells moto the port before it is imported.

    Args:
        port: The server's; moto's interpreter calls the other services there.
    """
    SETTINGS.port = port
    os.environ["MOTO_PORT"] = str(port)
    os.environ["MOTO_ACCOUNT_ID"] = ACCOUNT
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
