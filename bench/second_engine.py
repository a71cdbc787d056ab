"""A Docker engine of its own, beside the machine's, that may be restarted without harm to anybody else.

It shares nothing with the machine's engine but the kernel: data, state, socket and configuration are in a temporary
folder, and it has a network namespace of its own. Its containers have no network; their steps need a file system only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_SECONDS = 120
"""An engine that starts with containers of a former life looks after them first."""

STOP_SECONDS = 120

GRAPH_DRIVERS = ("overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs")


class NoSecondEngineError(Exception):
    """There can be no second engine here; the text says why."""


class SecondEngine:
    """An engine that has one image and runs until it is closed.

    Args:
        image: What it gets of the machine's engine.

    Raises:
        NoSecondEngineError: It cannot be started.
    """

    def __init__(self, image: str) -> None:
        if not sys.platform.startswith("linux"):
            raise NoSecondEngineError("this is not Linux")
        if os.geteuid() != 0:
            raise NoSecondEngineError("only root may start a Docker engine")
        program = shutil.which("dockerd")
        if program is None:
            raise NoSecondEngineError("there is no dockerd on this machine")
        unshare = shutil.which("unshare")
        if unshare is None:
            raise NoSecondEngineError("there is no unshare on this machine")
        # An engine without a bridge removes `docker0` when it starts: in the machine's namespace that of the machine's engine.
        self._command = [unshare, "--net", program]
        # Not below the bench's own folder: this one may hold mounts.
        self._folder = Path(tempfile.mkdtemp(prefix="step-engine-dockerd-"))
        self.host = f"unix://{self._folder}/docker.sock"
        self._process: subprocess.Popen | None = None
        self.keeps_containers = False
        try:
            self._start()
            self._copy(image)
        except BaseException:
            self.close()
            raise

    def restart(self, pause_seconds: float) -> None:
        """Ends the engine as a service manager does, and starts it again.

        Args:
            pause_seconds: How long it is away.
        """
        self._stop()
        time.sleep(pause_seconds)
        self._start()

    def keep_containers(self, keep: bool) -> None:
        """Chooses what a restart does to containers.

        Args:
            keep: They go on without the engine (`live-restore`); else it ends them.
        """
        if keep != self.keeps_containers:
            self.keeps_containers = keep
            self.restart(0)

    def close(self) -> None:
        """Ends the engine and its containers, and removes its data.

        Raises:
            OSError: Something of it is left.
        """
        if self._process is not None:
            if self._process.poll() is None:
                containers = self._docker("ps", "-aq").stdout.split()
                if containers:
                    self._docker("rm", "-f", *containers)
            self._stop()
        for mount in self._mounts():
            if subprocess.run(["umount", mount], capture_output=True, check=False).returncode:
                subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        if left := self._mounts():
            raise OSError(f"these mounts of the second engine are left: {', '.join(left)}")
        shutil.rmtree(self._folder)

    def _start(self) -> None:
        driver = subprocess.run(
            ["docker", "info", "--format", "{{.Driver}}"], capture_output=True, text=True, check=False
        ).stdout.strip()
        settings = {
            "data-root": f"{self._folder}/data",
            "exec-root": f"{self._folder}/exec",
            "pidfile": f"{self._folder}/pid",
            "hosts": [self.host],
            "bridge": "none",
            "iptables": False,
            "ip-forward": False,
            "host-gateway-ip": "127.0.0.1",
            "live-restore": self.keeps_containers,
        }
        if driver in GRAPH_DRIVERS:
            settings["storage-driver"] = driver
        configuration = self._folder / "daemon.json"
        configuration.write_text(json.dumps(settings))
        # What it says stays in a file: a pipe that nobody reads would stop it.
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--config-file", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while self._docker("version").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoSecondEngineError(f"dockerd does not start: {self._last_words()}")
            time.sleep(0.1)

    def _stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _copy(self, image: str) -> None:
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as source:
            environment = {**os.environ, "DOCKER_HOST": self.host}
            done = subprocess.run(
                ["docker", "load"], stdin=source.stdout, env=environment, capture_output=True, text=True, check=False
            )
        if source.returncode or done.returncode:
            raise NoSecondEngineError(f"it does not take the image {image}: {done.stderr.strip()}")

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": self.host}
        return subprocess.run(["docker", *arguments], env=environment, capture_output=True, text=True, check=False)

    def _last_words(self) -> str:
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])

    def _mounts(self) -> list[str]:
        """Mount points below the folder, the innermost first."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return sorted((point for point in points if point.startswith(f"{self._folder}/")), key=len, reverse=True)
