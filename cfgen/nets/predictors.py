"""A predictor of conditions from an image: linear in the blurred voxels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.space.sampling import gaussian_line

RADIUS = 3


@dataclass(frozen=True)
class PredictorConfig:
    """`outputs` values an image of `shape` (D, H, W): standardised numbers, one a variable."""

    outputs: int
    shape: tuple[int, int, int]
    blur_voxels: float = 1.0

    @property
    def inputs(self) -> int:
        """Voxels that are left of an image: every second one along each axis."""
        d, h, w = ((n + 1) // 2 for n in self.shape)
        return d * h * w


class Predictor(nn.Module):
    """Image (B, 1, D, H, W) -> (B, outputs)."""

    kernel: Tensor

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        line = gaussian_line(config.blur_voxels, RADIUS)
        kernel = torch.einsum("i,j,k->ijk", line, line, line)[None, None]
        self.register_buffer("kernel", kernel, persistent=False)
        self.head = nn.Linear(config.inputs, config.outputs)

    def blurred(self, image: Tensor) -> Tensor:
        """Every second voxel of the blurred image, (B, inputs)."""
        return F.conv3d(image, self.kernel, stride=2, padding=RADIUS).flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.blurred(image))
        return out
