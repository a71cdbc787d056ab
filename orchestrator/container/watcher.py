"""Ends a worker whose client goes away while it is busy with imports and cannot listen itself.

A process, not a thread: workers fork, and a forked process has only the thread that forked.
"""

from __future__ import annotations

import os
import select
import signal
import time

from orchestrator.container.channel import NEVER_BEGAN

_LOOK_MILLISECONDS = 1000
_GRACE_SECONDS = 2.0
_MAX_DESCRIPTORS = 4096


class Watcher:
    """A process that watches the client's end of standard input without reading from it.

    Args:
        descriptor: Where commands come from.
    """

    def __init__(self, descriptor: int) -> None:
        """Starts it. The worker must be small still: the process is a copy."""
        # A handler, too, because without an init no other signal reaches the worker from within its container.
        signal.signal(signal.SIGTERM, _end)
        worker = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _watch(descriptor, worker)
            finally:
                os._exit(0)

    def stop(self) -> None:
        """Ends it: from here on the worker listens itself."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    @staticmethod
    def release() -> None:
        """Gives the signal back, unless the user's modules have taken it: from here on it is the step's."""
        if signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(_signal: int, _frame: object) -> None:
    os._exit(NEVER_BEGAN)


def _watch(descriptor: int, worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The streams must be closed with the worker, not with this process.
    os.closerange(0, descriptor)
    os.closerange(descriptor + 1, _MAX_DESCRIPTORS)
    poll = select.poll()
    # No reading: what the client has written is for the worker.
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))
    while os.getppid() == worker:
        if poll.poll(_LOOK_MILLISECONDS):
            os.kill(worker, signal.SIGTERM)
            time.sleep(_GRACE_SECONDS)
            os.kill(worker, signal.SIGKILL)
