"""Runs the tutorial's pipeline on the active stack and prints the accuracy that it measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.sklearn_pipeline import sklearn_pipeline


def main() -> int:
    """Runs the pipeline.

    Returns:
        Exit code: 0 if the run completed, 1 if it failed or was stopped.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    config = Path(__file__).resolve().parent / "configs" / "training_pipeline.yaml"
    parser.add_argument("--config", type=Path, default=config, help="run configuration (YAML)")
    parser.add_argument("--no-cache", action="store_true", help="run every step, whatever ran before")
    arguments = parser.parse_args()

    from step_engine.errors import StepEngineError
    from zenml.client import Client

    cache = False if arguments.no_cache else None
    try:
        run = sklearn_pipeline.with_options(config_path=str(arguments.config), enable_cache=cache)()
    except StepEngineError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        # ZenML says in it how to stop a run that goes on elsewhere.
        print(error or "Interrupted.", file=sys.stderr)
        return 130
    if run is None:
        print("The pipeline did not run.", file=sys.stderr)
        return 1
    run = Client().get_pipeline_run(run.id)
    if not run.status.is_finished:
        print(f"The run goes on. Its status: zenml pipeline runs refresh {run.id}")
        return 0
    if not run.status.is_successful:
        print(f"The run ended as {run.status.value}.", file=sys.stderr)
        return 1
    print(f"Test accuracy: {run.steps['evaluator'].output.load():.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
