"""`step-engine doctor`: finds nothing in a good account, and names what is missing in others."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from account import REGISTRY, ROLES, Account, become, needed, target_of
from bench_client import ACCOUNT, HERE, Bench, Credentials
from step_engine.cli import main
from step_engine.doctor import Examination, Finding, Target
from step_engine.doctor.account import Account as Session
from step_engine.errors import AwsError

OPTIONAL = [("task", sid) for sid in ("RunIsolatedSteps", "FollowIsolatedSteps", "PassTaskRoles")]
OPTIONAL.append(("developer", "FindTasks"))
STATEMENTS = [(role, statement.sid) for role, found in needed(target_of()).items() for statement in found]


def wrong(target: Target, session: Session | None = None) -> list[Finding]:
    """What is found that is not right."""
    examination = Examination(session or Session(target.region), target)
    return [finding for finding in examination.findings() if finding.status != "ok"]


@pytest.fixture(scope="module")
def developer(account: Account) -> tuple[Credentials, Session]:
    """One developer, and a session that keeps its clients: making them takes longer than all calls."""
    who = account.developer()
    return who, Session(
        account.target.region, None, {"access_key_id": who.access_key, "secret_access_key": who.secret_key}
    )


def flags(target: Target) -> list[str]:
    """A target as flags of the command."""
    given = []
    for field in dataclasses.fields(Target):
        value = getattr(target, field.name)
        if field.name == "fargate" or value in (None, "", ()):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if value is True:
            given.append(flag)
        elif value is not False:
            given += [flag, ",".join(value) if isinstance(value, tuple) else value]
    return given


def test_nothing_is_missing_after_the_template(as_developer: Account, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *flags(as_developer.target)]) == 0
    printed = capsys.readouterr().out
    assert "MISSING" not in printed and "?  " not in printed
    assert printed.rstrip().endswith("Nothing is missing.")
    for part in (
        "cluster",
        "subnet",
        "security groups",
        "bucket",
        "repository",
        "log group",
        "vCPUs",
        "scheduler's role",
    ):
        assert part in printed


@pytest.mark.parametrize(("role", "sid"), STATEMENTS, ids=[f"{role}-{sid}" for role, sid in STATEMENTS])
def test_any_statement_that_is_missing_is_named(
    account: Account,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    developer: tuple[Credentials, Session],
    role: str,
    sid: str,
) -> None:
    who, session = (account.developer(without=sid), None) if role == "developer" else developer
    become(monkeypatch, bench, who)
    whole = account.policy(role)
    (taken,) = [each for each in whole["Statement"] if each["Sid"] == sid]
    if role in ROLES:
        left = [each for each in whole["Statement"] if each["Sid"] != sid]
        account.put_policy(role, whole | {"Statement": left or [taken | {"Resource": "arn:aws:s3:::nothing"}]})
    try:
        with bench.enforced_policies():
            found = wrong(account.target, session)
    finally:
        if role in ROLES:
            account.put_policy(role, whole)
    named = [finding for finding in found if f"(statement {sid})" in finding.what]
    # Not everybody has dynamic pipelines.
    optional = (role, sid) in OPTIONAL
    assert len(named) == 1 and named[0].status == ("optional" if optional else "missing")
    # What mends it is exactly what was taken away.
    assert json.loads(named[0].fix) == taken
    # Nothing else is called missing, though the client may see less.
    assert [finding for finding in found if finding.status in ("missing", "optional")] == named


def test_who_names_no_log_group_needs_the_right_to_make_one(
    account: Account, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps then log into a group of ours, which the first task makes."""
    ecs = bench.client("ecs")
    template = ecs.describe_task_definition(taskDefinition=account.target.task_definition)["taskDefinition"]
    kept = ("networkMode", "requiresCompatibilities", "cpu", "memory", "executionRoleArn", "taskRoleArn")
    containers = [dict(each) for each in template["containerDefinitions"]]
    for container in containers:
        container.pop("logConfiguration", None)
    given = {name: template[name] for name in kept}
    ecs.register_task_definition(family="acme-silent", containerDefinitions=containers, **given)
    become(monkeypatch, bench, account.developer())
    with bench.enforced_policies():
        found = wrong(dataclasses.replace(account.target, task_definition="acme-silent"))
    (finding,) = [each for each in found if "(statement MakeLogGroup)" in each.what]
    assert finding.status == "missing" and json.loads(finding.fix)["Action"] == ["logs:CreateLogGroup"]
    assert any("/zenml/step-engine" in each.fix for each in found if "(statement WriteLogs)" in each.what)


def test_a_mended_policy_is_right_again(account: Account, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, bench, account.developer())
    whole = account.policy("states")
    account.put_policy("states", whole | {"Statement": whole["Statement"][1:]})
    try:
        with bench.enforced_policies():
            (found,) = wrong(account.target)
            account.put_policy("states", whole | {"Statement": [*whole["Statement"][1:], json.loads(found.fix)]})
            assert wrong(account.target) == []
    finally:
        account.put_policy("states", whole)


