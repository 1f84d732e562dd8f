"""Fine-tune latent diffusion with the cycle (CDM, sections 3.1 and 3.2; diffusion/cycle.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from cfgen.causal.latent_mean import LatentMean
from cfgen.config import CYCLE, Cycle, FitConfig
from cfgen.diffusion.cycle import CycleDraw, cycle_terms, other_conditions
from cfgen.diffusion.weights import loss_weights
from cfgen.nets.condition import Condition
from cfgen.nets.unet import UNet
from cfgen.train.latent_diffusion import LatentDiffusionConfig, LatentDiffusionTask
from cfgen.train.latents import LatentData, LatentReader
from cfgen.train.together import my_part


class CycleTask(LatentDiffusionTask):
    """Goes on with `net`. Reports are those of plain training; each term of the loss is in the log,
    before lambda."""

    def __init__(
        self,
        net: UNet,
        data: LatentData,
        latent_mean: LatentMean,
        device: torch.device,
        fit: FitConfig,
        config: LatentDiffusionConfig,
        cycle: Cycle = CYCLE,
        reader: LatentReader | None = None,
    ) -> None:
        super().__init__(data, latent_mean, device, fit, config, reader, net)
        self.cycle = cycle

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        draw = self.draw(generator)
        terms = cycle_terms(self._output, self.schedule, draw, self.cycle.first_term)
        weights = loss_weights(self.config.loss_weights, self.schedule, draw.t).to(self.device)
        first, second = (weights * terms.first).mean(), (weights * terms.second).mean()
        cycle = terms.cycle.mean()
        figures = {"first": first.item(), "second": second.item(), "cycle": cycle.item()}
        return first + second + self.cycle.weight * cycle, figures

    def draw(self, generator: torch.Generator) -> CycleDraw:
        """A batch of plain training, and for each element another condition of the train split; of
        that the part that this process works on."""
        batch = self.batch(generator)
        c = batch.c.vector
        other = other_conditions(c, self.data.conditions, self.data.weights, generator)
        eps_again = torch.randn(batch.r.shape, generator=generator)
        # What the mean's shift leaves of itself in the residual, where its gain is not 1.
        there = self.mean.latent(torch.zeros_like(batch.r), other, factual=c)
        shift = self.mean.residual(there, other)
        T = self.schedule.T
        low, high = (round(edge * T) for edge in (self.cycle.t_low, self.cycle.t_high))
        t = (low + (batch.t * (high - low) / T).round().long()).clamp(1, T)
        part = my_part(self.fit.batch_size)
        r, c, other, eps, eps_again, shift = (
            v[part].to(self.device) for v in (batch.r, c, other, batch.eps, eps_again, shift)
        )
        return CycleDraw(r, c, other, t[part], eps, eps_again, shift)

    def _output(self, zt: Tensor, t: Tensor, c: Tensor) -> Tensor:
        zt = zt.contiguous(memory_format=torch.channels_last_3d)
        return self.ask(self.net, zt, t, Condition(c))
