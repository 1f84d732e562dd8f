"""Grids: where the voxels of a volume lie in the world, RAS+ millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np

# Two affines agree when no corner of the volume moves by more than this between them.
AFFINE_TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class Grid:
    """A lattice of voxels in the world: `shape` (I, J, K), `affine` (4, 4) voxel -> RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm."""
        a, b, c = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        return float(a), float(b), float(c)

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Axis codes of the directions in which i, j and k grow, such as 'LAS'."""
        return "".join(nib.aff2axcodes(self.affine))

    def matches(self, other: Grid) -> bool:
        return self.shape == other.shape and affines_agree(self.affine, other.affine, self.shape)


def corners_apart_mm(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two affines move the same corner of a volume apart at most, along one world axis."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.abs((a - b) @ corners).max())


def affines_agree(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether two affines put every corner of a volume within `AFFINE_TOLERANCE_MM`."""
    return corners_apart_mm(a, b, shape) <= AFFINE_TOLERANCE_MM
