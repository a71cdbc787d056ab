"""One container of a task: how Docker starts it, what it sees, where its log goes."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import threading
import uuid
from typing import TYPE_CHECKING, Any

import docker.errors
from botocore.exceptions import ClientError

import docker
from aws_bench.clients import client
from aws_bench.settings import SETTINGS

if TYPE_CHECKING:
    from aws_bench.tasks import DockerTask

LABEL = "aws-bench.port"
ENGINE = docker.from_env(timeout=180)
ECR_HOST = re.compile(r"^(\d+)\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com$")
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"


class LaunchError(Exception):
    """A container cannot be started; the text is the task's `stoppedReason`."""


class TaskContainer:
    """A container in the shape that DescribeTasks wants, and the one of Docker behind it."""

    def __init__(self, task: DockerTask, definition: dict[str, Any], override: dict[str, Any]) -> None:
        self.task, self.definition, self.override = task, definition, override
        self.name, self.image = definition["name"], definition["image"]
        self.cpu = str(override.get("cpu", definition.get("cpu", 0)))
        memory = override.get("memory", definition.get("memory"))
        self.memory = str(memory) if memory else None
        self.essential = definition.get("essential", True)
        self.container_arn = f"{task.task_arn.replace(':task/', ':container/')}/{uuid.uuid4()}"
        self.task_arn, self.last_status, self.health_status = task.task_arn, "PENDING", "UNKNOWN"
        self.exit_code: int | None = None
        self.reason: str | None = None
        self.runtime_id: str | None = None
        self.image_digest: str | None = None
        self.network_interfaces: list[Any] = []
        self.network_bindings: list[Any] = []
        self.managed_agents: list[Any] = []
        self.gpu_ids: list[str] = []
        self._docker: Any = None
        self._logs: tuple[Any, str, str] | None = None
        self._forwarder: threading.Thread | None = None

    def create(self) -> None:
        """Makes the container ready to start.

        Raises:
            LaunchError: The log, a secret or the image is out of reach, or the engine refuses.
        """
        self._open_log()
        environment = self._environment()
        memory_mebibytes = self.memory or self.task.memory
        # Host networking gives a task the server at 127.0.0.1, as it would have AWS's endpoints.
        limits: dict[str, Any] = {"cpu_shares": max(int(self.task.cpu or 1024), 2)}
        if SETTINGS.limit_cpus and self.task.cpu:
            limits = {"nano_cpus": int(min(int(self.task.cpu) / 1024, ENGINE.info()["NCPU"]) * 1e9)}
        if memory_mebibytes:
            limits |= {"mem_limit": f"{memory_mebibytes}m", "memswap_limit": f"{memory_mebibytes}m"}
        try:
            self._docker = ENGINE.containers.create(
                self._pull(),
                self.override.get("command") or self.definition.get("command"),
                entrypoint=self.definition.get("entryPoint"),
                environment=environment,
                network_mode=SETTINGS.network,
                user=self.definition.get("user"),
                working_dir=self.definition.get("workingDirectory"),
                read_only=self.definition.get("readonlyRootFilesystem", False),
                init=(self.definition.get("linuxParameters") or {}).get("initProcessEnabled", False),
                volumes=self._volumes(),
                labels={LABEL: str(SETTINGS.port), "aws-bench.task": self.task_arn},
                **limits,
            )
        except docker.errors.APIError as error:
            raise LaunchError(f"CannotCreateContainerError: {error.explanation}") from error
        self.runtime_id = self._docker.id
        self.image_digest = ENGINE.images.get(self._docker.image.id).id

    def start(self) -> None:
        """Starts it and forwards its log.

        Raises:
            LaunchError: The engine refuses.
        """
        try:
            self._docker.start()
        except docker.errors.APIError as error:
            raise LaunchError(f"CannotStartContainerError: {error.explanation}") from error
        self.last_status = "RUNNING"
        self._forwarder = threading.Thread(target=self._forward, daemon=True)
        self._forwarder.start()

    def wait(self) -> None:
        """Waits for its end and for its log."""
        try:
            self.exit_code = self._docker.wait(timeout=86400)["StatusCode"]
            self._docker.reload()
            if self._docker.attrs["State"]["OOMKilled"]:
                self.reason = OUT_OF_MEMORY
        except docker.errors.APIError:
            # Somebody removed the container: nothing tells how it ended.
            self.reason = "DockerStateError: The container is gone"
        if self._forwarder is not None:
            self._forwarder.join(timeout=30)
        self.last_status = "STOPPED"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after the definition's `stopTimeout`."""
        timeout = self.definition.get("stopTimeout", SETTINGS.stop_timeout_seconds)
        if self.last_status == "RUNNING":
            with contextlib.suppress(docker.errors.APIError):
                self._docker.stop(timeout=timeout)

    def remove(self) -> None:
        """Removes it; one that never ran ends here."""
        self.last_status = "STOPPED"
        if self._docker is not None:
            with contextlib.suppress(docker.errors.APIError):
                self._docker.remove(force=True, v=True)

    @property
    def started(self) -> bool:
        """Whether it ever ran."""
        return self._forwarder is not None

    def _open_log(self) -> None:
        configuration = self.definition.get("logConfiguration") or {}
        options = configuration.get("options") or {}
        if configuration.get("logDriver") != "awslogs" or "awslogs-group" not in options:
            return
        group = options["awslogs-group"]
        stream = f"{options.get('awslogs-stream-prefix', 'ecs')}/{self.name}/{self.task.id}"
        logs = client(
            "logs", options.get("awslogs-region", self.task.region_name), self.task.execution_role, "ecs-agent"
        )
        try:
            if options.get("awslogs-create-group") == "true":
                with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
                    logs.create_log_group(logGroupName=group)
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        except ClientError as error:
            raise LaunchError(
                f"ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: "
                f"failed to create Cloudwatch log stream: {error.response['Error']['Code']}: {error.response['Error']['Message']}"
            ) from error
        self._logs = (logs, group, stream)

    def _environment(self) -> dict[str, str]:
        region = self.task.region_name
        base = f"{SETTINGS.endpoint}/bench/tasks/{self.task.id}"
        # On instances most agents give neither (https://github.com/aws/amazon-ecs-agent/issues/3106).
        fargate = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region, "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}
        ec2 = {"AWS_EXECUTION_ENV": "AWS_ECS_EC2"}
        environment = {
            **(ec2 if self.task.launch_type in ("EC2", "EXTERNAL") else fargate),
            "AWS_ENDPOINT_URL": SETTINGS.endpoint,
            "ECS_CONTAINER_METADATA_URI_V4": f"{base}/metadata",
        }
        if self.task.role:
            # As on ECS, the role's credentials are fetched, not given; ECS names an address that Docker has no host for.
            environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{base}/credentials"
        for variable in (*self.definition.get("environment", []), *self.override.get("environment", [])):
            environment[variable["name"]] = variable["value"]
        for secret in self.definition.get("secrets", []):
            environment[secret["name"]] = self._secret(secret["valueFrom"])
        return environment

    def _secret(self, source: str) -> str:
        region, role = self.task.region_name, self.task.execution_role
        try:
            if ":secretsmanager:" in source:
                parts = source.split(":")
                options = dict(zip(("key", "stage", "version"), parts[7:], strict=False))
                wanted = {"SecretId": ":".join(parts[:7])}
                if options.get("stage"):
                    wanted["VersionStage"] = options["stage"]
                if options.get("version"):
                    wanted["VersionId"] = options["version"]
                text = client("secretsmanager", region, role, "ecs-agent").get_secret_value(**wanted)["SecretString"]
                return str(json.loads(text)[options["key"]]) if options.get("key") else text
            name = source.partition(":parameter")[2] if source.startswith("arn:") else source
            ssm = client("ssm", region, role, "ecs-agent")
            found = ssm.get_parameters(Names=[name], WithDecryption=True)["Parameters"]
            if not found:
                raise LaunchError(
                    f"ResourceInitializationError: unable to pull secrets or registry auth: invalid parameters: {source}"
                )
            return found[0]["Value"]
        except (ClientError, KeyError) as error:
            raise LaunchError(
                "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval "
                f"failed: failed to fetch secret {source}: {error}"
            ) from error

    def _pull(self) -> str:
        host, slash, rest = self.image.partition("/")
        ecr = ECR_HOST.match(host)
        if ecr or (SETTINGS.registry and host == SETTINGS.registry):
            self._authorise(rest)
        image = f"{SETTINGS.registry}/{rest}" if ecr and SETTINGS.registry else self.image
        if not slash or not (ecr or "." in host or ":" in host):
            try:
                ENGINE.images.get(image)
            except docker.errors.ImageNotFound as error:
                raise LaunchError(
                    f"CannotPullContainerError: pull access denied for {self.image}: not found"
                ) from error
            return image
        try:
            ENGINE.images.pull(image) if "@" in image or ":" in rest else ENGINE.images.pull(image, tag="latest")
        except docker.errors.APIError as error:
            raise LaunchError(
                f"CannotPullContainerError: failed to resolve ref {self.image}: {error.explanation}"
            ) from error
        return image

    def _authorise(self, repository: str) -> None:
        from aws_bench.policies import refusal

        region, account, role = self.task.region_name, self.task.account, self.task.execution_role
        name = repository.partition("@")[0].rpartition(":")[0] or repository.partition("@")[0]
        resource = f"arn:aws:ecr:{region}:{account}:repository/{name}"
        for action, on in (
            ("ecr:GetAuthorizationToken", "*"),
            ("ecr:BatchGetImage", resource),
            ("ecr:GetDownloadUrlForLayer", resource),
        ):
            denied = refusal(role, action, on)
            if denied:
                raise LaunchError(f"CannotPullContainerError: {denied}")

    def _volumes(self) -> dict[str, dict[str, str]]:
        hosts = {volume["name"]: (volume.get("host") or {}).get("sourcePath") for volume in self.task.volumes}
        volumes = {}
        for mount in self.definition.get("mountPoints", []):
            source = hosts.get(mount["sourceVolume"]) or f"aws-bench-{self.task.id}-{mount['sourceVolume']}"
            volumes[source] = {"bind": mount["containerPath"], "mode": "ro" if mount.get("readOnly") else "rw"}
        return volumes

    def _forward(self) -> None:
        """Sends the log's lines to CloudWatch; a line is sent once it is whole."""
        rest = b""
        with contextlib.suppress(docker.errors.APIError):
            for chunk in self._docker.logs(stream=True, follow=True, timestamps=True):
                *lines, rest = (rest + chunk).split(b"\n")
                self._put(lines)
            self._put([rest] if rest else [])

    def _put(self, lines: list[bytes]) -> None:
        if self._logs is None or not lines:
            return
        logs, group, stream = self._logs
        events = []
        for line in lines:
            stamp, _, message = line.decode(errors="replace").rstrip("\r").partition(" ")
            # CloudWatch takes no empty message, and neither does the real driver send one.
            if message:
                events.append({"timestamp": _milliseconds(stamp), "message": message})
        if events:
            # Docker's stdout and stderr may interleave out of order; CloudWatch refuses that.
            events.sort(key=lambda event: event["timestamp"])
            logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def _milliseconds(stamp: str) -> int:
    moment = datetime.datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*Z$", r"\1+00:00", stamp).replace("Z", "+00:00"))
    return int(moment.timestamp() * 1000)
