"""The host's end of the control socket of a dynamic run: who may speak, in which form, and what is done about the rest.

The protocol is in `orchestrator/container/control.py`. What a request may lead to is the `Desk`'s to decide; nothing
here knows of containers. The socket lies in a directory that is mounted into the orchestration container alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import hmac
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from zenml.logger import get_logger

from orchestrator.container.control import MAX_REQUEST_BYTES, VERSION, WAIT_SECONDS, read_line

logger = get_logger(__name__)

DIRECTORY_NAME = "control"
"""Directory of the socket, in the run's directory."""

SOCKET_NAME = "socket"

REFUSALS_FILE_NAME = "refused.log"
"""In the run's directory: what the orchestration container asked for in vain."""

_MAX_CONNECTIONS = 64
_MAX_REASON = 1000
"""Characters, each of which JSON may write as six bytes."""

_MAX_REFUSALS = 1000
_REQUEST_SECONDS = 10.0
_MAX_PATH_BYTES = 100
"""Addresses of sockets have 104 bytes on macOS and 108 on Linux."""


def secret_digest(secret: str) -> str:
    """Shortens a run's secret, which may itself stand in no file. It has 256 random bits, so nobody finds it from this.

    Args:
        secret: The secret.

    Returns:
        SHA-256, in hexadecimal digits.
    """
    # Whoever asks may send anything.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


class RefusedError(Exception):
    """A request that is not granted; the message is for whoever asked and for the log.

    Attributes:
        unknown: Whether the step run is one that was never asked for.
    """

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        """Stores what whoever asked may do about it."""
        super().__init__(message)
        self.unknown = unknown


class Desk(Protocol):
    """What requests lead to. Called from several threads; each may refuse."""

    def submit(self, step_run_id: UUID, invocation_id: str) -> str:
        """Runs a step run in a container of its own. Asked again, it does nothing."""
        ...

    def status(self, step_run_id: UUID, wait_seconds: float) -> str:
        """Tells where a step run stands, waiting for its end for so long."""
        ...

    def stop(self, step_run_id: UUID) -> str:
        """Stops a step run."""
        ...


class ControlServer:
    """Serves the control socket of one run.

    Args:
        run_directory: The run's directory, mode 0700.
        digests: Of the secrets that open it, see `secret_digest`: the run's own, and that of each former owner.
        desk: What requests lead to.
        user: `uid:gid` of the orchestration container; none where that is not known.
    """

    def __init__(self, run_directory: str, digests: Iterable[str], desk: Desk, user: str | None) -> None:
        """Opens nothing yet."""
        self._run_directory = Path(run_directory)
        self._digests = list(digests)
        self._desk = desk
        self._user = user
        self._server: _Server | None = None
        self._refusals = 0
        self._lock = threading.Lock()

    def __enter__(self) -> ControlServer:
        """Listens.

        Returns:
            This server.
        """
        directory = self._run_directory / DIRECTORY_NAME
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        path = directory / SOCKET_NAME
        path.unlink(missing_ok=True)
        # Nobody may connect between its creation and the change of its mode, whatever the umask: the directory is ours.
        self._server = _listen(path, self._serve)
        path.chmod(0o600)
        self._hand_over(directory, path)
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="step-engine-control", daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops listening and takes the socket away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with contextlib.suppress(OSError):
            (self._run_directory / DIRECTORY_NAME / SOCKET_NAME).unlink()

    def _hand_over(self, directory: Path, path: Path) -> None:
        """Lets the container's user in, if that is not the caller. Root in a container may anyway."""
        uid, _, gid = (self._user or "").partition(":")
        if uid == "0" or uid == str(os.getuid()):
            return
        if os.getuid() == 0 and uid.isdigit():
            group = int(gid) if gid.isdigit() else -1
            for entry in (directory, path):
                os.chown(entry, int(uid), group)
            return
        # Other users of this machine are kept out by the run's directory, which is in no container.
        directory.chmod(0o711)
        path.chmod(0o666)

    def _serve(self, line: socket.socket) -> None:
        try:
            line.settimeout(_REQUEST_SECONDS)
            try:
                request = _request(line)
            except OSError:
                return
            answer = {"ok": True, "status": self._grant(request)}
        except RefusedError as refusal:
            self._log(str(refusal))
            # An answer of any length can be read; what an engine says may be a page of a proxy.
            answer = {"ok": False, "message": f"Refused: {str(refusal)[:_MAX_REASON]}", "unknown": refusal.unknown}
        except Exception as error:
            self._log(f"the host failed at it ({type(error).__name__}).")
            logger.debug("A request of the orchestration container failed: %s", error)
            answer = {"ok": False, "message": f"The host of the run failed: {type(error).__name__}."}
        with contextlib.suppress(OSError):
            line.sendall(json.dumps({"version": VERSION, **answer}).encode() + b"\n")

    def _grant(self, request: dict[str, Any]) -> str:
        given = request.pop("secret", None)
        if not isinstance(given, str) or not self._opens(given):
            raise RefusedError("the secret is not the run's.")
        if request.pop("version", None) != VERSION:
            raise RefusedError(f"the protocol must be version {VERSION}.")
        operation = request.pop("operation", None)
        step_run_id = _step_run_id(request.pop("step_run_id", None))
        if operation == "submit":
            invocation_id = request.pop("invocation_id", None)
            if not isinstance(invocation_id, str):
                raise RefusedError("a step must be named.")
            _nothing_left(request)
            return self._desk.submit(step_run_id, invocation_id)
        if operation == "status":
            seconds = request.pop("wait_seconds", 0)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= WAIT_SECONDS:
                raise RefusedError(f"the wait must be from 0 to {WAIT_SECONDS:g} seconds.")
            _nothing_left(request)
            return self._desk.status(step_run_id, float(seconds))
        if operation == "stop":
            _nothing_left(request)
            return self._desk.stop(step_run_id)
        raise RefusedError("the operation must be submit, status or stop.")

    def _opens(self, secret: str) -> bool:
        digest = secret_digest(secret)
        # All of them, each in constant time.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def _log(self, why: str) -> None:
        """Whoever may speak must not be able to fill the disk."""
        with self._lock:
            self._refusals += 1
            if self._refusals > _MAX_REFUSALS:
                return
            last = " Further ones are not told." if self._refusals == _MAX_REFUSALS else ""
        logger.warning("A request of the orchestration container was refused: %s%s", why, last)
        with contextlib.suppress(OSError):
            path = self._run_directory / REFUSALS_FILE_NAME
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
                file.write(f"{moment} {why}{last}\n")


