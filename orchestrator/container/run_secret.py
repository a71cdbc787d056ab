"""What a task of AWS runs first: it gets the run's secret environment and becomes the step's command.

Its text is the program of `python -c` in the task definition, so an image needs nothing of ours. It must stay one file
of plain Python that imports nothing but the standard library, and `boto3` where a secret is to be read.

`ZENML_STEP_ENGINE_SECRET` says where the secret is: empty (there is none), `secretsmanager:<name>`, `ssm:<name>`, or
`plain:<the secret itself>`. The secret is a JSON object of environment variables.
"""

import json
import os
import sys

SOURCE = "ZENML_STEP_ENGINE_SECRET"


def read(backend, name):  # noqa: ANN001, ANN201
    """Reads a secret with the task's role.

    Args:
        backend: `secretsmanager` or `ssm`.
        name: Its name.

    Returns:
        Its text.
    """
    import boto3
    from botocore.config import Config

    # Many tasks of a run begin at the same moment.
    config = Config(retries={"mode": "standard", "total_max_attempts": 10}, connect_timeout=10, read_timeout=20)
    client = boto3.client(backend, config=config)
    if backend == "ssm":
        return client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    return client.get_secret_value(SecretId=name)["SecretString"]


def main():  # noqa: ANN201
    """Takes the place of this process, so that signals reach the step and not a parent of it."""
    backend, _, name = os.environ.pop(SOURCE, "").partition(":")
    if backend:
        try:
            text = name if backend == "plain" else read(backend, name)
        except ImportError:
            sys.exit("boto3 is missing in the image: add it to the requirements of the pipeline's Docker settings.")
        except Exception as error:
            # Errors of AWS name the action, the role and the secret, never its value.
            sys.exit(f"The run's secret {name} cannot be read: {error}")
        # What a step sets for itself wins.
        os.environ.update({**json.loads(text), **os.environ})
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
