"""The stack of `infra/aws` on the bench, and what `step-engine doctor` is told of it. The fixtures in `conftest.py` use it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from bench_client import ACCOUNT, REGION, ROOT, Bench, Credentials
from step_engine.doctor import Statement, Target, statements

TEMPLATE = ROOT / "infra/aws/step-engine.yaml"
PREFIX = "acme"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
ROLES = ("execution", "task", "states", "scheduler")


@dataclass(frozen=True)
class Account:
    """An account in which the template was deployed."""

    bench: Bench
    outputs: dict[str, str]
    target: Target

    def policy(self, role: str) -> dict[str, Any]:
        """The document of a role's only policy, or that of the client."""
        iam = self.bench.client("iam")
        if role == "developer":
            arn = self.outputs["DeveloperPolicyArn"]
            return iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
        name = f"{PREFIX}-{role}"
        (policy,) = iam.list_role_policies(RoleName=name)["PolicyNames"]
        return iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]

    def put_policy(self, role: str, document: dict[str, Any]) -> None:
        """Replaces a role's only policy."""
        iam, name = self.bench.client("iam"), f"{PREFIX}-{role}"
        (policy,) = iam.list_role_policies(RoleName=name)["PolicyNames"]
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(document))

    def developer(self, without: str = "") -> Credentials:
        """A user with the client's policy, perhaps without a statement."""
        return self.bench.user([each for each in self.policy("developer")["Statement"] if each["Sid"] != without])


def needed(target: Target) -> dict[str, list[Statement]]:
    """What `doctor` asks of each policy of the template."""
    task_roles = (target.execution_role, f"arn:aws:iam::{ACCOUNT}:role/{PREFIX}-task")
    machines, scheduler = str(target.state_machine_role), str(target.scheduler_role)
    group = f"/{PREFIX}/steps"
    return {
        "execution": statements.of_execution_role(target, group),
        "task": statements.of_task_role(target, task_roles),
        "states": statements.of_state_machine_role(target, task_roles),
        "scheduler": statements.of_scheduler_role(target),
        "developer": statements.of_client(target, task_roles, machines, scheduler, group),
    }


def target_of(subnets: tuple[str, ...] = (), groups: tuple[str, ...] = (), bucket: str = "bucket") -> Target:
    """What the template makes, as a stack names it."""

    def role(name: str) -> str:
        return f"arn:aws:iam::{ACCOUNT}:role/{PREFIX}-{name}"

    return Target(
        region=REGION,
        account_id=ACCOUNT,
        cluster=f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{PREFIX}",
        task_definition=f"{PREFIX}-step",
        execution_role=role("execution"),
        state_machine_role=role("states"),
        scheduler_role=role("scheduler"),
        subnet_ids=subnets,
        security_group_ids=groups,
        bucket=bucket,
        registry=REGISTRY,
        assign_public_ip=True,
    )


PLAN: dict[str, Any] = {
    "pipeline": "n",
    "execution_mode": "continue_on_failure",
    # The smallest DAG that needs signals.
    "steps": [
        {"name": name, "upstream": upstream}
        for name, upstream in {"a": [], "b": [], "c": ["a"], "d": ["a", "b"]}.items()
    ],
}


def compile_options(target: Target, definition: str) -> dict[str, Any]:
    """How a pipeline becomes a machine in the account; each step prints the field `word` of the execution's input."""
    return {
        "name": "n",
        "signals": {"bucket": target.bucket, "prefix": target.signals_prefix},
        "account": {"region": target.region, "id": target.account_id},
        "pass_roles": [target.execution_role, target.execution_role.replace("execution", "task")],
        "task": {
            "cluster": target.cluster,
            "task_definition": definition,
            "container": "step",
            "launch_type": "FARGATE",
            "network": {
                "subnets": list(target.subnet_ids),
                "security_groups": list(target.security_group_ids),
                "assign_public_ip": True,
            },
            "command": ["/bin/sh", "-c", 'echo $WORD; test "$KEY" = value'],
            "environment": {"WORD": {"input": "word"}},
        },
    }


def deploy(bench_server: Bench) -> Account:
    """Deploys the template as `aws cloudformation deploy` does, by a change set."""
    formation = bench_server.client("cloudformation")
    formation.create_change_set(
        StackName=PREFIX,
        ChangeSetName=PREFIX,
        ChangeSetType="CREATE",
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[
            {"ParameterKey": "NamePrefix", "ParameterValue": PREFIX},
            {"ParameterKey": "DynamicPipelines", "ParameterValue": "true"},
        ],
    )
    formation.execute_change_set(StackName=PREFIX, ChangeSetName=PREFIX)
    (stack,) = formation.describe_stacks(StackName=PREFIX)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    resources = formation.describe_stack_resources(StackName=PREFIX)["StackResources"]
    ids = {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in resources}
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    group = bench_server.client("ec2").describe_security_groups(
        Filters=[{"Name": "description", "Values": ["Steps of ZenML pipelines, nothing comes in"]}]
    )["SecurityGroups"][0]["GroupId"]
    target = target_of((ids["SubnetA"], ids["SubnetB"]), (group,), ids["Bucket"])
    return Account(bench_server, outputs, target)


def become(monkeypatch: pytest.MonkeyPatch, bench: Bench, who: Credentials) -> None:
    """Makes the process call AWS as somebody."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in bench.environment(who).items():
        monkeypatch.setenv(name, value)


def push_small_image(ecr_registry: str, step_image: str) -> Iterator[str]:
    """An image with nothing but a shell, in the registry that stands in for ECR."""
    lines = f"""FROM {step_image} AS base
USER root
RUN mkdir /out && cp --parents -L $(ldd /bin/sh | grep -o '/[^ ]*') /bin/sh /out
FROM scratch
COPY --from=base /out /
LABEL step-engine.base=1
"""
    tag = f"{ecr_registry}/zenml:small"
    subprocess.run(["docker", "build", "-q", "-t", tag, "-"], input=lines.encode(), check=True, capture_output=True)
    subprocess.run(["docker", "push", "-q", tag], check=True, capture_output=True)
    subprocess.run(["docker", "rmi", tag], check=True, capture_output=True)
    yield f"{REGISTRY}/zenml:small"
    # A busy engine may take minutes for it; `make clean` finds the image by its label.
    subprocess.Popen(["docker", "rmi", tag], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
