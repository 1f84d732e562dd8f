"""Values of volumes between voxels, and Gaussian windows, on tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.data.grid import Grid

# Of so many channels torch's `grid_sample` has fast code for volumes; beyond, rows are faster.
GRID_SAMPLE_CHANNELS = 4
# Points whose rows are gathered at once: what they take stays in the cache.
POINTS_AT_ONCE = 200_000


def points_in(source: Grid, target: Grid) -> Tensor:
    """Where the voxels of `target` are in `source`, in its voxels: (*target.shape, 3)."""
    matrix = torch.from_numpy(np.linalg.inv(source.affine) @ target.affine).float()
    axes = [torch.arange(n, dtype=torch.float32) for n in target.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def sample(
    volumes: Tensor, points: Tensor, padding: str = "border", mode: str = "bilinear"
) -> Tensor:
    """`volumes` (C, D, H, W) float at voxel coordinates (..., 3): (C, ...), trilinear.

    Outside, the edge goes on; with padding "zeros" there is nothing.
    """
    if mode == "bilinear" and volumes.shape[0] > GRID_SAMPLE_CHANNELS:
        rows = volumes.permute(1, 2, 3, 0).contiguous()
        return sample_rows(rows, points, padding).movedim(-1, 0)
    size = torch.tensor(volumes.shape[1:], dtype=torch.float32, device=points.device)
    # grid_sample wants the last axis first, in [-1, 1] over voxel centres.
    at = (points * (2 / (size - 1)) - 1).flip(-1).reshape(1, 1, 1, -1, 3)
    out = F.grid_sample(volumes[None], at, mode, padding_mode=padding, align_corners=True)
    return out.reshape(volumes.shape[0], *points.shape[:-1])


def sample_rows(rows: Tensor, points: Tensor, padding: str = "border") -> Tensor:
    """Like `sample`, of many channels that lie together: `rows` (D, H, W, C) give (..., C)."""
    flat = rows.reshape(-1, rows.shape[-1])
    parts = [
        F.embedding_bag(corners, flat, mode="sum", per_sample_weights=weights)
        for some in points.reshape(-1, 3).split(POINTS_AT_ONCE)
        for corners, weights in [_corners(some, rows.shape[:3], padding)]
    ]
    return torch.cat(parts).reshape(*points.shape[:-1], rows.shape[-1])


def _corners(points: Tensor, shape: torch.Size, padding: str) -> tuple[Tensor, Tensor]:
    """The eight voxels (N, 8) int32 around each of the points (N, 3), by their number in a volume
    of this shape, and their weights (N, 8)."""
    voxels, parts = [], []
    for x, n in zip(points.unbind(-1), shape, strict=True):
        if padding == "border":
            x = x.clamp(0, n - 1)
        low = x.floor()
        voxel = torch.stack([low, low + 1], -1)
        part = torch.stack([low + 1 - x, x - low], -1)
        parts.append(part if padding == "border" else part * ((voxel >= 0) & (voxel < n)))
        voxels.append(voxel.clamp(0, n - 1).int())
    (i, j, k), (p, q, r) = voxels, parts
    plane = i[:, :, None] * shape[1] + j[:, None]
    numbers = plane[..., None] * shape[2] + k[:, None, None]
    weights = (p[:, :, None] * q[:, None])[..., None] * r[:, None, None]
    return numbers.flatten(1), weights.flatten(1)


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
