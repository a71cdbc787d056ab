"""Isolation `process`: a process for each step, forked from a warm worker that goes on.

The worker has one thread and waits for two things at a time: what the client says, and the end of the step's process.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.container import memory, processes
from orchestrator.container.belongings import Belongings, use_temporary
from orchestrator.container.channel import NEVER_BEGAN
from orchestrator.container.ending import exit_code_of
from orchestrator.container.warmup import UnfitError, forget_connections

if TYPE_CHECKING:
    from orchestrator.container.channel import Channel
    from orchestrator.container.warmup import WarmSteps

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HANDLED_SIGNALS = (signal.SIGCHLD, *_STOP_SIGNALS)
# How much likelier than the worker the kernel should kill a step for memory, in thousandths of what there is.
_OOM_SCORE = 100
# Threads of libraries that take care of forks themselves.
_FORK_SAFE_THREADS = ("jemalloc_bg_thd",)


class RandomState:
    """Python's and NumPy's global random generators.

    A forked process must not draw the same numbers as its siblings, unless the user's modules seeded a generator.
    To be made before these are imported.
    """

    def __init__(self) -> None:
        """Remembers the generators as they are."""
        self._python = random.getstate()
        self._numpy = self._numpy_state()

    def note_seeds(self) -> None:
        """Finds out what the user's modules have changed. To be called after their import."""
        state = random.getstate()
        # Python seeds its own generator in every forked process.
        self._seeded = state if state != self._python else None
        self._numpy_is_fresh = self._numpy is not None and self._numpy == self._numpy_state()

    def renew(self) -> None:
        """In a forked process: gives it numbers of its own, or those of the user's seed."""
        if self._seeded is not None:
            random.setstate(self._seeded)
        if self._numpy_is_fresh:
            sys.modules["numpy"].random.seed()

    @staticmethod
    def _numpy_state() -> tuple[Any, ...] | None:
        try:
            import numpy
        except ImportError:
            return None
        return tuple(map(str, numpy.random.get_state()))


def check_threads() -> None:
    """Makes sure that a forked process will miss no thread.

    Raises:
        UnfitError: There are threads that it would miss.
    """
    alive = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if alive:
        raise UnfitError(f"The steps' modules start threads, which a forked process does not have: {', '.join(alive)}.")
    # Some libraries, OpenBLAS for one, end their threads at a fork and start them again when they are needed.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    unknown = [name for name in processes.thread_names() if name not in _FORK_SAFE_THREADS]
    if unknown:
        raise UnfitError(f"Libraries have started threads, which a forked process does not have: {', '.join(unknown)}.")


class _Child:
    """A step's process."""

    def __init__(self, pid: int, kills: int, go: dict[str, Any]) -> None:
        self.pid = pid
        self.go = go
        self.begin = time.monotonic()
        self.kills = kills


class ForkingServer:
    """Serves steps until the client goes away.

    Args:
        channel: The client.
        steps: What can run.
        random_state: The random generators.
    """

    def __init__(self, channel: Channel, steps: WarmSteps, random_state: RandomState) -> None:
        """Prepares the process. To be made before the client is told that the worker is ready."""
        self._channel = channel
        self._steps = steps
        self._random = random_state
        self._belongings = Belongings([Path.cwd(), Path("/app"), Path.home()])
        self._child: _Child | None = None
        self._waiting: deque[dict[str, Any]] = deque()
        self._ending = False
        self._last_code = NEVER_BEGAN
        processes.adopt_orphans()
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel.descriptor, selectors.EVENT_READ)
        # Non-blocking, as `set_wakeup_fd` wants it.
        self._wakeup, self._wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wakeup, selectors.EVENT_READ)

    def serve(self) -> int:
        """Serves.

        Returns:
            In a step's process its exit code. In the worker that of the last step, which tells the client how it ended
            if the frame that says so is lost with the connection; without a step `NEVER_BEGAN`.
        """
        self._catch_signals()
        while self._child is not None or not self._ending:
            if self._child is None and self._waiting:
                code = self._launch(self._waiting.popleft())
                if code is not None:
                    return code
                continue
            timeout = 0 if self._channel.has_pending() else None
            ready = {key.fd for key, _ in self._selector.select(timeout)}
            if self._wakeup in ready:
                self._handle_signals()
            if self._channel.descriptor in ready or timeout == 0:
                self._handle_commands()
        return self._last_code

    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        for number in _HANDLED_SIGNALS:
            signal.signal(number, lambda _number, _frame: None)

    def _handle_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup, 4096):
                if number in _STOP_SIGNALS:
                    # Somebody stops the container: the step is to know, and nothing follows it.
                    self._ending = True
                    self._signal(number)
        self._reap()

    def _handle_commands(self) -> None:
        commands = self._channel.receive()
        if commands is None:
            self._ending = True
            self._selector.unregister(self._channel.descriptor)
            return
        for command in commands:
            if "go" in command:
                self._waiting.append(command["go"])
            elif "signal" in command:
                self._signal(command["signal"]["number"])

    def _signal(self, number: int) -> None:
        """Passes a signal on to the step's process, as an init does. A kill reaches what the step has started, too."""
        if self._child is None:
            return
        if number == signal.SIGKILL:
            processes.kill_descendants()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    def _launch(self, go: dict[str, Any]) -> int | None:
        name = go["step"]
        directory = self._belongings.make_temporary()
        kills = memory.kills()
        self._channel.send("started", step=name, attempt=go["attempt"])
        # A signal that comes before the step's process has handlers of its own waits until it has.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._become_step()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return self._run(name, directory)
        self._child = _Child(pid, kills, go)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return None

    def _become_step(self) -> None:
        """In the step's process: lets go of everything that is the worker's."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _HANDLED_SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._selector.close()
        for descriptor in (self._wakeup, self._wakeup_end):
            os.close(descriptor)
        self._channel.close()
        _be_killed_first()

    def _run(self, name: str, directory: Path | None) -> int:
        self._random.renew()
        use_temporary(directory)
        forget_connections()
        return exit_code_of(lambda: self._steps.run(name))

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                if self._child is not None and pid == self._child.pid:
                    child, self._child = self._child, None
                    self._settle(child, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)

    def _settle(self, child: _Child, code: int, peak_bytes: int) -> None:
        number = -code if code < 0 else None
        self._last_code = code if number is None else 128 + number
        left_processes = processes.end_descendants()
        left_files = self._belongings.restore()
        self._channel.send(
            "done",
            on_both=True,
            step=child.go["step"],
            attempt=child.go["attempt"],
            code=self._last_code,
            signal=number,
            oom=number == signal.SIGKILL and memory.kills() > child.kills,
            peak_memory_bytes=peak_bytes,
            seconds=round(time.monotonic() - child.begin, 3),
            damaged=left_processes or left_files,
        )


def _be_killed_first() -> None:
    """When memory is short, the kernel is to kill the step, not the worker."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        path.write_text(str(min(int(path.read_text()) + _OOM_SCORE, 1000)))
