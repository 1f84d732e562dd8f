"""Where the brain is in a field of view: the window that the segmenter looks through.

Norms and percentiles of a network know how much air a scan has: in 320 mm of it ventricles were a
third larger than in 240 mm. So the network sees a box of one size around the brain, which is the
crop that it was trained on, wherever in whatever field the head is. The box begins on a coarse
lattice in the world, so that more air, which moves nothing, gives the same voxels to the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cfgen.data.volume import Grid, Volume
from cfgen.measure.background import levelled
from cfgen.space.grids import crop_box, largest_component, resample, upright_grid

# Voxels of the window: the training crop (train/painting.py), longer for the longest brains.
WINDOW = (80, 112, 96)
# Windows begin, and heads are cut out, on a lattice of so many voxels: a window that is moved by
# fewer of them changes the volume of ventricles by 1 %, by so many 0.3 %.
STEP = 4
# From the vertex down, at most: what is below in a head and neck coil has no brain.
HEAD_MM = 260.0
# What is brighter than air by this share of the way to the middle of the tissue is no air.
FOREGROUND_SHARE = 0.25
# Air kept around a head that is cut out (mm).
MARGIN_MM = 8.0


@dataclass(frozen=True)
class Upright:
    """A scan along the world's axes: `data` (I, J, K) float32 on an isotropic `grid`; `dark` is
    what lies beyond the field of view; `first` (3,) is the place of the first voxel on a lattice
    that depends on the scan's voxels, and not on how many of them there are."""

    data: np.ndarray
    grid: Grid
    dark: float
    first: np.ndarray


def upright(scan: Volume, spacing_mm: float) -> Upright:
    """The whole field of view of a scan at `spacing_mm`, its empty background at 0."""
    data = levelled(scan.data)
    around = upright_grid(scan.grid, spacing_mm)
    # The scan's voxel nearest to the world's origin: padding doesn't move it.
    origin = np.rint(np.linalg.inv(scan.affine) @ [0.0, 0, 0, 1])
    phase = (scan.affine @ origin)[:3]
    first = np.floor((around.affine[:3, 3] - phase) / spacing_mm + 1e-3).astype(int)
    affine = around.affine.copy()
    affine[:3, 3] = phase + first * spacing_mm
    last = around.affine[:3, 3] + spacing_mm * (np.array(around.shape) - 1)
    i, j, k = (np.ceil((last - affine[:3, 3]) / spacing_mm - 1e-2) + 1).astype(int).tolist()
    grid = Grid((i, j, k), affine)
    dark = float(np.percentile(data.ravel()[::7], 1))
    return Upright(resample(data, scan.grid, grid, fill=dark), grid, dark, first)


def cut(image: Upright, start: np.ndarray, shape: tuple[int, int, int]) -> Upright:
    """The box of `shape` voxels from voxel `start` (3,) on, dark beyond the field of view."""
    size = np.array(image.data.shape)
    data = np.full(shape, image.dark, np.float32)
    low, high = np.clip(start, 0, size), np.clip(start + np.array(shape), 0, size)
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    data[target] = image.data[source]
    affine = image.grid.affine.copy()
    affine[:3, 3] += image.grid.affine[:3, :3] @ start
    return Upright(data, Grid(shape, affine), image.dark, image.first + start)


def head(image: Upright) -> Upright:
    """The head cut out of the air, at most `HEAD_MM` from its vertex down, dark where the field of
    view ends before the margin does; the whole field where nothing stands out of it."""
    spacing = image.grid.spacing[0]
    found = _foreground(image.data)
    if not found.any():
        return image
    box = crop_box(found)
    low, high = np.array([b.start for b in box]), np.array([b.stop for b in box])
    low[2] = max(low[2], high[2] - round(HEAD_MM / spacing))
    if (low[2] > box[2].start) and found[:, :, low[2] :].any():
        # Shoulders are wider than the head.
        below = crop_box(found[:, :, low[2] :])
        low[:2], high[:2] = [b.start for b in below[:2]], [b.stop for b in below[:2]]
    margin = round(MARGIN_MM / spacing)
    start = _on_lattice(low - margin, image, np.floor)
    stop = _on_lattice(high + margin, image, np.ceil)
    i, j, k = (stop - start).tolist()
    return cut(image, start, (i, j, k))


def window(image: Upright, centre: np.ndarray) -> Upright:
    """The window around `centre` (3,) in voxels, and one voxel more at the end of every axis."""
    start = _on_lattice(np.asarray(centre) - (np.array(WINDOW) - 1) / 2, image, np.rint)
    i, j, k = (n + 1 for n in WINDOW)
    return cut(image, start, (i, j, k))


def fits(image: Upright) -> bool:
    """Whether a head that was cut out lies in the window, if not its margin: a stripped
    brain does, and needs no first look."""
    return bool((np.array(image.data.shape) <= np.array(WINDOW) + 2 * STEP).all())


def middle(mask: np.ndarray) -> np.ndarray:
    """The middle (3,) of a mask's extent in voxels, but for its outermost hundredths."""
    ends = [np.percentile(axis, (1, 99)) for axis in np.nonzero(mask)]
    return np.array([e.mean() for e in ends])


def _on_lattice(voxel: np.ndarray, image: Upright, rounding: np.ufunc) -> np.ndarray:
    """Voxels (3,) of an image moved to where the lattice of `STEP` voxels is."""
    rounded = rounding((voxel + image.first) / STEP) * STEP
    return np.asarray(rounded - image.first).astype(int)


def _foreground(data: np.ndarray) -> np.ndarray:
    """The largest piece of what is no air; bright specks and thin bridges are not of it."""
    smooth = ndimage.gaussian_filter(data, 1.0)
    top = float(np.percentile(smooth, 99.9))
    level = otsu(np.clip(smooth, smooth.min(), top))
    bright = smooth > level
    if not bright.any() or bright.all():
        return np.zeros(data.shape, bool)
    air, tissue = float(np.median(smooth[~bright])), float(np.median(smooth[bright]))
    found = smooth > air + FOREGROUND_SHARE * (tissue - air)
    core = largest_component(ndimage.binary_erosion(found, iterations=2, border_value=1))
    return np.asarray(ndimage.binary_dilation(core, iterations=2) & found)


def otsu(data: np.ndarray, bins: int = 256) -> float:
    """The level that parts an image into two classes of greatest distance (Otsu 1979)."""
    counts, edges = np.histogram(data, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means[0] - means[1]) ** 2
    return float(edges[1:-1][between.argmax()])
