"""LPIPS, the perceptual distance of Zhang et al. (2018), of grey slices.

Features of VGG16 (Simonyan & Zisserman 2015) after the last layer of each of its five blocks, each
voxel's of length 1, squared differences weighted by channel and averaged in place. The weights are
not cfgen's: torchvision has the network's, the `lpips` package the channels'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Convolutions of each block, and their channels.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# Of the network's input, an RGB image in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Two batches of slices (B, 1, H, W) in [0, 1] -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        blocks, width = [], 3
        for count, channels in BLOCKS:
            convs = []
            for _ in range(count):
                convs.append(nn.Conv2d(width, channels, 3, padding=1))
                width = channels
            blocks.append(nn.ModuleList(convs))
        self.blocks = nn.ModuleList(blocks)
        self.weights = nn.ParameterList(torch.ones(channels) for _, channels in BLOCKS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distance = a.new_zeros(len(a))
        pairs = zip(self.features(a), self.features(b), self.weights, strict=True)
        for of_a, of_b, weight in pairs:
            difference = F.normalize(of_a, dim=1, eps=1e-10) - F.normalize(of_b, dim=1, eps=1e-10)
            weighted = (difference.square() * weight[:, None, None]).sum(1)
            distance = distance + weighted.mean((1, 2))
        return distance

    def features(self, x: Tensor) -> Iterator[Tensor]:
        assert isinstance(self.shift, Tensor)
        assert isinstance(self.scale, Tensor)
        h = (2 * x - 1 - self.shift) / self.scale
        for number, block in enumerate(self.blocks):
            if number:
                h = F.max_pool2d(h, 2)
            assert isinstance(block, nn.ModuleList)
            for conv in block:
                h = F.relu(conv(h))
            yield h


def lpips_from(vgg: Mapping[str, Tensor], channels: Mapping[str, Tensor]) -> Lpips:
    """From the state dicts of torchvision's `vgg16` and of the `lpips` package's `vgg`. Raises
    KeyError for a weight that is not there, and RuntimeError for one of another shape."""
    net, place = Lpips(), 0
    state = {}
    for number, (count, _) in enumerate(BLOCKS):
        for conv in range(count):
            for kind in ("weight", "bias"):
                state[f"blocks.{number}.{conv}.{kind}"] = vgg[f"features.{place}.{kind}"]
            # A ReLU follows each.
            place += 2
        # And pooling a block.
        place += 1
        state[f"weights.{number}"] = channels[f"lin{number}.model.1.weight"].flatten()
    net.load_state_dict(state)
    return net
