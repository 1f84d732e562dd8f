"""The judge: a small CNN that guesses from a brain what is known of it.

CDM (section 4.3) judges counterfactuals with CNNs of 4 downsampling levels, two
[conv - norm - ReLU] a level, channel-wise average pooling and a linear layer, one for age and one
for sex. This is one such network with an output for every target, so that they share what they see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How far a voxel of a brain is from the mean brain, about, where the brightest voxels are 1.
SPREAD = 0.15


@dataclass(frozen=True)
class JudgeConfig:
    """`numbers` standardised numbers come first in the output, then scores of the levels of each of
    `categories`. Images are of `shape` (D, H, W)."""

    shape: tuple[int, int, int]
    numbers: int
    categories: tuple[int, ...] = ()
    # Edge of the blocks of voxels that are averaged before all else.
    pool: int = 2
    channels: tuple[int, ...] = (16, 32, 64, 128)

    @property
    def outputs(self) -> int:
        return self.numbers + sum(self.categories)

    @property
    def small(self) -> tuple[int, int, int]:
        """The shape of a shrunk image."""
        d, h, w = (n // self.pool for n in self.shape)
        return d, h, w


class Level(nn.Module):
    """Two [conv - norm - ReLU], of which the first halves the edges (rounded up).

    Batch norm: brains differ from one another by little of what they have in common. Norms of one
    image (group, instance) leave it so, and with them nothing was learned of age in 400 steps.
    """

    def __init__(self, before: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, kernel, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Judge(nn.Module):
    """Image (B, 1, D, H, W) -> (B, outputs)."""

    centre: Tensor
    places: Tensor

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        # The mean of the shrunk training images.
        self.register_buffer("centre", torch.zeros(config.small))
        # Brains are aligned: where a voxel lies tells what it is, and the means over places at the
        # end would forget it. In [-1, 1] along each axis.
        axes = [torch.linspace(-1, 1, n) for n in config.small]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        self.register_buffer("places", places, persistent=False)
        befores, last = (4, *config.channels[:-1]), len(config.channels) - 1
        # The last level is a few voxels wide: place by place, its second convolution costs a
        # twenty-seventh of the bytes, which would be half of the network.
        self.levels = nn.ModuleList(
            Level(before, width, 1 if n == last else 3)
            for n, (before, width) in enumerate(zip(befores, config.channels, strict=True))
        )
        self.head = nn.Linear(config.channels[-1], config.outputs)

    def shrink(self, image: Tensor) -> Tensor:
        """(B, 1, D, H, W) -> means of blocks, (B, 1, D / pool, H / pool, W / pool)."""
        return F.avg_pool3d(image, self.config.pool)

    def maps(self, small: Tensor) -> list[Tensor]:
        """What every level sees of a shrunk image: (B, channels[k], D_k, H_k, W_k)."""
        places = self.places.expand(len(small), -1, -1, -1, -1)
        maps, x = [], torch.cat([(small - self.centre) / SPREAD, places], 1)
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps

    def features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of an image, and their last averaged over places, (B, channels[-1])."""
        maps = self.maps(self.shrink(image))
        return maps, pooled(maps[-1])

    def outputs(self, small: Tensor) -> Tensor:
        """(B, outputs) of an image that is shrunk already, as training keeps them."""
        out: Tensor = self.head(pooled(self.maps(small)[-1]))
        return out

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(self.shrink(image))


def pooled(map_: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, C) means over places."""
    return map_.mean((2, 3, 4))
