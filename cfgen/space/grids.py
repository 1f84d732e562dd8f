"""Resampling between grids through the world: arrays in, arrays out.

A point of the target grid goes to the world, through a 4x4 matrix between worlds (identity, or an
affine registration), to voxel indices of the source grid, and is interpolated there.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cfgen import config
from cfgen.data.grid import AFFINE_TOLERANCE_MM, Grid
from cfgen.data.volume import Volume
from cfgen.errors import ImageError, UsageError


def model_grid(name: str) -> Grid:
    """The model grid of that name, in the template's space (config.GRIDS)."""
    if name not in config.GRIDS:
        raise UsageError("--grid", f"unknown grid '{name}'", " or ".join(config.GRIDS))
    shape, spacing_mm = config.GRIDS[name]
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = np.array(config.FIELD_OF_VIEW_CORNER_MM) + spacing_mm / 2
    return Grid(shape, affine)


def resample(
    data: np.ndarray,
    source: Grid,
    target: Grid,
    target_to_source: np.ndarray | None = None,
    *,
    order: int = 1,
    fill: float = 0.0,
) -> np.ndarray:
    """Interpolate `data` (source.shape) on `target`; float32 (target.shape).

    `target_to_source` (4, 4) takes the target's world to the source's, both RAS+ mm. Where the
    target is coarser the data are smoothed first, so that fine detail does not alias. `order` is
    the spline order: 0 nearest, 1 linear, 3 cubic.
    """
    between = np.eye(4) if target_to_source is None else target_to_source
    matrix = np.linalg.inv(source.affine) @ between @ target.affine
    if order > 0:
        step_vox = np.sqrt((matrix[:3, :3] ** 2).sum(1))  # target steps, in source voxels
        # Full width at half maximum of one target voxel, less the source's own.
        sigma = np.sqrt(np.maximum(step_vox**2 - 1.0, 0.0)) / 2.355
        if (sigma > 0.25).any():
            data = ndimage.gaussian_filter(data, sigma, truncate=3.0, mode="nearest")
    linear: np.ndarray = matrix[:3, :3]
    if np.allclose(linear, np.diag(np.diag(linear)), atol=1e-9):
        linear = np.diag(linear)  # scipy's separable, faster path
    with warnings.catch_warnings():
        # scipy still warns of a change of that path's meaning in 2016.
        warnings.simplefilter("ignore", UserWarning)
        out = ndimage.affine_transform(
            data.astype(np.float32, copy=False),
            linear,
            matrix[:3, 3],
            output_shape=target.shape,
            order=order,
            mode="constant",
            cval=fill,
            output=np.float32,
        )
    return np.asarray(out)


def describe_difference(a: Grid, b: Grid) -> str:
    """What sets the first grid apart from the second, in words; nothing where they match."""
    if a.matches(b):
        return ""
    found = []
    if a.shape != b.shape:
        found.append(f"shape {_numbers(a.shape)} against {_numbers(b.shape)}")
    size = np.maximum(a.shape, b.shape)
    if (np.abs(np.subtract(a.spacing, b.spacing)) * size).max() > AFFINE_TOLERANCE_MM:
        found.append(f"spacing {_numbers(a.spacing)} mm against {_numbers(b.spacing)} mm")
    if a.orientation != b.orientation:
        found.append(f"axes {a.orientation} against {b.orientation}")
    else:
        apart = np.abs(_directions(a) - _directions(b)) * size * b.spacing
        if apart.max() > AFFINE_TOLERANCE_MM:
            cosines = np.clip((_directions(a) * _directions(b)).sum(0), -1, 1)
            angle = float(np.degrees(np.arccos(cosines)).max())
            found.append(f"axes turned by {angle:.3g} degrees")
    first, second = a.affine[:3, 3], b.affine[:3, 3]
    if np.abs(first - second).max() > AFFINE_TOLERANCE_MM or not found:
        found.append(
            f"first voxel at {_place(first)} mm against {_place(second)} mm, "
            f"{np.linalg.norm(first - second):.3g} mm apart"
        )
    return "; ".join(found)


