"""Values of volumes between voxels, and Gaussian windows, on tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(
    volumes: Tensor, points: Tensor, padding: str = "border", mode: str = "bilinear"
) -> Tensor:
    """`volumes` (C, D, H, W) float at voxel coordinates (..., 3): (C, ...), trilinear.

    Outside, the edge goes on; with padding "zeros" there is nothing.
    """
    size = torch.tensor(volumes.shape[1:], dtype=torch.float32, device=points.device)
    # grid_sample wants the last axis first, in [-1, 1] over voxel centres.
    at = (points * (2 / (size - 1)) - 1).flip(-1).reshape(1, 1, 1, -1, 3)
    out = F.grid_sample(volumes[None], at, mode, padding_mode=padding, align_corners=True)
    return out.reshape(volumes.shape[0], *points.shape[:-1])


def gaussian_line(sigma_voxels: float, radius: int | None = None) -> Tensor:
    """Window of a sum of 1, (2 * radius + 1,); the radius is three SD where none is given."""
    radius = math.ceil(3 * sigma_voxels) if radius is None else radius
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    line = torch.exp(-0.5 * (x / sigma_voxels) ** 2)
    return line / line.sum()


def smoothed(volume: Tensor, sigma_voxels: float, radius: int | None = None) -> Tensor:
    """`volume` (D, H, W) under a Gaussian window; there is nothing outside."""
    line = gaussian_line(sigma_voxels, radius).to(volume.device)
    out = volume[None, None]
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[2 + axis], padding[axis] = len(line), len(line) // 2
        out = F.conv3d(out, line.reshape(shape), padding=padding)
    return out[0, 0]
