"""Rows in processes of their own: the same results, in order, and errors that arrive."""

from __future__ import annotations

import os
from functools import partial

import pytest

from cfgen.batch.workers import ahead
from cfgen.errors import ImageError


def shifted(by: int, number: int) -> tuple[int, int]:
    if number == 3:
        raise ImageError("scan 3", "is broken")
    return number + by, os.getpid()


def dies(number: int) -> int:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_with_their_row(workers):
    found, processes = {}, set()
    for number, result in ahead(partial(shifted, 10), range(8), workers):
        try:
            found[number], process = result()
            processes.add(process)
        except ImageError as error:
            found[number] = str(error)
    assert list(found) == list(range(8))
    assert found[3] == "scan 3: is broken"
    assert [v for k, v in found.items() if k != 3] == [10, 11, 12, 14, 15, 16, 17]
    assert (os.getpid() in processes) is (workers == 1)


def test_a_process_that_dies_is_said():
    (_, first), *_ = ahead(dies, range(2), 2)
    with pytest.raises(MemoryError):
        first()
