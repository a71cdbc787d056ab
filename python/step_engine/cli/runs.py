"""`step-engine runs` and `step-engine logs`: what runs on this machine did, read from their directories."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

from step_engine.errors import StepEngineError

if TYPE_CHECKING:
    import argparse

LOOK_SECONDS = 0.3
"""How often a run that is followed is looked at."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands.

    Args:
        commands: Where to.
    """
    runs = commands.add_parser("runs", help="list the runs of this machine, or the steps of one")
    runs.add_argument("run", nargs="?", help="run id or how it begins; all runs when left out")
    runs.add_argument("--json", action="store_true", help="print JSON")
    runs.set_defaults(handle=show_runs)
    logs = commands.add_parser("logs", help="print or follow the output of a run's steps")
    logs.add_argument("run", nargs="?", help="run id or how it begins; the newest run when left out")
    logs.add_argument("step", nargs="?", help="one step only, its output as it was")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs.set_defaults(handle=show_logs)
    for parser in (runs, logs):
        add_config_path(parser)


def add_config_path(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says where runs are kept.

    Args:
        parser: A command's parser.
    """
    parser.set_defaults(needs_engine=False)
    parser.add_argument("--config-path", type=Path, help="ZenML's config directory (default: as ZenML finds it)")


def show_runs(options: argparse.Namespace) -> int:
    """Prints runs, newest first, or the steps of one.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0.

    Raises:
        StepEngineError: There is no such run.
    """
    runs = [find(options)] if options.run else all_runs(options)
    if options.json:
        print(json.dumps([run.described() for run in runs], indent=2))
        return 0
    if options.run:
        _print_steps(runs[0])
        return 0
    if not runs:
        print(f"There are no runs in {root(options)}.", file=sys.stderr)
    rows = [["RUN", "PIPELINE", "BEGAN", "STATUS", "STEPS", "TOOK"]]
    for run in runs:
        done = sum(status in FINAL for status, _ in run.steps().values())
        took = f"{run.record['seconds']:.0f} s" if run.status not in ("running", "unknown") else ""
        rows.append(
            [run.name, run.record["pipeline"], run.began, run.status, f"{done}/{len(run.record['steps'])}", took]
        )
    print_table(rows)
    if any(run.status == "abandoned" for run in runs):
        print(RESUME_HINT.format(run="RUN"), file=sys.stderr)
    return 0


def show_logs(options: argparse.Namespace) -> int:
    """Prints the output of a run's steps.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0.

    Raises:
        StepEngineError: There is no such run or step.
    """
    run = find(options)
    if options.step and options.step not in run.record["steps"]:
        raise StepEngineError(f"Run {run.name} has no step `{options.step}`; it has {', '.join(run.record['steps'])}.")
    readers: dict[str, _Reader] = {}
    width = max(len(step) for step in run.record["steps"])
    while True:
        # Looked at before the files are: what was written until then is shown.
        goes_on = options.follow and run.status == "running"
        for step, path in run.logs():
            if (not options.step or step == options.step) and path.name not in readers:
                prefix = "" if options.step else f"{step:<{width}} | "
                readers[path.name] = _Reader(path, prefix)
        for reader in readers.values():
            reader.show(sys.stdout, to_the_end=not goes_on)
        sys.stdout.flush()
        if not goes_on:
            return 0
        time.sleep(LOOK_SECONDS)
        run = run.later()


FINAL = ("completed", "failed", "stopped", "skipped")

RESUME_HINT = (
    "The process that drove an abandoned run is dead: `step-engine resume {run}` goes on with it, `zenml pipeline runs "
    "stop {run}` gives it up."
)


