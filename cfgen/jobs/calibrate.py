"""The gain of the latent mean: so that an edit changes fluid spaces as much as the cohort does.

The mean over people whose ventricles do not quite overlap spreads a moving edge into a soft shade.
Carried to one person it darkens too widely and too little: the fluid that can be counted grows by
about half of what it should. The gain multiplies the shift between two conditions; it is chosen on
training subjects alone, by a count that needs no labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from torch import Tensor

from cfgen.causal.latent_mean import LatentMean, features

log = logging.getLogger("cfgen")
GAINS = (1.0, 1.5, 2.0, 2.5)
SUBJECTS = 16
# Deeper than this below the brain's surface the fluid is ventricular, not sulcal. With this depth
# and threshold the count correlates 0.94 with the labelled lateral ventricles of IXI's train split.
DEPTH_MM = 32.0
FLUID_FRACTION = 0.3
# The change of the first condition that is tried, in its standard deviations.
STEP = 1.0


def fluid_count(image: np.ndarray, region: np.ndarray, reference: np.ndarray) -> int:
    """Voxels of `region` nearly as dark as the darkest of `reference`, where bright is tissue."""
    inside = reference[region]
    low, high = np.percentile(inside, [1, 75])
    return int((image[region] < low + FLUID_FRACTION * (high - low)).sum())


def fit_gain(
    mean: LatentMean,
    images: Tensor,
    conditions: Tensor,
    spacing_mm: float,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> float:
    """The gain at which counted fluid changes as the cohort's does, between 1 and 2.5.

    `images` (N, D, H, W), `conditions` (N, V) with age first; `mean` is fitted on other subjects.
    One standard deviation up and down is tried on subjects spread over the range, inside it.
    """
    common = (images > 0).float().mean(0).numpy() > 0.9
    region = ndimage.distance_transform_edt(common) * spacing_mm > DEPTH_MM
    arrays = images.float().numpy()
    counts = np.array([fluid_count(x, region, x) for x in arrays])
    phi = features(conditions, mean.knots).numpy()
    coefficients = np.linalg.lstsq(phi, np.log(counts + 1.0), rcond=None)[0]
    ages = conditions[:, 0].numpy()
    order = np.argsort(ages)
    chosen = order[np.linspace(0, len(order) - 1, min(SUBJECTS, len(order))).astype(int)]
    found, due = np.zeros(len(GAINS)), 0.0
    for n in chosen:
        c, x = conditions[n : n + 1], images[n : n + 1, None].float()
        z0 = encode(x)
        rec = decode(z0)
        for direction in (-1.0, 1.0):
            target = c.clone()
            target[0, 0] += direction * STEP
            if not ages.min() <= target[0, 0] <= ages.max():
                continue
            owed = (features(target, mean.knots).numpy() - phi[n]) @ coefficients
            due += direction * float(owed[0])
            shift = mean.mean(target) - mean.mean(c)
            for i, gain in enumerate(GAINS):
                edited = (x + decode(z0 + gain * shift) - rec)[0, 0].numpy()
                change = fluid_count(edited, region, arrays[n])
                found[i] += direction * (np.log(change + 1.0) - np.log(counts[n] + 1.0))
    ratios = found / due if due > 0 else np.ones(len(GAINS))
    log.info(
        "gain: %s", ", ".join(f"{g:g} gives {r:.2f}" for g, r in zip(GAINS, ratios, strict=True))
    )
    # Ratios rise with the gain; outside the range the nearest end is taken.
    return round(float(np.interp(1.0, np.maximum.accumulate(ratios), GAINS)), 3)
