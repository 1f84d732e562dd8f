"""How far work has come: whoever works says it here, and the command line shows it.

    with working("scans", len(rows)) as step:
        for row in rows:
            ...
            step()

Pieces of work may lie inside each other. Nobody has to listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Step = Callable[[], None]


class Listener(Protocol):
    """Who shows it."""

    def begin(self, what: str, total: int | None, done: int) -> int:
        """A piece of work of `total` steps, None where that is not known; its number."""

    def step(self, work: int) -> None: ...

    def end(self, work: int) -> None: ...


_listeners: list[Listener] = []


@contextmanager
def listened_by(listener: Listener) -> Iterator[None]:
    """Work inside is told to `listener`."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def working(what: str, total: int | None = None, done: int = 0) -> Iterator[Step]:
    """A piece of work, of which `done` steps were done before; what it gives is called after each
    further one."""
    numbers = [(listener, listener.begin(what, total, done)) for listener in _listeners]

    def step() -> None:
        for listener, number in numbers:
            listener.step(number)

    try:
        yield step
    finally:
        for listener, number in reversed(numbers):
            listener.end(number)