@dataclass
class Run:
    """A run as its directory tells."""

    directory: Path
    record: dict[str, Any]
    status: str

    @classmethod
    def read(cls, directory: Path) -> Run | None:
        """Reads a directory.

        Args:
            directory: The run's directory.

        Returns:
            The run; none where no run left a journal.

        Raises:
            StepEngineError: The journal is damaged.
        """
        from step_engine import read_run
        from step_engine.lease import owner_lives

        # Before the journal: an owner that ends in between has written its end.
        lives = owner_lives(directory)
        record = read_run(str(directory))
        if record is None:
            return None
        if record["summary"]:
            status = record["summary"]["status"]
        elif lives is not True and (directory / "given-up").exists():
            status = "stopped"
        else:
            status = {True: "running", False: "abandoned", None: "unknown"}[lives]
        return cls(directory, record, status)

    def later(self) -> Run:
        """Reads the directory again.

        Returns:
            The run now. If its journal is gone, for want of room or with the directory, it goes on while its owner
            lives.

        Raises:
            StepEngineError: The journal is damaged.
        """
        from step_engine.lease import owner_lives

        now = Run.read(self.directory)
        return now or (self if owner_lives(self.directory) else replace(self, status="unknown"))

    @property
    def name(self) -> str:
        """The run's id."""
        return self.record["run_id"] or self.directory.name

    @property
    def began(self) -> str:
        """When it began, for people."""
        return datetime.fromtimestamp(self.record["began_unix_seconds"]).strftime("%Y-%m-%d %H:%M:%S")

    def steps(self) -> dict[str, tuple[str, int]]:
        """Looks at every step.

        Returns:
            Status of each and the number of its attempts.
        """
        names: list[str] = self.record["steps"]
        steps: dict[str, tuple[str, int]] = dict.fromkeys(names, ("waiting", 0))
        for event in self.record["events"]:
            step = event.get("step")
            if step is None:
                continue
            status, attempts = steps[step]
            kind = event["kind"]
            if kind == "attempt_launched":
                steps[step] = ("starting", event["attempt"])
            elif kind == "attempt_started":
                steps[step] = ("running", attempts)
            elif kind == "retry_scheduled":
                steps[step] = ("waiting to retry", attempts)
            elif kind == "step_finished":
                steps[step] = (event["status"], attempts)
            else:
                steps[step] = (status, attempts)
        return steps

    def described(self) -> dict[str, Any]:
        """Describes the run for programs.

        Returns:
            Values that JSON has.
        """
        return {
            "run": self.name,
            "pipeline": self.record["pipeline"],
            "status": self.status,
            "began_unix_seconds": self.record["began_unix_seconds"],
            "seconds": self.record["seconds"],
            "directory": str(self.directory),
            "steps": [
                {"name": step, "status": status, "attempts": attempts}
                for step, (status, attempts) in self.steps().items()
            ],
        }

    def logs(self) -> list[tuple[str, Path]]:
        """Looks for logs.

        Returns:
            Step and file of every attempt that has begun, in that order.
        """
        found = []
        for event in self.record["events"]:
            if event["kind"] == "attempt_started" and (path := event["details"].get("log_path")):
                # The directory may have been moved since.
                found.append((event["step"], self.directory / Path(path).name))
        return found


class _Reader:
    """Shows a file as it grows, in whole lines."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._at = 0
        self._rest = b""

    def show(self, output: IO[str], *, to_the_end: bool) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        if to_the_end and self._rest:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            output.write(f"{self._prefix}{line.decode(errors='replace')}\n")


def root(options: argparse.Namespace) -> Path:
    """Where runs are kept.

    Args:
        options: The command's arguments.

    Returns:
        The directory of their directories.
    """
    found = options.config_path or os.environ.get("ZENML_CONFIG_PATH")
    if not found:
        import click

        # As ZenML does it, which is not imported here: that takes seconds.
        found = click.get_app_dir("zenml")
    return Path(found).expanduser().resolve() / "step_engine" / "runs"


def all_runs(options: argparse.Namespace) -> list[Run]:
    """Reads the runs of this machine. One that cannot be read is told and left out.

    Args:
        options: The command's arguments.

    Returns:
        The runs, newest first.
    """
    place = root(options)
    runs = []
    for directory in place.iterdir() if place.is_dir() else ():
        try:
            if run := Run.read(directory):
                runs.append(run)
        except StepEngineError as error:
            print(error, file=sys.stderr)
    return sorted(runs, key=lambda run: run.record["began_unix_seconds"], reverse=True)


@overload
def find(options: argparse.Namespace) -> Run: ...


@overload
def find(options: argparse.Namespace, *, or_none: bool) -> Run | None: ...


def find(options: argparse.Namespace, *, or_none: bool = False) -> Run | None:
    """Finds the run that is meant.

    Args:
        options: The command's arguments.
        or_none: Not to find one is no mistake.

    Returns:
        The run whose id begins as asked for, or the newest; none where there is none and none will do.

    Raises:
        StepEngineError: There is none, or several.
    """
    runs = all_runs(options)
    if options.run:
        exact = [run for run in runs if run.name == options.run]
        runs = exact or [run for run in runs if run.name.startswith(options.run)]
        if len(runs) > 1:
            raise StepEngineError(f"Several runs begin with {options.run}: {', '.join(run.name for run in runs)}.")
    if not runs and or_none:
        return None
    if not runs:
        which = f"no run {options.run}" if options.run else "no run"
        raise StepEngineError(f"There is {which} in {root(options)}; `step-engine runs` lists those that are there.")
    return runs[0]


def _print_steps(run: Run) -> None:
    print(f"{run.name}: {run.record['pipeline']}, began {run.began}, {run.status}; logs in {run.directory}")
    rows = [["STEP", "STATUS", "ATTEMPTS"]]
    rows += [[step, status, str(attempts)] for step, (status, attempts) in run.steps().items()]
    print_table(rows)


def print_table(rows: list[list[str]]) -> None:
    """Prints columns.

    Args:
        rows: The first one is the head.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
