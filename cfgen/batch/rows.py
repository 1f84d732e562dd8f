"""One loop for every batch: rows that fail, rows that are there already, signals, a bar."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from cfgen.batch.resume import stop_signal
from cfgen.batch.workers import ahead
from cfgen.data.table import Row
from cfgen.errors import CfgenError
from cfgen.progress import working

log = logging.getLogger("cfgen")
Item = TypeVar("Item")
Worked = TypeVar("Worked")
Done = TypeVar("Done")


class Made(NamedTuple, Generic[Done]):
    """What became of an item, and a word of it for the log: 'prepared', 'is there already'."""

    value: Done
    status: str


@dataclass(frozen=True)
class Outcome(Generic[Done]):
    """What was done, the rows that failed with a column `error`, and those that a signal left."""

    done: list[Done] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)


def run_rows(
    items: Sequence[Item],
    row_of: Callable[[Item], Row],
    work: Callable[[Item], Worked],
    finish: Callable[[Item, Worked], Made[Done]],
    *,
    what: str = "scans",
    workers: int = 1,
    keep_going: bool = True,
) -> Outcome[Done]:
    """`finish(item, work(item))` for every item, in their order.

    `work` is done in so many processes (`ahead`), `finish` in this one. With `keep_going` an item
    that fails, foreseen or not, is logged and collected, and SIGTERM or SIGINT stop between two
    items; otherwise the first error is raised.
    """
    outcome: Outcome[Done] = Outcome()
    with ExitStack() as stack:
        stopped = stack.enter_context(stop_signal()) if keep_going else lambda: False
        step = stack.enter_context(working(what, len(items)))
        for number, (item, call) in enumerate(ahead(work, items, workers), 1):
            if stopped():
                outcome.left.extend(row_of(i) for i in items[number - 1 :])
                break
            row = row_of(item)
            try:
                result = finish(item, call())
            except Exception as error:
                if not keep_going:
                    raise
                message = reason(error)
                log.error("%s: %s", row.source or row.subject, message)
                log.debug("%s", "".join(traceback.format_exception(error)))
                outcome.failed.append(failed_row(row, message))
            else:
                outcome.done.append(result.value)
                log.info("%d/%d %s %s", number, len(items), row.subject, result.status)
            step()
    return outcome


def reason(error: Exception) -> str:
    """Why an item failed, in one line; what nobody foresaw says so."""
    if isinstance(error, CfgenError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use fewer --threads"
    text = " ".join(str(error).split())
    return f"unforeseen {type(error).__name__}: {text}; -v shows where"


def failed_row(row: Row, error: str) -> Row:
    return replace(row, extra=row.extra | {"error": error})
