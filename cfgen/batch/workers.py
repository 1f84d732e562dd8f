"""The rows of a batch in processes of their own, since ANTs holds Python's lock and a core."""

from __future__ import annotations

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from cfgen.config import THREAD_VARIABLES

Item = TypeVar("Item")
Done = TypeVar("Done")
# What a worker was started for.
_work: list[Callable[[Any], Any]] = []


def worker_count(device: torch.device, scans: int) -> int:
    """Processes for a batch: on a CPU one a thread, and four scans for each, since it takes seconds
    to start; eight at most, of a gigabyte each."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), scans // 4, 8))


def ahead(
    work: Callable[[Item], Done], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Callable[[], Done]]]:
    """Items in their order, each with a call for its result; few at a time, to stay in memory.

    With more than one of `workers` the work is done in processes of one thread each: `work`, items
    and results must pickle, and a script needs its `if __name__ == "__main__"`. A result raises
    what the work raised, and MemoryError when a process died.
    """
    workers = min(workers, len(items))
    if workers < 2:
        for item in items:
            yield item, lambda item=item: work(item)  # type: ignore[misc]
        return
    payload = pickle.dumps(work)

    def started(count: int) -> ProcessPoolExecutor:
        # Threads do not survive a fork.
        return ProcessPoolExecutor(count, get_context("spawn"), _start, (payload,))

    pool = started(workers)
    waiting: deque[tuple[Item, Future[Done]]] = deque()

    def submitted(item: Item) -> Future[Done]:
        nonlocal pool
        try:
            return pool.submit(_run, item)
        except BrokenProcessPool:
            pool.shutdown(wait=False)
            pool = started(workers)
            return pool.submit(_run, item)

    def ready() -> tuple[Item, Callable[[], Done]]:
        item, future = waiting.popleft()
        return item, lambda: _result(item, future, started)

    try:
        for item in items:
            waiting.append((item, submitted(item)))
            if len(waiting) > 2 * workers:
                yield ready()
        while waiting:
            yield ready()
    finally:
        for _, future in waiting:
            future.cancel()
        pool.shutdown()


def _result(
    item: Item, future: Future[Done], started: Callable[[int], ProcessPoolExecutor]
) -> Done:
    """What came of an item. A process that died takes the items of the others with it: each is
    tried once more, alone, and only the one that kills again is to blame."""
    try:
        return future.result()
    except BrokenProcessPool:
        with started(1) as alone:
            try:
                retry: Future[Done] = alone.submit(_run, item)
                return retry.result()
            except BrokenProcessPool as error:
                raise MemoryError from error


def _start(payload: bytes) -> None:
    """In a new process: one thread for every library; the main process hears the signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    torch.set_num_threads(1)
    _work.append(pickle.loads(payload))


def _run(item: Any) -> Any:
    return _work[0](item)
