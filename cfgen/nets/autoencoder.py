"""The autoencoder: image <-> latent, a Gaussian a voxel (Kingma & Welling 2014; Rombach 2022).

With `pack=1` and `linear_path=False` it is the network of MONAI's AutoencoderKL, and equal to it
once the weights are converted (nets/convert.py). Bundles of ours use three additions:

`pack` folds p x p x p voxels into channels before the first convolution and unfolds them at the
end, so that no wide feature map lives at full resolution: four times the voxels a second in
training. A last full-resolution convolution keeps the unfolding from leaving a checkerboard.

`linear_path` adds an overlapping linear transform past the networks in both directions. It carries
the low frequencies from the first step on, and leaves detail to the networks.

`folded_from` puts a linear level under a trained autoencoder: blocks of 2 x 2 x 2 of its latent
voxels become one, from so many channels to `latent_channels` (`start_from_components`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.nets.blocks import Block, Downsample, ResBlock, Upsample


@dataclass(frozen=True)
class AutoencoderConfig:
    """`channels`, `res_blocks` and `attention` have one entry a level, finest first."""

    channels: tuple[int, ...]
    res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    latent_channels: int
    middle_attention: bool = False
    norm_groups: int = 16
    norm_eps: float = 1e-6
    pack: int = 1
    # Channels of the full-resolution map that is left after unpacking.
    unpacked_channels: int = 8
    linear_path: bool = False
    folded_from: int | None = None

    @property
    def inner_channels(self) -> int:
        """Channels of the latent before it is folded."""
        return self.folded_from or self.latent_channels

    @property
    def inner_factor(self) -> int:
        """Voxels of the image along one edge of a voxel of the latent before it is folded."""
        return int(self.pack * 2 ** (len(self.channels) - 1))

    @property
    def factor(self) -> int:
        """Voxels of the image along one edge of a latent voxel."""
        return self.inner_factor * (2 if self.folded_from else 1)

    def latent_edges(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(d, h, w) of the latent of an image (D, H, W)."""
        d, h, w = (edge // self.factor for edge in shape)
        return d, h, w


def _res_block(channels_in: int, channels: int, config: AutoencoderConfig) -> ResBlock:
    return ResBlock(channels_in, channels, config.norm_groups, config.norm_eps)


class Attention(Block):
    """Self-attention over all voxels, one head."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels, config.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.out_proj(h).transpose(1, 2).reshape(x.shape)


def pack_voxels(x: Tensor, p: int) -> Tensor:
    """(B, C, D, H, W) -> (B, C p^3, D/p, H/p, W/p)."""
    b, c, d, h, w = x.shape
    x = x.reshape(b, c, d // p, p, h // p, p, w // p, p).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * p**3, d // p, h // p, w // p)


def unpack_voxels(x: Tensor, p: int) -> Tensor:
    """(B, C p^3, D, H, W) -> (B, C, D p, H p, W p), the inverse of `pack_voxels`."""
    b, c, d, h, w = x.shape
    x = x.reshape(b, c // p**3, p, p, p, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // p**3, d * p, h * p, w * p)


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.pack = config.pack
        width = config.channels[0]
        blocks: list[nn.Module] = [nn.Conv3d(config.pack**3, width, 3, padding=1)]
        for level, channels in enumerate(config.channels):
            for _ in range(config.res_blocks[level]):
                blocks.append(_res_block(width, channels, config))
                width = channels
                if config.attention[level]:
                    blocks.append(Attention(width, config))
            if level < len(config.channels) - 1:
                blocks.append(Downsample(width, padding=0))
        blocks += _middle(width, config)
        blocks.append(nn.GroupNorm(config.norm_groups, width, config.norm_eps))
        blocks.append(nn.Conv3d(width, config.inner_channels, 3, padding=1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(pack_voxels(x, self.pack) if self.pack > 1 else x)
        return out


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.pack = config.pack
        width = config.channels[-1]
        blocks: list[nn.Module] = [nn.Conv3d(config.inner_channels, width, 3, padding=1)]
        blocks += _middle(width, config)
        for level in reversed(range(len(config.channels))):
            for _ in range(config.res_blocks[level]):
                blocks.append(_res_block(width, config.channels[level], config))
                width = config.channels[level]
                if config.attention[level]:
                    blocks.append(Attention(width, config))
            if level > 0:
                blocks.append(Upsample(width))
        blocks.append(nn.GroupNorm(config.norm_groups, width, config.norm_eps))
        channels_out = config.unpacked_channels * config.pack**3 if config.pack > 1 else 1
        blocks.append(nn.Conv3d(width, channels_out, 3, padding=1))
        self.blocks = nn.Sequential(*blocks)
        if config.pack > 1:
            self.full_resolution = nn.Conv3d(config.unpacked_channels, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.blocks(z)
        if self.pack > 1:
            x = self.full_resolution(F.silu(unpack_voxels(x, self.pack)))
        return x


def _middle(width: int, config: AutoencoderConfig) -> list[nn.Module]:
    if not config.middle_attention:
        return []
    return [
        _res_block(width, width, config),
        Attention(width, config),
        _res_block(width, width, config),
    ]


class Autoencoder(nn.Module):
    """Image (B, 1, D, H, W) in [0, 1.2] <-> latent (B, C, D/f, H/f, W/f); f is config.factor."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        c, f = config.inner_channels, config.inner_factor
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv_mu = nn.Conv3d(c, c, 1)
        self.quant_conv_log_sigma = nn.Conv3d(c, c, 1)
        self.post_quant_conv = nn.Conv3d(c, c, 1)
        if config.linear_path:
            # Kernels of two latent voxels overlap by half, which leaves no block edges.
            self.linear_encoder = nn.Conv3d(1, c, 2 * f, stride=f, padding=f // 2)
            self.linear_decoder = nn.ConvTranspose3d(c, 1, 2 * f, stride=f, padding=f // 2)
        if config.folded_from:
            outer = config.latent_channels
            self.fold = nn.Conv3d(c, outer, 2, stride=2, bias=False)
            self.unfold = nn.ConvTranspose3d(outer, c, 2, stride=2, bias=False)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent, each (B, C, D/f, H/f, W/f)."""
        h = self.encoder(x)
        mean = self.quant_conv_mu(h)
        log_variance = self.quant_conv_log_sigma(h).clamp(-30.0, 20.0)
        if self.config.linear_path:
            mean = mean + self.linear_encoder(x)
        if self.config.folded_from:
            # Independent voxels: variances add up with the squares of the weights.
            variance = F.conv3d(log_variance.exp(), self.fold.weight.square(), stride=2)
            return self.fold(mean), variance.sqrt()
        return mean, torch.exp(log_variance / 2)

    def encode(self, x: Tensor) -> Tensor:
        """The posterior mean."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        if self.config.folded_from:
            z = self.unfold(z)
        image = self.decoder(self.post_quant_conv(z))
        if self.config.linear_path:
            image = image + self.linear_decoder(z)
        return image

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction from the posterior mean."""
        return self.decode(self.encode(x))


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL from N(mean, std^2) to N(0, 1), summed over a latent and averaged over the batch."""
    kl = 0.5 * (mean.square() + std.square() - 2 * torch.log(std) - 1)
    return kl.flatten(1).sum(1).mean()


@torch.no_grad()
def start_from_cosines(net: Autoencoder) -> None:
    """Let the linear path keep the lowest cosine frequencies of each latent voxel's block.

    The cosine transform is close to the best linear code of natural images (Ahmed et al. 1974).
    Both networks start at zero, so that training begins at its error, not at a blank image.
    """
    f, c = net.config.inner_factor, net.config.inner_channels
    n = torch.arange(f)
    waves = torch.cos(torch.pi * (n + 0.5) * n[:, None] / f) * (2 / f) ** 0.5
    waves[0] /= 2**0.5
    cubes = torch.einsum("ai,bj,ck->abcijk", waves, waves, waves).reshape(f**3, f, f, f)
    frequency = (n[:, None, None] ** 2 + n[:, None] ** 2 + n**2).flatten()
    lowest = cubes[torch.argsort(frequency, stable=True)[:c]]
    # Scaled so that the first channel is the mean of the block.
    scale = f**1.5
    middle = slice(f // 2, f // 2 + f)
    for conv, factor in ((net.linear_encoder, 1 / scale), (net.linear_decoder, scale)):
        weight = torch.zeros(c, *[2 * f] * 3)
        weight[:, middle, middle, middle] = lowest * factor
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    last = net.decoder.full_resolution if net.config.pack > 1 else net.decoder.blocks[-1]
    assert isinstance(last, nn.Conv3d)
    for zero in (net.quant_conv_mu, last):
        nn.init.zeros_(zero.weight)
        nn.init.zeros_(zero.bias)  # type: ignore[arg-type]
    # A unit posterior would drown the linear path; KL at its weight never asks for one.
    nn.init.zeros_(net.quant_conv_log_sigma.weight)
    nn.init.constant_(net.quant_conv_log_sigma.bias, -12.0)  # type: ignore[arg-type]


@torch.no_grad()
def start_from_components(net: Autoencoder, inner: Tensor) -> None:
    """Fold blocks of latents `inner` (N, C, d, h, w), from before the fold, onto their principal
    components about zero: of all linear levels the one that loses least of them.

    The first component is then close to the mean block: no bias is needed.
    """
    blocks = pack_voxels(inner.float(), 2).transpose(0, 1).flatten(1).double()
    _, vectors = torch.linalg.eigh(blocks @ blocks.T / blocks.shape[1])
    # eigh gives the largest last.
    kept = vectors.flip(1)[:, : net.config.latent_channels].T.float()
    weight = kept.reshape(len(kept), inner.shape[1], 2, 2, 2)
    net.fold.weight.copy_(weight)
    net.unfold.weight.copy_(weight)
