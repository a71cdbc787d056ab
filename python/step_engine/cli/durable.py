"""Runs that outlive their owner and their terminal: attach, stop, resume, retry, gc."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from step_engine.cli.runs import LOOK_SECONDS, RESUME_HINT, Run, add_config_path, all_runs, find, print_table, root
from step_engine.errors import RunOwnedError, StepEngineError
from step_engine.lease import owner_lives, owner_of, refuse_living

_SHOWN_BYTES = 2000
"""So much of the output that running steps have written by now is shown at first."""

_DAY_SECONDS = 86400.0

_BEGINNING_SECONDS = 600.0
"""A process in the background that has not written its first line after so long never will."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands.

    Args:
        commands: Where to.
    """
    attach_ = commands.add_parser("attach", help="watch a run from another terminal; Ctrl-C leaves it alone")
    attach_.add_argument("run", nargs="?", help="run id or how it begins; the newest run when left out")
    attach_.set_defaults(handle=attach)

    resume_ = commands.add_parser("resume", help="go on with a run whose process died")
    resume_.add_argument("run", nargs="?", help="run id or how it begins; the newest abandoned run when left out")
    resume_.add_argument("-d", "--detach", action="store_true", help="in the background; `attach` shows it")
    resume_.set_defaults(handle=resume)

    retry_ = commands.add_parser("retry", help="run what failed of a run, and what depends on it, in a new run")
    retry_.add_argument("run", nargs="?", help="run id or how it begins; the newest run when left out")
    retry_.set_defaults(handle=retry)

    stop_ = commands.add_parser("stop", help="stop a run, through its owner or where ZenML is out of reach")
    stop_.add_argument("run", help="run id, as `zenml pipeline runs list` shows it, or how it begins")
    stop_.add_argument("--force", action="store_true", help="kill at once rather than ask first")
    stop_.add_argument(
        "--grace-seconds",
        type=_seconds,
        default=None,
        help="seconds between asking and killing (default: each step's own)",
    )
    stop_.set_defaults(handle=stop)

    gc_ = commands.add_parser("gc", help="remove what runs without a living owner have left")
    gc_.add_argument(
        "--older-than",
        type=_seconds,
        default=30.0,
        metavar="DAYS",
        help="remove folders of runs, with their logs, when they are older (default: 30)",
    )
    gc_.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    gc_.set_defaults(handle=gc)
    for parser in (attach_, resume_, retry_, stop_, gc_):
        add_config_path(parser)


def attach(options: argparse.Namespace) -> int:
    """Shows a run as it goes on, until its end.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0 if it completed, 1 otherwise, 130 after Ctrl-C.

    Raises:
        StepEngineError: There is no such run.
    """
    from step_engine.console import Console

    run = find(options)
    console = Console(run.record["steps"])
    known = run.record["events"]
    console.recall(known)
    running = {step for step, (status, _) in run.steps().items() if status == "running"}
    readers = {path: _Tail(path, behind=_SHOWN_BYTES if step in running else 0) for step, path in run.logs()}
    try:
        while True:
            events = run.record["events"]
            goes_on = run.status == "running"
            fresh = [{**event} for event in events[len(known) :]]
            output = []
            for step, path in run.logs():
                reader = readers.setdefault(path, _Tail(path))
                if text := reader.read(to_the_end=not goes_on):
                    output.append({"kind": "log", "step": step, "attempt": 1, "text": text})
            begins = [event for event in fresh if event["kind"] in ("attempt_launched", "attempt_started")]
            console.handle([*begins, *output, *(event for event in fresh if event not in begins)])
            known = events
            if not goes_on:
                break
            time.sleep(LOOK_SECONDS)
            run = run.later()
    except KeyboardInterrupt:
        console.close()
        print(f"Run {run.name} goes on.")
        return 130
    console.close()
    if run.status == "unknown":
        print(f"Nobody here drives run {run.name} any more, and its journal does not tell its end.", file=sys.stderr)
        return 1
    if run.record["summary"] is None:
        print(RESUME_HINT.format(run=run.name), file=sys.stderr)
        return 1
    console.summary(run.record["summary"], str(run.directory))
    return 0 if run.status == "completed" else 1


class _Tail:
    """Reads a log as it grows, in whole lines."""

    def __init__(self, path: Path, behind: int | None = None) -> None:
        """Begins so many bytes before the end, or at the beginning."""
        self._path = path
        self._rest = b""
        self._at = 0
        if behind is not None:
            try:
                self._at = max(path.stat().st_size - behind, 0)
            except OSError:
                return
            if self._at and behind:
                # Not with half a line.
                self._rest = b"..."

    def read(self, *, to_the_end: bool) -> str:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            return ""
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        if to_the_end and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return "".join(line.decode(errors="replace") + "\n" for line in lines)


def resume(options: argparse.Namespace) -> int:
    """Goes on with a run whose owner died, to its end.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0 if it completed.

    Raises:
        StepEngineError: There is nothing to go on with, its owner lives, or a step failed.
    """
    if options.run:
        run = find(options)
    else:
        run = next((run for run in all_runs(options) if run.status == "abandoned"), None)
        if run is None:
            raise StepEngineError(f"No run in {root(options)} is abandoned.")
    refuse_living(run.directory)
    _use_config_path(options)
    if options.detach:
        return _detach(run)
    from orchestrator import resuming

    resuming.resume(str(run.directory))
    return 0


def _detach(run: Run) -> int:
    """Goes on with a run in a process and a session of its own."""
    program = "import sys; from step_engine.cli import main; sys.exit(main())"
    output_path = run.directory / "supervisor.log"
    with os.fdopen(os.open(output_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "resume", run.name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Only now is it certain that somebody goes on with it.
    while not owner_lives(run.directory):
        if process.poll() is not None:
            text = output_path.read_text(errors="replace").rstrip()
            print(text.rsplit("\n", 1)[-1], file=sys.stderr)
            return int(process.returncode != 0)
        time.sleep(LOOK_SECONDS)
    print(f"The run goes on in the background (process {process.pid}). Watch it: step-engine attach {run.name}")
    print(f"What the process says is in {output_path}.")
    return 0


def retry(options: argparse.Namespace) -> int:
    """Runs what did not complete of a run in a new run of the same snapshot.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0 if it completed.

    Raises:
        StepEngineError: The run goes on, or has nothing to run again.
    """
    run = find(options)
    if run.status == "running":
        raise StepEngineError(f"Run {run.name} still runs.")
    if run.status == "abandoned":
        raise StepEngineError(RESUME_HINT.format(run=run.name))
    _use_config_path(options)
    from orchestrator import resuming

    resuming.retry(run.name)
    return 0


def stop(options: argparse.Namespace) -> int:
    """Stops a run: asks its owner, or stops its containers where there is none on this machine.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0 if nothing of it runs any more.

    Raises:
        StepEngineError: The run's directory cannot be written, or the engine does not answer.
    """
    from step_engine import DockerEngine

    run = find(options, or_none=True)
    directory = run.directory if run is not None else root(options) / options.run
    if run.status == "running" if run is not None else bool(owner_lives(directory)):
        return _stop_through_owner(directory, options)
    name = run.name if run is not None else options.run
    engine = DockerEngine()
    if run is None and directory.is_dir() and not engine.containers(name):
        print(
            f"Nobody drives run {name} and it has no containers. If it has just begun, stop it again in a moment.",
            file=sys.stderr,
        )
        return 1
    left = engine.stop_run(name, force=options.force, grace_seconds=options.grace_seconds)
    if run is not None and run.status == "abandoned":
        print(RESUME_HINT.format(run=run.name), file=sys.stderr)
    if left:
        print(f"These containers still run: {', '.join(left)}", file=sys.stderr)
        return 1
    return 0


def _stop_through_owner(directory: Path, options: argparse.Namespace) -> int:
    from step_engine import DockerEngine, orders

    def give(order: str) -> None:
        try:
            orders.give(directory, order)
        except OSError as error:
            raise StepEngineError(f"The owner of run {directory.name} cannot be asked: {error}.") from error

    order, asked = ("kill" if options.force else "stop"), owner_of(directory)
    give(order)
    kill_at = math.inf if options.force or options.grace_seconds is None else time.monotonic() + options.grace_seconds
    while owner_lives(directory):
        if time.monotonic() > kill_at:
            kill_at = math.inf
            # An owner whose run is over only tells ZenML of it, which takes the time that ZenML needs.
            told = Run.read(directory)
            if told is None or told.record["summary"] is None:
                order = "kill"
                give(order)
        if (owner := owner_of(directory)) != asked:
            # Somebody goes on with the run, and takes no order that was meant for another.
            asked = owner
            give(order)
        time.sleep(LOOK_SECONDS)
    ended = Run.read(directory)
    if ended is None:
        if orders.take(directory):
            print(f"Run {directory.name} is just being begun again: stop it again in a moment.", file=sys.stderr)
            return 1
        # There was no room for it. What the owner could not stop is still there.
        print(f"The owner of run {directory.name} has ended; there is no journal of the run.", file=sys.stderr)
        return int(any(one["state"] == "running" for one in DockerEngine().containers(directory.name)))
    summary = ended.record["summary"]
    if summary is None:
        print(RESUME_HINT.format(run=directory.name), file=sys.stderr)
        return 1
    print(f"Run {directory.name}: {summary['status']}.")
    if summary["left_running"]:
        print(f"Still running: {', '.join(summary['left_running'])}", file=sys.stderr)
        return 1
    return 0


def gc(options: argparse.Namespace) -> int:
    """Removes what runs without a living owner have left on this machine: containers, and old folders with their logs.

    A run that could be resumed keeps everything until it is old.

    Args:
        options: The command's arguments.

    Returns:
        Exit code: 0 if everything could be removed.

    Raises:
        StepEngineError: The engine does not answer.
    """
    from step_engine import DockerEngine
    from step_engine.lease import Lease

    engine = DockerEngine()
    rows, failed = [["RUN", "STATUS", "CONTAINERS", "FOLDER"]], False
    readable = {run.directory: run for run in all_runs(options)}
    place = root(options)
    for directory in sorted(place.iterdir()) if place.is_dir() else ():
        if not directory.is_dir() or (lives := owner_lives(directory)):
            continue
        run = readable.get(directory)
        status = run.status if run else "unknown"
        age = time.time() - _touched(directory)
        is_without_journal = not _has_journal(directory)
        if is_without_journal and age < _BEGINNING_SECONDS:
            # Handed to a process in the background, which begins in a moment.
            continue
        is_old = age > options.older_than * _DAY_SECONDS
        # Nobody can go on with what has no journal, once it is certain that nobody does already.
        is_over = status in ("completed", "failed", "stopped") or (is_without_journal and lives is False)
        if not is_old and not is_over:
            if status == "abandoned":
                rows.append([directory.name, status, "kept", "kept: it can be resumed"])
            continue
        found = engine.containers(directory.name)
        ours = [one for one in found if is_old or one["state"] == "running" or not one["kept"]]
        if not ours and not is_old:
            continue
        rows.append([directory.name, status, str(len(ours)), "removed" if is_old else "kept"])
        if options.dry_run:
            continue
        try:
            # Nobody goes on with it meanwhile.
            lease = Lease.take(directory)
        except (RunOwnedError, OSError):
            rows.pop()
            continue
        try:
            engine.stop_run(directory.name, force=True)
            failed |= bool(engine.remove_run(directory.name) if is_old else engine.clear_run(directory.name))
            if is_old:
                shutil.rmtree(directory, ignore_errors=True)
                failed |= directory.exists()
        finally:
            lease.release()
    if len(rows) > 1:
        print_table(rows)
    print("Nothing was removed: this was a dry run." if options.dry_run else "Done.", file=sys.stderr)
    return int(failed)


def _has_journal(directory: Path) -> bool:
    try:
        return (directory / "journal.jsonl").stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _touched(directory: Path) -> float:
    """When anything was last written there: now, should somebody else remove it meanwhile."""
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        for path in (directory, *directory.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, path.stat().st_mtime)
    return newest or time.time()


def _use_config_path(options: argparse.Namespace) -> None:
    """ZenML, which reads it when it is imported, is to use what the command was told."""
    if options.config_path:
        os.environ["ZENML_CONFIG_PATH"] = str(options.config_path)


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value
