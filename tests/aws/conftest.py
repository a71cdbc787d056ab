"""Fixtures: the bench with a registry that stands in for ECR, and what the tutorial asks to be there first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from bench_client import ACCOUNT, Bench

if TYPE_CHECKING:
    from account import Account

IMAGE = f"zenmldocker/zenml:0.98.0-py{sys.version_info[0]}.{sys.version_info[1]}"
LOG_GROUP = "/ecs/zenml"


@dataclass(frozen=True)
class Prerequisites:
    """What has to be in an account before the tutorial begins; policies are not part of it."""

    cluster_arn: str
    task_definition_arn: str
    execution_role: str
    task_role: str
    state_machine_role: str
    scheduler_role: str
    subnet_ids: list[str]
    security_group_ids: list[str]
    bucket: str
    log_group: str = LOG_GROUP
    account_id: str = ACCOUNT
    region: str = "us-east-1"


@pytest.fixture(scope="module")
def bench_server() -> Iterator[Bench]:
    """A bench for all tests of a file, which may run beside those of another."""
    bench = Bench.start()
    yield bench
    bench.stop()


@pytest.fixture(scope="module")
def ecr_registry(bench_server: Bench) -> str:
    """host:port of a registry; `<account>.dkr.ecr.<region>.amazonaws.com` in an ECS image means it, too."""
    return bench_server.registry


@pytest.fixture
def bench(bench_server: Bench) -> Iterator[Bench]:
    """The bench without faults, counts and enforcement that an earlier test left."""
    bench_server.reset()
    yield bench_server
    bench_server.reset()


@pytest.fixture(scope="session")
def step_image() -> str:
    """An image with a shell and Python, which scripts/base-image makes."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode != 0:
        pytest.fail(f"The image {IMAGE} is missing: run scripts/base-image first.")
    return IMAGE


@pytest.fixture(scope="module")
def prerequisites(bench_server: Bench, step_image: str) -> Prerequisites:
    """The tutorial's prerequisites, made once."""
    ec2 = bench_server.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n}.0/24")["Subnet"]["SubnetId"] for n in (1, 2)]
    group = ec2.create_security_group(GroupName="zenml", Description="steps", VpcId=vpc)["GroupId"]
    cluster = bench_server.client("ecs").create_cluster(clusterName="zenml")["cluster"]["clusterArn"]
    bench_server.client("logs").create_log_group(logGroupName=LOG_GROUP)
    bench_server.client("s3").create_bucket(Bucket="zenml-artifacts")
    anything = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
    tasks, states = "ecs-tasks.amazonaws.com", "states.amazonaws.com"
    execution_role = bench_server.role(anything, tasks, "zenml-execution")
    task_role = bench_server.role(anything, tasks, "zenml-task")
    definition = bench_server.client("ecs").register_task_definition(
        family="zenml-template",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="512",
        memory="1024",
        executionRoleArn=execution_role,
        taskRoleArn=task_role,
        containerDefinitions=[
            {
                "name": "main",
                "image": step_image,
                "essential": True,
                "stopTimeout": 5,
                "logConfiguration": {
                    "logDriver": "awslogs",
                    "options": {
                        "awslogs-group": LOG_GROUP,
                        "awslogs-region": "us-east-1",
                        "awslogs-stream-prefix": "zenml",
                    },
                },
            }
        ],
    )["taskDefinition"]["taskDefinitionArn"]
    return Prerequisites(
        cluster_arn=cluster,
        task_definition_arn=definition,
        execution_role=execution_role,
        task_role=task_role,
        state_machine_role=bench_server.role(anything, states, "zenml-states"),
        scheduler_role=bench_server.role(anything, "scheduler.amazonaws.com", "zenml-scheduler"),
        subnet_ids=subnets,
        security_group_ids=[group],
        bucket="zenml-artifacts",
    )


# What the next three import needs the package, which the tests of the bench itself do without.


@pytest.fixture(scope="module")
def account(bench_server: Bench) -> Account:
    """The template of `infra/aws`, deployed once."""
    from account import deploy

    return deploy(bench_server)


@pytest.fixture
def as_developer(account: Account, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """The process is a developer with the template's policy, and everybody is held to theirs."""
    from account import become

    become(monkeypatch, bench, account.developer())
    with bench.enforced_policies():
        yield account


@pytest.fixture(scope="module")
def small_image(ecr_registry: str, step_image: str) -> Iterator[str]:
    """An image with nothing but a shell, in the registry that stands in for ECR."""
    from account import push_small_image

    yield from push_small_image(ecr_registry, step_image)


# Fixtures of the ZenML side, which need those above. Imported here and nowhere else: a fixture that two test modules import
# is two fixtures.
from stack import aws_project, parent_image, until, zenml_server  # noqa: E402, F401
