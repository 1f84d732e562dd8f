"""Arrays of one shape in one file that is mapped into memory: a cohort that does not fit there is
read as it is asked for, and what was made stays for the next run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.data.volume import write_atomically
from cfgen.progress import each

# What is lost at most where a run is killed.
FLUSHED_EVERY = 25


def mapped(
    path: Path,
    made_from: str,
    shape: tuple[int, ...],
    make: Callable[[int], np.ndarray],
    what: str,
) -> Tensor:
    """float16 (shape[0], ...) of `make(0)`, `make(1)` and so on, in a .npy file at `path`.

    What is there already, `made_from` the same, is kept: an interrupted run goes on with the next
    one. `path`.json says how many are done. Nothing that is written into the tensor reaches the
    file.
    """
    record = path.with_suffix(".json")
    done = 0
    if record.exists() and path.exists():
        known = json.loads(record.read_text())
        done = known["done"] if known["made_from"] == made_from else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "r+" if done else "w+"
    bank = np.lib.format.open_memmap(path, mode, np.float16, None if done else shape)
    left = range(done, shape[0])
    for number in each(left, len(left), what):
        bank[number] = make(number)
        if (number + 1) % FLUSHED_EVERY == 0 or number + 1 == shape[0]:
            bank.flush()
            text = json.dumps({"made_from": made_from, "done": number + 1})
            write_atomically(record, lambda p, text=text: p.write_text(text))  # type: ignore[misc]
    # Copy-on-write: torch wants memory that may be written.
    return torch.from_numpy(np.load(path, mmap_mode="c"))
