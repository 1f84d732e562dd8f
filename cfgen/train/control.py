"""Train what tells a diffusion model of masks: a control network, or a UNet with more channels.

The masks of a step are told whole, or in the surroundings of some regions, as an edit tells them,
or not at all. Of the control network's loss the UNet learns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.causal.latent_mean import LatentMean
from cfgen.config import Control, FitConfig
from cfgen.data.regions import FLUID
from cfgen.device import autocast, channels_last
from cfgen.diffusion.weights import loss_weights
from cfgen.measure.region_masks import REGIONS
from cfgen.nets.condition import Condition
from cfgen.nets.controlnet import (
    MaskedNet,
    concatenated,
    control_of,
    controlled,
    mask_channels,
    told,
    widened,
    zone_of,
)
from cfgen.nets.unet import UNet
from cfgen.space.grids import model_grid
from cfgen.streams import Purpose, torch_stream
from cfgen.train.ahead import Ahead
from cfgen.train.fit import seed_weights
from cfgen.train.latent_diffusion import (
    DRAWN,
    Batch,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    draw_latents,
)
from cfgen.train.latents import LatentData
from cfgen.train.together import my_part


@dataclass(frozen=True)
class ControlConfig:
    """`regions` are the channels of the masks. `contrastive` is the weight of `region_contrast`."""

    kind: Control = "masks"
    regions: tuple[str, ...] = REGIONS
    # Parts of a latent voxel along each edge, of which each is told by itself (`detail_of`).
    detail: int = 1
    # Nothing is told this often, and only the surroundings of some regions this often.
    untold: float = 0.1
    zones: float = 0.4
    contrastive: float = 0.0
    # Of the network's output, whose target has a variance of about 1.
    contrastive_margin: float = 0.5


CONTROL = ControlConfig()
# Parts of latent voxels are about as wide. Of 16 mm voxels, told whole, in parts of 8 and of 4 mm,
# held-out errors at t = 400 were 0.35, 0.29 and 0.20 (docs/by.md).
PART_MM = 4.0


def detail_of(grid: str, shape: Sequence[int]) -> int:
    """The `detail` of latents whose edges are `shape`, of images on the model grid."""
    image = model_grid(grid)
    edge_mm = float(image.spacing[0]) * image.shape[0] / shape[0]
    return max(1, round(edge_mm / PART_MM))


@dataclass(frozen=True)
class Drawn:
    """A whole batch, whose masks (B, K, P, d, h, w) are as they lie in the file, and what each
    element is told of them: `kind` (B,) and `chosen` (B, K) say where (`ControlTask.zone`), and
    `region` (B,) is one that it has, for the contrast."""

    batch: Batch
    kind: Tensor
    chosen: Tensor
    region: Tensor

    @property
    def pooled(self) -> Tensor:
        masks = self.batch.c.masks
        assert masks is not None
        return masks

    def part(self, which: slice) -> Drawn:
        """Some of its elements."""
        return Drawn(
            self.batch.part(which), self.kind[which], self.chosen[which], self.region[which]
        )


class ControlTask(LatentDiffusionTask):
    """`unet` is the trained one: it stays beside a control network, and is where the network that
    takes concatenated masks starts. `data` has masks of `control.regions`."""

    def __init__(
        self,
        unet: UNet,
        data: LatentData,
        latent_mean: LatentMean,
        device: torch.device,
        fit: FitConfig,
        config: LatentDiffusionConfig,
        control: ControlConfig = CONTROL,
    ) -> None:
        seed_weights(fit.seed)
        channels = mask_channels(control.regions, control.detail)
        beside = control.kind == "masks"
        net = control_of(unet, channels) if beside else widened(unet, channels)
        super().__init__(data, latent_mean, device, fit, config, None, net)
        self.control = control
        self._drawn = Ahead(self.draw, fit.seed, device)
        self.unet = channels_last(unet, device).eval().requires_grad_(False) if beside else None

    def forward(
        self, net: nn.Module, zt: Tensor, level: Tensor, c: Condition, dropped: Tensor | None
    ) -> Tensor:
        assert c.masks is not None
        under: MaskedNet = concatenated(net) if self.unet is None else controlled(self.unet, net)
        masks = c.masks.contiguous(memory_format=torch.channels_last_3d)
        return under(zt, level, c.tokens(dropped), masks)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = self._drawn.batch(step, generator).part(my_part(self.fit.batch_size))
        batch = drawn.batch
        # Masks are most of what a step moves: they come as they lie in the file.
        pooled = drawn.pooled.to(self.device).float()
        zone = self.zone(drawn, pooled)
        r, eps = batch.r.to(self.device), batch.eps.to(self.device)
        zt = self.schedule.add_noise(r, batch.t, eps)
        zt = zt.contiguous(memory_format=torch.channels_last_3d)
        output = self._told(zt, batch, told(pooled, zone))
        error = (output - self.schedule.target(r, eps, batch.t)).square().flatten(1).mean(1)
        weights = loss_weights(self.config.loss_weights, self.schedule, batch.t)
        loss = (weights.to(error) * error).mean()
        if not self.control.contrastive:
            return loss, {}
        region = drawn.region
        without = self._told(zt, batch, told(removed(pooled, region, self.control.regions), zone))
        share = pooled[torch.arange(len(region)), region].mean(1, keepdim=True)
        contrast = region_contrast(
            output, without, share * zone, self.control.contrastive_margin
        ).mean()
        figures = {"error": loss.item(), "contrast": contrast.item()}
        return loss + self.control.contrastive * contrast, figures

    def _told(self, zt: Tensor, batch: Batch, masks: Tensor) -> Tensor:
        c = Condition(batch.c.vector, masks)
        return self.ask(self.net, zt, batch.t, c, batch.dropped)

    def draw(self, generator: torch.Generator) -> Drawn:
        batch = self.batch(generator)
        assert batch.c.masks is not None
        size, count = batch.c.masks.shape[:2]
        kind = torch.rand(size, generator=generator)
        # Of few regions more often than of many, as edits are.
        share = 0.5 * torch.rand(size, 1, generator=generator)
        chosen = torch.rand(size, count, generator=generator) < share
        return Drawn(batch, kind, chosen, _any_of(batch.c.masks, generator))

    def zone(self, drawn: Drawn, pooled: Tensor) -> Tensor:
        """Where the masks (B, K, P, d, h, w) of a batch are told: (B, 1, d, h, w)."""
        kind = drawn.kind.to(pooled.device)[:, None, None, None, None]
        around = zone_of(pooled, drawn.chosen.to(pooled.device))
        untold, zones = self.control.untold, self.control.zones
        some = torch.where(kind < untold + zones, around, torch.ones_like(around))
        return torch.where(kind < untold, torch.zeros_like(around), some)

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Held-out error at fixed noise, at an early, middle and late level: with the scan's own
        masks told, with another's (`_other`), with none (`_untold`). The first is to be the least,
        the last that of the UNet alone; new latents under the masks are drawn below true ones."""
        data = self.data
        assert data.held_out_masks is not None
        c, pooled = data.held_out_conditions, data.held_out_masks.float()
        r = self.mean.residual(data.held_out.float(), c)
        eps = torch.randn(r.shape, generator=torch_stream(0, Purpose.PICTURES))
        own = told(pooled)
        masks = {"": own, "_other": own.roll(1, 0), "_untold": torch.zeros_like(own)}
        figures = {}
        for level in (100, 400, 700):
            t = torch.full((len(r),), level)
            for name, said in masks.items():
                with autocast(self.device):
                    error = self._error(net, r, Condition(c, said), t, eps)
                figures[f"error_t{level}{name}"] = float(error.mean())
        made = self._sample(net, Condition(c[:DRAWN], own[:DRAWN]))
        draw_latents(picture, torch.cat([data.held_out[:DRAWN].float(), made]))
        return figures


