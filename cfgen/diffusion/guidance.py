"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cfgen.diffusion.samplers import Denoiser
from cfgen.diffusion.schedule import Schedule

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


def led(toward: Denoiser, away: Denoiser, weight: float) -> Denoiser:
    """A denoiser led from one condition to another; weight 1 is `toward`, above 1 exaggerates what
    sets the two apart. No network without conditions is asked."""

    def denoise(zt: Tensor, t: Tensor) -> Tensor:
        if weight == 1.0:
            return toward(zt, t)
        behind = away(zt, t)
        return behind + weight * (toward(zt, t) - behind)

    return denoise


def guided_z0(
    net: ContextNet,
    context: Tensor,
    null_context: Tensor,
    weight: float,
    schedule: Schedule,
    rescale: float = 0.0,
) -> Denoiser:
    """As `guided`, in z0: z0 = z0_null + weight (z0_condition - z0_null).

    At one zt the output is affine in z0, so that this is `guided` itself, but for rounding, as long
    as nothing else is done to z0. `rescale` does: so far the spread of z0, over each element, goes
    back to what it is under the condition alone, since guidance makes it larger (Lin et al. 2024,
    section 3.4, Eq. 15-16).
    """

    def denoise(zt: Tensor, t: Tensor) -> Tensor:
        if weight == 1.0:
            return net(zt, t - 1, context)
        pair = net(torch.cat([zt, zt]), torch.cat([t, t]) - 1, torch.cat([context, null_context]))
        under, without = (schedule.z0_and_eps(p, zt, t)[0] for p in pair.chunk(2))
        z0 = without + weight * (under - without)
        if rescale:
            ratio = _spread(under) / _spread(z0).clamp(min=1e-8)
            z0 = z0 * (1 + rescale * (ratio - 1))
        signal, noise = schedule.levels(t, zt)
        return schedule.target(z0, (zt - signal * z0) / noise, t)

    return denoise


def _spread(z0: Tensor) -> Tensor:
    return z0.std(dim=tuple(range(1, z0.ndim)), keepdim=True)
