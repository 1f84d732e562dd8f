"""What a diffusion model of benchmarks/cycle.py makes: brains of nobody, and people at other ages.

    python benchmarks/cycle_made.py --out build/cycle --names plain

Draws brains of nobody at eight ages, all of one noise, in OUT/sheet-NAME.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cycle_brains import other_ages, spaced
from matplotlib.image import imsave
from torch import Tensor

from cfgen.bundle import read_bundle
from cfgen.config import Edit
from cfgen.data.conditions import Schema
from cfgen.diffusion.samplers import denoise_ddim
from cfgen.diffusion.schedule import time_grid
from cfgen.edit.latent import Models, edit_latent, load_models
from cfgen.nets.condition import Condition
from cfgen.streams import Purpose, torch_stream

CPU = torch.device("cpu")


def generated(
    models: Models, c: Tensor, steps: int, guidance: float, seed: int, *, one_noise: bool = False
) -> Tensor:
    """New latents, one for each condition, by DDIM from a noise of its own, or from one for all."""
    shape = models.latent_mean.coefficients.shape[1:]
    subjects = [0] * len(c) if one_noise else range(len(c))
    noise = [torch.randn(shape, generator=torch_stream(seed, Purpose.SAMPLES, n)) for n in subjects]
    times = time_grid(steps, models.schedule.T)
    made = []
    with torch.inference_mode():
        for zt, some in zip(torch.stack(noise).split(8), c.split(8), strict=True):
            asked = Condition(some).to(models.device)
            denoiser = models.denoiser(asked, guidance)
            r = denoise_ddim(denoiser, models.schedule, zt.to(models.device), times)
            made.append(models.latent_mean.latent(r, asked.vector))
    return torch.cat(made)


def new_brains(
    models: Models, schema: Schema, n: int, steps: int, guidance: float
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Images (n, D, H, W) of nobody, the ages that were asked for, and who is female."""
    c, ages, female = spaced(schema, n)
    latents = generated(models, c, steps, guidance, 0)
    return torch.cat([models.decode(z[None])[:, 0].cpu() for z in latents]), ages, female


def changed(
    models: Models, schema: Schema, z0: Tensor, values: dict[str, Any], edit: Edit
) -> tuple[list[float], Tensor]:
    """A person of latent `z0` (C, d, h, w) at other ages: the ages, their own first, and images
    (1 + J, D, H, W), the first as the model gives the scan back."""
    ages = [values["age"], *other_ages(schema, values["age"])]
    vectors = [schema.encode(values | {"age": age}) for age in ages]
    own, *others = [Condition(torch.from_numpy(v)[None]).to(models.device) for v in vectors]
    made = edit_latent(models, z0[None].to(models.device), own, others, edit)
    images = [models.decode(z)[:, 0].cpu() for z in (made.reconstruction, *made.counterfactuals)]
    return ages, torch.cat(images)


def sheet(out: Path, names: list[str], steps: int, guidance: float, seed: int) -> None:
    """OUT/sheet-NAME.png: brains of nobody, all of one noise, at eight ages from left to right;
    an axial and a coronal slice through the ventricles."""
    for name in names:
        bundle = read_bundle(out / name)
        models = load_models(bundle, CPU)
        low, high = bundle.schema.variable("age").support
        asked = [{"age": age, "sex": "F"} for age in np.linspace(low, high, 8)]
        c = torch.from_numpy(np.stack([bundle.schema.encode(v) for v in asked]))
        new = generated(models, c, steps, guidance, seed, one_noise=True)
        images = torch.cat([models.decode(z[None])[0] for z in new])
        axial = [x[:, :, 46].T.flip(0) for x in images]
        coronal = [x[:, 52, :].T.flip(0) for x in images]
        rows = torch.cat([torch.cat(axial, 1), torch.cat(coronal, 1)])
        imsave(out / f"sheet-{name}.png", rows.numpy(), cmap="gray", vmin=0, vmax=1.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampling", type=int, default=50, help="DDIM steps of a new brain.")
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sheet(options.out, options.names, options.sampling, options.guidance, options.seed)


if __name__ == "__main__":
    main()