def _any_of(pooled: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) one of the regions that each element of masks (B, K, ...) has."""
    there = pooled.flatten(2).any(2).float()
    return torch.multinomial(there, 1, generator=generator)[:, 0]


def removed(pooled: Tensor, region: Tensor, regions: tuple[str, ...]) -> Tensor:
    """Masks (B, K, P, d, h, w) in which each element's region (B,) is fluid instead, and a fluid is
    white matter; where the masks have neither it is nothing."""
    out = pooled.clone()
    for element, number in enumerate(region.tolist()):
        heir = "cerebral_wm" if regions[number] in FLUID else "csf"
        out[element, number] = 0
        if heir in regions and regions[number] != heir:
            out[element, regions.index(heir)] += pooled[element, number]
    return out


def region_contrast(output: Tensor, without: Tensor, inside: Tensor, margin: float) -> Tensor:
    """What two outputs (B, C, d, h, w) of one noise differ by, (B,): the mean absolute difference
    outside of a region `inside` (B, 1, d, h, w), less that within, which counts up to `margin`.

    One is of masks with the region, the other of masks without it: where it is they should differ,
    elsewhere not (the idea of MAISI-v2's region-specific contrastive loss; margin and places are
    ours). 0 where the region is not told.
    """
    difference = (output - without).abs().mean(1, keepdim=True)
    away = (inside == 0).to(difference)

    def mean(weight: Tensor) -> Tensor:
        return (difference * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)

    there = (inside.flatten(1).sum(1) > 0).to(difference)
    return there * (mean(away) - mean(inside).clamp(max=margin))
