"""DDIM inversion: from the clean latent to the noise that would have made it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.diffusion.samplers import Denoiser, ddim_step, predict
from cfgen.diffusion.schedule import Schedule


def invert_ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    z0: Tensor,
    times: Sequence[int],
    fixed_point: int = 2,
    drift: Drift = NO_DRIFT,
) -> Tensor:
    """Walk the grid of times upwards so that `denoise_ddim`, of the same drift, comes back to z0.

    The step from s to t is implicit: denoising asks the network at zt, which is not known yet.
    Plain inversion takes zs in its place (CDM Eq. 5-6); each of `fixed_point` further iterations
    puts the last guess of zt there (Pan et al. 2023), and shrinks the error of the round trip.
    """
    zs = z0
    for s, t in pairwise(times):
        # What the mean of zs was before it was moved.
        zs = drift.at(schedule.noise(s)).minus(zs)
        zt = zs
        for _ in range(fixed_point + 1):
            _, eps = predict(denoiser, schedule, zt, t)
            # The clean end that lies on the path through zs with this noise.
            clean = _clean(schedule, zs, eps, s)
            zt = ddim_step(schedule, clean, eps, t)
        zs = zt
    return zs


def _clean(schedule: Schedule, zs: Tensor, eps: Tensor, s: int) -> Tensor:
    signal = float(schedule.alpha_bar[s].sqrt())
    return (zs - schedule.noise(s) * eps) / signal
