"""The bench itself: who may do what, once policies are enforced."""

from __future__ import annotations

import json

import botocore.exceptions
import pytest
from bench_client import ACCOUNT, Bench
from conftest import Prerequisites
from shapes import machine, start, step

TASKS, STATES = "ecs-tasks.amazonaws.com", "states.amazonaws.com"


def allow(actions: str | list[str], resource: object = "*", **more: object) -> dict[str, object]:
    """A statement."""
    return {"Effect": "Allow", "Action": actions, "Resource": resource, **more}


def needed(given: Prerequisites) -> dict[str, dict[str, object]]:
    """What the role of a machine needs to run tasks and wait for them, by a name for each statement."""
    rule = f"arn:aws:events:us-east-1:{ACCOUNT}:rule/StepFunctionsGetEventsForECSTaskRule"
    passed = {"StringEquals": {"iam:PassedToService": TASKS}}
    return {
        "run": allow("ecs:RunTask", given.task_definition_arn),
        "watch": allow(["ecs:DescribeTasks", "ecs:StopTask"]),
        "rules": allow(["events:PutRule", "events:PutTargets", "events:DescribeRule"], rule),
        "pass": allow("iam:PassRole", [given.execution_role, given.task_role], Condition=passed),
    }


def test_the_documented_policy_is_enough(bench: Bench, prerequisites: Prerequisites) -> None:
    role = bench.role(list(needed(prerequisites).values()), STATES)
    with bench.enforced_policies():
        over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, "true")), role))
    assert over["status"] == "SUCCEEDED", over.get("cause")


@pytest.mark.parametrize(
    ("missing", "action"), [("run", "ecs:RunTask"), ("watch", "ecs:DescribeTasks"), ("pass", "iam:PassRole")]
)
def test_each_statement_is_needed(bench: Bench, prerequisites: Prerequisites, missing: str, action: str) -> None:
    kept = [statement for name, statement in needed(prerequisites).items() if name != missing]
    role = bench.role(kept, STATES)
    with bench.enforced_policies():
        over = bench.wait_for(start(bench, prerequisites, machine(X=step(prerequisites, "true")), role))
    assert over["error"] == "ECS.AccessDeniedException" and action in over["cause"]


def test_a_machine_needs_its_managed_rule_and_trust(bench: Bench, prerequisites: Prerequisites) -> None:
    kept = [statement for name, statement in needed(prerequisites).items() if name != "rules"]
    without_rules, untrusting = bench.role(kept, STATES), bench.role(list(needed(prerequisites).values()), TASKS)
    with bench.enforced_policies():
        for role, words in (
            (without_rules, "not authorized to create managed-rule"),
            (untrusting, "assume the provided role"),
        ):
            # The administrator calls, so that only the role is judged.
            with pytest.raises(botocore.exceptions.ClientError, match=words):
                start(bench, prerequisites, machine(X=step(prerequisites, "true")), role)


def test_a_user_is_held_to_resources_and_conditions(bench: Bench) -> None:
    bucket = "arn:aws:s3:::policed"
    bench.client("s3").create_bucket(Bucket="policed")
    user = bench.user(
        [
            allow("s3:*Object", f"{bucket}/mine/*"),
            allow("s3:ListBucket", bucket, Condition={"StringLike": {"s3:prefix": ["mine/*"]}}),
            {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": "*"},
        ]
    )
    s3 = bench.client("s3", user)
    with bench.enforced_policies():
        s3.put_object(Bucket="policed", Key="mine/a", Body=b"1")
        assert s3.get_object(Bucket="policed", Key="mine/a")["Body"].read() == b"1"
        s3.list_objects_v2(Bucket="policed", Prefix="mine/")
        for refused in (
            lambda: s3.put_object(Bucket="policed", Key="yours/a", Body=b"1"),
            lambda: s3.list_objects_v2(Bucket="policed"),
            lambda: s3.delete_object(Bucket="policed", Key="mine/a"),
        ):
            with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
                refused()
        stranger = bench.client("ecs", type(user)("AKIANOBODY0000000000"))
        with pytest.raises(botocore.exceptions.ClientError, match="UnrecognizedClientException"):
            stranger.list_clusters()


def test_a_task_has_its_roles_permissions_and_no_more(bench: Bench, prerequisites: Prerequisites) -> None:
    role = bench.role([allow("s3:GetObject", "arn:aws:s3:::zenml-artifacts/here/*")], TASKS)
    bench.client("s3").put_object(Bucket="zenml-artifacts", Key="here/a", Body=b"1")
    ecs = bench.client("ecs")
    template = ecs.describe_task_definition(taskDefinition=prerequisites.task_definition_arn)["taskDefinition"]
    kept = ("networkMode", "requiresCompatibilities", "cpu", "memory", "executionRoleArn", "containerDefinitions")
    definition = ecs.register_task_definition(
        family="policed", taskRoleArn=role, **{key: template[key] for key in kept}
    )["taskDefinition"]["taskDefinitionArn"]
    # Without the SDK: the image need not have it. The task asks for credentials, and the test uses them.
    program = (
        "import json, os, urllib.request as u; "
        "print('got', u.urlopen(os.environ['AWS_CONTAINER_CREDENTIALS_FULL_URI']).read().decode())"
    )
    bench.wait_for(
        start(bench, prerequisites, machine(X=step(prerequisites, f'python3 -c "{program}"', definition=definition)))
    )
    line = next(line for line in bench.messages(prerequisites.log_group) if line.startswith("got") and role in line)
    found = json.loads(line.removeprefix("got "))
    from bench_client import Credentials

    s3 = bench.client("s3", Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"]))
    with bench.enforced_policies():
        s3.get_object(Bucket="zenml-artifacts", Key="here/a")
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            s3.put_object(Bucket="zenml-artifacts", Key="here/a", Body=b"2")


def test_the_simulator_decides_as_the_enforcement_does(bench: Bench) -> None:
    role = bench.role(
        [
            allow("s3:GetObject", "arn:aws:s3:::b/*"),
            allow("iam:PassRole", "*", Condition={"StringEquals": {"iam:PassedToService": TASKS}}),
        ],
        TASKS,
    )
    iam = bench.client("iam")

    def decision(action: str, resource: str, **context: str) -> str:
        entries = [
            {"ContextKeyName": key.replace("_", ":"), "ContextKeyType": "string", "ContextKeyValues": [value]}
            for key, value in context.items()
        ]
        return iam.simulate_principal_policy(
            PolicySourceArn=role, ActionNames=[action], ResourceArns=[resource], ContextEntries=entries
        )["EvaluationResults"][0]["EvalDecision"]

    assert decision("s3:GetObject", "arn:aws:s3:::b/k") == "allowed"
    assert decision("s3:GetObject", "arn:aws:s3:::c/k") == "implicitDeny"
    assert decision("iam:PassRole", role, iam_PassedToService=TASKS) == "allowed"
    assert decision("iam:PassRole", role, iam_PassedToService=STATES) == "implicitDeny"
