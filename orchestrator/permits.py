"""What the steps of a dynamic run may have: nothing that was not said before the run began.

Steps of a dynamic pipeline are described by the pipeline's own process, in a container. What gives a container more
than its image and its run have (mounts, privileges, networks, users, images) must therefore have been said before that
process began: in the settings of the pipeline, of a step that its `depends_on` names, or of the stack component. What
restricts all of these, such as `network: none` or `cap_drop`, restricts every step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.control import RefusedError
from orchestrator.plan import LEADER

if TYPE_CHECKING:
    from zenml.models import PipelineSnapshotResponse

    from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings

_SINGLE = ("network", "user", "platform", "shm_size", "pull_policy")
_RESTRICTING = ("network", "user")
_RESTRICTING_ARGS = {"cap_drop", "network_disabled", "pids_limit", "read_only", "security_opt", "userns_mode"}
_LISTS = ("volumes",)
_MAPS = ("run_args", "extra_hosts")

_HOW = (
    "Give it to the pipeline or the stack component, or list a step that has it in the pipeline's `depends_on`: what a "
    "step may have beyond its image must be known before the run begins."
)


class Permits:
    """Settings and images that were said before the run began.

    Args:
        settings: Of the pipeline, and of each step in its `depends_on`.
        images: References of images.
    """

    def __init__(self, settings: Iterable[LocalDockerOrchestratorSettings], images: Iterable[str]) -> None:
        """Remembers them."""
        self._settings = list(settings)
        self.images = set(images)

    def digest(self) -> str:
        """Shortens them, to tell whether they are still the same.

        Returns:
            SHA-256, in hexadecimal digits.
        """
        settings = sorted({json.dumps(_given(known), sort_keys=True) for known in self._settings})
        return hashlib.sha256(json.dumps([settings, sorted(self.images)]).encode()).hexdigest()

    def check(self, step: str, settings: LocalDockerOrchestratorSettings, image: str) -> None:
        """Refuses a container that was given more than it may have.

        Args:
            step: Step name.
            settings: The step's settings.
            image: Reference of its image.

        Raises:
            RefusedError: Names the field. Never its value, which may be a secret.
        """
        if image not in self.images:
            raise RefusedError(f"step {step!a} asks for an image that is not the run's. {_HOW}")
        for field in _SINGLE:
            value = getattr(settings, field)
            if value is not None and not any(getattr(known, field) == value for known in self._settings):
                self._refuse(step, field)
        self._check_restrictions(step, settings)
        if not settings.enforce_limits and all(known.enforce_limits for known in self._settings):
            self._refuse(step, "enforce_limits")
        for field in _LISTS:
            for value in getattr(settings, field):
                if not any(value in getattr(known, field) for known in self._settings):
                    self._refuse(step, field)
        for field in _MAPS:
            for name, value in getattr(settings, field).items():
                if not any(_has(getattr(known, field), name, value) for known in self._settings):
                    self._refuse(step, f"{field}.{ascii(name)[1:-1][:40]}")

    def _check_restrictions(self, step: str, settings: LocalDockerOrchestratorSettings) -> None:
        """What everything that was said has may restrict it."""
        left_out = [
            field
            for field in _RESTRICTING
            if getattr(settings, field) is None and all(getattr(known, field) is not None for known in self._settings)
        ]
        common = _RESTRICTING_ARGS.intersection(*(known.run_args for known in self._settings))
        left_out += [f"run_args.{name}" for name in sorted(common - set(settings.run_args))]
        if left_out:
            raise RefusedError(
                f"step {step!a} leaves out `{left_out[0]}`, which the pipeline and its steps have. Give it to the "
                "step, or list a step that does without it in the pipeline's `depends_on`."
            )

    @staticmethod
    def _refuse(step: str, field: str) -> None:
        raise RefusedError(f"step {step!a} asks for `{field}` that was not said before the run began. {_HOW}")


def digest_by_step(settings: Mapping[str, LocalDockerOrchestratorSettings]) -> str:
    """Shortens what the steps of a static run may have, to tell whether each still has the same.

    Args:
        settings: Settings by step name.

    Returns:
        SHA-256, in hexadecimal digits.
    """
    # Images are those of the beginning, whatever the policy.
    given = {name: _given(each.model_copy(update={"pull_policy": None})) for name, each in settings.items()}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _given(settings: LocalDockerOrchestratorSettings) -> dict[str, Any]:
    """What settings give to a container beyond its image and its run."""
    dump = settings.model_dump(mode="json", include={*_SINGLE, *_LISTS, *_MAPS})
    given = {field: value for field, value in dump.items() if value}
    return given if settings.enforce_limits else {**given, "enforce_limits": False}


def _has(known: Mapping[str, Any], name: str, value: object) -> bool:
    return name in known and known[name] == value


def permitted_images(
    snapshot: PipelineSnapshotResponse, settings: Iterable[LocalDockerOrchestratorSettings]
) -> set[str]:
    """The images of a run: those that were built for it, and those that its settings name.

    Args:
        snapshot: The snapshot as it was before the run began.
        settings: Settings of the pipeline and of the steps in its `depends_on`.

    Returns:
        References.
    """
    images = {item.image for item in snapshot.build.images.values()} if snapshot.build else set()
    images |= {known.run_args["image"] for known in settings if "image" in known.run_args}
    docker = [snapshot.pipeline_configuration.docker_settings]
    docker += [step.config.docker_settings for step in snapshot.step_configurations.values()]
    images |= {given.parent_image for given in docker if given.skip_build and given.parent_image}
    return images


def image_of(snapshot: PipelineSnapshotResponse, config: Any, settings: LocalDockerOrchestratorSettings) -> str:
    """Reference of the image that an isolated step runs in, as ZenML has it (`StepRunInfo.get_image`).

    Args:
        snapshot: The snapshot as it was before the run began.
        config: The step's configuration.
        settings: The step's settings.

    Returns:
        The reference.

    Raises:
        RefusedError: There is none.
    """
    if "image" in settings.run_args:
        return str(settings.run_args["image"])
    docker = config.docker_settings
    if docker.skip_build and docker.parent_image:
        return docker.parent_image
    try:
        if snapshot.build is not None:
            return snapshot.build.get_image(component_key="orchestrator", step=config.template)
    except KeyError:
        pass
    raise RefusedError("the run has no image for the step; was its build deleted?")


def plan_name(invocation_id: str, child: str | None, taken: Mapping[str, object]) -> str:
    """Name of a step in the plan: that of its run's, told apart from those of other runs below the same root.

    Args:
        invocation_id: The step's name in its run.
        child: Name of the child run; none for the run itself.
        taken: Names that others have.

    Returns:
        A name that nobody has.
    """
    name = base = f"{child}/{invocation_id}" if child else invocation_id
    number = 1
    while name in taken or name == LEADER:
        number += 1
        name = f"{base}-{number}"
    return name
