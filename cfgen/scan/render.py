"""From an edit on the model grid to the subject's own scan: residual, warp or latent."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cfgen.config import Render
from cfgen.data.volume import Volume
from cfgen.measure.background import empty_voxels, levelled
from cfgen.scan.prepare import Prepared
from cfgen.space import registration
from cfgen.space.grids import crop_box, crop_grid, resample

# Native voxels are warped in slabs, so that memory stays small at 0.7 mm.
SLAB_VOXELS = 2_000_000


def render(
    scan: Volume, prepared: Prepared, factual: np.ndarray, edited: np.ndarray, how: Render
) -> np.ndarray:
    """The counterfactual scan (I, J, K) float32, equal to `scan.data` outside the brain.

    `factual` and `edited` are the decoded reconstruction and counterfactual on the model grid.
    `residual` adds their difference to the scan, `warp` moves the scan's own voxels by the
    deformation between them, and `latent` takes the decoded image as it is.
    """
    if how == "warp":
        out = _warp(scan, prepared, factual, edited)
    elif how == "latent":
        inside = np.where(prepared.mask, edited, 0)
        out = np.where(prepared.native_mask, prepared.change_to_native(inside), scan.data)
    else:
        change = np.where(prepared.mask, edited - factual, 0)
        out = scan.data + prepared.change_to_native(change)
    return bounded(scan, prepared.native_mask, out, scan.data)


def bounded(scan: Volume, mask: np.ndarray, edited: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """An edited scan (I, J, K) float32 in the brain `mask`, as it is `outside` elsewhere and where
    the scan is empty."""
    # The brain's own range at the low end: no new negative intensities.
    empty = empty_voxels(scan.data)
    kept = ~mask if empty is None else ~mask | empty
    low = min(float(scan.data.min(where=~kept, initial=0.0)), 0.0)
    return np.where(kept, outside, np.maximum(edited, low)).astype(np.float32)


def _warp(scan: Volume, prepared: Prepared, factual: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Voxels of the scan moved as SyN moves the reconstruction onto the counterfactual."""
    grid = prepared.grid
    # Template mm from a point of the counterfactual to the point of the scan it shows.
    shift = registration.displacement(edited, grid, factual, grid)
    out = scan.data.copy()
    box = crop_box(prepared.native_mask)
    margin = crop_box(prepared.native_mask, margin=max(4, round(8 / min(scan.grid.spacing))))
    source, source_grid = levelled(scan.data)[margin], crop_grid(scan.grid, margin)
    source = ndimage.spline_filter(source, order=3, output=np.float32)
    to_template = np.linalg.inv(prepared.to_native)
    world_to_source = np.linalg.inv(source_grid.affine)
    depth = max(1, SLAB_VOXELS // int(np.prod([b.stop - b.start for b in box[1:]])))
    for start in range(box[0].start, box[0].stop, depth):
        slab = (slice(start, min(start + depth, box[0].stop)), *box[1:])
        own = crop_grid(scan.grid, slab)
        moved = [resample(shift[..., a], grid, own, to_template) for a in range(3)]
        # The affine is linear: a shift in template mm is carried by its 3 x 3 part alone.
        step = world_to_source[:3, :3] @ prepared.to_native[:3, :3]
        offset = np.tensordot(step, np.stack(moved), axes=1)
        index = np.stack(np.meshgrid(*[np.arange(n) for n in own.shape], indexing="ij"))
        first = np.array([s.start - m.start for s, m in zip(slab, margin, strict=True)])
        points = index + first[:, None, None, None] + offset
        warped = ndimage.map_coordinates(source, points, order=3, prefilter=False, mode="nearest")
        inside = prepared.native_mask[slab] & (np.abs(offset).max(0) > 1e-3)
        out[slab] = np.where(inside, warped, out[slab])
    return out
