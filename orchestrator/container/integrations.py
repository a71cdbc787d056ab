"""ZenML's integrations, activated once something of theirs may be needed.

ZenML activates every integration whose packages are installed before a step runs. Most do no more then than register
materializers for the types of a library, and import that library for it: seconds of a step's start for libraries that
the step may never use. Here these wait until the user's modules import their library, or say that they will, or until a
type is looked up that may be theirs. What a look-up finds is what it would have found otherwise.
"""

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zenml.integrations.integration import Integration

_FIXED = -1
"""Rank of what no integration replaces: ZenML's own materializers, and what was registered to replace others."""

_LAST = sys.maxsize
"""Rank of the user's materializers: ZenML activates integrations before it imports the user's modules."""

_INDENTED_IMPORT = re.compile(r"^[ \t]+(?:import|from)[ \t]+(\w+)", re.MULTILINE)

_OWN_MODULES = frozenset({*sys.stdlib_module_names, "zenml"})


def activate_lazily() -> Callable[[], None]:
    """Activates the integrations, except those that can wait.

    Returns:
        Activates those of the others whose library the user's modules, which are imported by then, use.
    """
    from zenml.integrations.registry import integration_registry

    waiting = _Waiting(list(integration_registry.integrations.values()))
    originals = {}
    for integration in waiting.integrations:
        if _only_registers_materializers(integration):
            originals[integration] = integration.__dict__["activate"]
            integration.activate = partial(waiting.add, integration, integration.activate)
    try:
        # ZenML's own loop: it looks at what is installed, and survives an integration that is broken.
        integration_registry.activate_integrations()
    finally:
        for integration, original in originals.items():
            integration.activate = original
    return waiting.activate_used


def _only_registers_materializers(integration: type[Integration]) -> bool:
    """Whether activation is `from zenml.integrations.<name> import materializers`, and nothing else."""
    function = getattr(integration.__dict__.get("activate"), "__func__", None)
    code = getattr(function, "__code__", None)
    return code is not None and set(code.co_names) == {integration.__module__, "materializers"}


def _libraries(integration: type[Integration]) -> set[str]:
    """Names of the top-level modules that an integration's requirements install."""
    from packaging.requirements import Requirement

    names: set[str] = set()
    for requirement in integration.get_requirements():
        distribution = metadata.distribution(Requirement(requirement).name)
        listing = distribution.read_text("top_level.txt")
        if listing:
            names.update(listing.split())
        else:
            files = distribution.read_text("RECORD") or ""
            names.update(line.split("/", 1)[0] for line in files.splitlines() if "/__init__.py," in line)
    return names


class _Waiting:
    """The integrations that wait, and ZenML's registry of materializers, which asks for them.

    Whoever registers a type first has it. Integrations that wait come late, so each gets what its place in ZenML's
    order gives it: its rank.
    """

    def __init__(self, integrations: list[type[Integration]]) -> None:
        """Takes the place of the registry's class."""
        from zenml.materializers.materializer_registry import materializer_registry

        self.integrations = integrations
        self._pending: list[tuple[type[Integration], Callable[[], None], set[str]]] = []
        self._ranks = {integration.__module__: rank for rank, integration in enumerate(integrations)}
        self._rank_of_type: dict[type, int] = {}
        self._types: dict[type, Any] = materializer_registry.materializer_types
        self._is_looking = False
        materializer_registry.__class__ = self._lazy(type(materializer_registry))

    def _lazy(self, base: type) -> type:
        waiting = self

        class LazyRegistry(base):  # type: ignore[misc, valid-type]
            """Activates what may be needed before it answers."""

            @property
            def materializer_types(self) -> dict[type, Any]:
                if not waiting._is_looking:
                    waiting.activate_all()
                return waiting._types

            @materializer_types.setter
            def materializer_types(self, types: dict[type, Any]) -> None:
                waiting._types = types

            def __getitem__(self, key: Any) -> Any:
                if not isinstance(key, str) and any(map(_may_be_theirs, key.__mro__)):
                    waiting.activate_all()
                with waiting._looking():
                    return super().__getitem__(key)

            def register_materializer_type(self, key: type, type_: Any) -> None:
                rank = waiting._rank(type_)
                if key not in waiting._types or rank < waiting._rank_of_type.get(key, _FIXED):
                    waiting._types[key] = type_
                    waiting._rank_of_type[key] = rank

            def register_and_overwrite_type(self, key: type, type_: Any) -> None:
                waiting._types[key] = type_
                waiting._rank_of_type[key] = _FIXED

        return LazyRegistry

    def add(self, integration: type[Integration], activate: Callable[[], None]) -> None:
        """Keeps an integration that is installed; activates it where it is not known what it waits for."""
        libraries: set[str] = set()
        with contextlib.suppress(Exception):
            libraries = _libraries(integration)
        if libraries:
            self._pending.append((integration, activate, libraries))
        else:
            activate()

    def activate_all(self) -> None:
        """Activates all that wait."""
        while self._pending:
            self._activate(self._pending[0])

    def activate_used(self) -> None:
        """Activates those whose library has been imported, or will be by a function of the user's."""
        if not self._pending:
            return
        used = {*sys.modules, *_later_imports()}
        for entry in list(self._pending):
            if not entry[2].isdisjoint(used):
                self._activate(entry)

    def _activate(self, entry: tuple[type[Integration], Callable[[], None], set[str]]) -> None:
        from zenml.logger import get_logger

        if entry not in self._pending:
            return  # The activation of another one has looked something up.
        self._pending.remove(entry)
        try:
            entry[1]()
        except Exception as error:
            # What ZenML says and does.
            get_logger(__name__).exception(
                "Failed to activate integration `%s`: %s: %s", entry[0].NAME, type(error).__name__, error
            )

    def _rank(self, materializer: Any) -> int:
        module = materializer.__module__
        if module.startswith("zenml.integrations."):
            return self._ranks.get(".".join(module.split(".")[:3]), _LAST)
        return _FIXED if module.startswith("zenml.") else _LAST

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        outer, self._is_looking = self._is_looking, True
        try:
            yield
        finally:
            self._is_looking = outer


def _later_imports() -> set[str]:
    """Top-level modules that are imported inside of something, in modules that are in no installed package."""
    names: set[str] = set()
    standard = sysconfig.get_path("stdlib")
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or not file.endswith(".py") or file.startswith(standard) or _is_installed(file):
            continue
        with contextlib.suppress(OSError):
            names.update(_INDENTED_IMPORT.findall(Path(file).read_text(errors="replace")))
    return names


def _may_be_theirs(class_: type) -> bool:
    """Whether a class may come from a library: it is neither Python's, nor ZenML's, nor of code outside of packages."""
    root = class_.__module__.split(".", 1)[0]
    if root in _OWN_MODULES:
        return False
    module = sys.modules.get(root)
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return not any(places) or any(_is_installed(place) for place in places if place)


def _is_installed(place: str) -> bool:
    directories = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = Path(place)
    return any(
        parent.name in ("site-packages", "dist-packages") or str(parent) in directories for parent in path.parents
    )