def _directions(grid: Grid) -> np.ndarray:
    """Unit vectors (3, 3) in the world of i, j and k, in columns."""
    return grid.affine[:3, :3] / np.array(grid.spacing)


def _numbers(numbers: Sequence[float]) -> str:
    return "x".join(f"{n:.6g}" for n in numbers)


def _place(point: np.ndarray) -> str:
    return "(" + ", ".join(f"{x + 0.0:.2f}" for x in np.round(point, 2)) + ")"


def work_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The same box and axes at about `spacing_mm`; axes that are nearly as coarse stay.

    A sheared grid gives the upright box around it: registration needs axes at right angles.
    """
    if not _is_orthogonal(grid):
        grid = upright_grid(grid, min(grid.spacing))
    spacing = np.array(grid.spacing)
    ratio = np.where(spacing < 0.75 * spacing_mm, spacing_mm / spacing, 1.0)
    shape = np.maximum(np.round(np.array(grid.shape) / ratio), 2).astype(int)
    step = np.array(grid.shape) / shape
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * step
    # Keep the outer faces of the box in place, not the centres of the first voxels.
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3] @ ((step - 1) / 2)
    i, j, k = shape.tolist()
    return Grid((i, j, k), affine)


def _is_orthogonal(grid: Grid) -> bool:
    axes = _directions(grid)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-3)


def upright_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The box around a grid with axes along the world's, R, A and S, at an isotropic spacing."""
    last = np.array(grid.shape) - 1
    corners = np.array(list(itertools.product(*[(0, n) for n in last])))
    world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = world.min(0), world.max(0)
    i, j, k = (np.ceil((high - low) / spacing_mm - 1e-3) + 1).astype(int).tolist()
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low
    return Grid((i, j, k), affine)


def crop_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice, slice]:
    """The smallest box around a non-empty mask, with a margin in voxels, inside the array."""
    boxes = []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = int(hits[0]) - margin, int(hits[-1]) + margin + 1
        boxes.append(slice(max(low, 0), min(high, mask.shape[axis])))
    return boxes[0], boxes[1], boxes[2]


def crop_grid(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    """The grid of `data[box]`."""
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ np.array([b.start for b in box], float)
    shape = tuple(b.stop - b.start for b in box)
    return Grid((shape[0], shape[1], shape[2]), affine)


def upsample_cubic(data: np.ndarray, grid: Grid, factor: int) -> tuple[np.ndarray, Grid]:
    """A smooth, finer copy: cubic splines once here, so that later steps can be linear."""
    shape = tuple(n * factor for n in grid.shape)
    affine = grid.affine.copy()
    affine[:3, :3] /= factor
    affine[:3, 3] += grid.affine[:3, :3] @ np.full(3, (1 / factor - 1) / 2)
    fine = Grid((shape[0], shape[1], shape[2]), affine)
    return resample(data, grid, fine, order=3), fine


def largest_component(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    if n == 0:
        return mask.astype(bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def grid_text(grid: Grid) -> str:
    """A grid in words, for messages."""
    size = "x".join(map(str, grid.shape))
    spacing = " x ".join(f"{s:.2f}" for s in grid.spacing)
    return f"{size} voxels of {spacing} mm, {grid.orientation}"


def require_grid(volume: Volume, grid: Grid, what: str, expected: str = "") -> None:
    """Raises ImageError, which says what sets them apart, when `what` is not on the grid."""
    if not volume.grid.matches(grid):
        raise ImageError(
            volume.path or what,
            f"{what} is not on the scan's grid: {describe_difference(volume.grid, grid)}",
            expected or grid_text(grid),
            f"resample the {what} to the scan, labels with nearest neighbours",
        )
