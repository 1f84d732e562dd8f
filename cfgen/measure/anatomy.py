"""Did an edit of the contrast leave the anatomy alone? Region volumes under one and the same contrast.

A segmenter reads other volumes of one brain under another contrast: under the simulator's true
counterfactual protocols, in which nothing moves, fluid changes by up to 18 %. So the edited scan is
brought back to the contrast of the scan that it came from, by the monotone map of brightness that
fits the pair best and by the smooth field that is left, and measured then. A curve and a bias field
are undone by that, whatever made them; an edge that moved is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression

from cfgen.data.volume import Volume
from cfgen.data.volumes import RegionVolume
from cfgen.measure.segmenter import soft_volumes
from cfgen.nets.segmenter import Segmenter

# Of the brightness map, and of the voxels that it is fitted to.
BINS, MOST_VOXELS = 400, 400_000
# SD of the field that is left (mm), on a grid of about this spacing.
FIELD_MM, FIELD_SPACING_MM = 25.0, 4.0
# Regions smaller than this (mm3) are a few voxels of the segmenter, whose rounding alone is more.
LEAST_MM3 = 300.0


@dataclass(frozen=True)
class VolumeChange:
    """A region's summed probabilities in the scan and in the edited one under the scan's contrast,
    mm3."""

    structure: str
    side: str
    before: float
    after: float

    @property
    def percent(self) -> float:
        return 100 * (self.after / self.before - 1)


def volume_changes(
    net: Segmenter,
    before: list[RegionVolume],
    scan: Volume,
    edited: np.ndarray,
    mask: np.ndarray,
    device: torch.device,
) -> list[VolumeChange]:
    """Of every region of the scan that has a volume; `before` are the segmenter's own of the
    `scan`, `edited` (I, J, K) is the scan under another protocol, `mask` (I, J, K) its brain.

    Raises ImageError where nothing looks like a brain.
    """
    again = soft_volumes(net, scan.like(as_scanned(scan.data, edited, mask, scan.grid.spacing)), device)
    after = {(v.structure, v.side): v.soft_mm3 for v in again}
    return [
        VolumeChange(v.structure, v.side, v.soft_mm3, float(after[v.structure, v.side] or 0))
        for v in before
        if v.soft_mm3 is not None and v.soft_mm3 >= LEAST_MM3
    ]


def as_scanned(
    scan: np.ndarray, edited: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]
) -> np.ndarray:
    """`edited` (I, J, K) with the contrast and the shading of `scan`, by what the pair has in
    common inside the `mask`."""
    if np.array_equal(scan, edited):
        return scan
    x, y = edited[mask], scan[mask]
    step = max(1, len(x) // MOST_VOXELS)
    x, y = x[::step], y[::step]
    edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)))
    place = np.clip(np.searchsorted(edges, x, "right") - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    used = count > 0
    middle, mean = (
        np.bincount(place, v, len(edges) - 1)[used] / count[used] for v in (x, y)
    )
    fitted = IsotonicRegression().fit_transform(middle, mean, sample_weight=count[used])
    # Beyond the brain's brightness values are scaled.
    low, high = (fitted[i] / middle[i] if middle[i] > 0 else 1.0 for i in (0, -1))
    out = np.interp(edited, middle, fitted)
    out = np.where(edited < middle[0], edited * low, out)
    out = np.where(edited > middle[-1], edited * high, out).astype(np.float32)
    return out * np.exp(_smooth_ratio(scan, out, mask, spacing))


def _smooth_ratio(
    scan: np.ndarray, other: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]
) -> np.ndarray:
    """The logarithm (I, J, K) of what `scan` has more than `other`, over centimetres."""
    factors = [max(1, round(FIELD_SPACING_MM / s)) for s in spacing]
    picked = tuple(slice(None, None, f) for f in factors)
    inside = mask[picked] & (scan[picked] > 0) & (other[picked] > 0)
    ratio = np.zeros(inside.shape, np.float32)
    ratio[inside] = np.log(scan[picked][inside] / other[picked][inside])
    # Partial volumes at edges are not shading.
    limit = 3 * np.median(np.abs(ratio[inside])) + 1e-6
    inside &= np.abs(ratio) < limit
    sigma = [FIELD_MM / (s * f) for s, f in zip(spacing, factors, strict=True)]
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    field = ndimage.gaussian_filter(np.where(inside, ratio, 0), sigma) / (weight + 1e-3)
    fine = ndimage.affine_transform(
        field, [1 / f for f in factors], output_shape=scan.shape, order=1, mode="nearest"
    )
    return np.asarray(fine, np.float32)
