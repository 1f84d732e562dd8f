"""A scan under another acquisition by a diffusion model that was trained on how scans differ.

cDDGM, Algorithm 1: noise to a time, then ancestral sampling under guidance by the other acquisition
back to 0. The time of the noise is the first at which the network is asked (the paper's code asks a
step below), and nothing is rescaled between the steps. The alternative draws nothing: DDIM
inversion under the scan's own acquisition, and back under the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfgen.config import Rediffusion
from cfgen.diffusion.inversion import invert_ddim
from cfgen.diffusion.samplers import Denoiser, denoise_ddim, denoise_ddpm, noise_like
from cfgen.diffusion.schedule import Schedule, time_grid
from cfgen.edit.latent import Models
from cfgen.errors import UsageError
from cfgen.nets.condition import Condition


def rediffuse(
    schedule: Schedule,
    denoisers: tuple[Denoiser, Denoiser],
    r: Tensor,
    config: Rediffusion,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """r (B, ...) under the second of the `denoisers`, its own acquisition's being the first, which
    'ddim' alone asks; a generator an element. Raises UsageError for a time out of range."""
    check_start(config, schedule.T)
    own, other = denoisers
    if config.sampler == "ddim":
        times = time_grid(config.steps, config.start_t)
        return denoise_ddim(other, schedule, invert_ddim(own, schedule, r, times), times)
    times = list(range(config.start_t + 1))
    start = torch.full((len(r),), config.start_t)
    rt = schedule.add_noise(r, start, noise_like(r, generators))
    return denoise_ddpm(other, schedule, rt, times, generators)


def check_start(config: Rediffusion, last: int) -> None:
    if not 1 <= config.start_t <= last:
        raise UsageError("--start-t", f"{config.start_t}", f"1 to {last}")


@torch.inference_mode()
def rediffused(
    models: Models,
    image: Tensor,
    conditions: tuple[Condition, Condition],
    config: Rediffusion,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Images (B, 1, D, H, W) as the second of the `conditions` would have them, of B elements each,
    less what the way through the latent changes by itself; on the CPU."""
    z0 = models.encode(image)
    # A volume may be several elements: slices.
    own, other = (_for_each(c, len(z0)).to(models.device) for c in conditions)
    drawn = [g for g in generators for _ in range(len(z0) // len(image))]
    r = models.latent_mean.residual(z0, own.vector)
    denoisers = models.denoiser(own, 1.0), models.denoiser(other, config.guidance)
    edited = rediffuse(models.schedule, denoisers, r, config, drawn)
    z1 = models.latent_mean.latent(edited, other.vector, own.vector)
    return image + (models.decode(z1) - models.decode(z0)).cpu()


def _for_each(c: Condition, elements: int) -> Condition:
    return Condition(c.vector.repeat_interleave(elements // len(c), 0))
