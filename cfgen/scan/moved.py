"""The scan's own voxels, moved: one interpolation of the native scan, noise left where it was.

Noise belongs to the scanner. What an edge-preserving smoother keeps is pulled along, and the rest
stays in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cfgen.data.volume import Grid, Volume
from cfgen.measure.background import empty_voxels, levelled
from cfgen.space.grids import crop_box, crop_grid
from cfgen.space.sampling import sample

# A structure of less contrast than so many SD of the noise is taken for noise.
NOISE_SD = 3.0
# Native voxels are moved in slabs, so that memory stays small at 0.7 mm.
SLAB_VOXELS = 1_000_000
# Below this displacement (mm) a voxel keeps its value.
STILL_MM = 1e-3


@dataclass(frozen=True)
class Movement:
    """How tissue moved, on a `grid`: what is at x afterwards was at x + `displacement` (3, D, H, W)
    mm in RAS. Maps (D, H, W): the part `opened` of a voxel is fluid in place of cortex on top of
    that, which makes it brighter by `darker` times as much; of the moved brightness the part
    `purified` gives way to that of `fluid`. `out_mm` is how far tissue may grow out of the brain
    mask."""

    displacement: Tensor
    opened: Tensor
    darker: Tensor
    purified: Tensor
    fluid: Tensor
    grid: Grid
    out_mm: float = 0.0

    @property
    def added(self) -> Tensor:
        """Brightness on top (D, H, W)."""
        return self.opened * self.darker


@dataclass(frozen=True)
class Source:
    """What all movements of a scan share: its brain `mask` (I, J, K), the scan `level` with its
    background at 0, and in the `box` around the brain what moves, `smooth`, and its `splines`."""

    scan: Volume
    mask: np.ndarray
    level: np.ndarray
    box: tuple[slice, slice, slice]
    smooth: np.ndarray
    splines: np.ndarray


def source_of(
    scan: Volume, mask: np.ndarray, white: Tensor, grid: Grid, most_noise: float
) -> Source:
    """A scan ready to be moved. What is noise by `noise_sd` is not to move, of brightness
    `most_noise` at most, so that 0 moves all: `white` (D, H, W) on `grid` says where the scan has
    white matter."""
    margin = max(4, round(8 / min(scan.grid.spacing)))
    box = crop_box(mask, margin)
    level = levelled(scan.data)
    smooth = level[box]
    if most_noise > 0:
        noise = NOISE_SD * noise_sd(scan, mask, white, grid)
        smooth = without_noise(smooth, min(noise, most_noise))
    splines = ndimage.spline_filter(smooth, order=3, output=np.float32)
    return Source(scan, mask, level, box, smooth, splines)


def move(source: Source, movement: Movement) -> np.ndarray:
    """The scan (I, J, K) float32 with its tissue moved inside its brain mask, the same outside, but
    for what grows out of a stripped brain."""
    scan, mask, box, smooth = source.scan, source.mask, source.box, source.smooth
    grid = crop_grid(scan.grid, box)
    inside = _grown(mask[box], grid, movement)
    taken = np.zeros_like(mask)
    taken[box] = inside
    out = source.level.astype(np.float32)
    view = out[box]

    def work(slab: slice) -> None:
        index = np.argwhere(inside[slab])
        index[:, 0] += slab.start
        offset, added, purified, fluid = _on_native(index, grid, movement)
        moved = np.linalg.norm(offset * grid.spacing, axis=1) > STILL_MM
        index, at = index[moved], (index[moved] + offset[moved]).T
        pulled = ndimage.map_coordinates(
            source.splines, at, order=3, prefilter=False, mode="nearest"
        )
        pulled += purified[moved] * (fluid[moved] - pulled) + added[moved]
        where = tuple(index.T)
        view[where] += pulled - smooth[where]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, _slabs(inside.shape)))
    empty = empty_voxels(scan.data)
    kept = ~taken if empty is None else ~taken | (empty & mask)
    # No new negative intensities, unless the scan has them.
    low = min(float(scan.data.min(where=~kept, initial=0.0)), 0.0)
    return np.where(kept, scan.data, np.maximum(out, low)).astype(np.float32)


def _grown(mask: np.ndarray, grid: Grid, movement: Movement) -> np.ndarray:
    """The brain mask (I, J, K) with what comes to lie around it of what was inside."""
    if movement.out_mm == 0:
        return mask
    reach = ndimage.binary_dilation(mask, iterations=round(movement.out_mm / min(grid.spacing)))
    index = np.argwhere(reach & ~mask)
    offset = _on_native(index, grid, movement)[0]
    inside = ndimage.map_coordinates(mask.astype(np.float32), (index + offset).T, order=1)
    grown = mask.copy()
    grown[tuple(index.T)] = inside > 0.5
    return grown


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    depth = max(1, SLAB_VOXELS // int(np.prod(shape[1:])))
    for start in range(0, shape[0], depth):
        yield slice(start, min(start + depth, shape[0]))


def _on_native(index: np.ndarray, native: Grid, movement: Movement) -> tuple[np.ndarray, ...]:
    """Displacement (N, 3) in native voxels, and the maps (N,), at native voxels (N, 3)."""
    at = _points(index, native, movement.grid)
    maps = torch.stack([movement.added, movement.purified, movement.fluid])
    to_voxels = torch.from_numpy(np.linalg.inv(native.affine[:3, :3])).float()
    offset = to_voxels @ sample(movement.displacement, at, "zeros")
    return offset.numpy().T, *sample(maps, at, "zeros").numpy()


def at_voxels(maps: Tensor, grid: Grid, index: np.ndarray, native: Grid) -> np.ndarray:
    """Values (C, N) of `maps` (C, D, H, W) on `grid` at voxels (N, 3) of another grid, trilinear;
    0 outside."""
    return np.asarray(sample(maps, _points(index, native, grid), "zeros").numpy())


def _points(index: np.ndarray, native: Grid, grid: Grid) -> Tensor:
    """Voxels (N, 3) of a native grid in voxels of another."""
    to_grid = torch.from_numpy(np.linalg.inv(grid.affine) @ native.affine).float()
    return torch.from_numpy(index).float() @ to_grid[:3, :3].T + to_grid[:3, 3]


def noise_sd(scan: Volume, mask: np.ndarray, white: Tensor, grid: Grid) -> float:
    """SD of the noise: of the voxels of `white` matter, (D, H, W) on `grid`, about the mean of
    their 3 x 3 x 3 neighbours."""
    # A million voxels say it as well as all.
    some = np.argwhere(mask)[:: max(1, int(mask.sum()) // 1_000_000)]
    pure = some[at_voxels(white[None], grid, some, scan.grid)[0] > 0.9]
    if not len(pure):
        return 0.0
    data = scan.data
    rest = (data - ndimage.uniform_filter(data, 3))[tuple(pure.T)]
    # Of 27 voxels the mean holds one itself.
    return float(1.4826 * np.median(np.abs(rest)) * (27 / 26) ** 0.5)


def without_noise(data: np.ndarray, noise: float) -> np.ndarray:
    """`data` (I, J, K) without what varies by less than `noise`: the guided filter (He et al. 2013)
    of 3 x 3 x 3 voxels, which keeps edges."""
    if noise == 0:
        return data
    mean = ndimage.uniform_filter(data, 3)
    variance = np.maximum(ndimage.uniform_filter(data * data, 3) - mean * mean, 0)
    slope = variance / (variance + noise**2)
    offset = mean - slope * mean
    smooth = ndimage.uniform_filter(slope, 3) * data + ndimage.uniform_filter(offset, 3)
    return np.asarray(smooth, np.float32)


def scaled(data: np.ndarray, mask: np.ndarray, factor: float) -> np.ndarray:
    """A scan (I, J, K) enlarged by a factor about the middle of its brain `mask`."""
    centre = np.argwhere(mask).mean(0)
    out = ndimage.affine_transform(
        data, np.eye(3) / factor, centre - centre / factor, order=3, mode="nearest"
    )
    return np.asarray(np.clip(out, data.min(), data.max()), np.float32)
