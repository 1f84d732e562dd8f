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
    # Threads do not survive a fork.
    context = get_context("spawn")
    waiting: deque[tuple[Item, Future[Done]]] = deque()
    with ProcessPoolExecutor(workers, context, _start, (payload,)) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(_run, item)))
                if len(waiting) > 2 * workers:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool as error:
            raise MemoryError from error
        finally:
            for _, future in waiting:
                future.cancel()


def _next(waiting: deque[tuple[Item, Future[Done]]]) -> tuple[Item, Callable[[], Done]]:
    item, future = waiting.popleft()

    def result() -> Done:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise MemoryError from error

    return item, result


def _start(payload: bytes) -> None:
    """In a new process: one thread for every library; the main process hears the signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    torch.set_num_threads(1)
    _work.append(pickle.loads(payload))


def _run(item: Any) -> Any:
    return _work[0](item)
