"""Batches made while the accelerator is busy with the one before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from cfgen.streams import Purpose, torch_stream

Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """`make` draws a batch from a step's generator, as `fit` makes it of `seed`; on a CPU there is
    nothing to gain, and every batch is made when it is asked for."""

    def __init__(
        self, make: Callable[[torch.Generator], Batch], seed: int, device: torch.device
    ) -> None:
        self._make, self._seed = make, seed
        self._pool = None if device.type == "cpu" else ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """The batch of a step, whatever was made before."""
        if self._pool is None:
            return self._make(generator)
        known = self._next
        matches = known is not None and known[0] == generator.initial_seed()
        made = known[1].result() if known and matches else self._make(generator)
        coming = torch_stream(self._seed, Purpose.BATCHES, step=step + 1)
        self._next = coming.initial_seed(), self._pool.submit(self._make, coming)
        return made
