"""Building blocks of the networks: residual blocks, with time or without, attention, resampling.

Convolutions stay channels-last throughout: tokens are views of the same memory, not copies.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def time_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of t (B,) -> (B, width), cosines first (Vaswani et al. 2017; Ho et al. 2020)."""
    half = width // 2
    rates = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, width % 2))


# MONAI's autoencoder and its UNet have a name each for the same thing; here it is one.
_FIRST_NAME = {"nin_shortcut": "skip_connection", "op": "conv"}
_SECOND_NAME = re.compile(r"\b(nin_shortcut|op)\b")


class Block(nn.Module):
    """A part of a network that may keep its input alone, where `checkpointing` is on, and compute
    its inner maps again on the way back (Chen et al. 2016)."""

    checkpointing = False

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        call = super().__call__
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(call, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return call(*inputs)  # type: ignore[no-any-return]


def set_checkpointing(net: nn.Module, on: bool) -> None:
    """Memory for time: with it, every block of the network is computed once more a step."""
    for module in net.modules():
        if isinstance(module, Block):
            module.checkpointing = on


class ResBlock(Block):
    """Two convolutions, each after a norm and SiLU, past which the input is added.

    With `time_width`, the width of a time embedding, the embedding is added between them; where it
    is `adaptive` it scales and shifts what the second norm gives instead (adaptive group norm,
    Dhariwal & Nichol 2021, section 3.3), as if the network were another one at every embedding.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        groups: int,
        eps: float,
        time_width: int | None = None,
        adaptive: bool = False,
    ) -> None:
        super().__init__()
        self.adaptive = adaptive
        self.norm1 = nn.GroupNorm(groups, channels_in, eps)
        self.conv1 = nn.Conv3d(channels_in, channels, 3, padding=1)
        if time_width is not None:
            self.time_emb_proj = nn.Linear(time_width, channels * (2 if adaptive else 1))
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        if time_width is not None:
            # Zero at the start: every block of a denoiser begins as the identity.
            zeroed(self.conv2)
        self.skip_connection = (
            nn.Identity() if channels_in == channels else nn.Conv3d(channels_in, channels, 1)
        )
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if time is None:
            h = self.norm2(h)
        elif self.adaptive:
            scale, shift = self.time_emb_proj(F.silu(time))[:, :, None, None, None].chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + self.time_emb_proj(F.silu(time))[:, :, None, None, None])
        return self.skip_connection(x) + self.conv2(F.silu(h))


def current_name(key: str) -> str:
    """What a weight of MONAI's, or of a bundle written with both names, is called here."""
    return _SECOND_NAME.sub(lambda match: _FIRST_NAME[match[0]], key)


def _rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Weights of either name can be loaded; `state` is the block's own."""
    for key in list(state):
        state[prefix + current_name(key.removeprefix(prefix))] = state.pop(key)


def zeroed(module: nn.Conv3d) -> nn.Conv3d:
    """The same convolution with all parameters zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class TokenAttention(nn.Module):
    """Multi-head attention of tokens (B, N, C) to themselves or to a context (B, M, K)."""

    def __init__(
        self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=bias)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context

        def split(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        h = F.scaled_dot_product_attention(
            split(self.to_q(x)), split(self.to_k(source)), split(self.to_v(source))
        )
        out: Tensor = self.out_proj(h.transpose(1, 2).flatten(2))
        return out


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020), four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, channels * 8)
        self.linear2 = nn.Linear(channels * 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.linear1(x).chunk(2, dim=-1)
        out: Tensor = self.linear2(value * F.gelu(gate))
        return out


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.attn1 = TokenAttention(channels, heads)
        self.attn2 = TokenAttention(channels, heads, context_channels)
        self.ff = GatedFeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(Block):
    """Self-attention, cross-attention to the conditions and feed-forward over all voxels."""

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int,
        layers: int,
        groups: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.proj_in = nn.Conv3d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_channels) for _ in range(layers)
        )
        self.proj_out = zeroed(nn.Conv3d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError("this network is conditional: it needs a context")
        h = self.proj_in(self.norm(x))
        tokens = to_tokens(h)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(to_voxels(tokens, h.shape))


# Parts of the time embedding that voxels choose among: attention to one token would be the same
# everywhere.
TIME_TOKENS = 8


class AttentionBlock(Block):
    """Three layers of attention of all voxels x (B, C, D, H, W): to each other, to the conditions
    (B, tokens, context_channels), and to the time (B, time_width) (PCGM section 3.3).

    It starts as the identity. PCGM's code has slices for volumes and a convolution in place of the
    last layer; this is what its paper says.
    """

    def __init__(
        self, channels: int, heads: int, context_channels: int | None, time_width: int
    ) -> None:
        super().__init__()
        sources = {
            "self": channels,
            "condition": context_channels,
            "time": time_width // TIME_TOKENS,
        }
        self.norms = nn.ModuleDict()
        self.layers = nn.ModuleDict()
        for name, width in sources.items():
            if width is not None:
                self.norms[name] = nn.LayerNorm(channels)
                layer = TokenAttention(channels, heads, width)
                nn.init.zeros_(layer.out_proj.weight)
                nn.init.zeros_(layer.out_proj.bias)
                self.layers[name] = layer

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        tokens = to_tokens(x)
        seen = {"self": None, "condition": context, "time": time.unflatten(1, (TIME_TOKENS, -1))}
        for name, layer in self.layers.items():
            if name == "condition" and context is None:
                raise ValueError("this network is conditional: it needs a context")
            tokens = tokens + layer(self.norms[name](tokens), seen[name])
        return to_voxels(tokens, x.shape)


class SpatialAttention(Block):
    """Self-attention over all voxels, for networks without conditions."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.attn = TokenAttention(channels, heads, bias=True)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return x + to_voxels(self.attn(to_tokens(self.norm(x))), x.shape)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, D H W, C); a view where x is channels-last."""
    return x.permute(0, 2, 3, 4, 1).flatten(1, 3)


def to_voxels(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `to_tokens`, channels-last in memory."""
    return tokens.unflatten(1, shape[2:]).permute(0, 4, 1, 2, 3)


class Downsample(nn.Module):
    """Half the edges. `padding` 1 centres the kernels on the even voxels, 0 on the odd ones."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, stride=2, padding=padding)
        self.register_load_state_dict_pre_hook(_rename)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.conv.padding[-1] else F.pad(x, (0, 1) * 3))
        return out


class Upsample(nn.Module):
    """Twice the edges."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.postconv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # A flattened network leaves the first axis alone.
        factors = tuple(2.0 if size > 1 else 1.0 for size in self.postconv.kernel_size)
        out: Tensor = self.postconv(F.interpolate(x, scale_factor=factors, mode="nearest"))
        return out


def flatten(net: nn.Module) -> None:
    """Make every convolution of 3 x 3 x 3 one of 1 x 3 x 3, with weights of its own: what a network
    of slices has, which lie along the first axis and never meet. What was zero stays zero."""
    for module in list(net.modules()):
        for name, conv in list(module.named_children()):
            if not isinstance(conv, nn.Conv3d) or conv.kernel_size == (1, 1, 1):
                continue
            stride, padding = (1, *conv.stride[1:]), (0, *conv.padding[1:])
            size, edges = (conv.in_channels, conv.out_channels), (1, *conv.kernel_size[1:])
            flat = nn.Conv3d(*size, edges, stride, padding)  # type: ignore[arg-type]
            setattr(module, name, flat if bool(conv.weight.any()) else zeroed(flat))
