"""The bench as tests see it: a server process, clients for it, and what it can be told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REGION, ACCOUNT = "us-east-1", "123456789012"
ADMIN = "AKIABENCHADMIN000000"
START_SECONDS = 60


@dataclass(frozen=True)
class Credentials:
    """Of a user or a role."""

    access_key: str = ADMIN
    secret_key: str = "bench"
    token: str | None = None


class Bench:
    """A running bench."""

    def __init__(self, process: subprocess.Popen[str], endpoint: str, registry: str) -> None:
        self.process, self.endpoint, self.registry = process, endpoint, registry

    @classmethod
    def start(cls, *options: str) -> Bench:
        """Starts a server of its own; it ends with this process, however that ends.

        Args:
            *options: Options of `python -m aws_bench`.
        """
        subprocess.run([str(ROOT / "scripts/aws-bench-setup")], check=True)
        python = ROOT / os.environ.get("AWS_BENCH_VENV", ".venv-aws") / "bin/python"
        given = ["--follow-stdin", "--idle-seconds", "0", *options]
        # What the caller has of AWS must not reach the bench's own clients.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "PYTHON"))}
        process = subprocess.Popen(
            [str(python), "-m", "aws_bench", *given],
            cwd=HERE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            process.kill()
            raise RuntimeError(f"The AWS bench did not start: {line!r}")
        return cls(process, *line.split()[1:])

    def stop(self) -> None:
        """Ends the server, which removes its containers."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def environment(self, credentials: Credentials | None = None) -> dict[str, str]:
        """Variables that make every AWS client of a process use the bench."""
        who = credentials or Credentials()
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": who.access_key,
            "AWS_SECRET_ACCESS_KEY": who.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return variables | ({"AWS_SESSION_TOKEN": who.token} if who.token else {})

    def client(self, service: str, credentials: Credentials | None = None, *, retries: int = 0) -> Any:
        """A boto3 client; by default of somebody who may do everything, and without retries."""
        who = credentials or Credentials()
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=who.access_key,
            aws_secret_access_key=who.secret_key,
            aws_session_token=who.token,
            config=Config(retries={"total_max_attempts": retries + 1}),
        )

    # What the bench can be told.

    def fault(self, kind: str, action: str = "*", **given: Any) -> str:
        """Makes calls fail.

        Args:
            kind: `error` (`code`, `message`, `status`), `deny`, `lose_reply` (the call is carried out, its answer lost),
                `delay` (`seconds`) or `reply` (`body`).
            action: Which calls, such as `states:StartExecution` or `ecs:*`.
            **given: Also `times` (for each action; default: always), `who` (`client`, `service` or `all`) and `access_key`.

        Returns:
            Its id, for `clear_faults`.
        """
        return self._call("POST", "faults", {"kind": kind, "action": action, **given})["id"]

    def throttle(self, action: str = "*", times: int = 3, **given: Any) -> str:
        """Answers the first calls of each action with a throttling error."""
        return self.fault("error", action, times=times, **given)

    def deny(self, action: str, **given: Any) -> str:
        """Refuses an action, as if no policy allowed it."""
        return self.fault("deny", action, **given)

    def lose_reply(self, action: str, times: int = 1, **given: Any) -> str:
        """Carries the call out, but breaks the connection instead of answering."""
        return self.fault("lose_reply", action, times=times, **given)

    def expire(self, credentials: Credentials) -> str:
        """Lets credentials be expired from now on."""
        text = "The security token included in the request is expired"
        return self.fault("error", code="ExpiredTokenException", message=text, access_key=credentials.access_key)

    def clear_faults(self, identifier: str = "") -> None:
        """Forgets one fault, or all."""
        self._call("DELETE", f"faults/{identifier}".rstrip("/"))

    def calls(self, who: str = "client") -> dict[str, int]:
        """How many calls there were since the last reset, such as `{"ecs:RegisterTaskDefinition": 3}`."""
        return self._call("GET", "calls")[who]

    def reset_calls(self) -> None:
        """Counts anew."""
        self._call("DELETE", "calls")

    def dump(self) -> dict[str, Any]:
        """Machines, executions, histories, task definitions, tasks, logs and schedules."""
        return self._call("GET", "dump")

    @contextlib.contextmanager
    def enforced_policies(self) -> Iterator[None]:
        """Judges every call by the policies of who makes it, except the administrator's."""
        self._call("POST", "policies", {"enforce": True})
        try:
            yield
        finally:
            self._call("POST", "policies", {"enforce": False})

    @contextlib.contextmanager
    def short_sessions(self, seconds: float) -> Iterator[None]:
        """Lets credentials of roles that are assumed meanwhile end after so long, which AWS does not below 15 minutes."""
        self._call("POST", "sessions", {"seconds": seconds})
        try:
            yield
        finally:
            self._call("POST", "sessions", {"seconds": None})

    def stop_task(
        self, task_arn: str, code: str = "SpotInterruption", reason: str = "Your Spot Task was interrupted."
    ) -> None:
        """Ends a task as AWS itself would."""
        self._call("POST", "stop-task", {"task": task_arn, "code": code, "reason": reason})

    def fire(self, schedule: str, group: str = "default") -> str:
        """Lets a schedule do what it does when its time has come.

        Returns:
            ARN of the execution that it started.
        """
        return self._call("POST", "fire", {"name": schedule, "group": group, "region": REGION})["executionArn"]

    def reset(self) -> None:
        """Forgets faults and counts, enforces nothing; what was created stays."""
        self.clear_faults()
        self.reset_calls()
        self._call("POST", "policies", {"enforce": False})
        self._call("POST", "sessions", {"seconds": None})

    # Things that many tests need.

    def user(self, statements: list[dict[str, Any]], name: str = "") -> Credentials:
        """Makes a user with one inline policy."""
        iam, name = self.client("iam"), name or f"user-{uuid.uuid4().hex[:8]}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=policy(statements))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return Credentials(key["AccessKeyId"], key["SecretAccessKey"])

    def role(self, statements: list[dict[str, Any]], service: str, name: str = "") -> str:
        """Makes a role that a service may assume, with one inline policy.

        Returns:
            Its ARN.
        """
        iam, name = self.client("iam"), name or f"role-{uuid.uuid4().hex[:8]}"
        trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy([trust]))["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="policy", PolicyDocument=policy(statements))
        return arn

    def wait_for(self, execution_arn: str, seconds: float = 60) -> dict[str, Any]:
        """Waits for the end of an execution.

        Returns:
            What DescribeExecution says of it.
        """
        states, deadline = self.client("stepfunctions"), time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = states.describe_execution(executionArn=execution_arn)
            if found["status"] != "RUNNING":
                return found
            time.sleep(0.1)
        raise TimeoutError(f"still running after {seconds} s: {execution_arn}")

    def events(self, execution_arn: str) -> list[dict[str, Any]]:
        """The whole history of an execution."""
        pages = self.client("stepfunctions").get_paginator("get_execution_history").paginate(executionArn=execution_arn)
        return [event for page in pages for event in page["events"]]

    def messages(self, group: str) -> list[str]:
        """Every line of a log group."""
        pages = self.client("logs").get_paginator("filter_log_events").paginate(logGroupName=group)
        return [event["message"] for page in pages for event in page["events"]]

    def running_tasks(self, cluster: str) -> list[str]:
        """ARNs of the tasks that run in a cluster."""
        ecs = self.client("ecs")
        if not (listed := ecs.list_tasks(cluster=cluster)["taskArns"]):
            return []
        tasks = ecs.describe_tasks(cluster=cluster, tasks=listed)["tasks"]
        return [task["taskArn"] for task in tasks if task["lastStatus"] == "RUNNING"]

    def containers(self) -> list[str]:
        """Ids of the containers that this bench runs now."""
        port = self.endpoint.rsplit(":", 1)[1]
        command = ["docker", "ps", "--quiet", "--filter", f"label=aws-bench.port={port}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/bench/{path}", method=method)
        request.data = json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"the bench answers {error.code}: {error.read().decode()[:500]}") from error


def policy(statements: list[dict[str, Any]]) -> str:
    """A policy document."""
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
