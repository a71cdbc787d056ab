"""A ZenML server for tests, and what logs in to it. Imported by the conftests of both sets of tests."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zenml.zen_stores.rest_zen_store import RestZenStore

START_SECONDS = 600


class ZenmlServer:
    """A ZenML server with passwords, in a process of its own.

    Args:
        folder: Where it keeps what it knows.
        address: Where it listens.
        port: Its port.
        environment: Its environment, to which it adds what makes it a server.
    """

    def __init__(self, folder: Path, address: str, port: int, environment: Mapping[str, str]) -> None:
        self.url = f"http://{address}:{port}"
        self._password = secrets.token_urlsafe()
        self._log = folder / "log"
        command = [sys.executable, "-m", "uvicorn", "zenml.zen_server.zen_server_api:app"]
        self._command = [*command, "--host", address, "--port", str(port)]
        self._environment = {
            **environment,
            "ZENML_CONFIG_PATH": str(folder / "config"),
            "ZENML_LOCAL_STORES_PATH": str(folder / "stores"),
            "ZENML_SERVER": "true",
            "ZENML_SERVER_AUTO_ACTIVATE": "true",
            "ZENML_DEFAULT_USER_PASSWORD": self._password,
            # As every server has one that is restarted now and then: what it signed before is good afterwards.
            "ZENML_SERVER_JWT_SECRET_KEY": secrets.token_hex(32),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{self.url}/health"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"ZenML's server did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends it; what it knows stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    @property
    def login(self) -> dict[str, str]:
        """Variables with which a client uses it."""
        return {
            "ZENML_STORE_URL": self.url,
            "ZENML_STORE_USERNAME": "default",
            "ZENML_STORE_PASSWORD": self._password,
        }

    @cached_property
    def store(self) -> RestZenStore:
        """Its store, for the test itself."""
        from zenml.zen_stores.rest_zen_store import RestZenStore, RestZenStoreConfiguration

        configuration = RestZenStoreConfiguration(url=self.url, username="default", password=self._password)
        return RestZenStore(config=configuration, skip_default_registrations=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
