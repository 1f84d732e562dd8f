"""Brains of nobody: from noise and conditions to an image on the model grid (CDM, section 4.1).

The noise is denoised under the conditions c to a residual r, and z0 = mu(c) + sigma r is decoded;
where the bundle's latent mean knows no conditions this is the papers' plain diffusion. Each brain
is made alone: convolutions of several at a time may round otherwise than those of one.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.config import GRIDS, Generation, Preprocess
from cfgen.data.conditions import Values
from cfgen.diffusion.samplers import Denoiser, denoise_ddim, denoise_dpmpp_2m
from cfgen.diffusion.schedule import time_grid
from cfgen.edit.latent import Models, condition_of, counted
from cfgen.nets.condition import Condition
from cfgen.progress import working
from cfgen.space.grids import largest_component
from cfgen.streams import Purpose, torch_stream

# What generation needs of a bundle.
PARTS = ("autoencoder", "latent_mean", "unet")
# Where a decoded brain ends. Against the masks of four prepared scans of IXI val the reconstruction
# above 0.15, after a blur of 1 mm, has a Dice of 0.992 and the same volume within 1 %.
EDGE = 0.15
EDGE_BLUR_MM = 1.0


def generate(
    models: Models,
    bundle: Bundle,
    values: Values,
    seed: int,
    how: Generation,
    masks: Tensor | None = None,
) -> Tensor:
    """The image (D, H, W) float32 of nobody with these conditions, 0 outside the brain.

    `values` has a raw value for every condition. The noise is that of the seed, on any device.
    `masks` (1, K + 1, d, h, w), of `models.control.masks`, say where regions are.
    """
    shape = models.latent_mean.coefficients.shape[1:]
    noise = torch.randn(tuple(shape), generator=torch_stream(seed, Purpose.NOBODY, step=1))
    c = condition_of(bundle.schema, values, models.device)
    if masks is not None:
        c = Condition(c.vector, masks.to(models.device))
    z0 = sample_latent(models, c, noise[None].to(models.device), how)
    return brain_alone(models.decode(z0, seed)[0, 0].cpu(), bundle.preprocess)


@torch.inference_mode()
def sample_latent(models: Models, c: Condition, noise: Tensor, how: Generation) -> Tensor:
    """The latents z0 (B, C, d, h, w) that noise of this shape becomes under conditions."""
    times = time_grid(how.steps, models.schedule.T)
    with working("denoising", how.steps) as step:
        denoiser: Denoiser = counted(models.denoiser(c, how.guidance), step)
        sampler = denoise_dpmpp_2m if how.sampler == "dpm++" else denoise_ddim
        drift = models.drift(how.drift, how.steps)
        r = sampler(denoiser, models.schedule, noise, times, drift)
    return models.latent_mean.latent(r, c.vector)


def brain_alone(image: Tensor, recipe: Preprocess) -> Tensor:
    """A decoded image (D, H, W) within the range of prepared scans, and 0 outside the brain, as
    they are: the largest bright piece, holes filled."""
    blur_vox = EDGE_BLUR_MM / GRIDS[recipe.grid][1]
    smooth = ndimage.gaussian_filter(image.numpy(), blur_vox)
    brain = ndimage.binary_fill_holes(largest_component(smooth > EDGE))
    # What is dark inside must not be 0: there nothing is.
    inside = image.clamp(1e-3, recipe.intensity_cap)
    return torch.where(torch.from_numpy(np.asarray(brain)), inside, 0.0)
