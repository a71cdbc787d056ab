"""What other processes ask of the owner of a run: a file in the run's directory, which only its user can write."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FILE_NAME = "order"

_ORDERS = {"stop": 1, "kill": 2}


def give(run_directory: str | os.PathLike[str], order: str) -> None:
    """Leaves an order for the owner, who looks twice a second.

    Args:
        run_directory: The run's directory.
        order: `stop` (what runs is stopped, with its grace) or `kill`.

    Raises:
        ValueError: There is no such order.
        OSError: The directory cannot be written.
    """
    if order not in _ORDERS:
        raise ValueError(f"There is no order {order!r}.")
    path = Path(run_directory) / FILE_NAME
    # In one piece: the owner may look at any moment.
    new = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(order)
    new.replace(path)


def take(run_directory: str | os.PathLike[str]) -> int:
    """Takes the order that was left, if one was.

    Args:
        run_directory: The run's directory.

    Returns:
        0 for none, 1 to stop, 2 to kill.
    """
    path = Path(run_directory) / FILE_NAME
    # Out of the way first: one that is given while this one is read must not be removed with it.
    taken = path.with_suffix(".taken")
    try:
        path.replace(taken)
        order = taken.read_text()
    except (OSError, UnicodeDecodeError):
        return 0
    with contextlib.suppress(OSError):
        taken.unlink()
    return _ORDERS.get(order, 0)
