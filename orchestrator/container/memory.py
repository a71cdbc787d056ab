"""What the kernel tells of a container's memory, by control groups of either version."""

from __future__ import annotations

from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


def peak_bytes() -> int | None:
    """The most memory that this container has used at one time, files that the kernel keeps in memory included.

    Returns:
        Bytes, or `None` where the kernel does not tell.
    """
    for directory, name in ((_V1, "memory.max_usage_in_bytes"), (_own_v2(), "memory.peak")):
        try:
            return int((directory / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def kills() -> int:
    """How many processes of this container were killed because it had reached its memory limit.

    Returns:
        Their number; 0 where the kernel does not tell.
    """
    for path in (_V1 / "memory.oom_control", _own_v2() / "memory.events"):
        try:
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0


def _own_v2() -> Path:
    """The group's directory: the root of what is mounted, or below it where the container sees the host's groups."""
    if (_V2 / "memory.events").exists():
        return _V2
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return _V2 / line[3:].lstrip("/")
    except OSError:
        pass
    return _V2
