"""Samplers on an explicit, rising grid of times; each walks it from the noisy end to the clean one.

A denoiser is asked with zt (B, ...) and t (B,) and gives the network's raw output. Latents are
never clipped. Elements of a batch never meet: what is random comes from a generator of each. A
drift is added to the mean of every step (drift.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]


def predict(denoiser: Denoiser, schedule: Schedule, zt: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """z0 and eps as the denoiser sees them at time t."""
    times = torch.full((len(zt),), t)
    return schedule.z0_and_eps(denoiser(zt, times.to(zt.device)), zt, times)


def ddim_step(schedule: Schedule, z0: Tensor, eps: Tensor, t: int) -> Tensor:
    """The point of the straight path through z0 and eps at time t, from either side of it
    (Song et al. 2021, Eq. 12 with eta = 0; CDM Eq. 5-6)."""
    return schedule.add_noise(z0, torch.full((len(z0),), t), eps)


def denoise_ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    zt: Tensor,
    times: Sequence[int],
    drift: Drift = NO_DRIFT,
) -> Tensor:
    """Deterministic DDIM from times[-1] down to times[0]."""
    for t, s in zip(reversed(times[1:]), reversed(times[:-1]), strict=True):
        z0, eps = predict(denoiser, schedule, zt, t)
        zt = drift.at(schedule.noise(s)).plus(ddim_step(schedule, z0, eps, s))
    return zt


def denoise_dpmpp_2m(
    denoiser: Denoiser,
    schedule: Schedule,
    zt: Tensor,
    times: Sequence[int],
    drift: Drift = NO_DRIFT,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), first order in its first and last step."""
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    half_log_snr = torch.log(alpha / sigma)
    before: Tensor | None = None
    step_before = 0.0
    for t, s in zip(reversed(times[1:]), reversed(times[:-1]), strict=True):
        z0, _ = predict(denoiser, schedule, zt, t)
        step = float(half_log_snr[s] - half_log_snr[t])
        guess = z0
        # At s = 0 the step is infinite: the data prediction itself is the answer.
        if before is not None and s > 0:
            guess = z0 + (z0 - before) * (step / (2 * step_before))
        shrink = float(sigma[s] / sigma[t])
        grow = float(-alpha[s] * torch.expm1(torch.tensor(-step, dtype=torch.float64)))
        zt = drift.at(schedule.noise(s)).plus(shrink * zt + grow * guess)
        before, step_before = z0, step
    return zt


def denoise_ddpm(
    denoiser: Denoiser,
    schedule: Schedule,
    zt: Tensor,
    times: Sequence[int],
    generators: Sequence[torch.Generator],
    drift: Drift = NO_DRIFT,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2; cDDGM Algorithm 1), on any grid of times."""
    for t, s in zip(reversed(times[1:]), reversed(times[:-1]), strict=True):
        z0, _ = predict(denoiser, schedule, zt, t)
        at, as_ = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
        # The posterior of zs given zt and z0 (Ho et al. 2020, Eq. 6-7) over the whole step.
        ratio = at / as_
        mean_z0 = as_**0.5 * (1 - ratio) / (1 - at)
        mean_zt = ratio**0.5 * (1 - as_) / (1 - at)
        variance = (1 - as_) / (1 - at) * (1 - ratio)
        zt = drift.at(schedule.noise(s)).plus(mean_z0 * z0 + mean_zt * zt)
        if s > 0:
            zt = zt + variance**0.5 * noise_like(zt, generators)
    return zt


def noise_like(z: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise, each element from its own generator, whatever batch it is in."""
    drawn = [
        torch.randn(z.shape[1:], generator=g, device=g.device, dtype=z.dtype) for g in generators
    ]
    if len(drawn) != len(z):
        raise ValueError(f"{len(drawn)} generators for a batch of {len(z)}")
    return torch.stack(drawn).to(z.device)
