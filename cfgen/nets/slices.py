"""Axial slices of a volume in a latent's place, for a diffusion model of slices."""

from __future__ import annotations

from torch import Tensor, nn


class SliceCoder(nn.Module):
    """Image (B, 1, D, H, W) <-> its W slices (B W, 1, 1, D, H), nothing lost."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def encode(self, image: Tensor) -> Tensor:
        return image.permute(0, 4, 1, 2, 3).flatten(0, 1)[:, :, None]

    def decode(self, z0: Tensor) -> Tensor:
        return z0[:, :, 0].unflatten(0, (-1, self.slices)).permute(0, 2, 3, 4, 1)
