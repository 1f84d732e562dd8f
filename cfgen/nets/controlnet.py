"""Masks of regions as conditions of a denoising UNet: a control network, and plain concatenation.

The control network (Zhang et al. 2023; PCGM section 3.3, in 3D) is a copy of the UNet's way down
and middle that also sees masks. What it finds goes through zero convolutions and is added to every
skip and to the middle's map of the UNet, which stays as it is: at the start nothing changes.

The rival gives the masks to the UNet itself, as further channels of its input, with zero weights at
the start (`widened`).

Masks lie on the latent's grid: how much of each part of its voxels is of a region. A latent voxel
is wider than the cortex, so that the share of it that is cortex does not say where the border runs;
those of its P = detail^3 parts do. The last channel, `edited`, is 1 where the masks are told;
elsewhere they are 0, and nothing is said of the anatomy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.nets.blocks import zeroed
from cfgen.nets.unet import Residuals, Trunk, UNet, UNetConfig, pad_to_multiple


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """The UNet's own configuration; `mask_channels` are the regions' parts and `edited`."""

    mask_channels: int = 0
    # Channels between the masks and what is added to the first map.
    mask_width: int = 32


class ControlNet(Trunk):
    """zt (B, C, d, h, w), t (B,), masks (B, mask_channels, d, h, w), context -> residuals."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        first, last = config.channels[0], config.channels[-1]
        self.mask_embed = _MaskEmbedding(config.mask_channels, config.mask_width, first)
        self.zero_skips = nn.ModuleList(
            zeroed(nn.Conv3d(channels, channels, 1)) for channels in _skip_channels(config)
        )
        self.zero_middle = zeroed(nn.Conv3d(last, last, 1))

    def forward(
        self, zt: Tensor, t: Tensor, masks: Tensor, context: Tensor | None = None
    ) -> Residuals:
        hint = self.mask_embed(pad_to_multiple(masks, self.factor))
        context = self.folded(context)
        h, skips = self.encode(zt, self.embed(zt, t, context), context, hint)
        added = tuple(zero(skip) for zero, skip in zip(self.zero_skips, skips, strict=True))
        return Residuals(added, self.zero_middle(h))


# A network under masks: zt, t, context and masks -> what its UNet says.
MaskedNet = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


def controlled(unet: nn.Module, control: nn.Module) -> MaskedNet:
    """A UNet with a control network beside it."""

    def net(zt: Tensor, t: Tensor, context: Tensor | None, masks: Tensor) -> Tensor:
        out: Tensor = unet(zt, t, context, control(zt, t, masks, context))
        return out

    return net


def concatenated(wide: nn.Module) -> MaskedNet:
    """A `widened` UNet."""

    def net(zt: Tensor, t: Tensor, context: Tensor | None, masks: Tensor) -> Tensor:
        out: Tensor = wide(torch.cat([zt, masks], 1), t, context)
        return out

    return net


class _MaskEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, channels_out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(channels, width, 3, padding=1)
        self.conv_out = zeroed(nn.Conv3d(width, channels_out, 3, padding=1))

    def forward(self, masks: Tensor) -> Tensor:
        out: Tensor = self.conv_out(F.silu(self.conv_in(masks)))
        return out


def _skip_channels(config: UNetConfig) -> list[int]:
    """Of the first map, of every residual block and of every downsampler."""
    last = len(config.channels) - 1
    skips = [config.channels[0]]
    for level, channels in enumerate(config.channels):
        skips += [channels] * (config.res_blocks + (level < last))
    return skips


def control_of(unet: UNet, mask_channels: int) -> ControlNet:
    """A control network for a UNet, with a copy of its weights; its residuals are zero."""
    control = ControlNet(ControlNetConfig(**vars(unet.config), mask_channels=mask_channels))
    own = control.state_dict()
    control.load_state_dict(own | {k: v for k, v in unet.state_dict().items() if k in own})
    return control


@torch.no_grad()
def widened(unet: UNet, mask_channels: int) -> UNet:
    """The same UNet with masks as further channels of its input, which do nothing yet."""
    config = unet.config
    wide = UNet(replace(config, in_channels=config.in_channels + mask_channels))
    first = unet.conv_in.weight
    nothing = first.new_zeros(first.shape[0], mask_channels, *first.shape[2:])
    wide.load_state_dict(unet.state_dict() | {"conv_in.weight": torch.cat([first, nothing], 1)})
    return wide


def pool_masks(masks: Tensor, shape: Sequence[int], detail: int = 1) -> Tensor:
    """(..., D, H, W) in [0, 1] -> (..., P, d, h, w), `shape` being d, h, w: of each of the P parts
    of a latent voxel, `detail` along every edge, the share that is of a region."""
    d, h, w = shape
    size = (d * detail, h * detail, w * detail)
    fine = F.adaptive_avg_pool3d(masks.float().flatten(0, -4), size)
    fine = fine.reshape(-1, d, detail, h, detail, w, detail)
    parts = fine.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3)
    return parts.unflatten(0, masks.shape[:-3])


def mask_channels(regions: Sequence[str], detail: int) -> int:
    """Of a network's input: the parts of every region, and `edited`."""
    return len(regions) * detail**3 + 1


def zone_of(pooled: Tensor, chosen: Tensor) -> Tensor:
    """Where regions are edited: latent voxels (B, 1, d, h, w) that have any of the chosen regions,
    and those around them. `pooled` is (B, K, P, d, h, w), `chosen` (B, K) bool."""
    of_chosen = pooled.amax(2) * chosen[:, :, None, None, None].to(pooled)
    there = of_chosen.amax(1, keepdim=True) > 0
    return F.max_pool3d(there.to(pooled), 3, stride=1, padding=1)


def told(pooled: Tensor, zone: Tensor | None = None) -> Tensor:
    """The input (B, K P + 1, d, h, w) of a network: masks (B, K, P, d, h, w) within a zone
    (B, 1, d, h, w), or everywhere, and the zone."""
    zone = torch.ones_like(pooled[:, 0, :1]) if zone is None else zone
    return torch.cat([pooled.flatten(1, 2) * zone, zone], 1)
