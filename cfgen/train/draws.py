"""Draws from a generator that is told: what augmentation and painting are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def chance(generator: torch.Generator, probability: float) -> bool:
    return bool(torch.rand(1, generator=generator) < probability)


def each_its_own(generator: torch.Generator, size: int) -> list[torch.Generator]:
    """A generator for every element of a batch, so that a part of it can be drawn alone."""
    seeds = torch.randint(2**62, (size,), generator=generator)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
