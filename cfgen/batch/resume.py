"""Work that a batch finds done, and signals that end one between two scans."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cfgen import __version__
from cfgen.data.record import read_record
from cfgen.data.volume import file_sha256
from cfgen.errors import ImageError

Record = TypeVar("Record")


def fingerprint(digests: Sequence[str], recipe: object) -> str:
    """What decides whether finished work can be kept: SHA-256 of the version, of files (as their
    `digests`) and of a recipe that JSON can hold."""
    return hashlib.sha256(json.dumps([__version__, list(digests), recipe]).encode()).hexdigest()


def digests(*files: Path | None) -> list[str]:
    """SHA-256 of files, which is all of them that there are. Raises ImageError when one is
    missing."""
    found = []
    for path in files:
        if path is not None:
            if not path.exists():
                raise ImageError(path, "no such file", "an image")
            found.append(file_sha256(path))
    return found


def finished(files: Sequence[Path], record: Path, kind: type[Record]) -> Record | None:
    """The record of finished work; None where a file is missing or the record cannot be read."""
    if not all(path.exists() for path in (*files, record)):
        return None
    try:
        return read_record(kind, record, "")
    except ImageError:
        return None


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a question that a loop asks; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
