"""Axial slices of a scan as square pictures for Stable Diffusion, and the way back.

A picture is (3, S, S) float32 in [-1, 1], anterior up and the subject's left on the left. Voxels
become pixels by one scale for both axes, in mm: the longer side of the slice fills the picture, the
rest is black. Intensities from 0 to a percentile of the scan's tissue go to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfgen.config import PREPROCESS
from cfgen.data.volume import Volume
from cfgen.errors import ImageError, UsageError
from cfgen.scan.pictures import to_ras

# Of the intensity that becomes white: above it is tissue; and so much of a slice must be.
_TISSUE, _LEAST_TISSUE = 0.1, 0.01


@dataclass(frozen=True)
class Slices:
    """A scan seen slice by slice: `data` (R, A, S) are its voxels along the body's axes, `zooms`
    the mm of a voxel to the right and to the front, `white` the intensity that becomes 1."""

    scan: Volume
    data: np.ndarray
    zooms: tuple[float, float]
    white: float
    size: int

    @staticmethod
    def of(scan: Volume, size: int) -> Slices:
        """`size` is the side of a picture. Raises ImageError for a scan without tissue."""
        data, spacing = to_ras(scan.data, scan.grid)
        positive = data[data > 0]
        if positive.size == 0:
            raise ImageError(scan.path, "no intensity above 0", "a brain scan")
        white = float(np.percentile(positive, PREPROCESS.intensity_percentile))
        return Slices(scan, data, (float(spacing[0]), float(spacing[1])), white, size)

    def between(self, low: float, high: float) -> list[int]:
        """The slices between two percentages of the way from the lowest to the highest with tissue.

        One at least: the nearest to the middle of them.
        """
        tissue = (self.data > _TISSUE * self.white).mean((0, 1)) > _LEAST_TISSUE
        places = np.flatnonzero(tissue)
        if places.size == 0:
            raise ImageError(self.scan.path, "no slice has tissue", "a brain scan")
        bottom, height = int(places[0]), int(places[-1] - places[0])
        first = int(np.ceil(bottom + height * low / 100))
        last = int(np.floor(bottom + height * high / 100))
        middle = bottom + round(height * (low + high) / 200)
        return list(range(first, last + 1)) or [middle]

    def picture(self, place: int) -> Tensor:
        """(3, S, S) of one slice."""
        levels = np.clip(self.data[:, :, place] / self.white, 0, 1) * 2 - 1
        # Rows go from front to back.
        rows = np.ascontiguousarray(levels.T[::-1], np.float32)
        # Cubic weights overshoot at edges.
        small = _resized(torch.from_numpy(rows), self._sides).clamp(-1, 1)
        picture = torch.full((self.size, self.size), -1.0)
        picture[self._window] = small
        return picture.expand(3, -1, -1).clone()

    def values(self, picture: Tensor) -> np.ndarray:
        """Intensities (R, A) of a picture (3, S, S), in the scan's own units."""
        inside = picture.float().cpu().mean(0)[self._window]
        rows = _resized(inside, (self.data.shape[1], self.data.shape[0])).numpy()
        return np.asarray((rows[::-1].T + 1) / 2 * self.white, np.float32)

    def back(self, data: np.ndarray) -> np.ndarray:
        """(R, A, S) on the scan's own voxels (I, J, K), the inverse of `data`'s turning."""
        axes = nib.io_orientation(self.scan.affine)
        inverse = np.empty_like(axes)
        inverse[axes[:, 0].astype(int)] = np.stack([np.arange(3), axes[:, 1]], 1)
        return np.asarray(nib.apply_orientation(data, inverse), np.float32)

    def axis_and_places(self, places: list[int]) -> tuple[int, list[int]]:
        """The scan's own voxel axis that slices are counted along, and their voxels there."""
        axes = nib.io_orientation(self.scan.affine)
        axis = int(np.flatnonzero(axes[:, 0] == 2)[0])
        last = self.scan.data.shape[axis] - 1
        return axis, [p if axes[axis, 1] > 0 else last - p for p in places]

    @property
    def _sides(self) -> tuple[int, int]:
        """Rows and columns that the slice takes in the picture."""
        wide, long = (n * z for n, z in zip(self.data.shape, self.zooms, strict=False))
        scale = self.size / max(wide, long)
        return max(1, round(long * scale)), max(1, round(wide * scale))

    @property
    def _window(self) -> tuple[slice, slice]:
        rows, columns = self._sides
        top, left = (self.size - rows) // 2, (self.size - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)


def parse_range(text: str, where: object = "--slices") -> tuple[float, float]:
    """'45:65' or '50', percent of the way up through the tissue. Raises UsageError."""
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high if colon else low)
    except ValueError:
        ends = (-1.0, -1.0)
    if not 0 <= ends[0] <= ends[1] <= 100:
        expected = "percent of the way from the lowest to the highest slice with tissue, 45:65"
        raise UsageError(where, f"'{text}'", expected)
    return ends


def _resized(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """(H, W) at another size, without aliasing; cubic, which there and back loses half of what
    linear weights lose."""
    return F.interpolate(
        image[None, None].contiguous(), sides, mode="bicubic", antialias=True, align_corners=False
    )[0, 0]
