"""The processes below a worker: finding, signalling and ending those that a step left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0


def adopt_orphans() -> None:
    """Makes this process the parent of whatever its descendants leave behind, so that none gets out of reach.

    Raises:
        OSError: The kernel refuses; it can since Linux 3.4.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"orphans cannot be adopted: {os.strerror(number)}")


def descendants() -> dict[int, str]:
    """The processes below this one.

    Returns:
        Their ids and names. A process that has ended and was not waited for is left out.
    """
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name stands in brackets and may hold brackets itself.
            head, _, tail = (entry / "stat").read_text(errors="replace").rpartition(")")
        except OSError:
            continue  # It has ended meanwhile.
        state, parent = tail.split()[:2]
        if state not in "ZX":
            names[int(entry.name)] = head.partition("(")[2]
        parents[int(entry.name)] = int(parent)
    own = os.getpid()
    return {pid: name for pid, name in names.items() if _is_below(pid, own, parents)}


def _is_below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def kill_descendants() -> None:
    """Kills every process below this one."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end_descendants() -> str | None:
    """Ends every process below this one, when none of them should be left.

    Helpers such as `multiprocessing`'s end by themselves a moment after their master; others are killed.

    Returns:
        `None` if nothing had to be killed, else a sentence that names what was.
    """
    begin = time.monotonic()
    found: dict[int, str] = {}
    while left := _after_reaping():
        waited = time.monotonic() - begin
        if waited > _PATIENCE_SECONDS:
            return f"Processes that the step left behind could not be killed: {_in_words(left)}."
        if waited > _GRACE_SECONDS:
            found |= left
            kill_descendants()
        time.sleep(0.01)
    return f"The step left processes behind: {_in_words(found)}." if found else None


def _after_reaping() -> dict[int, str]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return descendants()


def _in_words(processes: dict[int, str]) -> str:
    names = sorted(set(processes.values()))
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(processes)} ({shown})"


def thread_names() -> list[str]:
    """Names of this process's threads beside the main one, those that Python does not know included.

    Returns:
        The names as the kernel has them, at most 15 characters each.
    """
    names = []
    for entry in Path("/proc/self/task").iterdir():
        if int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                names.append((entry / "comm").read_text(errors="replace").strip())
    return names
