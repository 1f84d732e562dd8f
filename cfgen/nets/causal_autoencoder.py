"""The causal autoencoder of PCGM (section 3.3, "Causal Encoder"; OpenSora's CausalVAE): slices are
the frames of a film, and what is said of one never rests on later ones.

Slices lie along the last axis of an image. Convolutions see a slice and those before it; before the
first they see it again. In plane the image is halved between all levels, along the slices between
all but the first two: with four levels 8 x 8 voxels of 4 slices become one, but the first slice
stays for itself, so that 4 k + 1 slices have k + 1 in the latent. A prefix of the slices has the
prefix of the latent, and the other way round (tested).

Three things differ from the released code, each because it is not causal there or mixes axes: norms
are of each slice alone, slices are doubled by repetition, and attention is within a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.nets.autoencoder import Autoencoder
from cfgen.nets.blocks import Block, TokenAttention


@dataclass(frozen=True)
class CausalConfig:
    """`channels` has one entry a level, finest first. `slices` is the number of slices of the model
    grid: one that is not of the right form is made so by repeating the last, and cut again."""

    channels: tuple[int, ...]
    res_blocks: int
    latent_channels: int
    slices: int
    norm_groups: int = 32
    norm_eps: float = 1e-6

    @property
    def factor(self) -> int:
        """Voxels in plane along one edge of a latent voxel."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def slice_factor(self) -> int:
        """Slices of one slice of the latent, but for the first."""
        return int(2 ** (len(self.channels) - 2))

    def padded(self, slices: int) -> int:
        """The next number of slices that is a multiple of the factor and 1."""
        return slices + -(slices - 1) % self.slice_factor

    def latent_edges(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(d, h, w) of the latent of an image (D, H, W)."""
        d, h, w = shape
        return d // self.factor, h // self.factor, (self.padded(w) - 1) // self.slice_factor + 1


class CausalConv(nn.Module):
    """3 x 3 x 3, or 1 x 1 x 1, over frames (B, C, T, H, W): frame t sees t - 2, t - 1 and t."""

    def __init__(self, channels_in: int, channels: int, size: int = 3) -> None:
        super().__init__()
        self.before = size - 1
        self.conv = nn.Conv3d(channels_in, channels, size, padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(_repeated_first(x, self.before))
        return out


def _repeated_first(x: Tensor, times: int) -> Tensor:
    return torch.cat([x[:, :, :1].expand(-1, -1, times, -1, -1), x], 2) if times else x


def _frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _film(frames: Tensor, batch: int) -> Tensor:
    """The inverse of `_frames`."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame alone: the mean over all frames would know the later ones."""

    def forward(self, x: Tensor) -> Tensor:
        return _film(super().forward(_frames(x)), len(x))


class CausalResBlock(Block):
    def __init__(self, channels_in: int, channels: int, config: CausalConfig) -> None:
        super().__init__()
        self.norm1 = FrameNorm(config.norm_groups, channels_in, config.norm_eps)
        self.conv1 = CausalConv(channels_in, channels)
        self.norm2 = FrameNorm(config.norm_groups, channels, config.norm_eps)
        self.conv2 = CausalConv(channels, channels)
        self.skip_connection = (
            nn.Identity() if channels_in == channels else nn.Conv3d(channels_in, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = self.skip_connection(x) + h
        return out


class FrameAttention(Block):
    """Self-attention of the voxels of a frame."""

    def __init__(self, channels: int, config: CausalConfig) -> None:
        super().__init__()
        self.norm = FrameNorm(config.norm_groups, channels, config.norm_eps)
        self.attn = TokenAttention(channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        frames = _frames(self.norm(x))
        tokens = self.attn(frames.flatten(2).transpose(1, 2))
        return x + _film(tokens.transpose(1, 2).reshape(frames.shape), len(x))


class HalvePlane(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class HalveSlices(nn.Module):
    """2 m + 1 frames -> m + 1: the mean of each even frame and the two before it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(_repeated_first(x, 2), (3, 1, 1), (2, 1, 1))


class DoublePlane(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))
        return out


class DoubleSlices(nn.Module):
    """m + 1 frames -> 2 m + 1: the first once, each other twice."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, 2)], 2)


def _middle(width: int, config: CausalConfig) -> list[nn.Module]:
    return [
        CausalResBlock(width, width, config),
        FrameAttention(width, config),
        CausalResBlock(width, width, config),
    ]


def _encoder(config: CausalConfig) -> nn.Sequential:
    width = config.channels[0]
    blocks: list[nn.Module] = [CausalConv(1, width)]
    for level, channels in enumerate(config.channels):
        for _ in range(config.res_blocks):
            blocks.append(CausalResBlock(width, channels, config))
            width = channels
        if level < len(config.channels) - 1:
            blocks.append(HalvePlane(width))
            if level > 0:
                blocks.append(HalveSlices())
    blocks += [*_middle(width, config), FrameNorm(config.norm_groups, width, config.norm_eps)]
    return nn.Sequential(*blocks, nn.SiLU(), CausalConv(width, 2 * config.latent_channels))


def _decoder(config: CausalConfig) -> nn.Sequential:
    width = config.channels[-1]
    blocks: list[nn.Module] = [CausalConv(config.latent_channels, width), *_middle(width, config)]
    for level in reversed(range(len(config.channels))):
        for _ in range(config.res_blocks):
            blocks.append(CausalResBlock(width, config.channels[level], config))
            width = config.channels[level]
        if level > 0:
            blocks.append(DoublePlane(width))
            if level > 1:
                blocks.append(DoubleSlices())
    blocks.append(FrameNorm(config.norm_groups, width, config.norm_eps))
    return nn.Sequential(*blocks, nn.SiLU(), CausalConv(width, 1))


class CausalAutoencoder(nn.Module):
    """Image (B, 1, D, H, W) in [0, 1.2] <-> latent (B, C, d, h, w), `config.latent_edges`."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.quant_conv = CausalConv(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = CausalConv(config.latent_channels, config.latent_channels, 1)

    @property
    def last_layer(self) -> Tensor:
        """The weights that an image comes out of."""
        conv = self.decoder[-1]
        assert isinstance(conv, CausalConv)
        return conv.conv.weight

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent, each (B, C, d, h, w)."""
        slices = x.shape[-1]
        more = self.config.padded(slices) - slices
        film = F.pad(x, (0, more, 0, 0, 0, 0), mode="replicate") if more else x
        moments = self.quant_conv(self.encoder(film.permute(0, 1, 4, 2, 3)))
        mean, log_variance = moments.permute(0, 1, 3, 4, 2).chunk(2, 1)
        return mean, torch.exp(log_variance.clamp(-30.0, 20.0) / 2)

    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        film = self.decoder(self.post_quant_conv(z.permute(0, 1, 4, 2, 3)))
        image: Tensor = film.permute(0, 1, 3, 4, 2)
        slices = self.config.slices
        return image[..., :slices] if image.shape[-1] == self.config.padded(slices) else image

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction from the posterior mean."""
        return self.decode(self.encode(x))


# Either knows `posterior`, `encode`, `decode` and `config.latent_edges`.
AnyAutoencoder = Autoencoder | CausalAutoencoder
