"""A small residual UNet from an image to scores of every voxel: of regions, or of tissues."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.nets.autoencoder import pack_voxels, unpack_voxels
from cfgen.nets.blocks import Downsample, ResBlock


@dataclass(frozen=True)
class SegmenterConfig:
    """`channels` has one entry a level, finest first; `pack` voxels fold into channels before."""

    classes: int
    channels: tuple[int, ...] = (32, 64, 96, 128)
    pack: int = 2
    # Between the finest features and the scores of the voxels that one of them stands for.
    hidden: int = 128
    norm_groups: int = 8
    norm_eps: float = 1e-5

    @property
    def multiple(self) -> int:
        """What the edges of an image are padded to a multiple of."""
        return int(self.pack * 2 ** (len(self.channels) - 1))


class ResUNet(nn.Module):
    """What a segmenter and a tissue network share: `outputs` scores of every voxel of an image."""

    def __init__(self, config: SegmenterConfig, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs = config, outputs
        groups, eps, widths = config.norm_groups, config.norm_eps, config.channels
        self.conv_in = nn.Conv3d(config.pack**3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        before = widths[0]
        for width in widths:
            self.down.append(ResBlock(before, width, groups, eps))
            self.shrink.append(Downsample(width, padding=0))
            before = width
        self.shrink = self.shrink[:-1]
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for width in reversed(widths[:-1]):
            # Narrowed before it is enlarged: a convolution on the finer grid costs eight times.
            self.grow.append(nn.Conv3d(before, width, 1))
            self.up.append(ResBlock(2 * width, width, groups, eps))
            before = width
        self.norm_out = nn.GroupNorm(groups, before, eps)
        # Place by place: a wider kernel here would cost as much as the rest together.
        self.hidden = nn.Conv3d(before + widths[0], config.hidden, 1)
        self.conv_out = nn.Conv3d(config.hidden, self.outputs * config.pack**3, 1)

    def features(self, x: Tensor) -> Tensor:
        """(B, 2 channels[0], D', H', W') of a padded image, one voxel to `pack`^3 of the image's.

        The first half knows the surroundings, the second is the image's own detail.
        """
        extra = [-n % self.config.multiple for n in x.shape[2:]]
        x = F.pad(x, (0, extra[2], 0, extra[1], 0, extra[0]))
        detail = h = self.conv_in(pack_voxels(x, self.config.pack))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            h = block(h)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = F.interpolate(grow(h), scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], 1))
        return torch.cat([F.silu(self.norm_out(h)), detail], 1)

    def scores(self, x: Tensor) -> Tensor:
        """(B, outputs, D, H, W) of an image (B, 1, D, H, W) with edges of any length."""
        d, h, w = x.shape[2:]
        packed = self.conv_out(F.silu(self.hidden(self.features(x))))
        return unpack_voxels(packed, self.config.pack)[:, :, :d, :h, :w]


class TissueNet(ResUNet):
    """Image (B, 1, D, H, W) in [0, 1] -> scores of classes (B, classes, D, H, W)."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)


class Segmenter(ResUNet):
    """Image (B, 1, D, H, W) in [0, 1] -> scores (B, classes, D, H, W) and side (B, D, H, W), the
    logit of left against right."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config, config.classes + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(x)
        return scores[:, :-1], scores[:, -1]

    def scores_at(self, features: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (classes, N pack^3) and sides (N pack^3,) at N flat places of an image's features.

        As `forward` gives them there: training looks at some voxels alone.
        """
        cells = features.flatten(1)[:, places].T
        cells = F.silu(F.linear(cells, self.hidden.weight.flatten(1), self.hidden.bias))
        logits = F.linear(cells, self.conv_out.weight.flatten(1), self.conv_out.bias)
        logits = logits.reshape(len(places), self.outputs, -1).permute(1, 0, 2).flatten(1)
        return logits[:-1], logits[-1]
