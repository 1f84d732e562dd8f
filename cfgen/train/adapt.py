"""Fine-tune latent diffusion to few scans of another scanner: which weights, and what is held out.

    full        every weight of the UNet
    cross-attn  keys and values of its cross-attention (Custom Diffusion, Kumari et al. 2023)
    condition   the columns that new conditions have in the layers that read them (what Textual
                Inversion, Gal et al. 2023, is here: conditions are numbers, not words)
    prior       every weight, with samples of the parent beside (DreamBooth, Ruiz et al. 2023,
                Eq. 2)
    lora        low-rank adapters of every attention (Hu et al. 2021), merged at the end

Every other weight stays as it is, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgen.causal.latent_mean import LatentMean
from cfgen.config import FitConfig, Tune
from cfgen.device import autocast
from cfgen.errors import UsageError
from cfgen.nets.condition import Condition
from cfgen.nets.lora import add_lora
from cfgen.nets.unet import UNet, token_readers
from cfgen.streams import Purpose, torch_stream
from cfgen.train.fit import HELD_OUT
from cfgen.train.latent_diffusion import (
    DRAWN,
    Batch,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    draw_latents,
)
from cfgen.train.latents import LatentData

# Noise levels of the held-out error, as fractions of T, each with noise of its own.
LEVELS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)
# DreamBooth's lambda.
PRIOR_WEIGHT = 1.0


def choose_weights(net: UNet, tune: Tune, new: int = 0) -> None:
    """Let a scheme's weights alone be trained. `new` is how many inputs of the condition vector,
    the last, the parent does not know.

    Raises UsageError where the network has no such weights.
    """
    if tune in ("full", "prior"):
        return
    net.requires_grad_(False)
    if tune == "lora":
        # The adapters are made after this: theirs are the only weights to train.
        add_lora(net)
        return
    readers = token_readers(net)
    if tune == "cross-attn":
        readers = {n: m for n, m in readers.items() if not n.startswith("condition_embed")}
        if not readers:
            raise UsageError(
                "--tune cross-attn",
                "the parent's UNet has no cross-attention to its conditions",
                "a bundle trained with --conditioning attention or both",
                "--tune full, prior or lora",
            )
        for layer in readers.values():
            layer.weight.requires_grad_(True)
        return
    if not new:
        raise UsageError(
            "--tune condition",
            "no new condition: there is nothing to train",
            "--conditions with a column that the parent does not know, such as site",
        )
    for layer in readers.values():
        columns = torch.zeros_like(layer.weight)
        # Before the last two: a token's value, and whether it is withheld.
        columns[:, -2 - new : -2] = 1
        layer.weight.requires_grad_(True)
        layer.weight.register_hook(
            lambda gradient, columns=columns: gradient * columns.to(gradient)
        )


@dataclass(frozen=True)
class Prior:
    """Latents of the parent's own making, to be kept to, and how much they count."""

    data: LatentData
    weight: float = PRIOR_WEIGHT


class AdaptTask(LatentDiffusionTask):
    """Goes on with `net`, whose weights were chosen. Reports have the error on held-out scans at
    fixed noise, over all levels."""

    def __init__(
        self,
        net: UNet,
        data: LatentData,
        latent_mean: LatentMean,
        device: torch.device,
        fit: FitConfig,
        config: LatentDiffusionConfig,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(data, latent_mean, device, fit, config, None, net)
        self.prior = prior

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        loss = self.batch_loss(self.batch(generator))
        if self.prior is None:
            return loss, {}
        kept = self.batch_loss(self.batch(generator, self.prior.data))
        figures = {"scans": loss.item(), "prior": kept.item()}
        return loss + self.prior.weight * kept, figures

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        draw_latents(picture, self._sample(net, Condition(self.data.held_out_conditions[:DRAWN])))
        errors = [self._held_out_error(net, number) for number in range(len(LEVELS))]
        return {HELD_OUT: sum(errors) / len(errors)}

    def _held_out_error(self, net: nn.Module, number: int) -> float:
        c = self.data.held_out_conditions
        r = self.mean.residual(self.data.held_out.float(), c)
        eps = torch.randn(r.shape, generator=torch_stream(0, Purpose.PICTURES, step=10 + number))
        t = torch.full((len(r),), round(LEVELS[number] * self.schedule.T))
        batch = Batch(r, Condition(c), t, eps, torch.zeros(len(r), dtype=torch.bool))
        errors = []
        for first in range(0, len(r), self.fit.batch_size):
            some = batch.part(slice(first, first + self.fit.batch_size))
            with autocast(self.device):
                errors.append(self._error(net, some.r, some.c, some.t, some.eps).cpu())
        return float(torch.cat(errors).mean())
