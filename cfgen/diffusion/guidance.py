"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cfgen.diffusion.samplers import Denoiser

ContextNet = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided(net: ContextNet, context: Tensor, null_context: Tensor, weight: float) -> Denoiser:
    """A denoiser under `context`; weight 1 is the plain condition, 0 none, above 1 exaggerates.

    Networks count noise levels from 0, times here from 1: `net` is asked with t - 1.
    """

    def denoise(zt: Tensor, t: Tensor) -> Tensor:
        if weight == 1.0:
            return net(zt, t - 1, context)
        pair = net(torch.cat([zt, zt]), torch.cat([t, t]) - 1, torch.cat([context, null_context]))
        conditional, unconditional = pair.chunk(2)
        return unconditional + weight * (conditional - unconditional)

    return denoise
