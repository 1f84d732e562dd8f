"""Displacements: fields (3, D, H, W) in mm that say where tissue is read from."""

from __future__ import annotations

import torch
from torch import Tensor

from cfgen.space.sampling import sample


def exponential(velocity: Tensor, spacing_mm: float, steps: int = 5) -> Tensor:
    """The displacement (3, D, H, W) mm of a stationary velocity, by scaling and squaring."""
    field = velocity / 2**steps
    for _ in range(steps):
        field = field + sample(
            field,
            voxels(field.shape[1:], field.device) + field.permute(1, 2, 3, 0) / spacing_mm,
        )
    return field


def jacobian(at: Tensor) -> Tensor:
    """The determinant (D, H, W) of a map (D, H, W, 3) of voxels to the voxels that they come from,
    by central differences: above 1 where things shrank."""
    by_axis = torch.stack([torch.stack(torch.gradient(part)) for part in at.unbind(-1)])
    return torch.linalg.det(by_axis.permute(2, 3, 4, 0, 1))


def voxels(shape: torch.Size | tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Voxel coordinates (*shape, 3) of a grid."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
