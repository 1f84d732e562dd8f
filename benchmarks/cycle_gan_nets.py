"""Networks of the adversarial baselines of benchmarks/cycle.py, and the gradient penalty.

Age and sex are appended to the code that the generator takes (CDM section 4.2). The packing of
2 x 2 x 2 voxels into channels is the autoencoder's: no wide map lives at full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from cycle_brains import raw, standard
from torch import Tensor, nn

from cfgen.device import no_autocast
from cfgen.nets.autoencoder import pack_voxels, unpack_voxels
from cfgen.nets.blocks import zeroed

CPU = torch.device("cpu")
PACK = 2
# Channels of the map that the code becomes, and of the map that is left after unpacking.
FIRST_CHANNELS, UNPACKED_CHANNELS = 16, 4
SLOPE = 0.2


class Generator(nn.Module):
    """A code (B, Z) and conditions (B, K) -> images (B, 1, D, H, W); edges are multiples of 8. It
    begins as the mean image.

    No norms, nor in the trunk: brains differ from one another by little of what they have in
    common, and norms of one image leave it so. (Of a ball whose brightness is its age, 80 steps
    learned 0.4 with group norms and 0.7 without.) A gradient penalty allows no others (Gulrajani et
    al. 2017, section 4).
    """

    def __init__(
        self, code: int, conditions: int, centre: Tensor, channels: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.register_buffer("centre", centre.clone())
        self.small = [n // 8 for n in centre.shape]
        self.first = nn.Linear(code + conditions, FIRST_CHANNELS * math.prod(self.small))
        widths = (FIRST_CHANNELS, *channels)
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, 3, padding=1) for a, b in zip(widths, channels, strict=False)
        )
        self.unpacked = nn.Conv3d(channels[-1], UNPACKED_CHANNELS * PACK**3, 3, padding=1)
        self.last = zeroed(nn.Conv3d(UNPACKED_CHANNELS, 1, 3, padding=1))
        for conv in (*self.convs, self.unpacked):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        h = self.first(torch.cat([z, c], 1)).unflatten(1, (*self.small, FIRST_CHANNELS))
        # Channels last in memory.
        h = h.permute(0, 4, 1, 2, 3)
        for level, conv in enumerate(self.convs):
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if level else h
            h = F.silu(conv(h))
        x = self.last(F.silu(unpack_voxels(self.unpacked(h), PACK)))
        return raw(x, self.centre)


class Trunk(nn.Module):
    """An image (B, 1, D, H, W) -> its voxels, standardised and packed, and maps at a quarter of its
    edges, an eighth and so on."""

    def __init__(self, centre: Tensor, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("centre", centre.clone())
        widths = (PACK**3, *channels)
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, channels, strict=False)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, SLOPE)
            nn.init.zeros_(conv.bias)
        edges = [n // PACK // 2 ** len(channels) for n in centre.shape]
        self.outputs = channels[-1] * math.prod(edges)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = pack_voxels(standard(x, self.centre), PACK)
        maps = [h]
        # In bf16 the kernels of a CPU read rubbish on maps of two voxels' edge.
        with no_autocast(CPU):
            for conv in self.convs:
                h = F.leaky_relu(conv(h), SLOPE)
                maps.append(h)
        return maps


class WideLinear(nn.Linear):
    """Of many inputs, whose weights are kept so large that each of Adam's steps is small (equalised
    learning rate, Karras et al. 2018): else one step moves the sum of twenty thousand by several
    standard deviations, and codes run away before their critic has learned anything."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x / self.in_features**0.5, self.weight, self.bias)


class Encoder(nn.Module):
    """Images (B, 1, D, H, W) -> `outputs` numbers each."""

    def __init__(self, centre: Tensor, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.trunk = Trunk(centre, channels)
        self.last = WideLinear(self.trunk.outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.trunk(x)[-1].flatten(1))


class Critic(nn.Module):
    """Images (B, 1, D, H, W) -> (B,) and the trunk's maps; where it has `conditions` of them, it
    hears what the image should be, and so an image of another age is no better than a false one."""

    def __init__(self, centre: Tensor, channels: tuple[int, ...], conditions: int = 0) -> None:
        super().__init__()
        self.conditions = conditions
        self.trunk = Trunk(centre, channels)
        self.hidden = WideLinear(self.trunk.outputs, 64)
        self.last = nn.Sequential(
            nn.Linear(64 + conditions, 64), nn.LeakyReLU(SLOPE), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.trunk(x)
        h = F.leaky_relu(self.hidden(maps[-1].flatten(1)), SLOPE)
        score = self.last(torch.cat([h, c], 1) if self.conditions else h)
        return score[:, 0], maps


def code_critic(code: int, width: int = 256) -> nn.Sequential:
    """Codes (B, Z) -> (B, 1)."""
    return nn.Sequential(
        nn.Linear(code, width),
        nn.LeakyReLU(SLOPE),
        nn.Linear(width, width),
        nn.LeakyReLU(SLOPE),
        nn.Linear(width, 1),
    )


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, u: Tensor
) -> Tensor:
    """Mean of (|gradient| - 1)^2 at u real + (1 - u) fake, u (B,) in [0, 1] (Gulrajani et al. 2017,
    Eq. 3)."""
    u = u.reshape(-1, *[1] * (real.ndim - 1))
    between = (u * real + (1 - u) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()
