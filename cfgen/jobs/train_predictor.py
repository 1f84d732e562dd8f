"""Train the predictor of age and sex: on real scans alone, apart from any generator (CDM 4.3)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfgen.jobs.augmentation import AUGMENTATION, random_acquisition, random_view
from cfgen.jobs.device import autocast, channels_last
from cfgen.jobs.fit import FitConfig
from cfgen.nets.predictors import Predictor, PredictorConfig

PREDICTOR_FIT = FitConfig(steps=2000, learning_rate=1e-3, batch_size=8, weight_decay=1e-2)


class PredictorTask:
    """`images` (N, D, H, W) with `conditions` (N, V); `continuous` (V,) says which are numbers.

    Numbers are regressed in the schema's standardised units, two-level variables are classified.
    """

    critic: nn.Module | None = None

    def __init__(
        self,
        images: Tensor,
        conditions: Tensor,
        weights: Tensor,
        continuous: Tensor,
        held_out: tuple[Tensor, Tensor],
        device: torch.device,
        fit: FitConfig,
    ) -> None:
        torch.manual_seed(fit.seed)
        self.images, self.conditions, self.weights = images, conditions, weights
        self.continuous, self.held_out = continuous, held_out
        self.device, self.fit = device, fit
        net = Predictor(PredictorConfig(conditions.shape[1]))
        self.net = channels_last(net, device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.multinomial(
            self.weights, self.fit.batch_size, replacement=True, generator=generator
        )
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        views = [
            random_acquisition(
                random_view(self.images[i].float(), shape, generator, AUGMENTATION),
                generator,
                AUGMENTATION,
            )
            for i in chosen
        ]
        x = torch.stack(views)[:, None].to(self.device, memory_format=torch.channels_last_3d)
        out = self.net(x).float()
        truth = self.conditions[chosen].to(self.device)
        number = F.smooth_l1_loss(out, truth, reduction="none", beta=0.25)
        level = F.binary_cross_entropy_with_logits(out, (truth > 0).float(), reduction="none")
        losses = torch.where(self.continuous.to(self.device), number, 0.3 * level).mean(0)
        return losses.sum(), {f"loss_{i}": v.item() for i, v in enumerate(losses)}

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Mean absolute error of numbers (standardised), accuracy of levels, on held-out scans."""
        images, truth = self.held_out
        with autocast(self.device):
            out = torch.cat([net(x.float()[None, None].to(self.device)) for x in images])
        out = out.float().cpu()
        error = (out - truth).abs().mean(0)
        accuracy = ((out > 0) == (truth > 0)).float().mean(0)
        return {
            f"{'mae' if number else 'accuracy'}_{i}": float(error[i] if number else accuracy[i])
            for i, number in enumerate(self.continuous.tolist())
        }
