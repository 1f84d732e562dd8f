"""Work that a batch finds done, and signals that end one between two scans."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfgen import __version__
from cfgen.errors import ImageError


def fingerprint(files: Sequence[Path | None], recipe: object) -> str:
    """SHA-256 of the version, of files' bytes and of a recipe that JSON can hold: what decides
    whether finished work can be kept. Raises ImageError when a file is missing."""
    digest = hashlib.sha256(json.dumps([__version__, recipe]).encode())
    for path in files:
        if path is not None:
            if not path.exists():
                raise ImageError(path, "no such file", "an image")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def finished(files: Sequence[Path], record: Path) -> dict[str, Any]:
    """The record of finished work; empty where a file is missing or the record cannot be read."""
    if not all(path.exists() for path in (*files, record)):
        return {}
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


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
