"""Debian's docker-registry on a free port of 127.0.0.1, as ECR: the engine trusts that network without TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

MISSING = "docker-registry is missing: install it (on Debian: apt-get install docker-registry) or give --registry none."


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Serves an empty registry.

    Yields:
        Its host:port.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise RuntimeError(MISSING)
    with tempfile.TemporaryDirectory(prefix="aws-bench-registry-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        configuration = Path(folder, "registry.yml")
        configuration.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http: {{addr: '{address}'}}\n"
        )
        process = subprocess.Popen([program, "serve", str(configuration)], stdout=subprocess.DEVNULL)
        try:
            _await(address, process)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=20)


def _await(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(150):
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError("docker-registry does not answer.")
