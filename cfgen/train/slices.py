"""Fine-tune Stable Diffusion on slices, with a drift (Latent Drifting, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from cfgen.config import FitConfig
from cfgen.data.schema import Values
from cfgen.device import autocast
from cfgen.diffusion.drift import Drift
from cfgen.sd.prompts import Style, instruction, prompt
from cfgen.sd.schemes import Scheme
from cfgen.streams import Purpose, torch_stream
from cfgen.train.fit import HELD_OUT
from cfgen.train.together import my_part

# InstructPix2Pix (Brooks et al. 2023, section 3.2.1): each of text alone, source alone and both is
# withheld this often.
WITHHELD = 0.05
# Noise levels of reports, of 1000.
LEVELS = (100, 400, 700)


@dataclass(frozen=True)
class SliceData:
    """`latents` (N, C, s, s) of slices, what is known of whom each shows, and of pairs the source:
    its latent (N, C, s, s), not scaled, and what was known then."""

    latents: Tensor
    values: list[Values]
    sources: Tensor | None = None
    before: list[Values] | None = None

    def prompts(self, places: Sequence[int], style: Style, noun: str, which: Tensor) -> list[str]:
        """Of slices at `places`; `which` (n,) in [0, 1) chooses among the style's templates."""
        if self.before is not None:
            return [instruction(self.before[i], self.values[i], style, noun) for i in places]
        templates = style.templates
        chosen = (which * len(templates)).long().tolist()
        return [
            prompt(self.values[i], style, templates[c], noun)
            for i, c in zip(places, chosen, strict=True)
        ]


@dataclass(frozen=True)
class Prior:
    """Clean latents (M, C, s, s) that the parent made of `prompt`, and how much they count
    (DreamBooth, Ruiz et al. 2023, Eq. 2)."""

    latents: Tensor
    prompt: str
    weight: float = 1.0


class SliceTask:
    """What `fit` trains: the scheme's own parameters, on noisy latents that carry the drift."""

    critic: nn.Module | None = None

    def __init__(
        self,
        scheme: Scheme,
        data: SliceData,
        held_out: SliceData,
        style: Style,
        drift: Drift,
        fit: FitConfig,
        prior: Prior | None = None,
    ) -> None:
        self.scheme, self.data, self.held_out = scheme, data, held_out
        self.style, self.drift, self.fit, self.prior = style, drift, fit, prior
        self.levels: Any = DDPMScheduler.from_config(scheme.model.levels)

    @property
    def net(self) -> nn.Module:
        return self.scheme.trained

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        n, data = self.fit.batch_size, self.data
        places = torch.randint(len(data.latents), (n,), generator=generator)
        which, withheld = torch.rand(2, n, generator=generator)
        t, eps = self._noise(data.latents, n, generator)
        part = my_part(n)
        places, withheld = places[part], withheld[part]
        prompts = data.prompts(places.tolist(), self.style, self.scheme.noun, which[part])
        sources = None
        if data.sources is not None:
            no_text, no_source = withheld_of(withheld)
            prompts = ["" if no else p for p, no in zip(prompts, no_text.tolist(), strict=True)]
            sources = data.sources[places] * ~no_source[:, None, None, None]
        error = self.error(data.latents[places], t[part], eps[part], prompts, sources).mean()
        if self.prior is None:
            return error, {}
        known = torch.randint(len(self.prior.latents), (n,), generator=generator)[part]
        t, eps = self._noise(self.prior.latents, n, generator)
        told = [self.prior.prompt] * len(known)
        kept = self.error(self.prior.latents[known], t[part], eps[part], told).mean()
        figures = {"error": error.item(), "prior": kept.item()}
        return error + self.prior.weight * kept, figures

    def error(
        self, z0: Tensor, t: Tensor, eps: Tensor, prompts: list[str], sources: Tensor | None = None
    ) -> Tensor:
        """Mean squared error (B,) of the network at z_t, which has the drift of
        diffusion/drift.py."""
        model = self.scheme.model
        z0, t, eps = (x.to(model.device) for x in (z0, t, eps))
        zt = self.drift.plus(self.levels.add_noise(z0, eps, t))
        if sources is not None:
            zt = torch.cat([zt, sources.to(zt)], 1)
        said = model.unet(zt, t, encoder_hidden_states=model.read(prompts)).sample
        target = _target(self.levels, z0, eps, t)
        return (said.float() - target).square().flatten(1).mean(1)

    def critic_loss(self, step: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def report(self, net: nn.Module, picture: Path) -> dict[str, float]:
        """Error on held-out slices, at fixed noise and templates, by noise level."""
        data, figures = self.held_out, {}
        stream = torch_stream(0, Purpose.PICTURES)
        eps = torch.randn(data.latents.shape, generator=stream)
        which = torch.rand(len(data.latents), generator=stream)
        batches = torch.arange(len(data.latents)).split(self.fit.batch_size)
        with self.scheme.trained.lent(net), autocast(self.scheme.model.device):
            for level in LEVELS:
                errors = []
                for b in batches:
                    prompts = data.prompts(b.tolist(), self.style, self.scheme.noun, which[b])
                    sources = None if data.sources is None else data.sources[b]
                    t = torch.full((len(b),), level)
                    errors.append(self.error(data.latents[b], t, eps[b], prompts, sources))
                figures[f"error_t{level}"] = float(torch.cat(errors).mean())
        return {HELD_OUT: sum(figures.values()) / len(LEVELS)} | figures

    def _noise(self, like: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t = torch.randint(int(self.levels.config.num_train_timesteps), (n,), generator=generator)
        return t, torch.randn((n, *like.shape[1:]), generator=generator)


def withheld_of(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of draws (n,) from [0, 1): whose text and whose source is not told."""
    return draws < 2 * WITHHELD, (draws >= WITHHELD) & (draws < 3 * WITHHELD)


def _target(levels: Any, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What the network learns, in the terms of its own configuration."""
    kind = levels.config.prediction_type
    if kind == "v_prediction":
        return torch.as_tensor(levels.get_velocity(z0, eps, t))
    return z0 if kind == "sample" else eps
