r"""The conversation between a worker and its client, on the container's own streams.

The client writes one JSON object per line to standard input: `{"hello": {"version": 1, "nonce": …}}` first, then
`{"go": {"step": …, "attempt": …}}` and `{"signal": {"number": …}}`. End of file says that the client has gone or has no
more need of the worker.

The worker answers in frames, `\0step-engine NONCE JSON\n`, between the bytes that ZenML and the step write: the client
knows the nonce and takes them out.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

VERSION = 1
"""Version of the conversation."""

NEVER_BEGAN = 75
"""Exit code of a worker that the client left before it read a go (EX_TEMPFAIL): no step ran in it."""

_READ_BYTES = 65536
_SENTENCE_CHARACTERS = 200
"""A frame must be written in one piece, so it stays below 4096 bytes (PIPE_BUF), a step's name included. JSON takes up
to 12 bytes per character."""


class ChannelError(Exception):
    """The client does not speak as agreed."""


class Channel:
    """The worker's end.

    Takes standard input away from everything else in the process, which finds it empty as in any step container, and
    keeps descriptors of the streams of its own that no other program inherits.

    Attributes:
        descriptor: Where commands come from, to wait on.
    """

    def __init__(self) -> None:
        """Takes over standard input."""
        self.descriptor = os.dup(0)
        self._outputs = (os.dup(1), os.dup(2))
        self._pending = b""
        self._marker = b""
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)

    def greet(self) -> bool:
        """Waits for the client's greeting, without which no frame can be written.

        Returns:
            False if the client went away instead.

        Raises:
            ChannelError: The client speaks another version, or something else.
        """
        while b"\n" not in self._pending:
            if not self._read():
                return False
        line, self._pending = self._pending.split(b"\n", 1)
        try:
            hello = json.loads(line)["hello"]
            self._marker = b"\0step-engine " + hello["nonce"].encode("ascii") + b" "
            version = hello["version"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ChannelError("The client did not greet as agreed.") from error
        if version != VERSION:
            raise ChannelError(f"The client speaks version {version}, this worker version {VERSION}.")
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """Waits for something from the client.

        Returns:
            The commands that are complete by now, perhaps none; `None` at the end of file.
        """
        if b"\n" not in self._pending and not self._read():
            return None
        *lines, self._pending = self._pending.split(b"\n")
        return [json.loads(line) for line in lines]

    def has_pending(self) -> bool:
        """Whether a command was read already, so that waiting on the descriptor would not wake.

        Returns:
            True if `receive` will return at once.
        """
        return b"\n" in self._pending

    def send(self, event: str, *, on_both: bool = False, **fields: object) -> None:
        """Writes a frame after everything that this process has written so far.

        A client that has gone is no reason to stop: a step that has begun runs to its end.

        Args:
            event: Name of the event.
            on_both: Whether a copy goes to standard error, too.
            **fields: What else the frame says.
        """
        if not self._marker:
            return
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue  # A step may have closed or replaced it.
        frame = self._marker + json.dumps({"event": event, **fields}).encode() + b"\n"
        for output in self._outputs if on_both else self._outputs[:1]:
            try:
                os.write(output, frame)
            except OSError:
                continue

    def close(self) -> None:
        """Forgets the client, in a process that must not speak to it."""
        self._marker = b""
        for descriptor in (self.descriptor, *self._outputs):
            os.close(descriptor)

    def _read(self) -> bool:
        chunk = os.read(self.descriptor, _READ_BYTES)
        self._pending += chunk
        return bool(chunk)


def sentence(text: str) -> str:
    """Makes one line of a message, short enough for a frame.

    Args:
        text: The message.

    Returns:
        at most 200 characters.
    """
    line = " ".join(text.split())
    return line if len(line) <= _SENTENCE_CHARACTERS else line[: _SENTENCE_CHARACTERS - 1] + "…"
