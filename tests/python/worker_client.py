"""Plays the client of a warm worker, by the `docker` command."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import threading
import time
from typing import Any

PATIENCE_SECONDS = 120


class Worker:
    """A worker in a container of a step of a captured job.

    Attributes:
        output: What each stream brought outside frames, so far.
    """

    def __init__(
        self,
        job: dict[str, Any],
        steps: list[str],
        isolation: str,
        label: str,
        *options: str,
        version: int = 1,
        image: str | None = None,
    ) -> None:
        container = job["containers"][steps[0]]
        arguments = container["command"]
        snapshot = arguments[arguments.index("--snapshot_id") + 1]
        command = ["docker", "run", "-i", "--init", "--label", f"step-engine.run={label}", *options]
        if "--user" not in options:
            command += ["--user", container["user"]]
        for name, value in container["environment"].items():
            command += ["--env", f"{name}={value}"]
        for volume in container["volumes"]:
            command += ["--volume", f"{volume['source']}:{volume['target']}"]
        command += ["--entrypoint", "python", image or container["image"], "-m", "orchestrator.container.worker"]
        command += ["--snapshot_id", snapshot, "--isolation", isolation]
        for step in steps:
            command += ["--step_name", step]
        self._marker = b"\0step-engine " + secrets.token_hex(16).encode() + b" "
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.output = {"stdout": b"", "stderr": b""}
        self._frames = {"stdout": queue.Queue(), "stderr": queue.Queue()}
        for name in self.output:
            threading.Thread(target=self._pump, args=(name,), daemon=True).start()
        nonce = self._marker.split()[1].decode()
        self.say({"hello": {"version": version, "nonce": nonce}})

    def say(self, command: dict[str, Any]) -> None:
        """Writes a command."""
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def go(self, step: str) -> None:
        """Says go."""
        self.say({"go": {"step": step, "attempt": 1}})

    def frame(self, event: str, stream: str = "stdout") -> dict[str, Any]:
        """Waits for the next frame, which must be of this event."""
        frame = self._frames[stream].get(timeout=PATIENCE_SECONDS)
        assert frame["event"] == event, f"{frame}\n{self.text()}"
        return frame

    def serve(self, step: str) -> tuple[dict[str, Any], str]:
        """Lets a step run: the frame at its end and what it wrote."""
        before = {name: len(text) for name, text in self.output.items()}
        self.go(step)
        assert self.frame("started")["step"] == step
        done = self.frame("done")
        assert self.frame("done", "stderr") == done
        return done, "".join(text[before[name] :].decode() for name, text in self.output.items())

    def text(self) -> str:
        """Everything it has written."""
        return "".join(text.decode(errors="replace") for text in self.output.values())

    def end(self) -> int:
        """Closes its input and waits for its exit code."""
        self.process.stdin.close()
        return self.process.wait(PATIENCE_SECONDS)

    def _pump(self, name: str) -> None:
        stream, rest = getattr(self.process, name), b""
        while chunk := os.read(stream.fileno(), 65536):
            rest += chunk
            while (begin := rest.find(self._marker)) >= 0 and (end := rest.find(b"\n", begin)) >= 0:
                self.output[name] += rest[:begin]
                self._frames[name].put(json.loads(rest[begin + len(self._marker) : end]))
                rest = rest[end + 1 :]
            if b"\0" not in rest:
                self.output[name], rest = self.output[name] + rest, b""
        self.output[name] += rest
        self._frames[name].put({"event": "end of stream"})


def alive(label: str) -> list[str]:
    """Containers of a label that run."""
    command = ["docker", "ps", "-q", "--filter", f"label=step-engine.run={label}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def processes(container: str) -> int:
    """How many processes a container has."""
    done = subprocess.run(["docker", "top", container], capture_output=True, text=True, check=False)
    return max(len(done.stdout.splitlines()) - 1, 0)


def wait_until_running(label: str) -> None:
    """Waits until a container of a label runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not alive(label):
        assert time.monotonic() < deadline
        time.sleep(0.05)
