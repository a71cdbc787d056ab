"""What a task of AWS runs first: it gets our package and the run's secrets ready, and becomes the step's command.

Its text is the program of `python -c` in the task definition, so an image needs nothing of ours. It must stay one file
of plain Python that imports nothing but the standard library, and `boto3` where a secret is to be read.

`ZENML_STEP_ENGINE_SECRET` says where the secret is: empty (there is none), `secretsmanager:<name>`, `ssm:<name>`, or
`plain:<the secret itself>`. The secret is a JSON object of environment variables.
`ZENML_STEP_ENGINE_EXECUTION` is the ARN of the execution, which tells the region.
`ZENML_STEP_ENGINE_PACKAGE` holds the modules that ZenML imports in the container, see `orchestrator.aws_package`.
"""

import base64
import json
import os
import sys
import tempfile
import zlib

SECRET = "ZENML_STEP_ENGINE_SECRET"  # noqa: S105
EXECUTION = "ZENML_STEP_ENGINE_EXECUTION"
PACKAGE = "ZENML_STEP_ENGINE_PACKAGE"


def unpack(text):  # noqa: ANN001, ANN201
    """Writes modules into a folder that Python searches last.

    Args:
        text: A JSON object of paths and texts, compressed, in base64.
    """
    folder = tempfile.mkdtemp(prefix="step-engine-")
    for name, content in json.loads(zlib.decompress(base64.b64decode(text))).items():
        path = os.path.join(folder, *name.split("/"))  # noqa: PTH118
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(content)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))


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


def name_region():  # noqa: ANN201
    """Says in which region this is, where nobody has: Fargate does, most agents on instances do not."""
    region = os.environ.get("AWS_REGION") or (os.environ.get(EXECUTION, "").split(":") + [""] * 4)[3]
    if region and not os.environ.get("AWS_DEFAULT_REGION"):
        os.environ["AWS_DEFAULT_REGION"] = region
        os.environ.setdefault("AWS_REGION", region)


def main():  # noqa: ANN201
    """Takes the place of this process, so that signals reach the step and not a parent of it."""
    name_region()
    package = os.environ.pop(PACKAGE, "")
    if package:
        unpack(package)
    backend, _, name = os.environ.pop(SECRET, "").partition(":")
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
