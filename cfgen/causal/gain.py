"""The gain of the latent mean: so that an edit moves the ventricles as far as the cohort's differ.

The mean over people whose ventricles do not quite overlap spreads a moving edge into a soft shade.
Carried to one person it darkens too widely and too little: the ventricles grow by about half of
what they should. Around the ventricles, then, the shift between two conditions is multiplied, by
what labelled training subjects say who did not fit the mean it is tried with. Elsewhere it is left
alone: on average over people the shift is right, and more of it overshoots the predicted age.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.causal.latent_mean import LatentMean, features
from cfgen.data.regions import group_mask, recognise_table
from cfgen.metrics.morphometry import around_ventricles, ventricle_count

log = logging.getLogger("cfgen")
GAINS = (1.0, 1.5, 2.0, 2.5, 3.0)
SUBJECTS = 20
# The change of the first condition (age) that is tried, in its standard deviations.
STEP = 1.0


def fit_gain(
    mean: LatentMean,
    images: Tensor,
    labels: np.ndarray,
    conditions: Tensor,
    spacing_mm: float,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> Tensor:
    """The gain (d, h, w) of every latent voxel: 1 far from the ventricles, more around them.

    Its peak, between 1 and 3, is where counted ventricles change as the cohort's labels do.

    `images` (N, D, H, W) with `labels` (N, D, H, W) on the model grid, `conditions` (N, V) with age
    first; `mean` is fitted on other subjects. One standard deviation up and down is tried on
    subjects spread over the range, inside it. All tensors are on the CPU, those of `encode` and
    `decode` too.
    """
    table = recognise_table(labels[0])
    volumes = [int(group_mask(m, table, "lateral_ventricle").sum()) for m in labels]
    near = near_ventricles(labels, table, spacing_mm, mean.coefficients.shape[2:])
    phi = features(conditions, mean.knots).numpy()
    coefficients = np.linalg.lstsq(phi, np.log(np.array(volumes) + 1.0), rcond=None)[0]
    ages = conditions[:, 0].numpy()
    order = np.argsort(ages)
    chosen = order[np.linspace(0, len(order) - 1, min(SUBJECTS, len(order))).astype(int)]
    changes, due = np.zeros(len(GAINS)), 0.0
    for n in dict.fromkeys(chosen.tolist()):
        c, x = conditions[n : n + 1], images[n : n + 1, None].float()
        meter = ventricle_count(x[0, 0].numpy(), labels[n], table, spacing_mm)
        before = meter.count(x[0, 0].numpy())
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
                edited = torch.where(
                    x > 0, x + decode(z0 + (1 + (gain - 1) * near) * shift) - rec, 0
                )[0, 0].numpy()
                change = np.log((meter.count(edited) + 1.0) / (before + 1.0))
                changes[i] += direction * change
    ratios = changes / due if due > 0 else np.ones(len(GAINS))
    log.info(
        "gain: %s", ", ".join(f"{g:g} gives {r:.2f}" for g, r in zip(GAINS, ratios, strict=True))
    )
    # Ratios rise with the gain; outside the range the nearest end is taken.
    peak = float(np.interp(1.0, np.maximum.accumulate(ratios), GAINS))
    return 1 + (peak - 1) * near


def near_ventricles(
    labels: np.ndarray, table: str, spacing_mm: float, latent_shape: Sequence[int]
) -> Tensor:
    """How much of a latent voxel lies around the ventricles, on average over people: (d, h, w)."""
    mean = np.mean([around_ventricles(m, table, spacing_mm) for m in labels], axis=0)
    field = torch.from_numpy(mean).float()[None, None]
    return F.interpolate(field, size=list(latent_shape), mode="area")[0, 0]
