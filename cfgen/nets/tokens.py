"""Condition vectors as tokens for cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor


def token_width(variables: int) -> int:
    return variables + 2


def condition_tokens(c: Tensor, dropped: Tensor | None = None) -> Tensor:
    """One token a variable: which variable it is, its value, whether it is withheld.

    c (B, V) -> (B, V, V + 2). `dropped` (B,) bool withholds all variables of an element, as
    classifier-free guidance needs it (Ho & Salimans 2022).
    """
    batch, variables = c.shape
    hidden = torch.zeros(batch, device=c.device) if dropped is None else dropped.to(c)
    hidden = hidden[:, None, None].expand(batch, variables, 1)
    which = torch.eye(variables, device=c.device, dtype=c.dtype).expand(batch, -1, -1)
    return torch.cat([which, c[:, :, None] * (1 - hidden), hidden], -1)
