"""Everything that ZenML's step entrypoint does before a step can run, done ahead of time, and the rest of it.

The order is that of `StepEntrypointConfiguration.run`. What is done in advance must not be told from the plain start by
a step: nothing of the user's is called, only imported, and nothing is written to ZenML's store.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.container.integrations import activate_lazily

if TYPE_CHECKING:
    from zenml.config.source import Source
    from zenml.config.step_configurations import Step
    from zenml.entrypoints import StepEntrypointConfiguration
    from zenml.models import PipelineSnapshotResponse

# What ZenML 0.97 and 0.98 import only while a step runs. Older and newer versions may lack one.
_LATE_MODULES = (
    "zenml.execution.step.utils",
    "zenml.orchestrators.step_launcher",
    "zenml.deployers.server.runtime",
    "zenml.log_stores.artifact.artifact_log_exporter",
    "zenml.materializers.materializer_registry",
)


_LOCK_MILLISECONDS = 300_000
_ROOM_BYTES = 256 * 1024
_ROOM_PATIENCE_SECONDS = 120.0
# With pauses of 2, 4, 8 and then 10 seconds: a good two minutes, as the orchestrator itself waits for a server.
_CONNECT_TRIES, _PAUSE_SECONDS = 16, 10


class UnfitError(Exception):
    """The steps cannot be started from here; they must start the plain way."""


@contextlib.contextmanager
def as_entrypoint() -> Iterator[None]:
    """Makes the process look like one that runs ZenML's entrypoint module.

    ZenML may take the folder of `__main__` for the source root, and `multiprocessing` imports `__main__` again in the
    processes that it spawns.

    Yields:
        Nothing.
    """
    # Nearly all that is made until the user's modules come stays: looking for garbage in it takes time for nothing.
    gc.disable()
    from zenml.entrypoints import entrypoint
    from zenml.execution.pipeline.utils import prevent_pipeline_execution

    main = sys.modules["__main__"]
    sys.modules["__main__"] = entrypoint
    # A step finds the `orchestrator` package that it would find without us, perhaps in the code that it downloads.
    sys.modules.pop("orchestrator", None)
    try:
        with prevent_pipeline_execution():
            yield
    finally:
        sys.modules["__main__"] = main


class WarmSteps:
    """Steps of a snapshot, ready to run in this process or in one that is forked from it.

    Args:
        snapshot_id: The snapshot.
        names: The steps.
        modules: What else they are likely to import, such as the materializers of what they get.
        tolerant: Whether a step whose modules cannot be imported is left to fail when it runs, so that the others are
            served all the same.
    """

    def __init__(
        self, snapshot_id: str, names: list[str], *, modules: Iterable[str] = (), tolerant: bool = False
    ) -> None:
        """Does what precedes the first step's code.

        Raises:
            UnfitError: The steps differ in what they need.
            Exception: Whatever goes wrong in ZenML or in the user's modules.
        """
        from zenml.client import Client
        from zenml.entrypoints import StepEntrypointConfiguration
        from zenml.stack import Stack

        self._arguments = {
            name: StepEntrypointConfiguration.get_entrypoint_arguments(step_name=name, snapshot_id=snapshot_id)
            for name in names
        }
        sys.argv[:] = self._argv(names[0])
        self._snapshot = self._load_snapshot(snapshot_id, names)
        self._configurations: dict[str, StepEntrypointConfiguration] = {}
        for name, arguments in self._arguments.items():
            configuration = StepEntrypointConfiguration(arguments=arguments)
            configuration._snapshot = self._snapshot
            self._configurations[name] = configuration
        if len({configuration.should_download_code for configuration in self._configurations.values()}) > 1:
            raise UnfitError("Some of the steps take their code from the image, others download it.")
        # ZenML keeps the listing of a run's first step only.
        is_first = any(not configuration.step.spec.upstream_steps for configuration in self._configurations.values())
        keep_package_listing = _list_packages() if is_first else None
        activate_used = activate_lazily()
        self._configurations[names[0]].prepare_code_environment()
        # Instantiates every component, as the launcher will find it in ZenML's cache.
        Client().active_stack.orchestrator  # noqa: B018
        if self._snapshot.stack is not None:
            Stack.from_model(self._snapshot.stack)
        for name in _LATE_MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        _wait_longer_for_locks()
        _wait_for_room()
        _read_ahead(self._snapshot)
        gc.freeze()
        gc.enable()
        for configuration in self._configurations.values():
            try:
                _import_sources(_sources(configuration.step, self._snapshot))
            except Exception:
                if not tolerant:
                    raise
        for module in modules:
            # What the step gets may need it. If not, its absence is no failure.
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        activate_used()
        if keep_package_listing is not None:
            keep_package_listing()

    @staticmethod
    def _load_snapshot(snapshot_id: str, names: list[str]) -> PipelineSnapshotResponse:
        from uuid import UUID

        from zenml.client import Client

        return Client().zen_store.get_snapshot(snapshot_id=UUID(snapshot_id), step_configuration_filter=names)

    def _argv(self, name: str) -> list[str]:
        program = getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0]
        return [program, *self._arguments[name]]

    def settle(self) -> None:
        """Lets go of connections, and of garbage that every forked process would copy."""
        _disconnect(close=True)
        gc.collect()
        gc.freeze()

    def run(self, name: str) -> None:
        """Runs a step, as the entrypoint does from here on.

        Args:
            name: The step.

        Raises:
            KeyError: The worker was not made for this step.
            BaseException: Whatever the step raises.
        """
        sys.argv[:] = self._argv(name)
        _wait_longer_for_the_server()
        configuration = self._configurations[name]
        configuration._run_step(step=configuration.step, snapshot=self._snapshot)
        configuration.post_run(pipeline_name=self._snapshot.pipeline_configuration.name, step_name=name)


def _wait_longer_for_locks() -> None:
    """Steps that write to the same SQLite file take turns, in no fair order; ZenML gives up after a minute."""
    from zenml.config.global_config import GlobalConfiguration

    engine: Any = getattr(GlobalConfiguration().zen_store, "_engine", None)
    if engine is None or engine.dialect.name != "sqlite":
        return
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_LOCK_MILLISECONDS}")


def _wait_for_room() -> None:
    """On a full disk ZenML could not write how the step ended, and what the step has done would be lost.

    So a transaction begins when there is room for it. Afterwards it would be too late: SQLite may have rolled it back.
    """
    from zenml.config.global_config import GlobalConfiguration

    engine: Any = getattr(GlobalConfiguration().zen_store, "_engine", None)
    if engine is None or engine.dialect.name != "sqlite" or not engine.url.database:
        return
    from sqlalchemy import event

    room = _Room(engine.url.database)
    event.listen(engine, "begin", lambda _connection: room.wait())


class _Room:
    """The disk of a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        """Looks at nothing yet."""
        self._path = path
        self._was_in_vain = False

    def wait(self) -> None:
        """Waits until there is room. Once that was in vain, it is not done again before there was some."""
        deadline: float | None = None
        while (free := self._free_bytes()) < _ROOM_BYTES:
            if self._was_in_vain:
                return
            if deadline is None:
                deadline = time.monotonic() + _ROOM_PATIENCE_SECONDS
                # A log that is on that disk has no room, either.
                with contextlib.suppress(OSError):
                    message = f"ZenML's store waits for room: {self._path} is on a disk with {free} bytes free."
                    print(message, file=sys.stderr, flush=True)
            self._was_in_vain = time.monotonic() > deadline
            time.sleep(0.2)
        self._was_in_vain = False

    def _free_bytes(self) -> float:
        try:
            found = os.statvfs(os.path.dirname(self._path) or ".")  # noqa: PTH120 (no pathlib for this alone)
        except OSError:
            return float("inf")
        # Some of a disk is kept for root.
        return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize


