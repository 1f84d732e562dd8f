"""The diffusion decoder of PCGM (section 3.3; Preechakul et al. 2022): a UNet that denoises voxels,
told the latent, which is brought to their grid.

Nothing in it looks further than `reach` voxels: norms are of each voxel's channels, and there is no
attention, since the latent knows the rest of the brain. So an image can be denoised in tiles that
overlap by so much, and is the same as the whole, but for rounding (`tiled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.nets.autoencoder import pack_voxels, unpack_voxels
from cfgen.nets.blocks import Block, Downsample, Upsample, time_embedding, zeroed

# What the network says of noisy voxels xt (B, 1, D, H, W), times (B,) and the latent on the packed
# grid.
VoxelNet = Callable[[Tensor, Tensor, Tensor], Tensor]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class DecoderConfig:
    """`channels` has one entry a level, finest first; `pack` folds voxels into channels, as in the
    autoencoder, before the first of them."""

    channels: tuple[int, ...]
    latent_channels: int
    res_blocks: int = 1
    pack: int = 2
    # Channels of the full-resolution map that is left after unpacking.
    unpacked_channels: int = 8

    @property
    def multiple(self) -> int:
        """Edges of an image, and of a tile, are multiples of so many voxels."""
        return int(self.pack * 2 ** (len(self.channels) - 1))

    @property
    def reach(self) -> int:
        """How far in voxels an output may depend on an input, rounded up to `multiple`."""
        last = len(self.channels) - 1
        # The first convolution and the last, and what unpacking and the last one need of a voxel.
        far = 1 + 1 + 1
        for level in range(len(self.channels)):
            blocks = 2 * self.res_blocks if level < last else self.res_blocks
            # Two convolutions a block, on the way down and, but for the lowest level, up again.
            far += 2 * blocks * 2**level
            if level < last:
                # Down and up again, where a coarse voxel stands for two.
                far += 3 * 2**level
        voxels = far * self.pack
        return voxels + -voxels % self.multiple


class ChannelNorm(nn.Module):
    """Every voxel's channels over their root mean square (Zhang & Sennrich 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x.dtype)
        return x * scale * self.weight[:, None, None, None]


class VoxelBlock(Block):
    """Two convolutions, the second after a norm that follows the time; at first the identity."""

    def __init__(self, channels_in: int, channels: int, time_width: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels_in)
        self.conv1 = nn.Conv3d(channels_in, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, 2 * channels)
        self.norm2 = ChannelNorm(channels)
        self.conv2 = zeroed(nn.Conv3d(channels, channels, 3, padding=1))
        self.skip_connection = (
            nn.Identity() if channels_in == channels else nn.Conv3d(channels_in, channels, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.time_emb_proj(F.silu(time))[:, :, None, None, None].chunk(2, 1)
        out: Tensor = self.skip_connection(x) + self.conv2(F.silu(h * (1 + scale) + shift))
        return out


class DecoderNet(nn.Module):
    """xt (B, 1, D, H, W), t (B,) and latents on the packed grid (B, C, D/p, H/p, W/p) -> as xt.

    `z_mean` and `z_std` are of the training latents' channels.
    """

    z_mean: Tensor
    z_std: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        first, p = config.channels[0], config.pack
        width = 4 * first
        self.register_buffer("z_mean", torch.zeros(config.latent_channels))
        self.register_buffer("z_std", torch.ones(config.latent_channels))
        self.time_embed = nn.Sequential(nn.Linear(first, width), nn.SiLU(), nn.Linear(width, width))
        self.conv_in = nn.Conv3d(p**3 + config.latent_channels, first, 3, padding=1)
        inputs = (first, *config.channels[:-1])
        last = len(config.channels) - 1
        self.down = nn.ModuleList(
            _blocks(before, channels, width, config.res_blocks)
            for before, channels in zip(inputs, config.channels, strict=True)
        )
        self.smaller = nn.ModuleList(Downsample(c, padding=1) for c in config.channels[:-1])
        self.larger = nn.ModuleList(Upsample(c) for c in config.channels[1:])
        self.up = nn.ModuleList(
            _blocks(
                config.channels[level] + config.channels[level + 1],
                config.channels[level],
                width,
                config.res_blocks,
            )
            for level in range(last)
        )
        self.norm_out = ChannelNorm(first)
        self.conv_out = nn.Conv3d(first, config.unpacked_channels * p**3, 3, padding=1)
        self.full_resolution = zeroed(nn.Conv3d(config.unpacked_channels, 1, 3, padding=1))

    def forward(self, xt: Tensor, t: Tensor, latent: Tensor) -> Tensor:
        p = self.config.pack
        time = self.time_embed(time_embedding(t, self.config.channels[0]).to(xt.dtype))
        mean, std = (v.to(xt.dtype)[:, None, None, None] for v in (self.z_mean, self.z_std))
        h = self.conv_in(torch.cat([pack_voxels(xt, p), (latent - mean) / std], 1))
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            h = _through(blocks, h, time)
            if level < len(self.smaller):
                skips.append(h)
                h = self.smaller[level](h)
        for level in reversed(range(len(self.up))):
            h = torch.cat([self.larger[level](h), skips.pop()], 1)
            h = _through(self.up[level], h, time)
        h = self.conv_out(F.silu(self.norm_out(h)))
        out: Tensor = self.full_resolution(F.silu(unpack_voxels(h, p)))
        return out


def _blocks(channels_in: int, channels: int, width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        VoxelBlock(channels_in if i == 0 else channels, channels, width) for i in range(count)
    )


def _through(blocks: nn.Module, h: Tensor, time: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, time)
    return h


def upsampled(z: Tensor, shape: Sequence[int], pack: int) -> Tensor:
    """Latents (B, C, d, h, w) on the packed grid of images of `shape`, trilinear."""
    return F.interpolate(z, size=[n // pack for n in shape], mode="trilinear")


def boxes(shape: Sequence[int], tile: int, reach: int) -> Iterator[tuple[Box, Box]]:
    """Tiles of an image, and each with what it depends on: `reach` more on every side, where there
    is image."""
    starts = [range(0, n, tile) for n in shape]
    for corner in product(*starts):
        inner = [slice(c, min(c + tile, n)) for c, n in zip(corner, shape, strict=True)]
        outer = [
            slice(max(s.start - reach, 0), min(s.stop + reach, n))
            for s, n in zip(inner, shape, strict=True)
        ]
        yield (inner[0], inner[1], inner[2]), (outer[0], outer[1], outer[2])


def tiled(net: DecoderNet, xt: Tensor, t: Tensor, latent: Tensor, tile: int) -> Tensor:
    """What the network says, tile by tile: of less memory, and the same to rounding.

    Raises ValueError for a tile that is no multiple of `config.multiple`.
    """
    config = net.config
    if tile % config.multiple:
        raise ValueError(f"a tile of {tile} voxels is no multiple of {config.multiple}")
    p, out = config.pack, torch.empty_like(xt, dtype=torch.float32)
    for inner, outer in boxes(xt.shape[2:], tile, config.reach):
        i, j, k = outer
        packed = [slice(s.start // p, s.stop // p) for s in outer]
        part = net(xt[:, :, i, j, k], t, latent[:, :, packed[0], packed[1], packed[2]])
        own = [
            slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True)
        ]
        out[:, :, inner[0], inner[1], inner[2]] = part[:, :, own[0], own[1], own[2]].float()
    return out
