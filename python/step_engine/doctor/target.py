"""What is examined, and what is found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "missing", "optional", "unknown"]


DEFAULT_LOG_GROUP = "/zenml/step-engine"
"""Log group for a task definition that says nothing of logs; the first task makes it."""


@dataclass(frozen=True)
class Target:
    """What a stack uses in an account.

    Attributes:
        region: Region.
        account_id: The account, twelve digits.
        cluster: ECS cluster, ARN or name.
        task_definition: The template: ARN, `family:revision` or family.
        execution_role: ARN of the role with which ECS starts tasks.
        subnet_ids: Subnets of the tasks.
        security_group_ids: Security groups of the tasks.
        bucket: Bucket of the artifact store.
        registry: Address of the container registry.
        repository: ECR repository of the images.
        task_role: ARN of the steps' role; none is the template's.
        state_machine_role: ARN of the role that state machines take; none is the execution role.
        scheduler_role: ARN of the scheduler's role; none is the state machines'.
        log_group: Log group of the steps; none is the template's.
        secrets_backend: `secretsmanager`, `ssm` or `none`.
        secrets_prefix: Beginning of the names of secrets.
        signals_prefix: Prefix in the bucket for signals.
        assign_public_ip: Whether tasks get a public address.
        container_name: The template's container that runs the step; none is the only essential one.
        fargate: Whether tasks run on Fargate.
    """

    region: str
    account_id: str
    cluster: str
    task_definition: str
    execution_role: str
    subnet_ids: tuple[str, ...]
    security_group_ids: tuple[str, ...] = ()
    bucket: str = ""
    registry: str = ""
    repository: str = "zenml"
    task_role: str | None = None
    state_machine_role: str | None = None
    scheduler_role: str | None = None
    log_group: str | None = None
    secrets_backend: str = "secretsmanager"
    secrets_prefix: str = "zenml-step-engine"
    signals_prefix: str = "step-engine/signals"
    assign_public_ip: bool = False
    container_name: str | None = None
    fargate: bool = True

    @property
    def cluster_name(self) -> str:
        """The cluster's name."""
        return self.cluster.rsplit("/", 1)[-1]

    @property
    def family(self) -> str:
        """The template's family, with which those of the derived task definitions begin."""
        return self.task_definition.rsplit("/", 1)[-1].split(":", 1)[0]

    @property
    def partition(self) -> str:
        """The partition of the region, as ARNs begin with it."""
        if self.region.startswith("cn-"):
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"

    def arn(self, service: str, rest: str) -> str:
        """Writes an ARN in the region and account.

        Args:
            service: Service.
            rest: What comes after the account.

        Returns:
            The ARN.
        """
        return f"arn:{self.partition}:{service}:{self.region}:{self.account_id}:{rest}"


@dataclass(frozen=True)
class Statement:
    """A statement of a policy, and how to try it.

    Attributes:
        sid: Its name, as in `infra/aws`.
        actions: What it allows.
        resources: On what.
        condition: Under which condition, as in a policy.
        probes: ARNs on which the actions must be allowed; those of `resources`, with examples for `*`, if empty.
        context: Condition keys of a real call.
        without: What there is not without it, if that can be done without.
    """

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: dict[str, Any] | None = None
    probes: tuple[str, ...] = ()
    context: dict[str, str] = field(default_factory=dict)
    without: str = ""

    def tried_on(self) -> list[str]:
        """ARNs to ask the simulator about.

        Returns:
            ARNs without wildcards, or the `*` of actions that know no resource.
        """
        if self.probes:
            return list(self.probes)
        return [arn if arn == "*" else arn.replace("*", "example") for arn in self.resources]

    def document(self, actions: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Writes it as a policy does.

        Args:
            actions: Only these of its actions.

        Returns:
            The statement.
        """
        written: dict[str, Any] = {
            "Sid": self.sid,
            "Effect": "Allow",
            "Action": list(actions or self.actions),
            "Resource": list(self.resources),
        }
        if self.condition:
            written["Condition"] = self.condition
        return written


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: `ok`, `missing`, `optional` if it is missing and can be done without, `unknown` if it cannot be judged.
        what: One sentence.
        fix: What mends it: a command, or a statement of a policy.
    """

    status: Status
    what: str
    fix: str = ""

    @classmethod
    def lacking(cls, what: str, statement: dict[str, Any]) -> Finding:
        """Makes the finding that a policy lacks a statement.

        Args:
            what: One sentence.
            statement: The statement.

        Returns:
            The finding.
        """
        return cls("missing", what, json.dumps(statement, indent=2))
