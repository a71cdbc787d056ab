"""How a step's process ends, told as Python itself ends a program."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType


def exit_code_of(run: Callable[[], None]) -> int:
    """Runs something as a program's main part is run, and shows its error.

    Args:
        run: What to run.

    Returns:
        The exit code that the program would have.
    """
    try:
        run()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return (ending.code or 0) & 0xFF
        print(ending.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, _beyond_this_package(error.__traceback__))
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _beyond_this_package(traceback: TracebackType | None) -> TracebackType | None:
    """Leaves out our own frames, which would tell the user nothing."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (no pathlib in a small process)
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(here):
        traceback = traceback.tb_next
    return traceback


class LastWord:
    """Ends the process once Python has joined its threads and has called everybody else's exit handlers.

    To be registered with `atexit` before anybody else, so that it is called last. Skips the rest of Python's shutdown,
    which frees memory that is about to be gone.

    Attributes:
        code: The exit code; while it is `None`, the process ends the usual way.
        before: Called right before the end.
    """

    def __init__(self) -> None:
        """Nothing is decided yet."""
        self.code: int | None = None
        self.before: Callable[[int], None] | None = None

    def __call__(self) -> None:
        """Ends the process, if its code is known."""
        if self.code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue
        if self.before is not None:
            self.before(self.code)
        os._exit(self.code)