def _request(line: socket.socket) -> dict[str, Any]:
    try:
        value = json.loads(read_line(line, MAX_REQUEST_BYTES))
    except (ValueError, RecursionError):
        raise RefusedError(f"a request must be one line of JSON of at most {MAX_REQUEST_BYTES} bytes.") from None
    if not isinstance(value, dict):
        raise RefusedError("a request must be an object.")
    return value


def _step_run_id(value: object) -> UUID:
    try:
        return UUID(value) if isinstance(value, str) else UUID("")
    except ValueError:
        raise RefusedError("the id of a step run is not one.") from None


def _nothing_left(request: dict[str, Any]) -> None:
    if request:
        # Such as an image or a mount: nobody asks for those here.
        raise RefusedError(f"a request has no field {_shown(next(iter(request)))}.")


def _shown(text: str) -> str:
    """Text from a container, made harmless for a log."""
    return ascii(text[:60])


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves each connection in a thread, of which there are not too many."""

    address_family = getattr(socket, "AF_UNIX", socket.AF_INET)
    daemon_threads = True
    block_on_close = False
    request_queue_size = _MAX_CONNECTIONS

    def __init__(self, address: str, serve: Callable[[socket.socket], None]) -> None:
        """Binds and listens."""
        # What ZenML keeps in the context, such as where logs go, holds in the threads, too.
        self._context = contextvars.copy_context()
        self._serve = serve
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, socketserver.BaseRequestHandler)  # pyright: ignore[reportArgumentType]

    def server_bind(self) -> None:
        """Binds without the names that TCP has."""
        self.socket.bind(self.server_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection, or closes it when there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread of its own."""
        try:
            self._context.copy().run(self._serve, request)
        finally:
            self._places.release()
            self.shutdown_request(request)


def _listen(path: Path, serve: Callable[[socket.socket], None]) -> _Server:
    address = str(path)
    if len(os.fsencode(address)) <= _MAX_PATH_BYTES:
        return _Server(address, serve)
    # A way round the limit, through the directory's descriptor; only Linux has it.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        return _Server(f"/proc/self/fd/{descriptor}/{path.name}", serve)
    finally:
        os.close(descriptor)
