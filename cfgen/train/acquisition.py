"""How a diffusion model that knows how scans were acquired is trained (cDDGM, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cfgen.causal.latent_mean import LatentMean
from cfgen.data.acquisition import SCALES
from cfgen.data.schema import Schema
from cfgen.diffusion.schedule import ScheduleConfig
from cfgen.nets.slices import SliceCoder
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionConfig
from cfgen.train.latents import LatentData

# How often all conditions are withheld, as in the paper; each by itself; and what is no parameter
# of a protocol but follows from it, so that a protocol that is changed alone is no surprise.
WITHHELD, UNSAID, SCALE_UNSAID = 0.15, 0.1, 0.5
# The paper's network and what it says; six levels, of which the third and the fifth attend.
SLICES = replace(
    LATENT_DIFFUSION,
    schedule=ScheduleConfig(kind="cosine", prediction="eps"),
    channels=(64, 64, 128, 128, 256, 256),
    attention=(False, False, True, False, True, False),
    res_blocks=2,
    head_channels=8,
    norm_groups=32,
    flat=True,
)
# Of a slice's voxels, how many are brain at least.
LEAST_BRAIN = 0.05


def acquisition_diffusion(usual: LatentDiffusionConfig, schema: Schema) -> LatentDiffusionConfig:
    """The paper's hybrid conditioning, one token a variable, its dropout, and a cosine schedule.

    Views are the scan and its mirror image: those of another brightness would not be what the
    conditions say.
    """
    scales = {v.name for v in SCALES}
    return replace(
        usual,
        schedule=replace(usual.schedule, kind="cosine"),
        drop_conditions=WITHHELD,
        views=2,
        conditioning="both",
        inputs=tuple(v.width for v in schema.variables),
        unsaid=tuple(SCALE_UNSAID if v.name in scales else UNSAID for v in schema.variables),
    )


def slice_data(
    images: Sequence[Tensor],
    conditions: tuple[Tensor, Tensor],
    weights: Tensor,
    held_out: int,
) -> tuple[LatentData, LatentMean]:
    """Slices of train and val `images` (N, D, H, W) each, and of their `conditions` (N, V); slices
    without a brain are left out, and of val so many are kept. One mean and spread for all."""
    slices, owner = _slices(images[0])
    others, other_owner = _slices(images[1])
    some = slice(None, None, max(len(others) // held_out, 1))
    mean, spread = float(slices.float().mean()), float(slices.float().std())
    variables = conditions[0].shape[1]
    coefficients = torch.zeros(variables + 1, *slices.shape[1:])
    coefficients[0] = mean
    data = LatentData(
        torch.stack([slices, slices.flip(-2)], 1),
        conditions[0][owner],
        weights[owner],
        others[some],
        conditions[1][other_owner[some]],
    )
    nothing = torch.full((variables, 4), torch.nan)
    sigma = torch.full((1, 1, 1, 1), spread)
    return data, LatentMean(nothing, coefficients, sigma, torch.ones(1))


def _slices(images: Tensor) -> tuple[Tensor, Tensor]:
    """(S, 1, 1, D, H) of images (N, D, H, W), and which image each is of."""
    slices = SliceCoder(images.shape[-1]).encode(images[:, None])
    brain = (slices > 0).flatten(1).float().mean(1) >= LEAST_BRAIN
    owner = torch.arange(len(images)).repeat_interleave(images.shape[-1])
    return slices[brain], owner[brain]
