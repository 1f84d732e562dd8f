"""What a command says: logging, live bars, results, the end of a batch.

Results go to standard output, the rest to standard error. On a terminal work has live bars, with
rate and time left; in a file there are the log's own lines and no escape codes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING

import typer

from cfgen import config
from cfgen.errors import EXIT_SOME_FAILED, Interrupted
from cfgen.processes import count_here, leads
from cfgen.progress import listen

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

log = logging.getLogger("cfgen")


def setup(threads: int, verbose: bool, quiet: bool) -> None:
    """Logging, bars, and the number of threads of every library; of several processes the first
    speaks, and those on one machine share its threads."""
    quiet = quiet or not leads()
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    log.handlers = [_handler(quiet)]
    log.setLevel(level if leads() else logging.ERROR)
    log.propagate = False
    count = threads or max(1, cpu_count() // count_here())
    for name in config.THREAD_VARIABLES:
        os.environ[name] = str(count)
    # Large pages halve the time that convolutions wait for fresh memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _handler(quiet: bool) -> logging.Handler:
    if not is_live(sys.stderr):
        listen(None)
        return logging.StreamHandler(sys.stderr)
    from cfgen.cli.bars import Bars, BarsHandler

    bars = Bars()
    listen(None if quiet else bars)
    return BarsHandler(bars)


def is_live(stream: object) -> bool:
    """Whether a stream is a terminal that can move its cursor and show colours."""
    terminal = getattr(stream, "isatty", lambda: False)()
    return bool(terminal) and os.environ.get("TERM", "dumb") not in ("", "dumb")


def cpu_count() -> int:
    """The cores that this process may use; where the system cannot say it, all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def print_paths(paths: list[str], as_json: bool) -> None:
    print(json.dumps({"outputs": paths}, indent=2) if as_json else "\n".join(paths))


def print_bundle(path: Path) -> None:
    """The folder of a bundle that a stage wrote, once."""
    if leads():
        print(path)


def print_trial(text: str, numbers: dict[str, object], as_json: bool) -> None:
    """What a step of a training takes, once."""
    if leads():
        print(json.dumps(numbers, indent=2) if as_json else text)


def print_rich(*parts: RenderableType) -> None:
    """Tables and text on standard output, which is a terminal."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    for part in parts:
        console.print(part)


def print_markdown(text: str) -> None:
    """Tables in Markdown on standard error, which is a terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    Console(stderr=True).print(Markdown(text))


def end_batch(failed: int, left: int, source: object) -> None:
    """Ends a batch in which rows failed, or that a signal stopped, with the exit code that says
    so; `source` is the manifest or folder of the scans."""
    if left:
        message = f"stopped with {left} scan{'s' if left > 1 else ''} left"
        raise Interrupted(source, message, fix="the same command goes on from there")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
