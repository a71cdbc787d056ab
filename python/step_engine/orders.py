"""What other processes ask of the owner of a run: a file in the run's directory, which only its user can write."""

from __future__ import annotations

import os
from pathlib import Path

_ORDERS = {"kill": 2, "stop": 1}


def give(run_directory: str | os.PathLike[str], order: str) -> None:
    """Leaves an order for the owner, who looks twice a second.

    Args:
        run_directory: The run's directory.
        order: `stop` (what runs is stopped, with its grace) or `kill`.

    Raises:
        ValueError: There is no such order.
        OSError: The directory cannot be written.
    """
    # The file's name says it all, so that it is whole when it is there, and has room on a full disk.
    os.close(os.open(_path(run_directory, order), os.O_WRONLY | os.O_CREAT, 0o600))


def take(run_directory: str | os.PathLike[str]) -> int:
    """Takes the order that was left, if one was.

    Args:
        run_directory: The run's directory.

    Returns:
        0 for none, 1 to stop, 2 to kill.
    """
    # The worse one first: one that is given meanwhile is the next.
    return max(number if _takes(_path(run_directory, order)) else 0 for order, number in _ORDERS.items())


def _path(run_directory: str | os.PathLike[str], order: str) -> Path:
    if order not in _ORDERS:
        raise ValueError(f"There is no order {order!r}.")
    return Path(run_directory) / f"order-{order}"


def _takes(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
