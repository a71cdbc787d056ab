#!/usr/bin/env python3
"""Runs 200 parallel steps on ZenML's default SQLite store, 16 at a time, and checks that no status was lost.

Every step must have succeeded by ZenML's rows and by the run's journal, and neither the client nor a step may have seen a
locked database. Prints the figures; exit code 1 if a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from child import PIPELINES
from compare import Bench, bench_image, describe

WORK = "multitude"
LOCKED = "database is locked"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isolation", choices=("container", "process"), default="process")
    parser.add_argument("--max-parallelism", type=int, default=16, help="steps at a time (default: 16)")
    parser.add_argument("--image", help="image with zenml (default: ZenML's own)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="step-engine-bench-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), arguments.image or bench_image())
        zenml = bench.child("setup", json.dumps({"many": {"flavor": "my_docker"}}))["zenml"]
        print(describe(zenml, bench.image), flush=True)
        settings = {"isolation": arguments.isolation, "max_parallelism": arguments.max_parallelism}
        # Ends this script when a step is not completed for ZenML, or the client saw a locked database.
        answer = bench.run("many", WORK, settings)
        (run,) = (Path(folder) / "config" / "step_engine" / "runs").iterdir()
        figures = look(run)
    figures = {"isolation": arguments.isolation, "seconds": round(answer["seconds"], 1), **figures}
    for name, value in figures.items():
        print(f"{name:24} {value}")
    steps = PIPELINES[WORK][2]
    return int(figures["completed"] != steps or figures["attempts"] != steps or figures["steps that saw a lock"] > 0)


def look(run: Path) -> dict[str, int]:
    """What a run's journal and its logs say.

    Args:
        run: The run's directory.

    Returns:
        Numbers, by what they count.
    """
    from step_engine import read_run

    record = read_run(str(run))
    if record is None or record["summary"] is None:
        raise SystemExit(f"The journal in {run} has no end.")
    logs = [path.read_text(errors="replace") for path in run.glob("*.log")]
    return {
        "completed": sum(status == "completed" for _, status in record["summary"]["steps"]),
        "attempts": sum(event["kind"] == "attempt_launched" for event in record["events"]),
        "at most at a time": record["summary"]["peak_parallelism"],
        "logs": len(logs),
        "steps that saw a lock": sum(LOCKED in log for log in logs),
    }


if __name__ == "__main__":
    sys.exit(main())