def test_without_the_simulator_roles_are_unknown_and_not_missing(
    account: Account, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become(monkeypatch, bench, account.developer(without="LookAround"))
    with bench.enforced_policies():
        assert main(["doctor", "--quiet", *flags(account.target)]) == 0
    printed = capsys.readouterr().out
    for action in (
        "iam:SimulatePrincipalPolicy",
        "ec2:DescribeSubnets",
        "ecs:DescribeClusters",
        "logs:DescribeLogGroups",
    ):
        assert action in printed
    assert "MISSING" not in printed and "0 missing" in printed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"account_id": "999999999999"}, f"belong to the account {ACCOUNT}"),
        ({"cluster": "none"}, "no active cluster none"),
        ({"task_definition": "none"}, "no task definition none"),
        ({"container_name": "none"}, "has no container none"),
        ({"subnet_ids": ("subnet-00000000",)}, "subnets are not there"),
        ({"security_group_ids": ("sg-00000000",)}, "security groups are not there"),
        ({"assign_public_ip": False}, "tasks get no public address"),
        ({"bucket": "there-is-no-such-bucket"}, "no bucket there-is-no-such-bucket"),
        ({"bucket": ""}, "no artifact store in S3"),
        ({"repository": "none"}, "no ECR repository none"),
        ({"log_group": "/none"}, "no log group /none"),
        (
            {"execution_role": f"arn:aws:iam::{ACCOUNT}:role/none"},
            "The execution role arn:aws:iam::123456789012:role/none does not exist",
        ),
        ({"state_machine_role": f"arn:aws:iam::{ACCOUNT}:role/acme-task"}, "states.amazonaws.com may not take"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_there_is_named(
    account: Account, bench: Bench, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], words: str
) -> None:
    become(monkeypatch, bench, account.developer())
    found = wrong(dataclasses.replace(account.target, **change))
    assert any(words in finding.what and finding.status == "missing" for finding in found), found


def test_a_subnet_without_a_way_out_needs_endpoints(
    account: Account, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, bench, account.developer())
    ec2 = bench.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.88.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.88.1.0/24")["Subnet"]["SubnetId"]
    shut = ec2.create_security_group(GroupName="shut", Description="shut", VpcId=vpc)["GroupId"]
    ec2.revoke_security_group_egress(
        GroupId=shut, IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )
    inside = dataclasses.replace(account.target, subnet_ids=(subnet,), security_group_ids=(shut,))
    found = [finding.what for finding in wrong(inside)]
    assert any("no route to the registry" in what and "ecr.dkr" in what for what in found), found
    assert any("let no HTTPS out" in what for what in found), found
    for service in ("ecr.api", "ecr.dkr", "logs", "secretsmanager", "s3"):
        ec2.create_vpc_endpoint(VpcId=vpc, ServiceName=f"com.amazonaws.us-east-1.{service}")
    assert not any("no route" in finding.what for finding in wrong(inside))
    mixed = dataclasses.replace(inside, subnet_ids=(subnet, *account.target.subnet_ids))
    assert any("in different VPCs" in finding.what for finding in wrong(mixed))


def test_the_flags_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--region", "us-east-1"]) == 1
    assert "--cluster" in capsys.readouterr().err
    assert main(["doctor", "--stack", "x", "--region", "us-east-1"]) == 1
    assert "not both" in capsys.readouterr().err


def test_json_has_every_finding(as_developer: Account, capsys: pytest.CaptureFixture[str]) -> None:
    target = dataclasses.replace(as_developer.target, cluster="none")
    assert main(["doctor", "--json", *flags(target)]) == 1
    found = json.loads(capsys.readouterr().out)
    # Of the statements for isolated steps, too, which name the cluster.
    assert {finding["status"] for finding in found} == {"ok", "missing", "optional"}


def test_a_stack_of_zenml_is_examined(as_developer: Account, tmp_path: Path) -> None:
    """With the values that the template's outputs give to ZenML's commands."""
    words = shlex.split(as_developer.outputs["RegisterOrchestrator"])
    config = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    for name in ("subnet_ids", "security_group_ids"):
        config[name] = json.loads(config[name])
    given = {"orchestrator": config, "path": f"s3://{as_developer.target.bucket}/here", "uri": REGISTRY}
    environment = os.environ | {
        "ZENML_CONFIG_PATH": str(tmp_path),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_ENABLE_REPO_INIT_WARNINGS": "false",
        "ZENML_LOGGING_VERBOSITY": "ERROR",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "project/register_and_examine.py")],
        input=json.dumps(given),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "Nothing is missing." in done.stdout, done.stdout + done.stderr
    assert "There is no stack `none`" in done.stderr
    assert "The stack `default` runs pipelines elsewhere" in done.stderr


def test_without_boto3_or_credentials_it_says_so(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/none",
        "AWS_CONFIG_FILE": f"{tmp_path}/none",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AwsError, match="Unable to locate credentials"):
        wrong(account.target)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(AwsError, match="needs boto3"):
        wrong(account.target)


def test_an_answer_that_is_not_awss_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            page = b"<!doctype html><title>Sign in</title>"
            self.send_response(500)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_IAM", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        session = Session("us-east-1", None, {"access_key_id": "AKIA", "secret_access_key": "secret"})
        with pytest.raises(AwsError, match=r"AWS cannot be asked .iam:get_role.: the answer is none of AWS's") as told:
            session.call("iam", "get_role", RoleName="a")
        proxy.shutdown()
    assert "secret" not in str(told.value)
