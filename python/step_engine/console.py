"""What a person sees of a run: prefixed log lines, a progress line on a terminal, a summary."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

# Control sequences of terminals (ECMA-48 CSI), such as colours: for terminals only.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_COLOURS = (36, 35, 33, 32, 34, 96, 95, 93, 92, 94)
_RED = 31
_DIM = 2

_ROOM_SECONDS = 1.0
"""A disk that is full is tried again so often."""


def describe_outcome(outcome: Mapping[str, Any] | None) -> str:
    """Says in words how an attempt ended.

    Args:
        outcome: An outcome as the core gives it.

    Returns:
        A fragment such as `exit code 3` or `out of memory`.
    """
    if not outcome:
        return "never started"
    kind = outcome["kind"]
    if kind == "exited":
        code = int(outcome["code"])
        names = {130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}
        return f"killed by {names[code]} (exit code {code})" if code in names else f"exit code {code}"
    if kind == "launch_failed":
        return f"could not start: {outcome['reason']}"
    if kind == "lost":
        return f"lost: {outcome['reason']}"
    return str(kind).replace("_", " ")


def plain(text: str) -> str:
    """Takes the control sequences of terminals out of a text.

    Args:
        text: The text.

    Returns:
        What is left.
    """
    return _CONTROL.sub("", text)


class Console:
    """Shows events of a run as they come.

    Args:
        steps: Step names, in the plan's order; they set the width of the prefix.
        stream: Where to write; standard output by default. Colours and the progress line only on a terminal, and not
            when `NO_COLOR` is set (https://no-color.org).
    """

    def __init__(self, steps: Iterable[str], stream: TextIO | None = None) -> None:
        """Counts the steps."""
        self._steps = list(steps)
        self._stream = stream or sys.stdout
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._colour = self._terminal and "NO_COLOR" not in os.environ
        self._width = min(max((len(step) for step in self._steps), default=0), 32)
        self._colour_of = {step: _COLOURS[at % len(_COLOURS)] for at, step in enumerate(self._steps)}
        self._started = time.monotonic()
        self._running: set[str] = set()
        self._done = self._failed = self._ended = 0
        self._progress_shown = False
        self._deaf = False
        self._unshown = 0
        self._full_until = 0.0

    def handle(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Shows events; an empty batch only refreshes the progress line.

        Args:
            events: Events as `DockerRun.next_events` gives them.
        """
        lines: list[str] = []
        for event in events:
            self._show(event, lines)
        text = "".join(lines)
        if self._terminal:
            erase = "\r\x1b[K" if self._progress_shown else ""
            progress = self._progress() if self._ended < len(self._steps) else ""
            self._progress_shown = bool(progress)
            text = f"{erase}{text}{progress}"
        if text:
            self._write(text)

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Counts what happened before, without showing it.

        Args:
            events: Events of the past.
        """
        for event in events:
            self._show(event, [])

    def close(self) -> None:
        """Takes the progress line away."""
        if self._progress_shown:
            self._progress_shown = False
            self._write("\r\x1b[K")

    def summary(self, summary: Mapping[str, Any], run_directory: str) -> None:
        """Prints what the run amounted to.

        Args:
            summary: `DockerRun.summary`.
            run_directory: Where the logs are.
        """
        self.close()
        counts: dict[str, int] = {}
        for _, status in summary["steps"]:
            counts[status] = counts.get(status, 0) + 1
        steps = ", ".join(f"{count} {status}" for status, count in counts.items())
        self._write(
            f"Run {summary['status']} in {summary['duration']:.1f} s: {steps}; "
            f"at most {summary['peak_parallelism']} at a time.\n"
        )
        if summary.get("warm_starts"):
            self._write(
                f"{summary['warm_starts']} of {summary['attempts']} starts were warm; "
                f"the longest start took {summary['longest_start']:.1f} s.\n"
            )
        self._write(f"Logs: {run_directory}\n")
        if summary["left_running"]:
            self._write(f"Still running: {', '.join(summary['left_running'])}\n")

    def _show(self, event: Mapping[str, Any], lines: list[str]) -> None:
        kind, step = event["kind"], event.get("step", "")
        if kind == "log":
            prefix = self._prefix(step)
            text = event["text"] if self._colour else plain(event["text"])
            lines.extend(f"{prefix}{line}\n" for line in text.rstrip("\n").split("\n"))
        elif kind == "step_added":
            self._colour_of[step] = _COLOURS[len(self._steps) % len(_COLOURS)]
            self._steps.append(step)
            self._width = min(max(self._width, len(step)), 32)
        elif kind == "attempt_launched":
            self._running.add(step)
            if event["attempt"] > 1:
                lines.append(self._note(step, f"attempt {event['attempt']}"))
        elif kind == "attempt_started":
            lines.append(self._note(step, "started"))
        elif kind == "attempt_ended":
            self._running.discard(step)
            text = f"{describe_outcome(event['outcome'])} after {event['duration']:.1f} s"
            lines.append(self._note(step, text, bad=event["outcome"]["kind"] != "completed"))
        elif kind == "retry_scheduled":
            lines.append(self._note(step, f"attempt {event['attempt']} follows in {event['delay']:.1f} s"))
        elif kind == "step_finished":
            self._ended += 1
            self._done += event["status"] == "completed"
            self._failed += event["status"] == "failed"
            if event["status"] == "skipped":
                lines.append(self._note(step, "skipped"))
        elif kind == "stop_requested":
            lines.append(self._paint(f"{event['reason']}\n", _RED))
        elif kind == "progress":
            lines.append(self._paint(f"{event['message']}\n", _DIM))
        elif kind == "warning":
            lines.append(self._note(step, event["message"], bad=True))

    def _prefix(self, step: str) -> str:
        return self._paint(f"{step:<{self._width}} | ", self._colour_of.get(step, _DIM))

    def _note(self, step: str, text: str, bad: bool = False) -> str:
        return f"{self._prefix(step)}{self._paint(f'-- {text}', _RED if bad else _DIM)}\n"

    def _progress(self) -> str:
        waiting = len(self._steps) - self._ended - len(self._running)
        elapsed = int(time.monotonic() - self._started)
        return (
            f"[{self._done} done, {len(self._running)} running, {max(waiting, 0)} waiting, {self._failed} failed, "
            f"{elapsed // 60}:{elapsed % 60:02d}]"
        )

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text

    def _write(self, text: str) -> None:
        if self._deaf:
            return
        if self._unshown and (time.monotonic() < self._full_until or not self._has_room()):
            self._unshown += text.count("\n")
            return
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error, text)

    def _fail(self, error: OSError | ValueError, text: str) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # The stream keeps what it was given last, and is given no more until there is room.
            self._unshown = max(self._unshown + text.count("\n"), 1)
            self._full_until = time.monotonic() + _ROOM_SECONDS
        else:
            # Nobody reads any more, as in `… | head`. The run goes on, its logs are in files.
            self._deaf = True

    def _has_room(self) -> bool:
        """Whether the disk takes what it did not take, and a word on what is missing."""
        try:
            self._stream.flush()
            self._stream.write(f"\n-- the disk was full: up to {self._unshown} lines are not shown here\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error, "")
            return False
        self._unshown = 0
        return True
