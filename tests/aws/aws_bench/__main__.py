"""Starts the bench; ends with its standard input, with SIGTERM, or after an hour without a call."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time

from aws_bench import registry
from aws_bench.settings import SETTINGS, configure


def main() -> None:
    """Serves until it is time to end."""
    options = _options()
    configure(options.port or _free_port())
    SETTINGS.network, SETTINGS.limit_cpus = options.network, options.limit_cpus
    SETTINGS.stop_timeout_seconds = options.stop_timeout
    with contextlib.ExitStack() as stack:
        if options.registry == "own":
            SETTINGS.registry = stack.enter_context(registry.running())
        elif options.registry != "none":
            SETTINGS.registry = options.registry
        _serve(options)
    sys.stdout.flush()
    # Threads of executions may still wait; nobody is left to ask for their outcome.
    os._exit(0)


def _serve(options: argparse.Namespace) -> None:
    from aws_bench import patched, server
    from aws_bench.calls import REGISTER
    from aws_bench.tasks import remove_all

    patched.execute()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    # A task on a bridge network reaches the host at an address that is not the loopback's.
    serving = server.serve("127.0.0.1" if SETTINGS.network == "host" else "0.0.0.0")
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    if options.follow_stdin:
        threading.Thread(target=_end_with_stdin, args=(over,), daemon=True).start()
    print(f"ready {SETTINGS.endpoint} {SETTINGS.registry or 'none'}", flush=True)
    while not over.wait(1):
        if options.idle_seconds and time.monotonic() - REGISTER.last_call > options.idle_seconds:
            print(f"No call for {options.idle_seconds} seconds: the bench ends.", flush=True)
            break
    serving.shutdown()
    remove_all()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aws_bench", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--network", default="host", help="Docker network of the tasks (default: %(default)s)")
    parser.add_argument(
        "--registry", default="own", help="what stands in for ECR: host:port, `own` (one is started) or `none`"
    )
    parser.add_argument("--stop-timeout", type=int, default=30, help="seconds from SIGTERM to SIGKILL (default: 30)")
    parser.add_argument("--limit-cpus", action="store_true", help="give a task no more than its CPUs, as Fargate does")
    parser.add_argument("--idle-seconds", type=int, default=3600, help="end after so long without a call; 0: never")
    parser.add_argument("--follow-stdin", action="store_true", help="end when standard input does")
    return parser.parse_args()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_with_stdin(over: threading.Event) -> None:
    while sys.stdin.read(1):
        continue
    over.set()


if __name__ == "__main__":
    main()
