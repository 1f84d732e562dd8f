"""How a scan's tissue moved, as files that ANTs and ITK read."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from cfgen.data.volume import Grid, Volume, write_atomically, write_new
from cfgen.scan.moved import Movement, at_voxels
from cfgen.space.grids import crop_box, crop_grid

# NIfTI's code for vectors.
INTENT_VECTOR = 1007


def displacement(scan: Volume, mask: np.ndarray, movement: Movement) -> np.ndarray:
    """(I, J, K, 3) float32 mm in RAS: what is at x in the counterfactual was at x + this in the
    scan; 0 outside the brain `mask`."""
    out = np.zeros((*scan.data.shape, 3), np.float32)
    box = crop_box(mask)
    index, grid = np.argwhere(mask[box]), crop_grid(scan.grid, box)
    values = at_voxels(movement.displacement, movement.grid, index, grid)
    out[box][tuple(index.T)] = values.T
    return out


def log_jacobian(field: np.ndarray, grid: Grid) -> np.ndarray:
    """ln det d(x + u)/dx (I, J, K) float32 of a displacement u (I, J, K, 3) mm, by central
    differences: above 0 where tissue shrank."""
    by_index = np.stack([np.stack(np.gradient(field[..., a]), -1) for a in range(3)], -2)
    by_world = by_index @ np.linalg.inv(grid.affine[:3, :3])
    return np.log(np.linalg.det(by_world + np.eye(3))).astype(np.float32)


def write_field(
    scan: Volume, field: np.ndarray, path: Path, jacobian_path: Path, description: str
) -> None:
    """A displacement (I, J, K, 3) mm in RAS in ANTs' conventions: LPS, on a fifth axis, from the
    counterfactual to the scan; `ants.apply_transforms` takes labels along with it. Its log-Jacobian
    beside it."""
    image = nib.Nifti1Image(
        (field * np.array([-1, -1, 1], np.float32))[:, :, :, None], scan.affine.astype(np.float64)
    )
    image.header.set_intent(INTENT_VECTOR)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    payload = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(payload))
    jacobian = scan.like(log_jacobian(field, scan.grid))
    write_new(jacobian, jacobian_path, np.float32, description=description)
