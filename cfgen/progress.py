"""How far work has come: whoever works says it here, and the command line shows it.

    with working("scans", len(rows)) as step:
        for row in rows:
            ...
            step()

Pieces of work may lie inside each other. Nobody has to listen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

log = logging.getLogger("cfgen")
Item = TypeVar("Item")
Step = Callable[[], None]


class Listener(Protocol):
    """Who shows it."""

    def begin(self, what: str, total: int | None, done: int) -> int:
        """A piece of work of `total` steps, None where that is not known; its number."""

    def step(self, work: int) -> None: ...

    def end(self, work: int) -> None: ...


# As of logging, there is one for the process.
_listener: list[Listener] = []


def listen(listener: Listener | None) -> None:
    """Whom work is told to from now on; None: nobody."""
    _listener[:] = [] if listener is None else [listener]


@contextmanager
def working(what: str, total: int | None = None, done: int = 0) -> Iterator[Step]:
    """A piece of work, of which `done` steps were done before; what it gives is called after each
    further one."""
    told = [(listener, listener.begin(what, total, done)) for listener in _listener]

    def step() -> None:
        for listener, number in told:
            listener.step(number)

    try:
        yield step
    finally:
        for listener, number in told:
            listener.end(number)


def each(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, as work of `total` steps; in the log a line after every tenth and the last."""
    with working(what, total) as step:
        for number, item in enumerate(items, 1):
            yield item
            step()
            if number % 10 == 0 or number == total:
                log.info("%d/%d %s", number, total, what)
