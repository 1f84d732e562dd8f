"""Predictors of conditions from an image: a small residual CNN after CDM section 4.3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.nets.autoencoder import pack_voxels


@dataclass(frozen=True)
class PredictorConfig:
    """`outputs` values an image: standardised numbers and logits, one a variable."""

    outputs: int
    channels: tuple[int, ...] = (32, 48, 64, 96)
    norm_groups: int = 8
    dropout: float = 0.3


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.shortcut = nn.Conv3d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class Predictor(nn.Module):
    """Image (B, 1, D, H, W) -> (B, outputs)."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        widths = (8, *config.channels)
        strides = (1, *[2] * (len(config.channels) - 1))
        self.blocks = nn.Sequential(
            *[
                _Block(a, b, s, config.norm_groups)
                for a, b, s in zip(widths, config.channels, strides, strict=False)
            ]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.channels[-1], config.outputs)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(pack_voxels(image, 2))
        out: Tensor = self.head(self.dropout(torch.mean(x, (2, 3, 4))))
        return out
