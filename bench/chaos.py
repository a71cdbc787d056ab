#!/usr/bin/env python3
"""Runs random pipelines, hits each at a random moment, goes on with it, and checks that nothing was lost or left.

The moment is a random number of completed steps and a random pause. The faults:

- `owner`: SIGKILL of the process that drives the run, in every third run also of the one that resumes it
- `container`: SIGKILL of a step's container
- `engine`: the Docker engine is restarted, in every other pair of runs with containers that go on meanwhile; on an engine that
  this script starts beside the machine's, which is not touched. Where none can be started this fault is left out
- `database`: the SQLite file is locked for 30 s
- `second`: another process tries to go on with the run while its owner lives

At the end of each run every step must have succeeded exactly once by ZenML's rows, the run must be `completed`, and no
container or process of it may be left. Steps leave marks when they begin and end their work: by these no step may have run
twice at a time, and none may have done its work twice, unless its container was killed or ended with its engine. In the end
no run may be unfinished, and `step-engine gc` must leave no folder. A run that was over before its fault came does not count
and is done again with another pipeline. Prints the count by fault; exit code 1 if a run broke a rule or a fault was left out.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos_child import MARK
from second_engine import NoSecondEngineError, SecondEngine

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ("owner", "container", "engine", "database", "second")
KINDS = ("container", "process", "dynamic")
LOCK_SECONDS = 30
MOST_TRIES = 5
"""A fault may come so often after the end of its run."""

RUN_SECONDS = 900
"""A run that takes longer is broken."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="how many runs (default: 100)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the pipelines and the faults (default: 1)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=["container", "process"], help="isolation, or dynamic pipelines"
    )
    parser.add_argument("--image", required=True, help="image with zenml")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no run after so long (default: no limit)"
    )
    arguments = parser.parse_args()
    good: collections.Counter[str] = collections.Counter()
    bad: collections.Counter[str] = collections.Counter()
    missed: collections.Counter[str] = collections.Counter()
    # Whoever ends this script ends what it has started.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="step-engine-chaos-", ignore_cleanup_errors=True)
        )
        faults, left_out = list(arguments.faults), ""
        engine = None
        if "engine" in faults:
            try:
                engine = stack.enter_context(contextlib.closing(SecondEngine(arguments.image)))
            except NoSecondEngineError as error:
                faults.remove("engine")
                left_out = f"engine: left out, {error}"
                print(left_out, flush=True)
        if not faults:
            return 1
        chaos = stack.enter_context(
            contextlib.closing(Chaos(Path(folder), arguments.image, arguments.steps, second_engine=engine))
        )
        chaos.child("setup")
        end = time.monotonic() + arguments.minutes * 60
        waiting = collections.deque((at, 0) for at in range(arguments.runs))
        while waiting:
            at, tries = waiting.popleft()
            # Every fault with every kind, that of the engine also with both ways to restart it.
            before, place = divmod(at, len(faults))
            fault = faults[place]
            kind = arguments.kinds[(before + place) % len(arguments.kinds)]
            keep = bool(before // len(arguments.kinds) % 2)
            begun = time.monotonic()
            if begun > end:
                break
            try:
                what = chaos.one(arguments.seed * 10_000 + at + tries * 1_000, fault, kind, keep=keep)
                good[fault] += 1
            except MissedError as error:
                what = f"missed, {error}"
                missed[fault] += 1
                if tries < MOST_TRIES:
                    waiting.appendleft((at, tries + 1))
            except (BrokenError, subprocess.SubprocessError) as error:
                what = f"BROKEN: {error}"
                bad[fault] += 1
            print(f"{at + 1:4} {fault:10} {kind:10} {time.monotonic() - begun:6.0f} s  {what}", flush=True)
        left = chaos.tidy()
    print("\nfault       runs  right  missed")
    for fault in faults:
        print(f"{fault:10} {good[fault] + bad[fault]:5} {good[fault]:6} {missed[fault]:7}")
    print(f"{'all':10} {good.total() + bad.total():5} {good.total():6} {missed.total():7}")
    if left_out:
        print(left_out)
    print(f"left over: {', '.join(left) or 'nothing'}")
    return int(bool(left) or bool(bad) or bool(left_out) or any(not good[fault] for fault in faults))


class BrokenError(Exception):
    """A rule was broken."""


class MissedError(Exception):
    """The run was over before its fault came."""


class Chaos:
    """A ZenML configuration of its own.

    Args:
        folder: Where it is.
        image: Image of the steps.
        steps: Steps of each pipeline.
        second_engine: Where runs of the fault `engine` go.
    """

    def __init__(self, folder: Path, image: str, steps: int, *, second_engine: SecondEngine | None) -> None:
        self._image, self._steps, self._second_engine = image, steps, second_engine
        self._sources = folder / "sources"
        self._sources.mkdir()
        for name in ("chaos_child.py", "chaos_steps.py"):
            shutil.copy(ROOT / "bench" / name, self._sources)
        self._config = folder / "config"
        self._processes: list[subprocess.Popen] = []
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ZENML_")}
        self._own = self._environment = kept | {
            "ZENML_CONFIG_PATH": str(self._config),
            "ZENML_ANALYTICS_OPT_IN": "false",
        }
        zenml = Path(sys.executable).with_name("zenml")
        subprocess.run([str(zenml), "init"], cwd=self._sources, env=self._environment, check=True, capture_output=True)

    def child(self, *arguments: str) -> dict:
        """Runs `chaos_child.py` to its end."""
        process = self._start(*arguments)
        output, _ = process.communicate(timeout=RUN_SECONDS)
        lines = [line for line in output.splitlines() if line.startswith(MARK)]
        if process.returncode or not lines:
            raise BrokenError(f"{' '.join(arguments)} failed:\n{output[-3000:]}")
        return json.loads(lines[-1].removeprefix(MARK))

    def one(self, seed: int, fault: str, kind: str, *, keep: bool) -> str:
        """One run, one fault. Returns what was seen.

        Args:
            seed: Of the pipeline and the fault.
            fault: One of `FAULTS`.
            kind: One of `KINDS`.
            keep: Whether containers go on while the engine restarts.

        Raises:
            BrokenError: A rule was broken.
            MissedError: The run was over before.
        """
        chance = random.Random(seed)
        self._choose_engine(second=fault == "engine")
        if self._second_engine is not None and fault == "engine":
            self._second_engine.keep_containers(keep)
        before = set(self._runs())
        log = self._sources / f"{seed}.log"
        arguments = ("run", str(seed), str(self._steps), kind, self._image)
        with log.open("wb") as output:
            owner = self._start(*arguments, output=output)
            run = self._until(lambda: next(iter(set(self._runs()) - before), None), owner, "the run's folder")
            done = chance.randrange(self._steps - 1)
            self._until(
                lambda: self._completed(run) >= done and self._running(run.name), owner, f"{done} steps", or_end=True
            )
            time.sleep(chance.uniform(0, 2))
            try:
                if owner.poll() is not None:
                    raise MissedError("it was over")
                told = getattr(self, f"_{fault}")(run, owner, chance)
            except (BrokenError, MissedError):
                owner.wait(RUN_SECONDS)
                raise
            code = owner.wait(RUN_SECONDS)
        resumed = 0
        while code == -signal.SIGKILL:
            resumed += 1
            if resumed > 5:
                raise BrokenError(f"{run.name} was resumed five times")
            with log.open("ab") as output:
                heir = self._start("resume", run.name, output=output, program="step-engine")
                if fault == "owner" and resumed == 1 and seed % 3 == 0:
                    time.sleep(chance.uniform(3, 20))
                    heir.kill()
                code = heir.wait(RUN_SECONDS)
            # Its owner was killed when it had nothing left to do; whether that is so is checked below.
            if code == 1 and f"Run {run.name} has ended (completed)" in log.read_text(errors="replace"):
                code = 0
        if code:
            raise BrokenError(
                f"{run.name} ended with {code} after `{told}`:\n{log.read_text(errors='replace')[-3000:]}"
            )
        self._check(run.name, told, may_repeat=fault in ("container", "engine"))
        if fault == "owner" and not resumed:
            raise MissedError("its owner had ended")
        return f"{told}, at {done} done" + (f", resumed {resumed} times" if resumed else "")

    def _check(self, run: str, told: str, *, may_repeat: bool) -> None:
        rows = self.child("check", run)
        self._check_marks(run, told, may_repeat=may_repeat)
        wrong = {step: statuses for step, statuses in rows["attempts"].items() if statuses.count("completed") != 1}
        if rows["status"] != "completed" or wrong or len(rows["attempts"]) != self._steps:
            raise BrokenError(f"{run} is {rows['status']} after `{told}`, wrong steps: {wrong}")
        if left := self._containers(run):
            raise BrokenError(f"containers of {run} are left after `{told}`: {left}")
        if left := self._living():
            raise BrokenError(f"processes of {run} are left after `{told}`: {left}")

    def _check_marks(self, run: str, told: str, *, may_repeat: bool) -> None:
        places = list(self._config.glob(f"local_stores/chaos/{run}"))
        marks = {path.name: path.read_text().splitlines() for place in places for path in place.iterdir()}
        if len(marks) != self._steps:
            raise BrokenError(f"{len(marks)} steps of {run} left marks after `{told}`")
        for step, lines in marks.items():
            ended = [at for at, line in enumerate(lines) if line.startswith("end ")]
            beside = [at for at in ended if at == 0 or lines[at - 1] != lines[at].replace("end", "begin")]
            begun = len(lines) - len(ended)
            if not ended or beside or (not may_repeat and (begun, len(ended)) != (1, 1)):
                raise BrokenError(f"step {step} of {run} ran not once after `{told}`: {lines}")

    def _living(self) -> list[str]:
        """Processes with this ZenML configuration, as far as the system tells."""
        wanted = f"ZENML_CONFIG_PATH={self._config}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted in environment.read_bytes().split(b"\0"):
                    command = (
                        (environment.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
                    found.append(f"{environment.parent.name} ({command.strip()})")
        return found

    def tidy(self) -> list[str]:
        """Lets `gc` remove all folders; returns what is left of them, and which runs had not ended."""
        from step_engine import read_run

        self._choose_engine(second=False)
        records = {path.name: read_run(str(path)) for path in self._runs()}
        unfinished = [f"{name} (unfinished)" for name, record in records.items() if not record or not record["summary"]]
        self._start("gc", "--older-than", "0", program="step-engine").communicate(timeout=RUN_SECONDS)
        return unfinished + [path.name for path in self._runs()]

    def _choose_engine(self, *, second: bool) -> None:
        """Directs everything that comes to the machine's engine or to the second one."""
        if second and self._second_engine is not None:
            self._environment = self._own | {"DOCKER_HOST": self._second_engine.host}
        else:
            self._environment = self._own

    def close(self) -> None:
        """Ends whatever is left of processes and containers."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        # The second engine takes its containers along.
        self._choose_engine(second=False)
        for run in self._runs():
            if left := self._containers(run.name):
                self._docker("rm", "-f", *left)

    # Faults: what to do, and a word for it.

    def _owner(self, run: Path, owner: subprocess.Popen, chance: random.Random) -> str:
        owner.kill()
        return "owner killed"

    def _container(self, run: Path, owner: subprocess.Popen, chance: random.Random) -> str:
        running = self._running(run.name)
        if not running:
            raise MissedError("nothing ran to be killed")
        victim = chance.choice(running)
        self._docker("kill", victim)
        return f"{victim} killed"

    def _engine(self, run: Path, owner: subprocess.Popen, chance: random.Random) -> str:
        if self._second_engine is None:
            raise RuntimeError("there is no second engine")
        away = round(chance.uniform(0, 10), 1)
        self._second_engine.restart(away)
        went_on = "went on" if self._second_engine.keeps_containers else "ended"
        return f"engine restarted after {away} s, containers {went_on}"

    def _database(self, run: Path, owner: subprocess.Popen, chance: random.Random) -> str:
        (database,) = self._config.glob("local_stores/*/zenml.db")
        with contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(LOCK_SECONDS)
            other.execute("ROLLBACK")
        return f"database locked for {LOCK_SECONDS} s"

    def _second(self, run: Path, owner: subprocess.Popen, chance: random.Random) -> str:
        second = self._start("resume", run.name, program="step-engine")
        output, _ = second.communicate(timeout=RUN_SECONDS)
        if owner.poll() is None and (second.returncode != 1 or "driven by" not in output):
            raise BrokenError(f"a second owner was not refused ({second.returncode}): {output[-1000:]}")
        if owner.poll() is not None and "driven by" not in output:
            raise MissedError("it was over when the second owner came")
        return "second owner refused"

    def _start(self, *arguments: str, program: str = "", output: object = subprocess.PIPE) -> subprocess.Popen:
        python = [sys.executable, "-u", "chaos_child.py"]
        command = [str(Path(sys.executable).with_name(program))] if program else python
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=self._sources,
            env=self._environment,
            stdout=output,  # pyright: ignore[reportArgumentType]
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def _until(self, condition, owner: subprocess.Popen, what: str, *, or_end: bool = False):
        deadline = time.monotonic() + RUN_SECONDS
        while not (value := condition()):
            if owner.poll() is not None:
                if or_end:
                    return value
                raise BrokenError(f"the owner ended with {owner.returncode} before {what}")
            if time.monotonic() > deadline:
                raise BrokenError(f"waited in vain for {what}")
            time.sleep(0.1)
        return value

    def _runs(self) -> list[Path]:
        place = self._config / "step_engine" / "runs"
        return [path for path in place.iterdir() if (path / "journal.jsonl").exists()] if place.is_dir() else []

    @staticmethod
    def _completed(run: Path) -> int:
        from step_engine import read_run

        record = read_run(str(run))
        events = record["events"] if record else []
        return sum(event["kind"] == "step_finished" for event in events)

    def _containers(self, run: str, *filters: str) -> list[str]:
        chosen = [part for text in (f"label=step-engine.run={run}", *filters) for part in ("--filter", text)]
        done = self._docker("ps", "-a", *chosen, "--format", "{{.Names}}")
        done.check_returncode()
        return done.stdout.split()

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)

    def _running(self, run: str) -> list[str]:
        return self._containers(run, "status=running")


if __name__ == "__main__":
    sys.exit(main())
