"""What a step leaves in a container's files, where the container is to serve another step.

Only directories of the container's own file system are looked at: what is mounted into it belongs to others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_MIN_FREE_BYTES = 32 * 1024**2
_MIN_FREE_FILES = 100


class Belongings:
    """The state of the directories that steps write to, to return to after each step.

    Args:
        directories: Where steps may leave something, beside the usual places.
    """

    def __init__(self, directories: list[Path]) -> None:
        """Remembers what is there."""
        mounts = _mounts()
        places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), _SHARED_MEMORY, *directories]  # noqa: S108
        self._entries: dict[Path, set[str]] = {}
        for place in dict.fromkeys(path.resolve() for path in places):
            names = _names(place)
            if names is not None and _is_private(place, mounts):
                self._entries[place] = names
        self._directory = Path.cwd()
        self._temporary: Path | None = None

    def make_temporary(self) -> Path | None:
        """Makes a directory for a step's temporary files.

        Returns:
            Its path, or `None` where there is no place for one.
        """
        try:
            self._temporary = Path(tempfile.mkdtemp(prefix="step-"))
        except OSError:
            self._temporary = None
        return self._temporary

    def restore(self) -> str | None:
        """Takes away what a step has left.

        Returns:
            `None`, or a sentence that says why the container cannot serve another step.
        """
        failures: list[str] = []
        if self._temporary is not None:
            _remove(self._temporary, failures)
        for place, names in self._entries.items():
            for name in (_names(place) or set()) - names - {"__pycache__"}:
                _remove(place / name, failures)
        if failures:
            return f"The step left files that cannot be removed: {failures[0]}."
        if not self._directory.is_dir():
            return f"The step removed the working directory {self._directory}."
        for place in (self._directory, Path(tempfile.gettempdir())):
            if _is_full(place):
                return f"The disk is full at {place}."
        return None


def use_temporary(directory: Path | None) -> None:
    """In a step's process: makes a directory the place of temporary files.

    Args:
        directory: The directory; `None` changes nothing.
    """
    if directory is None:
        return
    usual = {os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")} | {"/tmp", "/var/tmp", "/usr/tmp"}  # noqa: S108
    os.environ["TMPDIR"] = str(directory)
    # Unless the user's modules have chosen another place.
    if tempfile.tempdir in usual:
        tempfile.tempdir = None


def _names(place: Path) -> set[str] | None:
    try:
        return set(os.listdir(place))  # noqa: PTH208
    except OSError:
        return None


def _remove(path: Path, failures: list[str]) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        failures.append(f"{path} ({error.strerror})")


def _is_full(place: Path) -> bool:
    with contextlib.suppress(OSError):
        state = os.statvfs(place)
        # Some file systems do not count files.
        files_left = state.f_favail >= _MIN_FREE_FILES or state.f_files == 0
        return state.f_bavail * state.f_frsize < _MIN_FREE_BYTES or not files_left
    return False


def _mounts() -> dict[Path, str]:
    """Mount points and what is mounted there, as the kernel names it."""
    mounts: dict[Path, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields = line.split()
            mounts[Path(fields[4].replace("\\040", " "))] = fields[fields.index("-") + 2]
    return mounts


def _is_private(place: Path, mounts: dict[Path, str]) -> bool:
    """Whether nobody else sees a place: it is on the container's root, or the shared memory that Docker made for it."""
    for path in (place, *place.parents):
        if path in mounts:
            return path == Path("/") or (path == _SHARED_MEMORY and mounts[path] == "shm")
    return False
