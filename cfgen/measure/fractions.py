"""Posteriors brought to what the intensities say: how much of a voxel is fluid, grey or white.

A segmenter at 2 mm knows where regions are and blurs where they end: thin sulci are in the
intensities alone. The fractions f of four tissues in a voxel of brightness I are corrected as a
Kalman filter would,

    f <- f + S mu (I - f . mu) / (mu' S mu + s^2) ,   S = diag(q) - q q' ,

with mu the tissues' brightness around, q the fractions of the neighbourhood, which say what may be
in doubt here, and s the noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.data.parcellation import BRAIN_FROM, STRUCTURES
from cfgen.measure.segmenter import FLUIDS
from cfgen.space.sampling import smoothed

TISSUES = ("fluid", "grey", "deep", "white")
_WHITE = ("cerebral_wm", "cerebellum_wm", "brainstem")
# A tissue's brightness is its mean within this SD; fluid, of which there is less, within twice it.
AROUND_MM = 10.0
# SD, in voxels, of the neighbourhood that says what is in doubt.
DOUBT_VOXELS = 0.8
# SD of what is neither of the four, over the contrast of white matter to fluid.
NOISE = 0.06
ROUNDS = 2
# Maps of probabilities are blurred at their borders: a power of them is what is surely there. Where
# grey matter ends the intensities know it already; what ends inside the brain they know less well.
SHARPNESS, SHARPNESS_INSIDE = 2.0, 4.0


def tissue_of(structure: int) -> int:
    """The index in TISSUES of a structure's number."""
    name = STRUCTURES[structure].name
    if structure in FLUIDS:
        return TISSUES.index("fluid")
    if name in _WHITE:
        return TISSUES.index("white")
    grey = name.startswith("cortex") or name == "cerebellum_gm"
    return TISSUES.index("grey" if grey else "deep")


def refined(classes: Tensor, image: Tensor, cavity: Tensor, spacing_mm: float) -> Tensor:
    """Probabilities of the brain's structures (C, D, H, W), from `BRAIN_FROM` on, of sum 1 in the
    `cavity` (D, H, W) bool and 0 outside.

    `classes` are the segmenter's, `image` (D, H, W) the scan on their grid in any unit.
    """
    p = classes[BRAIN_FROM:] * cavity
    p = p / p.sum(0).clamp(min=0.2)
    members = [
        [n - BRAIN_FROM for n in range(BRAIN_FROM, len(STRUCTURES)) if tissue_of(n) == t]
        for t in range(len(TISSUES))
    ]
    for _ in range(ROUNDS):
        fractions = torch.stack([p[list(m)].sum(0) for m in members])
        means = brightness(fractions, image, cavity, spacing_mm)
        updated = _corrected(fractions, means, image, cavity)
        # Within a tissue the structures keep their shares; one that comes new takes its
        # neighbours'.
        for t, numbers in enumerate(members):
            share = torch.stack([p[n] + 0.02 * smoothed(p[n], DOUBT_VOXELS) for n in numbers])
            p[numbers] = share / share.sum(0).clamp(min=1e-6) * updated[t]
        p = p / p.sum(0).clamp(min=1e-6) * cavity
    return p


def sharpened(p: Tensor) -> Tensor:
    """Probabilities (C, D, H, W) of the brain's structures, surer of themselves, of sum 1 where
    they had one.

    Cortex, the fluid around the brain and what is inside it are told apart by `SHARPNESS`, the
    structures of each by `SHARPNESS_INSIDE`.
    """
    out = torch.empty_like(p)
    for members in _kinds():
        share = p[members] ** SHARPNESS_INSIDE
        kind = p[members].sum(0) ** SHARPNESS
        out[members] = kind * share / share.sum(0).clamp(min=1e-12)
    return out / out.sum(0).clamp(min=1e-9)


def _kinds() -> list[list[int]]:
    structures = range(BRAIN_FROM, len(STRUCTURES))
    grey = [n - BRAIN_FROM for n in structures if TISSUES[tissue_of(n)] == "grey"]
    fluid = [n - BRAIN_FROM for n in structures if STRUCTURES[n].name == "csf"]
    inside = [n - BRAIN_FROM for n in structures if n - BRAIN_FROM not in grey + fluid]
    return [grey, fluid, inside]


def brightness(fractions: Tensor, image: Tensor, cavity: Tensor, spacing_mm: float) -> Tensor:
    """The brightness of each tissue around every voxel: (4, D, H, W)."""
    # What changes over centimetres is worked out on every second voxel.
    shape, cavity = fractions.shape[1:], cavity.to(image)
    fractions, image, cavity = (
        F.avg_pool3d(x[None], 2, ceil_mode=True)[0] for x in (fractions, image[None], cavity[None])
    )
    image, cavity = image[0], cavity[0]
    sd = AROUND_MM / spacing_mm / 2
    means = []
    for tissue, fraction in zip(TISSUES, fractions, strict=True):
        weight, around = fraction**4 * cavity, sd
        if tissue == "fluid":
            # Pure fluid is the dark part of what is called so: ventricles and cisterns.
            values = image[weight > 0.6]
            if len(values):
                weight = weight * (image <= values.median())
            around = 2 * sd
        means.append(mean_around(image, weight, around))
    return F.interpolate(torch.stack(means)[None], shape, mode="trilinear")[0]


def mean_around(image: Tensor, weight: Tensor, sd: float) -> Tensor:
    """The weighted mean (D, H, W) of an image within `sd` voxels; far from all weight the mean of
    the whole."""
    overall = (weight * image).sum() / weight.sum().clamp(min=1e-3)
    near = smoothed(weight, sd)
    return (smoothed(weight * image, sd) + 1e-3 * overall) / (near + 1e-3)


def _corrected(fractions: Tensor, means: Tensor, image: Tensor, cavity: Tensor) -> Tensor:
    doubt = torch.stack([smoothed(f, DOUBT_VOXELS) for f in fractions])
    doubt = doubt / doubt.sum(0).clamp(min=1e-3)
    middle = (doubt * means).sum(0)
    covariance = doubt * (means - middle)
    variance = (doubt * (means - middle) ** 2).sum(0)
    contrast = means[TISSUES.index("white")] - means[TISSUES.index("fluid")]
    gain = covariance / (variance + (NOISE * contrast) ** 2)
    corrected = (fractions + gain * (image - (fractions * means).sum(0))).clamp(0, 1)
    return corrected / corrected.sum(0).clamp(min=1e-6) * cavity
