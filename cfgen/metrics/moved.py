"""An edit that moves tissue, judged by its own field and by what it leaves of the scan.

A field gives for every voxel x of the edited image the point p(x) of the scan that it shows.
`points` (I, J, K, 3) are these in voxel coordinates of the scan's grid, which is the image's, too.
"""

from __future__ import annotations

import itertools

import numpy as np

# Edges are the steepest part of the brain's voxels, of each image its own: they move.
EDGES = 0.2


def pulled_points(displacement_lps: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """p(x) of a field (I, J, K, 3) in ANTs' convention, mm along L, P and S, on a grid whose
    `affine` (4, 4) goes to RAS+ mm."""
    ras = displacement_lps * np.array([-1.0, -1.0, 1.0])
    step = ras @ np.linalg.inv(affine[:3, :3]).T
    axes = [np.arange(n, dtype=np.float64) for n in displacement_lps.shape[:3]]
    return np.asarray(step + np.stack(np.meshgrid(*axes, indexing="ij"), -1))


def carried_voxels(labels: np.ndarray, points: np.ndarray) -> dict[int, float]:
    """Voxels of every code of `labels` (I, J, K) in the image that a field makes.

    The indicator of each label is interpolated linearly at the pulled points and summed, which
    counts tissue as it is moved, whatever any instrument sees of it. Points outside the grid show
    its border.
    """
    codes, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    last = np.array(labels.shape) - 1
    at = np.clip(points.reshape(-1, 3), 0, last)
    low = np.minimum(np.floor(at).astype(np.intp), np.maximum(last - 1, 0))
    part = at - low
    sums = np.zeros(len(codes))
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.where(corner, part, 1 - part).prod(1)
        i, j, k = np.minimum(low + corner, last).T
        sums += np.bincount(index[i, j, k], weights=weight, minlength=len(codes))
    return {int(code): float(n) for code, n in zip(codes, sums, strict=True)}


def jacobian(points: np.ndarray) -> np.ndarray:
    """det dp/dx (I, J, K) by central differences: below 1 where tissue grew, above where it shrank,
    0 or less where the image folds."""
    gradient = np.stack([np.stack(np.gradient(points[..., a]), -1) for a in range(3)], -2)
    return np.asarray(np.linalg.det(gradient))


def edge_energy(image: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    """Mean squared gradient of the steepest fifth of the voxels of `mask` (I, J, K)."""
    gradient = np.gradient(image.astype(np.float64), *spacing_mm)
    energy = np.sort(sum(g[mask] ** 2 for g in gradient))
    return float(energy[-max(1, round(EDGES * energy.size)) :].mean())
