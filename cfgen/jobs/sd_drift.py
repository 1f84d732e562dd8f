"""The search of a drift for Stable Diffusion: which brings its slices nearest to those held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cfgen.batch.resume import fingerprint
from cfgen.config import SdEdit
from cfgen.diffusion.drift import Drift
from cfgen.edit.drift_search import SAMPLES, Curve, l1, search
from cfgen.jobs.drift_files import kept_curve
from cfgen.sd.model import SdModel, unet_sha256
from cfgen.sd.prompts import Style
from cfgen.sd.sampling import Sampling, generate
from cfgen.streams import Purpose, torch_stream
from cfgen.train.slices import SliceData

# Of every sample; the curve is of a drift of each of these steps.
HOW = SdEdit(steps=25)


def find_sd_drift(
    model: SdModel, held_out: SliceData, style: Style, seed: int, folder: Path
) -> Curve:
    """The curve of mean absolute differences between slices that the model makes, under the prompts
    of held-out ones, and those, as its autoencoder shows them; 1 is the whole grey scale.

    It is kept in `folder` with curve.csv and curve.png.
    """
    places = [n % len(held_out.latents) for n in range(SAMPLES)]
    which = torch.rand(SAMPLES, generator=torch_stream(seed, Purpose.NOBODY))
    prompts = held_out.prompts(places, style, model.card.noun, which)
    targets = _grey(model, held_out.latents)

    def found() -> Curve:
        return search(lambda delta: l1(slices_under(model, prompts, delta, seed), targets), seed)

    digest = str(float(held_out.latents.double().sum()))
    asked = [unet_sha256(model.folder), digest, prompts, seed, HOW.steps, HOW.guidance]
    return kept_curve(found, fingerprint([], asked), seed, folder)


def slices_under(model: SdModel, prompts: Sequence[str], delta: float, seed: int) -> torch.Tensor:
    """Grey slices (N, S, S) of prompts under a drift, number n always of the same noise."""
    sampling, made = Sampling(Drift((delta,)), edit=HOW), []
    for number, prompt in enumerate(prompts):
        stream = torch_stream(seed, Purpose.NOBODY, number, step=2)
        noise = torch.randn(1, *model.latent_shape, generator=stream)
        made.append(_grey(model, generate(model, [prompt], noise, sampling, seed)))
    return torch.cat(made)


def _grey(model: SdModel, latents: torch.Tensor) -> torch.Tensor:
    """(N, S, S) in [0, 1] of latents, one at a time."""
    pictures = [model.decode(z[None].to(model.device)).mean(1).cpu() for z in latents]
    return ((torch.cat(pictures) + 1) / 2).clamp(0, 1)
