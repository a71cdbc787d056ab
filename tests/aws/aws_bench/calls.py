"""Counts the calls, and makes those fail that a test wants to fail."""

from __future__ import annotations

import fnmatch
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aws_bench import wire

KINDS = ("error", "deny", "lose_reply", "delay", "reply")


@dataclass
class Fault:
    """What goes wrong, with which calls, how often."""

    kind: str
    action: str = "*"
    """Pattern of the call's name, such as `states:*`."""
    times: int | None = None
    """How often, for each action by itself; none is for ever."""
    code: str = "ThrottlingException"
    message: str = "Rate exceeded"
    status: int = 400
    seconds: float = 0.0
    body: dict[str, Any] = field(default_factory=dict)
    """Answer of the kind `reply`."""
    access_key: str = "*"
    who: str = "client"
    """`client` (clients and tasks), `service` (what the bench's services call) or `all`."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    seen: Counter[str] = field(default_factory=Counter)

    def hits(self, call: wire.Call) -> bool:
        """Whether this call is one to fail; counts it if so."""
        if self.who != "all" and (self.who == "service") != call.internal:
            return False
        if not fnmatch.fnmatchcase(call.name, self.action) or not fnmatch.fnmatchcase(call.access_key, self.access_key):
            return False
        if self.times is not None and self.seen[call.name] >= self.times:
            return False
        self.seen[call.name] += 1
        return True


class Register:
    """Counters and faults of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._counts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        self.last_call = time.monotonic()

    def meet(self, call: wire.Call) -> Fault | None:
        """Counts a call and says what goes wrong with it, if something does."""
        with self._lock:
            self._counts[call.internal][call.name] += 1
            self.last_call = time.monotonic()
            return next((fault for fault in self._faults if fault.hits(call)), None)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many calls there were, by name, of clients and of the bench's services."""
        with self._lock:
            return {"client": dict(self._counts[False]), "service": dict(self._counts[True])}

    def reset_counts(self) -> None:
        """Begins to count anew."""
        with self._lock:
            for counter in self._counts.values():
                counter.clear()

    def add(self, wanted: dict[str, Any]) -> str:
        """Adds a fault.

        Args:
            wanted: Fields of `Fault`.

        Returns:
            Its id.

        Raises:
            ValueError: There is no such kind.
            TypeError: There is no such field.
        """
        fault = Fault(**wanted)
        if fault.kind not in KINDS:
            raise ValueError(f"no kind of fault: {fault.kind}")
        with self._lock:
            self._faults.append(fault)
        return fault.id

    def remove(self, identifier: str | None = None) -> None:
        """Removes a fault, or all."""
        with self._lock:
            self._faults = [fault for fault in self._faults if identifier and fault.id != identifier]


REGISTER = Register()
