"""What a scanner leaves in an image beside the anatomy: contrast, detail, noise, and slow fields.

Numbers that a probe reads (`metrics/probe.py`). The overall brightness is divided out, which a
preparation sets as it likes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage

# Of the brightness inside the brain.
QUANTILES = (0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
# Detail between these scales and twice as much (SD of a Gaussian, voxels).
SCALES = (0.5, 1.0, 2.0)
# Along each axis the brain's box is parted in so many blocks.
BLOCKS = 3
# Of a normal distribution: the median of |x| over its SD.
NORMAL_MEDIAN = 0.6745


def appearance(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(K,) float64 of an image (D, H, W) inside a mask (D, H, W) bool, which has a voxel.

    Quantiles of brightness; by axis the mean step and the mean bend from voxel to voxel, which know
    slice thickness, blur and noise; detail by scale; the noise of the finest detail; log means of
    blocks of the brain's box, 0 of one without brain.
    """
    v = image.astype(np.float64) / max(float(image[mask].mean(dtype=np.float64)), 1e-6)
    inside = v[mask]
    steps, bends = zip(*(_along(v, mask, axis) for axis in range(3)), strict=True)
    blurred = [_within(v, mask, s) for s in (*SCALES, 2 * SCALES[-1])]
    detail = [float((a - b)[mask].std()) for a, b in pairwise(blurred)]
    finest = (v - blurred[1])[mask]
    noise = float(np.median(np.abs(finest - np.median(finest)))) / NORMAL_MEDIAN
    blocks = _block_means(v, mask)
    return np.array([*np.quantile(inside, QUANTILES), *steps, *bends, *detail, noise, *blocks])


def _within(v: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Smoothed by a Gaussian of the mask's voxels alone: the brain's edge is no detail."""
    weight = ndimage.gaussian_filter(mask.astype(np.float64), sigma, truncate=3.0)
    total = ndimage.gaussian_filter(np.where(mask, v, 0.0), sigma, truncate=3.0)
    return np.asarray(total / np.maximum(weight, 1e-6))


def _along(v: np.ndarray, mask: np.ndarray, axis: int) -> tuple[float, float]:
    """Mean |first difference| and |second difference| where all voxels are in the mask."""
    v, mask = np.moveaxis(v, axis, 0), np.moveaxis(mask, axis, 0)
    step = np.abs(v[1:] - v[:-1])[mask[1:] & mask[:-1]]
    three = mask[2:] & mask[1:-1] & mask[:-2]
    bend = np.abs(v[2:] - 2 * v[1:-1] + v[:-2])[three]
    return _mean(step), _mean(bend)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def _block_means(v: np.ndarray, mask: np.ndarray) -> list[float]:
    """Log means of the `BLOCKS`^3 blocks of the mask's box."""
    found = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    edges = [np.linspace(f[0], f[-1] + 1, BLOCKS + 1).astype(int) for f in found]
    means = []
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            for k in range(BLOCKS):
                box = tuple(slice(e[n], e[n + 1]) for e, n in zip(edges, (i, j, k), strict=True))
                part = v[box][mask[box]]
                means.append(float(np.log(max(_mean(part), 1e-3))) if part.size else 0.0)
    return means
