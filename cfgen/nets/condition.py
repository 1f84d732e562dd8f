"""What a network is asked to show: variables, as tokens for cross-attention, and masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """`vector` (B, V) float32, every variable in the network's units; `masks` of regions and
    where they are told, as nets/controlnet.py has them, or None for a network that is asked by
    variables alone."""

    vector: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.vector.ndim == 2
        assert self.masks is None or len(self.masks) == len(self.vector)

    def __len__(self) -> int:
        return len(self.vector)

    def to(self, device: torch.device) -> Condition:
        masks = None if self.masks is None else self.masks.to(device)
        return Condition(self.vector.to(device), masks)

    def part(self, which: slice) -> Condition:
        """Some of its elements."""
        masks = None if self.masks is None else self.masks[which]
        return Condition(self.vector[which], masks)

    def repeat(self, n: int) -> Condition:
        """The whole batch n times, one after the other."""
        masks = None if self.masks is None else torch.cat([self.masks] * n)
        return Condition(self.vector.repeat(n, 1), masks)

    def equals(self, other: Condition) -> bool:
        """The same question, to the bit."""
        if self.masks is None or other.masks is None:
            masks_equal = self.masks is other.masks
        else:
            masks_equal = torch.equal(self.masks, other.masks)
        return masks_equal and torch.equal(self.vector, other.vector)

    def tokens(self, dropped: Tensor | None = None) -> Tensor:
        """One token a variable: which variable it is, its value, whether it is withheld.

        (B, V, V + 2). `dropped` (B,) bool withholds all variables of an element, as
        classifier-free guidance needs it (Ho & Salimans 2022).
        """
        c = self.vector
        batch, variables = c.shape
        hidden = torch.zeros(batch, device=c.device) if dropped is None else dropped.to(c)
        hidden = hidden[:, None, None].expand(batch, variables, 1)
        which = torch.eye(variables, device=c.device, dtype=c.dtype).expand(batch, -1, -1)
        return torch.cat([which, c[:, :, None] * (1 - hidden), hidden], -1)


def token_width(variables: int) -> int:
    return variables + 2
