"""The denoising UNet of latent diffusion (Rombach et al. 2022), three-dimensional.

The mathematics and the order of modules are those of MONAI's DiffusionModelUNet; the outputs are
equal once its weights are converted (nets/convert.py). Six additions are off by default.

`conditioning` says how conditions come in: as tokens of cross-attention, through the norms of every
residual block (adaptive group norm), or both.

`attention_blocks` follow the way down, as PCGM draws them (section 3.3): over all voxels of the
lowest level, to the conditions, and to the time.

`positions` gives each voxel of the latent features of its own. Brains are aligned: where a voxel
lies says what age does to it, and in noise a convolution cannot know that but near the edges.

`added` are conditions that a trained network learns afterwards. They are no tokens of their own,
which would take attention away from the others: each is a further column of every token, so that a
network is as it was where they are 0.

`inputs` makes one token of all inputs of a variable, so that attention chooses among variables.

`flat` makes a network of slices: a latent (B, C, 1, H, W) is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.config import Conditioning
from cfgen.nets.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    SpatialAttention,
    SpatialTransformer,
    Upsample,
    flatten,
    time_embedding,
    zeroed,
)


@dataclass(frozen=True)
class UNetConfig:
    """`channels` and `attention` have one entry a level, finest first.

    `context_dim` is the width of the condition tokens; None makes a network without conditions.
    `head_channels` is one number, or one a level, of which those without attention mean nothing.
    `positions` is the shape (D, H, W) of the one latent the network is for; None takes any.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    res_blocks: int
    attention: tuple[bool, ...]
    head_channels: int | tuple[int, ...]
    context_dim: int | None
    transformer_layers: int = 1
    norm_groups: int = 32
    norm_eps: float = 1e-6
    conditioning: Conditioning = "attention"
    positions: tuple[int, int, int] | None = None
    # Blocks of attention after the way down (nets/blocks.AttentionBlock); 4 in PCGM.
    attention_blocks: int = 0
    # Of the inputs of the condition vector, how many of the last were added.
    added: int = 0
    # How many inputs each variable has, where a variable is one token, whatever it has.
    inputs: tuple[int, ...] = ()
    # Of slices (B, C, 1, H, W), which a volume (B, C, D, H, W) is D of, but for attention.
    flat: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether norms follow time and conditions."""
        return self.conditioning != "attention"

    @property
    def attended(self) -> int | None:
        """Width of the tokens that attention looks at; None where it looks at voxels alone."""
        return None if self.conditioning == "norm" else self.token_dim

    @property
    def token_dim(self) -> int | None:
        """Width of the tokens that layers read: `context_dim`, but where a variable is one."""
        if self.context_dim is None or not self.inputs:
            return self.context_dim
        return len(self.inputs) + sum(self.inputs) + 1

    def heads(self, level: int) -> int:
        """Heads of the attention on a level."""
        channels = self.head_channels
        return self.channels[level] // (channels if isinstance(channels, int) else channels[level])


class Residuals(NamedTuple):
    """What a control network adds to the maps of a UNet: one for each skip, and the middle's.

    It is never used up: both passes of classifier-free guidance may be given the same.
    """

    skips: tuple[Tensor, ...]
    middle: Tensor


class Trunk(nn.Module):
    """The way down and the middle, which a UNet and its control network have alike."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        width = 4 * first
        self.conv_in = nn.Conv3d(config.in_channels, first, 3, padding=1)
        self.time_embed = nn.Sequential(nn.Linear(first, width), nn.SiLU(), nn.Linear(width, width))
        if config.adaptive and config.context_dim is not None:
            # A token through a layer of its own before all are added: the value alone would not
            # say whose value it is.
            self.condition_embed = nn.Sequential(
                nn.Linear(config.token_dim or 0, width), nn.SiLU(), nn.Linear(width, width)
            )
        if config.positions is not None:
            self.positions = nn.Parameter(0.02 * torch.randn(1, first, *config.positions))
        self.down_blocks = nn.ModuleList(_down_levels(config, width))
        self.middle_block = _Middle(last, width, config)
        if config.attention_blocks:
            self.attention_blocks = nn.ModuleList(
                AttentionBlock(last, config.heads(-1), config.token_dim, width)
                for _ in range(config.attention_blocks)
            )

    @property
    def factor(self) -> tuple[int, int, int]:
        """Voxels of the latent along the edges of a voxel of the lowest level."""
        edge = int(2 ** (len(self.config.channels) - 1))
        return (1 if self.config.flat else edge), edge, edge

    def folded(self, context: Tensor | None) -> Tensor | None:
        """Tokens (B, V + added, V + added + 2) of all conditions (nets/condition.py) -> those of V:
        in place of a token, each added value is a column of the others."""
        added = self.config.added
        if context is not None and self.config.inputs:
            return one_a_variable(context, self.config.inputs)
        if context is None or not added:
            return context
        own = context.shape[1] - added
        # The last columns of a token are its value, and whether it is withheld.
        values = context[:, None, own:, -2].expand(-1, own, -1)
        return torch.cat([context[:, :own, :own], values, context[:, :own, -2:]], -1)

    def embed(self, zt: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """Time, and conditions where norms follow them, (B, 4 channels[0])."""
        time: Tensor = self.time_embed(time_embedding(t, self.config.channels[0]).to(zt.dtype))
        if self.config.adaptive and context is not None:
            time = time + self.condition_embed(context).sum(1)
        return time

    def encode(
        self, zt: Tensor, time: Tensor, context: Tensor | None, hint: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle's map and every map on the way to it; `hint`, of the first map's shape, is
        added to it."""
        h = self.conv_in(pad_to_multiple(zt, self.factor))
        if self.config.positions is not None:
            h = h + pad_to_multiple(self.positions, self.factor)
        if hint is not None:
            h = h + hint
        skips = [h]
        for down in self.down_blocks:
            h = down(h, time, context, skips)
        h = self.middle_block(h, time, context)
        if self.config.attention_blocks:
            for block in self.attention_blocks:
                h = block(h, time, context)
        return h, skips


class UNet(Trunk):
    """zt (B, C, D, H, W), t (B,) and context (B, tokens, context_dim) -> (B, out, D, H, W).

    `residuals` of a control network are added to the skips and to the middle's map.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        first = config.channels[0]
        self.up_blocks = nn.ModuleList(_up_levels(config, 4 * first))
        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, first, config.norm_eps),
            nn.SiLU(),
            zeroed(nn.Conv3d(first, config.out_channels, 3, padding=1)),
        )
        if config.flat:
            flatten(self)

    def forward(
        self,
        zt: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        shape = zt.shape[2:]
        context = self.folded(context)
        time = self.embed(zt, t, context)
        h, skips = self.encode(zt, time, context)
        if residuals is not None:
            skips = [skip + more for skip, more in zip(skips, residuals.skips, strict=True)]
            h = h + residuals.middle
        for up in self.up_blocks:
            h = up(h, time, context, skips)
        out: Tensor = self.out(h)
        return out[:, :, : shape[0], : shape[1], : shape[2]]


def one_a_variable(context: Tensor, inputs: tuple[int, ...]) -> Tensor:
    """Tokens of V inputs (B, V, V + 2) (nets/condition.py) -> one a variable of so many `inputs`,
    (B, P, P + V + 1): which variable it is, its inputs in columns of their own, and whether it is
    withheld."""
    values, hidden = context[:, :, -2], context[:, :, -1:]
    which = torch.eye(len(inputs), device=context.device, dtype=context.dtype)
    owner = which.repeat_interleave(torch.tensor(inputs, device=context.device), 1)
    first = [sum(inputs[:n]) for n in range(len(inputs))]
    own = values[:, None] * owner
    return torch.cat([which.expand(len(context), -1, -1), own, hidden[:, first]], -1)


def token_readers(net: Trunk) -> dict[str, nn.Linear]:
    """The layers that read condition tokens, by name: keys and values of cross-attention, and the
    first of what norms follow."""
    ends = ("attn2.to_k", "attn2.to_v", "layers.condition.to_k", "layers.condition.to_v")
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and (name.endswith(ends) or name == "condition_embed.0")
    }