def _wait_longer_for_the_server() -> None:
    """A server that restarts takes a minute. ZenML gives up after half of it, and what the step has done is lost."""
    from zenml.config.global_config import GlobalConfiguration

    session: Any = getattr(GlobalConfiguration().zen_store, "session", None)
    for adapter in getattr(session, "adapters", {}).values():
        # Where these are no retries of urllib3 2, ZenML's own patience has to do.
        with contextlib.suppress(AttributeError, TypeError):
            adapter.max_retries = adapter.max_retries.new(
                total=_CONNECT_TRIES, connect=_CONNECT_TRIES, backoff_max=_PAUSE_SECONDS
            )


def _read_ahead(snapshot: PipelineSnapshotResponse) -> None:
    """Reads what the step will read first, so that models and SQL statements are compiled. What it says is not kept."""
    from zenml.client import Client

    client = Client()
    runs = client.list_pipeline_runs(snapshot_id=snapshot.id, sort_by="desc:created", size=1, hydrate=True)
    for run in runs.items:
        client.get_pipeline_run(run.id)
        client.list_run_steps(pipeline_run_id=run.id, size=1, hydrate=True)


def forget_connections() -> None:
    """In a forked process: what was connected before the fork belongs to the parent."""
    _disconnect(close=False)


def _disconnect(*, close: bool) -> None:
    """Closes the store's connections, or forgets them. They are opened again when they are needed."""
    from zenml.config.global_config import GlobalConfiguration

    store: Any = GlobalConfiguration().zen_store
    if getattr(store, "_engine", None) is not None:
        store.engine.dispose(close=close)
    else:
        # Keeps the server's token, which a step could not renew. Its connections were closed before the fork already.
        store.reinitialize_session()


def _sources(step: Step, snapshot: PipelineSnapshotResponse) -> Iterator[Source]:
    """Sources whose modules the step will import: its own, its hooks' and its outputs' materializers'."""
    yield step.spec.source
    for configuration in (step.config, snapshot.pipeline_configuration):
        for name in ("start", "end", "success", "failure", "init", "cleanup"):
            source = getattr(configuration, f"{name}_hook_source", None)
            if source is not None:
                yield source
    for output in step.config.outputs.values():
        yield from output.materializer_source or ()
        if output.default_materializer_source is not None:
            yield output.default_materializer_source


def _import_sources(sources: Iterable[Source]) -> None:
    from zenml.utils import source_utils

    for source in sources:
        source_utils.load(source)


def _list_packages() -> Callable[[], None]:
    """ZenML lists the installed packages at the start of a step, by a program that takes up to a second.

    Starts that program beside everything else. Returns what waits for its end and has ZenML take what it said.
    """
    from zenml.environment import Environment

    packages: list[str] = []

    def listing() -> None:
        # What goes wrong says so itself when the step runs.
        with contextlib.suppress(Exception):
            packages.extend(Environment.get_python_packages())

    thread = threading.Thread(target=listing, name="package listing", daemon=True)
    thread.start()

    def keep() -> None:
        thread.join()
        if packages:
            Environment.get_python_packages = staticmethod(lambda: list(packages))

    return keep
