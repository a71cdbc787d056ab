"""A local AWS for tests: moto's server, Step Functions that executes, ECS tasks that are Docker containers.

Runs in a virtual environment of its own (`tests/aws/requirements.txt`), as `python -m aws_bench`. What it does otherwise
than AWS is listed in `tests/aws/README.md`.
"""