@torch.no_grad()
def with_added(unet: UNet, count: int) -> UNet:
    """The same UNet with `count` more inputs of the condition vector, which do nothing yet."""
    config = unet.config
    assert config.context_dim is not None
    assert not config.inputs
    wide = UNet(replace(config, context_dim=config.context_dim + count, added=config.added + count))
    weights, at = unet.state_dict(), config.context_dim - 2
    for name in token_readers(unet):
        before = weights[f"{name}.weight"]
        new = before.new_zeros(len(before), count)
        weights[f"{name}.weight"] = torch.cat([before[:, :at], new, before[:, at:]], 1)
    wide.load_state_dict(weights)
    return wide


def pad_to_multiple(x: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """Repeat the last slices until every edge can be halved at each level."""
    extra = [-n % f for n, f in zip(x.shape[2:], factor, strict=True)]
    if not any(extra):
        return x
    return F.pad(x, (0, extra[2], 0, extra[1], 0, extra[0]), mode="replicate")


def _attention(level: int, config: UNetConfig) -> nn.Module:
    channels, heads = config.channels[level], config.heads(level)
    groups, eps = config.norm_groups, config.norm_eps
    if config.attended is None:
        return SpatialAttention(channels, heads, groups, eps)
    return SpatialTransformer(
        channels, heads, config.attended, config.transformer_layers, groups, eps
    )


def _res_block(channels_in: int, channels: int, width: int, config: UNetConfig) -> ResBlock:
    groups, eps = config.norm_groups, config.norm_eps
    return ResBlock(channels_in, channels, groups, eps, width, config.adaptive)


class _Down(nn.Module):
    def __init__(
        self, channels_in: int, channels: int, width: int, level: int, config: UNetConfig
    ) -> None:
        super().__init__()
        count = config.res_blocks
        self.resnets = nn.ModuleList(
            _res_block(channels_in if i == 0 else channels, channels, width, config)
            for i in range(count)
        )
        self.attentions = nn.ModuleList(
            _attention(level, config) for _ in range(count if config.attention[level] else 0)
        )
        last = level == len(config.channels) - 1
        self.downsampler = None if last else Downsample(channels, padding=1)

    def forward(
        self, h: Tensor, time: Tensor, context: Tensor | None, skips: list[Tensor]
    ) -> Tensor:
        """Every map is also pushed on `skips`."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, time)
            if self.attentions:
                h = self.attentions[i](h, context)
            skips.append(h)
        if self.downsampler is not None:
            h = self.downsampler(h)
            skips.append(h)
        return h


class _Middle(nn.Module):
    def __init__(self, channels: int, width: int, config: UNetConfig) -> None:
        super().__init__()
        self.resnet_1 = _res_block(channels, channels, width, config)
        self.attention = _attention(-1, config)
        self.resnet_2 = _res_block(channels, channels, width, config)

    def forward(self, h: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        out: Tensor = self.resnet_2(self.attention(self.resnet_1(h, time), context), time)
        return out


class _Up(nn.Module):
    def __init__(
        self, channels_in: int, skips: list[int], width: int, level: int, config: UNetConfig
    ) -> None:
        super().__init__()
        channels = config.channels[level]
        self.resnets = nn.ModuleList(
            _res_block((channels_in if i == 0 else channels) + skip, channels, width, config)
            for i, skip in enumerate(skips)
        )
        self.attentions = nn.ModuleList(
            _attention(level, config) for _ in range(len(skips) if config.attention[level] else 0)
        )
        self.upsampler = Upsample(channels) if level > 0 else None

    def forward(
        self, h: Tensor, time: Tensor, context: Tensor | None, skips: list[Tensor]
    ) -> Tensor:
        """Takes one map off `skips` for every residual block."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(torch.cat([h, skips.pop()], 1), time)
            if self.attentions:
                h = self.attentions[i](h, context)
        return h if self.upsampler is None else self.upsampler(h)


def _down_levels(config: UNetConfig, width: int) -> list[_Down]:
    inputs = (config.channels[0], *config.channels[:-1])
    return [
        _Down(before, channels, width, level, config)
        for level, (before, channels) in enumerate(zip(inputs, config.channels, strict=True))
    ]


def _up_levels(config: UNetConfig, width: int) -> list[_Up]:
    levels = []
    for level in reversed(range(len(config.channels))):
        channels = config.channels[level]
        finer = config.channels[max(level - 1, 0)]
        coarser = config.channels[min(level + 1, len(config.channels) - 1)]
        # The last skip of a level is the map that came down from the finer one.
        skips = [channels] * config.res_blocks + [finer]
        levels.append(_Up(coarser, skips, width, level, config))
    return levels
