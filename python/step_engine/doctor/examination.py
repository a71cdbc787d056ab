"""One examination of an account, from the caller's identity to the quotas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from step_engine.doctor import network, permissions, statements
from step_engine.doctor.account import Account, RefusedError
from step_engine.doctor.target import DEFAULT_LOG_GROUP, Finding, Target

FARGATE_VCPUS = "L-3032A538"
"""Code of the quota of vCPUs that on-demand Fargate tasks may have at a time."""


class Examination:
    """Looks at everything that a run needs, in the order in which a run would stumble."""

    def __init__(self, account: Account, target: Target) -> None:
        """Remembers what to look at; makes no call.

        Args:
            account: The session.
            target: The stack.
        """
        self._account, self._target = account, target
        self._template: dict[str, Any] = {}

    @classmethod
    def of(
        cls, target: Target, *, profile: str | None = None, credentials: dict[str, Any] | None = None
    ) -> Examination:
        """Opens a session for an examination.

        Args:
            target: The stack.
            profile: Profile of the shared AWS files.
            credentials: Credentials instead of AWS's own chain, see `Account`.

        Returns:
            The examination.
        """
        return cls(Account(target.region, profile, credentials), target)

    def findings(self) -> Iterator[Finding]:
        """Looks at one thing after the other.

        Yields:
            What is found; nothing more once the account is the wrong one.

        Raises:
            AwsError: AWS cannot be asked at all.
        """
        target = self._target
        identity = self._account.call("sts", "get_caller_identity")
        if identity["Account"] != target.account_id:
            yield Finding(
                "missing",
                f"The credentials belong to the account {identity['Account']}, the stack to {target.account_id}.",
            )
            return
        yield Finding("ok", f"The credentials are those of {identity['Arn']}.")
        for look in (
            self._cluster,
            self._definition,
            self._network,
            self._bucket,
            self._repository,
            self._logs,
            self._quota,
        ):
            yield from self._guarded(look)
        yield from self._guarded(self._roles)
        yield from self._guarded(lambda: self._client(identity["Arn"]))

    def _guarded(self, look: Callable[[], list[Finding]]) -> list[Finding]:
        try:
            return look()
        except RefusedError as error:
            return [self._blind(error)]

    def _blind(self, error: RefusedError) -> Finding:
        what = f"AWS refuses to tell ({error})"
        if not error.denied:
            return Finding("unknown", what)
        named = re.search(r"perform: ([a-z0-9-]+:[A-Za-z]+)", error.message)
        statement = {
            "Sid": "LookAround",
            "Effect": "Allow",
            "Action": [named[1] if named else error.operation],
            "Resource": ["*"],
        }
        return Finding("unknown", f"{what}; add to the client's policy:", json.dumps(statement, indent=2))

    def _cluster(self) -> list[Finding]:
        name = self._target.cluster
        found = self._account.call("ecs", "describe_clusters", clusters=[name])["clusters"]
        if found and found[0]["status"] == "ACTIVE":
            return [Finding("ok", f"The cluster {self._target.cluster_name} is active.")]
        fix = f"aws ecs create-cluster --cluster-name {self._target.cluster_name}"
        return [Finding("missing", f"There is no active cluster {name} in {self._target.region}.", fix)]

    def _definition(self) -> list[Finding]:
        name = self._target.task_definition
        try:
            answer = self._account.call("ecs", "describe_task_definition", taskDefinition=name)
        except RefusedError as error:
            if error.denied:
                raise
            fix = "aws ecs register-task-definition … (infra/aws/step-engine.yaml has one)"
            return [Finding("missing", f"There is no task definition {name}: {error.message}", fix)]
        found = self._template = answer["taskDefinition"]
        findings = []
        if self._target.fargate and found.get("networkMode") != "awsvpc":
            findings.append(
                Finding("missing", f"The task definition {name} must have the network mode awsvpc for Fargate.")
            )
        containers = found["containerDefinitions"]
        essential = [each["name"] for each in containers if each.get("essential", True)]
        wanted = self._target.container_name
        if wanted and wanted not in [each["name"] for each in containers]:
            findings.append(Finding("missing", f"The task definition {name} has no container {wanted}."))
        elif not wanted and len(essential) != 1:
            names = ", ".join(essential)
            findings.append(
                Finding(
                    "missing",
                    f"The task definition {name} has several essential containers ({names}); set container_name.",
                )
            )
        return findings or [Finding("ok", f"The task definition {name} can be a template.")]

    def _network(self) -> list[Finding]:
        return network.look(self._account, self._target)

    def _bucket(self) -> list[Finding]:
        target = self._target
        if not target.bucket:
            return [
                Finding(
                    "missing", "The stack has no artifact store in S3; tasks can keep their artifacts nowhere else."
                )
            ]
        try:
            answer = self._account.call("s3", "get_bucket_location", Bucket=target.bucket)
        except RefusedError as error:
            if error.denied:
                raise
            fix = f"aws s3 mb s3://{target.bucket} --region {target.region}"
            return [Finding("missing", f"There is no bucket {target.bucket}: {error.message}", fix)]
        # S3's oldest region has no name there, and Ireland's oldest buckets have another.
        region = {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}.get(
            answer.get("LocationConstraint"), answer.get("LocationConstraint")
        )
        if region != target.region:
            return [
                Finding(
                    "missing",
                    f"The bucket {target.bucket} is in {region}, the orchestrator in {target.region}: signals between "
                    "branches need one region. Use a bucket there, or `synchronization: barrier`.",
                )
            ]
        return [Finding("ok", f"The bucket {target.bucket} is there.")]

    def _repository(self) -> list[Finding]:
        target = self._target
        found = re.fullmatch(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?(/.*)?", target.registry)
        if found is None:
            return [
                Finding(
                    "unknown",
                    f"Whether ECS can pull from {target.registry or 'no registry'} cannot be seen: it is not ECR.",
                )
            ]
        try:
            self._account.call("ecr", "describe_repositories", registryId=found[1], repositoryNames=[target.repository])
        except RefusedError as error:
            if error.denied:
                raise
            fix = f"aws ecr create-repository --repository-name {target.repository} --region {target.region}"
            return [Finding("missing", f"There is no ECR repository {target.repository}.", fix)]
        return [Finding("ok", f"The ECR repository {target.repository} is there.")]

    def _log_configuration(self) -> dict[str, Any]:
        """That of the template's container that runs the step."""
        wanted = self._target.container_name
        for container in self._template.get("containerDefinitions", []):
            if container["name"] == wanted if wanted else container.get("essential", True):
                return container.get("logConfiguration") or {}
        return {}

    @property
    def _log_group(self) -> str | None:
        if self._target.log_group:
            return self._target.log_group
        if not self._template:
            return None
        configuration = self._log_configuration()
        if not configuration:
            return DEFAULT_LOG_GROUP
        is_cloudwatch = configuration.get("logDriver") == "awslogs"
        return (configuration.get("options") or {}).get("awslogs-group") if is_cloudwatch else None

    @property
    def _makes_log_group(self) -> bool:
        """Whether the first task is to make it: the stack's own is not made."""
        configuration = self._log_configuration()
        asked = (configuration.get("options") or {}).get("awslogs-create-group") == "true"
        return not self._target.log_group and (asked or not configuration)

    def _logs(self) -> list[Finding]:
        group = self._log_group
        if group is None and not self._template:
            return [Finding("unknown", "Where steps log cannot be seen without the task definition.")]
        if group is None:
            driver = self._log_configuration().get("logDriver")
            return [Finding("unknown", f"Steps log with {driver}, not into CloudWatch: nobody can follow them here.")]
        if self._makes_log_group:
            return [Finding("ok", f"The log group {group} is made by the first task.")]
        found = self._account.call("logs", "describe_log_groups", logGroupNamePrefix=group)["logGroups"]
        if any(each["logGroupName"] == group for each in found):
            return [Finding("ok", f"The log group {group} is there.")]
        fix = f"aws logs create-log-group --log-group-name {group} --region {self._target.region}"
        return [Finding("missing", f"There is no log group {group}, so no task would start.", fix)]

    def _quota(self) -> list[Finding]:
        if not self._target.fargate:
            return []
        answer = self._account.call(
            "service-quotas", "get_service_quota", ServiceCode="fargate", QuotaCode=FARGATE_VCPUS
        )
        allowed = answer["Quota"]["Value"]
        one = int(self._template.get("cpu") or 0) / 1024
        if one and allowed < one:
            fix = (
                "aws service-quotas request-service-quota-increase --service-code fargate "
                f"--quota-code {FARGATE_VCPUS} --desired-value 64"
            )
            return [
                Finding(
                    "missing", f"The account may use {allowed:g} vCPUs of Fargate at a time, a step needs {one:g}.", fix
                )
            ]
        many = f", about {int(allowed // one)} steps of the template's size" if one else ""
        return [Finding("ok", f"The account may use {allowed:g} vCPUs of Fargate at a time{many}.")]

    @property
    def _task_role(self) -> str | None:
        return self._target.task_role or self._template.get("taskRoleArn")

    def _who(self) -> tuple[tuple[str, ...], str, str]:
        target = self._target
        tasks = (target.execution_role, *((self._task_role,) if self._task_role else ()))
        machines = target.state_machine_role or target.execution_role
        return tasks, machines, target.scheduler_role or machines

    def _roles(self) -> list[Finding]:
        target, account = self._target, self._account
        tasks, machines, scheduler = self._who()
        roles = [
            (
                target.execution_role,
                "The execution role",
                statements.TASKS,
                statements.of_execution_role(target, self._log_group, makes_group=self._makes_log_group),
            ),
            (machines, "The state machines' role", statements.STATES, statements.of_state_machine_role(target, tasks)),
            (scheduler, "The scheduler's role", statements.SCHEDULER, statements.of_scheduler_role(target)),
        ]
        findings = []
        if self._task_role:
            roles.insert(
                1, (self._task_role, "The task role", statements.TASKS, statements.of_task_role(target, tasks))
            )
        elif self._template:
            fix = "Set task_role, or taskRoleArn in the task definition (infra/aws/step-engine.yaml has one)."
            findings.append(
                Finding("missing", "Tasks have no role, so they reach neither the bucket nor the run's secret.", fix)
            )
        else:
            findings.append(Finding("unknown", "Which role tasks have cannot be seen without the task definition."))
        for arn, who, service, needed in roles:
            wrong = permissions.trust(account, arn, who, service)
            findings += wrong
            if not any(finding.what.endswith("does not exist.") for finding in wrong):
                findings += permissions.judge(account, arn, who, needed)
        return findings

    def _client(self, caller: str) -> list[Finding]:
        principal = permissions.principal_of(self._account, caller)
        if principal is None:
            return [
                Finding("ok", "The client is the account's root user, who may do everything; better use another one.")
            ]
        tasks, machines, scheduler = self._who()
        needed = statements.of_client(self._target, tasks, machines, scheduler, self._log_group)
        return permissions.judge(self._account, principal, "The client", needed)
