"""What a command says: logging, results, the end of a batch."""

from __future__ import annotations

import json
import logging
import os
import sys

import typer

from cfgen import config
from cfgen.errors import EXIT_SOME_FAILED, Interrupted

log = logging.getLogger("cfgen")


def setup(threads: int, verbose: bool, quiet: bool) -> None:
    """Logging to standard error and the number of threads of every library."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(level)
    log.propagate = False
    count = threads or cpu_count()
    for name in config.THREAD_VARIABLES:
        os.environ[name] = str(count)
    # Large pages halve the time that convolutions wait for fresh memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def cpu_count() -> int:
    """The cores that this process may use; where the system cannot say it, all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def print_paths(paths: list[str], as_json: bool) -> None:
    print(json.dumps({"outputs": paths}, indent=2) if as_json else "\n".join(paths))


def end_batch(failed: int, left: int, source: object) -> None:
    """Ends a batch in which rows failed, or that a signal stopped, with the exit code that says
    so; `source` is the manifest or folder of the scans."""
    if left:
        said = f"stopped with {left} scan{'s' if left > 1 else ''} left"
        raise Interrupted(source, said, fix="the same command goes on from there")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
