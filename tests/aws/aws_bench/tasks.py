"""An ECS task whose containers are Docker's: they move it on, not the number of DescribeTasks calls."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import docker.errors
import moto.ecs.models as ecs
from moto.core.utils import utcnow
from moto.ec2.models.elastic_network_interfaces import NetworkInterface

from aws_bench.containers import ENGINE, LABEL, LaunchError, TaskContainer
from aws_bench.settings import SETTINGS

PROVISIONING_SECONDS = 0.2
DEPROVISIONING_SECONDS = 0.2


class DockerTask(ecs.Task):
    """Replaces `moto.ecs.models.Task`."""

    # Moto's metaclass files instances under their module.
    __module__ = "moto.ecs.models"

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._phase = "PROVISIONING"
        definition, overrides = given["task_definition"], self.overrides
        by_name = {override["name"]: override for override in overrides.get("containerOverrides", [])}
        unknown = set(by_name) - {container["name"] for container in definition.container_definitions}
        if unknown:
            raise ecs.InvalidParameterException(
                f"Override for container named {min(unknown)} is not a container in the TaskDefinition."
            )
        self.account, self.volumes = given["backend"].account_id, definition.volumes
        self.cpu = str(overrides.get("cpu") or definition.cpu or "")
        self.memory = str(overrides.get("memory") or definition.memory or "")
        self.role = overrides.get("taskRoleArn") or getattr(definition, "task_role_arn", None)
        execution_role = overrides.get("executionRoleArn") or getattr(definition, "execution_role_arn", None)
        self.execution_role = execution_role or f"arn:aws:iam::{self.account}:role/none"
        self.created_at, self.version, self.enable_execute_command = utcnow(), 1, False
        self.attributes = [{"name": "ecs.cpu-architecture", "value": "x86_64"}]
        self.platform_family, self.stop_code, self.stopped_reason = "Linux", None, None
        self.connectivity = "CONNECTED"
        self.containers = [
            TaskContainer(self, container, by_name.get(container["name"], {}))
            for container in definition.container_definitions
        ]
        self._over, self._judging = threading.Event(), threading.Lock()
        threading.Thread(target=self._live, daemon=True).start()

    @property
    def status(self) -> str:
        """Where the task is in its life."""
        return self._phase

    @status.setter
    def status(self, _: str) -> None:
        """Moto's own idea of a status does not count."""

    def advance(self) -> None:
        """Moto calls this for each DescribeTasks; the containers move the task on."""

    def stop(self, code: str, reason: str) -> None:
        """Ends the task.

        Args:
            code: Its `stopCode`; only the first counts.
            reason: Its `stoppedReason`.
        """
        self._judge(code, reason)
        self._over.set()

    def _judge(self, code: str, reason: str) -> None:
        with self._judging:
            if self.stop_code is None:
                self.stop_code, self.stopped_reason = code, reason
                self.desired_status, self.stopping_at = "STOPPED", utcnow()
                self.version += 1

    def _live(self) -> None:
        time.sleep(PROVISIONING_SECONDS)
        try:
            self._start()
        except LaunchError as error:
            self.stop("TaskFailedToStart", str(error))
        except Exception as error:  # A task that cannot start has to end, whatever the reason.
            self.stop("TaskFailedToStart", f"InternalError: {error!r}")
        waiting = [threading.Thread(target=self._await, args=(c,), daemon=True) for c in self.containers if c.started]
        for thread in waiting:
            thread.start()
        self._over.wait()
        stopping = [threading.Thread(target=c.stop, daemon=True) for c in self.containers if c.started]
        for thread in stopping:
            thread.start()
        for thread in (*stopping, *waiting):
            thread.join()
        self.execution_stopped_at = utcnow()
        self._phase = "DEPROVISIONING"
        time.sleep(DEPROVISIONING_SECONDS)
        for container in self.containers:
            container.remove()
        for volume in self.volumes:
            self._remove_volume(volume["name"])
        self.stopped_at, self._phase = utcnow(), "STOPPED"
        self.version += 1

    def _start(self) -> None:
        self._phase, self.pull_started_at = "PENDING", utcnow()
        for container in self.containers:
            container.create()
        self.pull_stopped_at = utcnow()
        for container in self.containers:
            if self._over.is_set():
                return
            container.start()
        self._phase, self.started_at = "RUNNING", utcnow()
        self.version += 1

    def _await(self, container: TaskContainer) -> None:
        container.wait()
        if container.essential:
            self.stop("EssentialContainerExited", "Essential container in task exited")
        elif all(other.last_status == "STOPPED" for other in self.containers):
            self.stop("EssentialContainerExited", "All containers in task exited")

    def _remove_volume(self, name: str) -> None:
        try:
            ENGINE.volumes.get(f"aws-bench-{self.id}-{name}").remove(force=True)
        except docker.errors.APIError:
            return


def remove_all() -> None:
    """Removes every container of this server, and those of servers that were killed."""
    for container in ENGINE.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        port = int(container.labels[LABEL])
        if port != SETTINGS.port and _answers(port):
            continue
        try:
            container.remove(force=True, v=True)
        except docker.errors.APIError:
            continue


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


ecs.Task = DockerTask
# Missing where the VPC gives no host names, and asked for all the same.
NetworkInterface.private_dns_name = ""
