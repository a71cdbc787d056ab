"""A warm worker: `python -m orchestrator.container.worker --snapshot_id ID --isolation HOW --step_name NAME …`.

Prepares a process for the steps that are named, says that it is ready, and waits for the client's go. With isolation
`container` it runs one step, itself, and ends. With isolation `process` it forks a process for each step and goes on.
Anything that fails before the go makes it unfit, which is no error: the client starts the step the plain way.
"""

from __future__ import annotations

import argparse
import atexit
import sys
import time
from collections.abc import Callable, Sequence

from orchestrator.container.channel import NEVER_BEGAN, Channel, ChannelError, sentence
from orchestrator.container.ending import LastWord, exit_code_of
from orchestrator.container.watcher import Watcher

UNFIT = 70
"""Exit code of a worker that cannot serve (EX_SOFTWARE)."""


def main(arguments: Sequence[str], last_word: LastWord) -> int:
    """Warms up and serves.

    Args:
        arguments: The command line.
        last_word: How the process is to end, registered with `atexit`.

    Returns:
        Exit code.
    """
    begin = time.monotonic()
    parser = argparse.ArgumentParser(prog="orchestrator.container.worker", description=__doc__)
    parser.add_argument("--snapshot_id", required=True)
    parser.add_argument("--isolation", choices=("container", "process"), required=True)
    parser.add_argument("--step_name", action="append", required=True)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    options = parser.parse_args(arguments)
    channel = Channel()
    try:
        if not channel.greet():
            return NEVER_BEGAN
    except ChannelError as error:
        print(error, file=sys.stderr)
        return UNFIT
    # Before any import that takes time, or memory that the watcher would hold.
    watcher = Watcher(channel.descriptor)
    try:
        return _serve(options, channel, watcher, begin, last_word)
    except BaseException as error:
        channel.send("unfit", reason=sentence(f"{type(error).__name__}: {error}"))
        last_word.code = UNFIT
        return UNFIT


def _serve(options: argparse.Namespace, channel: Channel, watcher: Watcher, begin: float, last_word: LastWord) -> int:
    from orchestrator.container.warmup import as_entrypoint

    serve = _serve_in_processes if options.isolation == "process" else _serve_one
    with as_entrypoint():

        def ready() -> None:
            watcher.stop()
            channel.send("ready", seconds=round(time.monotonic() - begin, 3))

        return serve(options, channel, ready, last_word)


def _serve_one(options: argparse.Namespace, channel: Channel, ready: Callable[[], None], last_word: LastWord) -> int:
    """Runs one step in this process."""
    from orchestrator.container import memory
    from orchestrator.container.warmup import WarmSteps

    steps = WarmSteps(options.snapshot_id, options.step_name, modules=options.modules)
    steps.settle()
    ready()
    while not (commands := channel.receive()):
        if commands is None:
            return _leave(NEVER_BEGAN, last_word)
    go = commands[0]["go"]
    name = go["step"]
    Watcher.release()
    begin, kills = time.monotonic(), memory.kills()
    channel.send("started", step=name, attempt=go["attempt"])

    def tell(code: int) -> None:
        channel.send(
            "done",
            on_both=True,
            step=name,
            attempt=go["attempt"],
            code=code,
            signal=None,
            oom=memory.kills() > kills,
            peak_memory_bytes=memory.peak_bytes(),
            seconds=round(time.monotonic() - begin, 3),
            damaged=None,
        )

    last_word.before = tell
    return _leave(exit_code_of(lambda: steps.run(name)), last_word)


def _serve_in_processes(
    options: argparse.Namespace, channel: Channel, ready: Callable[[], None], last_word: LastWord
) -> int:
    """Forks a process for each step. In such a process this returns the step's exit code."""
    from orchestrator.container.forking import ForkingServer, RandomState, check_threads
    from orchestrator.container.warmup import WarmSteps

    random_state = RandomState()
    steps = WarmSteps(options.snapshot_id, options.step_name, modules=options.modules, tolerant=True)
    random_state.note_seeds()
    check_threads()
    server = ForkingServer(channel, steps, random_state)
    steps.settle()
    ready()
    return _leave(server.serve(), last_word)


def _leave(code: int, last_word: LastWord) -> int:
    last_word.code = code
    return code


if __name__ == "__main__":
    last = LastWord()
    # First of all, so that it is called last of all.
    atexit.register(last)
    sys.exit(main(sys.argv[1:], last))
