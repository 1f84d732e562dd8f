"""Composition and reversibility: what edits that ask for nothing, or for there and back, leave.

The whole edit runs on the model grid, again and again on its own output. With `residual` a change
is added to the image, as `counterfactual` does by default, with `latent` the decoded image takes
its place: then the autoencoder's losses pile up, which a null edit by default does not even see.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch

from cfgen.config import EDIT
from cfgen.data.conditions import Values
from cfgen.data.volume import Volume
from cfgen.jobs.evaluate_read import Instruments, Real, volumes_of
from cfgen.jobs.models import Models, edit_latent
from cfgen.metrics.image import ssim
from cfgen.metrics.result import Result
from cfgen.metrics.statistics import interval

log = logging.getLogger("cfgen")
How = Literal["residual", "latent"]
# Subjects, spread over the cohort, that go round.
SUBJECTS = 12
# There and back by this many years, towards the middle of the training range.
YEARS = 20.0


def axioms(
    tools: Instruments, models: Models, real: Sequence[Real], cycles: Sequence[int]
) -> list[Result]:
    """Distances after each number of `cycles` of a null edit, and of an edit of age and back."""
    chosen = [r for r in real if not tools.bundle.schema.missing(r.row.values)]
    chosen = chosen[:: max(1, len(chosen) // SUBJECTS)][:SUBJECTS]
    if not chosen:
        return []
    out: list[Result] = []
    for name, there_and_back in (("composition", False), ("reversibility", True)):
        for how in get_args(How):
            found: dict[tuple[int, str], list[float]] = {}
            for r in chosen:
                start = r.prepared.image
                image = start
                for cycle in range(1, max(cycles) + 1):
                    image = _round(tools, models, r, image, how, there_and_back)
                    if cycle in cycles:
                        for key, value in distances(tools, r, start, image).items():
                            found.setdefault((cycle, key), []).append(value)
            log.info("%s, %s: %d scans, %d cycles", name, how, len(chosen), max(cycles))
            for (cycle, key), values in found.items():
                base = Result(
                    n=len(chosen),
                    method=f"bundle, {how}",
                    group=f"m = {cycle}",
                    extractor=tools.name("judge") if key == "perceptual" else "",
                    reference="Monteiro 2023",
                )
                unit = "%" if key == "volumes" else ""
                out.append(base.named(f"{name}_{key}", interval(np.array(values)), "down", unit))
    return out


def distances(tools: Instruments, r: Real, start: np.ndarray, image: np.ndarray) -> dict:
    """Every distance of two images (D, H, W) of one person."""
    mask = r.prepared.mask
    error = (image - start)[mask].astype(np.float64)
    before, after = (volumes_of(tools, Volume(x, r.prepared.grid.affine)) for x in (start, image))
    changes = [abs(after[k] - v) / v for k, v in before.items() if v > 0]
    return {
        "l1": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "ssim_loss": 1 - ssim(image, start, mask),
        "perceptual": float(tools.judges.perceptual_distance(image[None], start[None])[0]),
        "volumes": 100 * float(np.mean(changes)),
    }


def _round(
    tools: Instruments, models: Models, r: Real, image: np.ndarray, how: How, there_and_back: bool
) -> np.ndarray:
    own: Values = r.row.values
    if not there_and_back:
        return _edited(tools, models, r, image, own, own, how)
    low, high = tools.bundle.schema.variable("age").support or (20.0, 80.0)
    years = YEARS if float(own["age"]) < (low + high) / 2 else -YEARS
    other = {**own, "age": float(own["age"]) + years}
    there = _edited(tools, models, r, image, own, other, how)
    return _edited(tools, models, r, there, other, own, how)


def _edited(
    tools: Instruments,
    models: Models,
    r: Real,
    image: np.ndarray,
    own: Values,
    target: Values,
    how: How,
) -> np.ndarray:
    schema, cap = tools.bundle.schema, tools.bundle.preprocess.intensity_cap
    c, other = (torch.from_numpy(schema.encode(v))[None] for v in (own, target))
    z0 = models.encode(torch.from_numpy(image)[None, None])
    edit = edit_latent(models, z0, c.to(models.device), [other.to(models.device)], EDIT)
    latents = (edit.counterfactuals[0], edit.reconstruction)
    made, same = (models.decode(z)[0, 0].cpu().numpy() for z in latents)
    if how == "residual":
        made = image + made - same
    return np.where(r.prepared.mask, np.clip(made, 0, cap), 0).astype(np.float32)
