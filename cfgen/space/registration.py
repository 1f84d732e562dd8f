"""Deformable registration and bias field, by ANTs and SimpleITK.

Matrices and fields leave this file in our own convention (RAS+ mm); ITK's LPS stays inside. ANTs
runs in its reproducible mode: the same images give the same transform, bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cfgen.config import SEED, Preprocess
from cfgen.data.volume import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _ants() -> Any:
    import ants

    ants.config.set_ants_deterministic(True, SEED + 1)
    return ants


def _to_ants(data: np.ndarray, grid: Grid) -> Any:
    # ITK knows rotations only: grids.work_grid straightens a sheared affine before this.
    ants = _ants()
    affine = LPS @ grid.affine
    spacing = np.array(grid.spacing)
    return ants.from_numpy(
        np.ascontiguousarray(data, np.float32),
        origin=tuple(affine[:3, 3]),
        spacing=tuple(spacing),
        direction=affine[:3, :3] / spacing,
    )


@contextmanager
def _transforms(kind: str, fixed: Any, moving: Any) -> Iterator[list[str]]:
    """Files of the transforms that a SyN registration of a kind found, there for the block."""
    with tempfile.TemporaryDirectory(prefix="cfgen-") as folder:
        result = _ants().registration(
            fixed, moving, f"antsRegistrationSyNQuickRepro[{kind}]", outprefix=f"{folder}/"
        )
        yield result["fwdtransforms"]


def deform(
    fixed: np.ndarray,
    fixed_grid: Grid,
    moving: np.ndarray,
    moving_grid: Grid,
    images: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Bring `images` (on the moving grid) onto the fixed grid by affine and SyN registration."""
    ants = _ants()
    reference = _to_ants(fixed, fixed_grid)
    with _transforms("s", reference, _to_ants(moving, moving_grid)) as files:
        warped = [ants.apply_transforms(reference, _to_ants(i, moving_grid), files) for i in images]
    return [np.asarray(image.numpy()) for image in warped]


def displacement(
    fixed: np.ndarray, fixed_grid: Grid, moving: np.ndarray, moving_grid: Grid
) -> np.ndarray:
    """SyN without affine: mm (*fixed shape, 3) in RAS from a fixed point to its moving point."""
    import nibabel as nib

    with _transforms("so", _to_ants(fixed, fixed_grid), _to_ants(moving, moving_grid)) as files:
        field = next(f for f in files if f.endswith(".nii.gz"))
        shift = np.asarray(nib.load(field).dataobj, np.float32)
    # ITK stores vectors in LPS, on a fifth axis.
    return shift.reshape(*fixed.shape, 3) * np.array([-1, -1, 1], np.float32)


def log_bias_field(
    data: np.ndarray, mask: np.ndarray, grid: Grid, recipe: Preprocess
) -> np.ndarray:
    """The logarithm of the multiplicative bias field inside `mask` (N4; Tustison et al. 2010).

    Normalised to mean 0 over the mask, so that dividing by it keeps the overall brightness.
    """
    import SimpleITK as sitk

    def image(array: np.ndarray) -> Any:
        out = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        out.SetSpacing(grid.spacing)
        return out

    # More threads are no faster here, and change the field a little: the affine would follow.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    scan = image(data.astype(np.float32))
    shrink = [recipe.n4_shrink] * 3
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(recipe.n4_iterations))
    n4.SetConvergenceThreshold(recipe.n4_tolerance)
    n4.Execute(sitk.Shrink(scan, shrink), sitk.Shrink(image(mask.astype(np.uint8)), shrink))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(scan)).T
    return np.asarray(field - field[mask].mean(), dtype=np.float32)
