#!/usr/bin/env python3
"""Runs the same pipelines on ZenML's own `local_docker` and on `my_docker`, in turn, and prints times and ratios.

`my_docker` runs without warm starts (`cold`), with them (`container`, the default) and with `isolation: process`.

One image for all, no caching, no image builds, a ZenML configuration and a source root of its own that are thrown
away: only the orchestrators differ. A time is that of the pipeline call, from submission to the run's end; `import
zenml` before it is not counted. Each pair runs every column once, in an order that alternates, so that a drift of the
machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from child import MARK

ROOT = Path(__file__).resolve().parent.parent
BASE = "local_docker"
# A further column is a further line: a flavor, and settings of its orchestrator.
COLUMNS: dict[str, dict] = {
    BASE: {"flavor": "local_docker", "settings": {}},
    "cold": {"flavor": "my_docker", "settings": {"warm_start": False}},
    "container": {"flavor": "my_docker", "settings": {}},
    "process": {"flavor": "my_docker", "settings": {"isolation": "process"}},
}
WARM = ("container", "process")
WORKS = {
    "chain": "a chain of 8 steps",
    "fan_out": "a step and 16 that follow it",
    "tutorial": "the tutorial's three steps",
    "heavy": "a step of 20 s, then one that imports scikit-learn, pandas and pyarrow",
    "paced": "10 steps of 8 s in a chain, for the time that is not theirs; warm columns only",
    "crowd": "64 steps at the same time on one SQLite file, none of which may see it locked; on request, `my_docker` only",
}
CROWD = 64
PACE_SECONDS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listing = "; ".join(f"{name}: {text}" for name, text in WORKS.items())
    parser.add_argument(
        "works", nargs="*", default=[work for work in WORKS if work != "crowd"], metavar="WORK", help=listing
    )
    parser.add_argument("--pairs", type=int, default=3, help="how often every column runs each work (default: 3)")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--image", help="image with zenml, scikit-learn and pyarrow (default: made from ZenML's own)")
    parser.add_argument("--json", type=Path, help="write the single times here")
    arguments = parser.parse_args()
    if unknown := set(arguments.works) - set(WORKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    columns = {name: COLUMNS[name] for name in arguments.columns}
    with tempfile.TemporaryDirectory(prefix="step-engine-bench-") as folder:
        bench = Bench(Path(folder), arguments.image or bench_image())
        zenml = bench.child("setup", json.dumps(columns))["zenml"]
        print(describe(zenml, bench.image), flush=True)
        times: dict[str, dict[str, list[float]]] = {}
        paces: dict[str, list[float]] = {}
        for work in arguments.works:
            left_out = {"paced": set(COLUMNS) - set(WARM), "crowd": {BASE}}.get(work, set())
            names = [name for name in columns if name not in left_out]
            extra = {"max_parallelism": CROWD} if work == "crowd" else {}
            times[work] = {name: [] for name in names}
            for pair in range(arguments.pairs):
                for name in names if pair % 2 == 0 else names[::-1]:
                    answer = bench.run(name, work, {**columns[name]["settings"], **extra})
                    times[work][name].append(answer["seconds"])
                    print(f"{work:10} pair {pair + 1}: {name:14} {answer['seconds']:7.1f} s", flush=True)
                    if work == "paced":
                        own = [seconds - PACE_SECONDS for seconds in answer["warm_seconds"].values()]
                        paces.setdefault(name, []).extend(own)
    print()
    print(table(times))
    for name, seconds in paces.items():
        print(
            f"go to outcome of a warm step, without its own {PACE_SECONDS} s: {name:14} "
            f"median {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s, of {len(seconds)}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(zenml, bench.image), "seconds": times}, indent=2))
    return 0


class Bench:
    """A ZenML configuration and a source root of its own.

    Args:
        folder: Where they are.
        image: The image of every step.
    """

    def __init__(self, folder: Path, image: str) -> None:
        self.image = image
        self._sources = folder / "sources"
        self._sources.mkdir()
        for name in ("works.py", "heavy.py", "child.py"):
            shutil.copy(ROOT / "bench" / name, self._sources)
        for name in ("pipelines", "steps"):
            shutil.copytree(ROOT / name, self._sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ZENML_")}
        self._environment = kept | {"ZENML_CONFIG_PATH": str(folder / "config"), "ZENML_ANALYTICS_OPT_IN": "false"}
        zenml = Path(sys.executable).with_name("zenml")
        subprocess.run([str(zenml), "init"], cwd=self._sources, env=self._environment, check=True, capture_output=True)

    def child(self, *arguments: str) -> dict:
        done = subprocess.run(
            [sys.executable, "child.py", *arguments],
            cwd=self._sources,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode or not answers:
            raise SystemExit(f"{done.stdout}\nThis failed: child.py {' '.join(arguments)}")
        if "database is locked" in done.stdout:
            raise SystemExit(
                f"{done.stdout}\nThe database was locked for a user to see: child.py {' '.join(arguments)}"
            )
        return json.loads(answers[-1].removeprefix(MARK))

    def run(self, stack: str, work: str, settings: dict) -> dict:
        answer = self.child("run", stack, work, self.image, json.dumps(settings))
        if stack == BASE:
            remove_containers(answer["snapshot"])
        return answer


def remove_containers(snapshot: str) -> None:
    """Removes the containers that `local_docker` leaves: those whose command names the snapshot."""
    exited = subprocess.run(
        ["docker", "ps", "-aq", "--filter", "status=exited"], capture_output=True, text=True, check=True
    ).stdout.split()
    form = "{{json .Args}}"
    for container in exited:
        # One by one: another may vanish meanwhile.
        told = subprocess.run(["docker", "inspect", "--format", form, container], capture_output=True, text=True)
        if snapshot in told.stdout:
            subprocess.run(["docker", "rm", container], capture_output=True, check=False)


def bench_image() -> str:
    """ZenML's image for this Python, with what the tutorial imports."""
    import importlib.metadata

    zenml, python = importlib.metadata.version("zenml"), f"{sys.version_info[0]}.{sys.version_info[1]}"
    parent = f"zenmldocker/zenml:{zenml}-py{python}"
    probe = ["docker", "run", "--rm", parent, "python", "-c", "import sklearn, pyarrow, pandas"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return parent
    image = "step-engine-bench"
    recipe = f"FROM {parent}\nRUN pip install --no-cache-dir scikit-learn pyarrow pandas\nLABEL step-engine.base=1\n"
    build = ["docker", "build", "--quiet", "--network", "host", "--tag", image, "-"]
    if subprocess.run(build, input=recipe.encode(), stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit("The image of the benchmark could not be built: is PyPI reachable?")
    return image


def describe(zenml: str, image: str) -> str:
    """The commit and the machine."""

    def ask(*command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = ask("git", "rev-parse", "--short", "HEAD") or "no commit"
    if ask("git", "status", "--porcelain", "--untracked-files=no"):
        commit += " with changes"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    engine = ask("docker", "version", "--format", "{{.Server.Version}}")
    return (
        f"commit {commit}; {os.cpu_count()} CPUs ({model}), {platform.system()}; Docker {engine}; ZenML {zenml}, "
        f"Python {platform.python_version()}, SQLite; image {image}"
    )


def table(times: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and how many times as fast as `local_docker`: the median over the pairs, with their range."""
    lines = []
    for work, columns in times.items():
        for name, seconds in columns.items():
            line = f"{work:10} {name:14} median {statistics.median(seconds):7.1f} s"
            if name != BASE and BASE in columns:
                ratios = [base / own for base, own in zip(columns[BASE], seconds, strict=True)]
                line += f"   {statistics.median(ratios):5.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
