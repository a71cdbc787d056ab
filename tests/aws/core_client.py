"""A pipeline of shell commands, straight on the Rust core: compiled, deployed, started, watched."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench_client import ACCOUNT, REGION, Bench, Credentials
from step_engine import AwsRun, AwsSession, compile_asl

if TYPE_CHECKING:
    from conftest import Prerequisites


def session(bench: Bench, credentials: Credentials | None = None, **given: Any) -> AwsSession:
    """A session with keys of its own; where the bench is, `AWS_ENDPOINT_URL` says, see the fixture `aws`."""
    who = credentials or Credentials()
    keys = {"access_key_id": who.access_key, "secret_access_key": who.secret_key, "session_token": who.token}
    return AwsSession(region=REGION, credentials=keys | given)


def step(name: str, *upstream: str, **more: Any) -> dict[str, Any]:
    """A step of a plan."""
    return {"name": name, "upstream": list(upstream), **more}


@dataclass
class Core:
    """What a test needs to run pipelines."""

    aws: AwsSession
    prerequisites: Prerequisites

    def definition(self, **overlay: Any) -> dict[str, Any]:
        """The template with an overlay."""
        return self.aws.ensure_task_definition(self.prerequisites.task_definition_arn, overlay)

    def compile(
        self, steps: list[dict[str, Any]], commands: dict[str, str], mode: str = "continue_on_failure", **options: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A plan and its machines."""
        needs = self.prerequisites
        plan = {
            "run_id": "r",
            "pipeline": options.pop("pipeline", "core"),
            "execution_mode": mode,
            "steps": steps,
        }
        task = {
            "cluster": needs.cluster_arn,
            "task_definition": options.pop("task_definition", None) or self.definition()["arn"],
            "launch_type": "FARGATE",
            "container": "main",
            "network": {"subnets": needs.subnet_ids, "security_groups": needs.security_group_ids},
        }
        options = {
            "account": {"id": ACCOUNT, "region": REGION, "partition": "aws"},
            "synchronization": "barrier",
            "infrastructure_retries": 2,
            "task": task,
            "steps": {name: {"command": ["sh", "-c", command]} for name, command in commands.items()},
            **options,
        }
        return plan, compile_asl(plan, options)["machines"]

    def deploy(self, machines: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Deploys machines with the role of the prerequisites."""
        given = {"role_arn": self.prerequisites.state_machine_role, "role_wait_seconds": 0} | options
        return self.aws.deploy(machines, **given)

    def start(self, plan: dict[str, Any], machines: list[dict[str, Any]]) -> Watched:
        """Deploys and starts, and watches from the first event on."""
        arn = self.deploy(machines)["arn"]
        execution = self.aws.start(arn, name=f"run-{uuid.uuid4().hex[:12]}", input={"snapshot": "s"})
        run = AwsRun(self.aws, execution, plan)
        run.start()
        return Watched(run, execution, plan)


@dataclass
class Watched:
    """A run that is watched, and what was seen of it."""

    run: AwsRun
    execution: str
    plan: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)

    def until(self, kind: str, seconds: float = 90, **fields: Any) -> dict[str, Any]:
        """Waits for an event."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.of(kind, **fields)
            if found:
                return found[0]
            assert not self.run.finished, f"it ended without {kind}: {self.events}"
            self.events += self.run.next_events(0.5)
        raise AssertionError(f"no {kind} {fields} in {seconds} s: {self.events}")

    def finish(self, seconds: float = 120) -> dict[str, Any]:
        """Waits for the end. Returns the summary."""
        end = time.monotonic() + seconds
        while not self.run.finished:
            assert time.monotonic() < end, f"it did not end in {seconds} s: {self.events}"
            self.events += self.run.next_events(0.5)
        assert self.run.summary is not None
        return self.run.summary

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Events of a kind."""
        wanted = {"kind": kind, **fields}.items()
        return [event for event in self.events if all(event.get(key) == value for key, value in wanted)]

    def log(self, name: str, attempt: int = 1) -> list[str]:
        """Lines that an attempt wrote."""
        texts = [event["text"] for event in self.of("log", step=name, attempt=attempt)]
        return "".join(texts).splitlines()
