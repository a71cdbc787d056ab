"""The CloudFormation template: valid, no wider than `doctor` asks for, and enough to run a pipeline."""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import subprocess
import uuid

import pytest
from account import PLAN, PREFIX, TEMPLATE, Account, become, compile_options, needed
from bench_client import ACCOUNT, ROOT, Bench
from step_engine import AwsRun, AwsSession, compile_asl

from orchestrator.my_aws_orchestrator_flavor import StepFunctionsOrchestratorConfig


def test_the_template_is_valid() -> None:
    tool = ROOT / os.environ.get("AWS_BENCH_VENV", ".venv-aws") / "bin/cfn-lint"
    checked = subprocess.run([str(tool), str(TEMPLATE)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("role", ["execution", "task", "states", "scheduler", "developer"])
def test_policies_are_what_doctor_asks_for(account: Account, role: str) -> None:
    found = {statement["Sid"]: statement for statement in account.policy(role)["Statement"]}
    # Reading what doctor looks at is no part of running.
    found.pop("LookAround", None)
    wanted = {statement.sid: statement.document() for statement in needed(account.target)[role]}
    assert found == wanted


def test_the_clients_policy_fits_into_one(account: Account) -> None:
    text = json.dumps(account.policy("developer"), separators=(",", ":"))
    assert len(text) < 6144


def test_outputs_are_commands_with_flags_that_exist(account: Account) -> None:
    words = shlex.split(account.outputs["RegisterOrchestrator"])
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    assert words[:5] == ["zenml", "orchestrator", "register", "step_functions_orchestrator", "-f"]
    for name in ("subnet_ids", "security_group_ids"):
        flags[name] = json.loads(flags[name])
    config = StepFunctionsOrchestratorConfig(**flags)
    assert tuple(config.subnet_ids) == account.target.subnet_ids
    assert config.state_machine_role == account.target.state_machine_role and config.assign_public_ip
    assert account.target.bucket in account.outputs["RegisterArtifactStore"]


def test_a_pipelines_own_policy_is_part_of_the_roles(account: Account) -> None:
    """What the compiler says that one pipeline needs, action by action and resource by resource."""
    definition = f"arn:aws:ecs:us-east-1:{ACCOUNT}:task-definition/{PREFIX}-step-se-0123456789ab:1"
    options = compile_options(account.target, definition)
    allowed = account.policy("states")["Statement"]
    seen = set()
    # Once with signals, once with machines inside others.
    for more in ({}, {"limits": {"events": 40}}):
        steps = (
            PLAN["steps"] if not more else [{"name": f"s{n}", "upstream": [f"s{n - 1}"] if n else []} for n in range(9)]
        )
        asked = compile_asl({**PLAN, "steps": steps}, {**options, **more})["report"]["policy"]["Statement"]
        for statement in asked:
            (same,) = [each for each in allowed if each["Sid"] == statement["Sid"]]
            seen.add(statement["Sid"])
            assert set(statement["Action"]) <= set(same["Action"])
            for resource in statement["Resource"]:
                assert any(fnmatch.fnmatchcase(resource, pattern) for pattern in same["Resource"]), resource
            assert statement.get("Condition") == same.get("Condition")
    # Tags are given to tasks on demand only.
    assert seen == {statement["Sid"] for statement in allowed} - {"TagTasks"}


def test_a_pipeline_runs_with_the_templates_roles(
    account: Account, bench: Bench, small_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The developer registers, deploys, starts and watches; ECS pulls, Step Functions runs: all held to their policies."""
    become(monkeypatch, bench, account.developer())
    target = account.target
    with bench.enforced_policies():
        session = AwsSession(region=target.region)
        name = f"zenml-step-engine/environment/KEY-{uuid.uuid4().hex[:8]}"
        key = session.put_secret("secretsmanager", name, "value", tags={"step-engine": "secret"}, overwrite=False)
        definition = session.ensure_task_definition(
            target.task_definition, {"image": small_image, "secrets": {"KEY": key}, "tags": {"team": "acme"}}
        )
        compiled = compile_asl(PLAN, compile_options(target, definition["arn"]))
        deployed = session.deploy(compiled["machines"], role_arn=str(target.state_machine_role))
        execution = session.start(deployed["arn"], name="run", input={"word": "hello"})
        run = AwsRun(session, execution, PLAN)
        run.start()
        lines = []
        while not run.finished:
            lines += [event for event in run.next_events(0.2) if event["kind"] == "log"]
        assert run.summary is not None and run.summary["status"] == "completed", bench.wait_for(execution).get("cause")
        again = session.ensure_task_definition(
            target.task_definition, {"image": small_image, "secrets": {"KEY": key}, "tags": {"team": "acme"}}
        )
        assert not again["created"]
        schedule = session.put_schedule(
            "acme",
            expression="rate(1 hour)",
            state_machine_arn=deployed["arn"],
            role_arn=str(target.scheduler_role),
            input={"word": "scheduled"},
        )
        assert schedule["created"] and session.set_schedule_enabled("acme", True)
        assert bench.wait_for(bench.fire("acme"))["status"] == "SUCCEEDED"
        assert session.delete_schedule("acme") and session.delete_secret("secretsmanager", name)
        assert session.collect_machines("n", keep=1, min_age_seconds=0) == []
        assert session.collect_task_definitions(target.task_definition, keep=1, min_age_seconds=0) == []
        session.stop(execution)
    words = bench.messages(f"/{PREFIX}/steps")
    assert words.count("hello") == 4 and words.count("scheduled") == 4
    assert len([line for line in lines if "hello" in json.dumps(line)]) == 4


def test_secrets_may_be_in_the_parameter_store(bench: Bench) -> None:
    formation = bench.client("cloudformation")
    changes = {
        "NamePrefix": "other",
        "RepositoryName": "other",
        "SecretsBackend": "ssm",
        "VpcId": "vpc-1",
        "SubnetIds": "subnet-1,subnet-2",
    }
    vpc = bench.client("ec2").create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    formation.create_stack(
        StackName="other",
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in (changes | {"VpcId": vpc}).items()
        ],
    )
    (stack,) = formation.describe_stacks(StackName="other")["Stacks"]
    command = next(each["OutputValue"] for each in stack["Outputs"] if each["OutputKey"] == "RegisterOrchestrator")
    assert '["subnet-1", "subnet-2"]' in command and "--secrets_backend=ssm" in command
    iam = bench.client("iam")
    document = iam.get_role_policy(RoleName="other-task", PolicyName="run-steps")["PolicyDocument"]
    statements = document["Statement"]
    (reading,) = [each for each in statements if each["Sid"] == "ReadRunSecret"]
    assert reading["Action"] == ["ssm:GetParameter"]
    assert not [each for each in statements if "ecs:RunTask" in each["Action"]], "nobody asked for it"
    formation.delete_stack(StackName="other")
