"""Images that were pinned for a run, so that a concurrent build of the same tag cannot swap them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from zenml.logger import get_logger

if TYPE_CHECKING:
    from step_engine import DockerEngine

    from orchestrator.my_docker_orchestrator_flavor import LocalDockerOrchestratorSettings

logger = get_logger(__name__)


class Pins:
    """Ids of the images of one run.

    Args:
        engine: The engine.
        known: Ids that are known already, by reference.
        resumed: Whether they are those of the run under an earlier owner. Then they count whatever the settings say.

    Attributes:
        known: Those and what was found since.
    """

    def __init__(self, engine: DockerEngine, known: Mapping[str, str] | None = None, *, resumed: bool = False) -> None:
        """Remembers what is known."""
        self._engine = engine
        self._resumed = resumed
        self.known = dict(known or {})
        self._pinned: dict[tuple[str, str, str | None], str] = {}

    def pin(self, reference: str, settings: LocalDockerOrchestratorSettings) -> str:
        """Pins an image; pulls it if its settings want that.

        Args:
            reference: Image name or id.
            settings: Settings of the step that runs in it.

        Returns:
            The image's id.

        Raises:
            DockerError: It is not there and must not or cannot be pulled.
        """
        key = (reference, settings.pull_policy, settings.platform)
        name = f"{reference} on {settings.platform}" if settings.platform else reference
        if name in self.known and (self._resumed or settings.pull_policy != "always"):
            return self.known[name]
        if key not in self._pinned:
            self._pinned[key] = self._engine.image_id(
                reference, pull_policy=settings.pull_policy, platform=settings.platform, progress=logger.info
            )
            self.known[name] = self._pinned[key]
        return self._pinned[key]

    def look(self, references: Iterable[str]) -> None:
        """Pins those of the images that the engine has already.

        Args:
            references: Image names or ids.
        """
        from step_engine.errors import DockerError

        for reference in references:
            if reference not in self.known:
                try:
                    self.known[reference] = self._engine.image_id(reference, pull_policy="never")
                except DockerError as error:
                    logger.debug("%s is not pinned yet: %s", reference, error)
