"""Who drives a run: a lock on a file in the run's directory, held for as long as its owner lives, and its heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from step_engine.errors import RunOwnedError

FILE_NAME = "owner.lock"

BEAT_SECONDS = 2.0
"""How often an owner shows that it lives."""

_SILENCE_SECONDS = 30.0
"""Where there are no locks, an owner that has been silent for so long is dead."""

_PATIENCE_SECONDS = 2.0
"""Whoever looks whether an owner lives holds the lock for a moment."""


class Lease:
    """Holds a run for this process. The system lets go of it when the process ends, however it ends.

    Where there are no such locks, the heartbeat alone tells.
    """

    def __init__(self, file: IO[str], path: Path) -> None:
        """Keeps the locked file."""
        self._file = file
        self._path = path

    @classmethod
    def take(cls, run_directory: str | os.PathLike[str]) -> Lease:
        """Takes the lease.

        Args:
            run_directory: The run's directory; created with mode 0700 when it is missing.

        Returns:
            The lease, to be released.

        Raises:
            RunOwnedError: Another process has it.
            OSError: The directory cannot be written.
        """
        directory = Path(run_directory)
        while (lease := cls._take(directory)) is None:
            pass
        return lease

    @classmethod
    def _take(cls, directory: Path) -> Lease | None:
        """Takes the lease; none when its file was removed meanwhile, with a lock that would keep nobody away."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        file = os.fdopen(os.open(directory / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+")
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while _is_taken(file):
                if time.monotonic() > deadline:
                    raise _owned(directory, _read(file))
                time.sleep(0.05)
            if not _is_at(file, directory / FILE_NAME):
                file.close()
                return None
            _sign(file)
        except BaseException:
            file.close()
            raise
        return cls(file, directory / FILE_NAME)

    @classmethod
    def inherit(cls, descriptor: int, run_directory: str | os.PathLike[str]) -> Lease:
        """Takes over the lease of the process that started this one, see `hand_over`.

        Args:
            descriptor: What `descriptor` was there.
            run_directory: The run's directory.

        Returns:
            The lease, to be released.
        """
        os.set_inheritable(descriptor, False)
        file = os.fdopen(descriptor, "a+")
        _sign(file)
        return cls(file, Path(run_directory) / FILE_NAME)

    @property
    def descriptor(self) -> int:
        """Number of the open file that holds the lease; a process that is started with it holds the lease, too."""
        return self._file.fileno()

    def hand_over(self) -> None:
        """Leaves the lease to a process that was started with its descriptor: it is held for as long as that lives."""
        self._file.close()

    def beat(self) -> None:
        """Shows that the owner lives. A full disk does not matter."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def release(self) -> None:
        """Lets go."""
        with contextlib.suppress(OSError):
            # Where there are no locks, silence says it.
            os.utime(self._path, (0, 0))
        self._file.close()


def owner_lives(run_directory: str | os.PathLike[str]) -> bool | None:
    """Whether the process that drives a run lives.

    Args:
        run_directory: The run's directory.

    Returns:
        None when it cannot be told: the run belongs to another machine, or the platform has no such locks.
    """
    path = Path(run_directory) / FILE_NAME
    try:
        file = path.open("r")
    except OSError:
        return None
    with file:
        # Shared, so that two who look do not take each other for an owner.
        locked = _try_lock(file, shared=True)
        return _beats(file) if locked is None else not locked


def owner_of(run_directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Who drives a run, or did last.

    Args:
        run_directory: The run's directory.

    Returns:
        `pid` and `host` of the process; None when it left no name.
    """
    try:
        with (Path(run_directory) / FILE_NAME).open("r") as file:
            return _read(file)
    except OSError:
        return None


def refuse_living(run_directory: str | os.PathLike[str]) -> None:
    """Makes sure that nobody drives a run at this moment, without taking it.

    Args:
        run_directory: The run's directory.

    Raises:
        RunOwnedError: Its owner lives.
    """
    if owner_lives(run_directory):
        raise _owned(Path(run_directory), owner_of(run_directory))


def last_beat(run_directory: str | os.PathLike[str]) -> float | None:
    """When the owner of a run was last seen to live.

    Args:
        run_directory: The run's directory.

    Returns:
        Seconds since 1970; None when it left no heartbeat, or took leave.
    """
    try:
        return (Path(run_directory) / FILE_NAME).stat().st_mtime or None
    except OSError:
        return None


def _owned(directory: Path, held_by: dict[str, Any] | None) -> RunOwnedError:
    who = f"process {held_by['pid']} on {held_by['host']}" if held_by else "another process"
    return RunOwnedError(f"The run in {directory} is driven by {who}; nothing was changed.", str(directory), held_by)


def _is_taken(file: IO[str]) -> bool:
    locked = _try_lock(file, shared=False)
    if locked is None:
        held_by = _read(file)
        ours = {"pid": os.getpid(), "host": socket.gethostname()}
        return held_by is not None and held_by != ours and _beats(file)
    return not locked


def _sign(file: IO[str]) -> None:
    """Says who has the lease. A full disk takes no name; the lock holds without."""
    with contextlib.suppress(OSError):
        # Unbuffered: closing must not try again.
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one with that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _beats(file: IO[str]) -> bool:
    return time.time() - os.fstat(file.fileno()).st_mtime < _SILENCE_SECONDS


def _read(file: IO[str]) -> dict[str, Any] | None:
    try:
        file.seek(0)
        value = json.loads(file.read())
        return {"pid": int(value["pid"]), "host": str(value["host"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _try_lock(file: IO[str], *, shared: bool) -> bool | None:
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks.
        return None
    return True
