"""Composition and reversibility: what edits that ask for nothing, or for there and back, leave.

The whole edit runs on the model grid, again and again on its own output. With `residual` a change
is added to the image, as `--render residual` does, with `latent` the decoded image takes
its place: then the autoencoder's losses pile up. A null edit by `residual` does not see them: its
target is the reconstruction itself, of which nothing is left when the reconstruction is taken off.
That zero says nothing of the model; `reconstruction`, the image that the round trip through
autoencoder and diffusion gives back, does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from cfgen.config import EDIT
from cfgen.data.conditions import Values
from cfgen.edit.latent import Models, condition_of, edit_latent
from cfgen.evaluate.scans import Instruments, Real, one_a_person, volumes_of
from cfgen.metrics.image import ssim
from cfgen.metrics.result import Extractor, Result
from cfgen.metrics.statistics import mean_over_people
from cfgen.nets.condition import Condition
from cfgen.progress import each
from cfgen.scan.prepare import Prepared

How = Literal["residual", "latent", "reconstruction"]
# The write-backs of an edit.
HOWS: tuple[How, ...] = ("residual", "latent")
# What composition means by each, where it is not the plain distance.
COMPOSED: dict[How, str] = {
    "residual": "zero by construction: a null edit's target is the reconstruction itself",
    "latent": "the decoded image in place of the scan, as --render latent has it",
    "reconstruction": "once through autoencoder and diffusion and back, no edit",
}
# Subjects, spread over the cohort, that go round.
SUBJECTS = 8
# There and back by this many years, towards the middle of the training range.
YEARS = 20.0


def axioms(
    tools: Instruments, models: Models, real: Sequence[Real], cycles: Sequence[int]
) -> list[Result]:
    """Distances after each number of `cycles` of a null edit, and of an edit of age and back."""
    chosen = [r for r in real if not tools.bundle.schema.missing(r.row.values)]
    chosen = one_a_person(chosen)
    chosen = chosen[:: max(1, len(chosen) // SUBJECTS)][:SUBJECTS]
    subjects = [r.person for r in chosen]
    errors: dict[tuple[str, How, int, str], list[float]] = {}
    for r in each(chosen, len(chosen), "scans edited there and back"):
        prepared = r.prepared()
        for (axiom, how, cycle), image in _rounds(tools, models, r, prepared.image, cycles):
            for key, value in distances(tools, r, prepared, image).items():
                errors.setdefault((axiom, how, cycle, key), []).append(value)
    results = []
    seers = {"perceptual": tools.extractor("judge"), "volumes": Extractor("segmenter", "segmenter")}
    for (axiom, how, cycle, key), values in sorted(errors.items()):
        by, extractor = seers.get(key, Extractor("", ""))
        base = Result(
            n=len(chosen),
            method=f"bundle, {how}",
            group=rounds(cycle),
            by=by,
            extractor=extractor,
            reference="Monteiro 2023",
            note=COMPOSED[how] if axiom == "composition" else "",
        )
        unit = "%" if key == "volumes" else ""
        mean = mean_over_people(np.array(values), subjects)
        results.append(base.named(f"{axiom}_{key}", mean, "down", unit))
    return results


def rounds(cycle: int) -> str:
    """The group of what was edited so many times."""
    return f"m = {cycle}"


def distances(
    tools: Instruments, r: Real, prepared: Prepared, image: np.ndarray
) -> dict[str, float]:
    """Every distance of an image (D, H, W) from the prepared scan."""
    start, mask = prepared.image, prepared.mask
    error = (image - start)[mask].astype(np.float64)
    before, after = r.seen.volumes, volumes_of(tools, image, prepared)
    changes = [abs(after[k] - v) / v for k, v in before.items() if v > 0]
    return {
        "l1": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "ssim_loss": 1 - ssim(image, start, mask),
        "perceptual": float(tools.judges.perceptual_distance(image[None], start[None])[0]),
        "volumes": 100 * float(np.mean(changes)),
    }


def _rounds(
    tools: Instruments, models: Models, r: Real, start: np.ndarray, cycles: Sequence[int]
) -> Iterator[tuple[tuple[str, How, int], np.ndarray]]:
    """(axiom, how, cycle) and the image after that many null edits of `start` (D, H, W), or edits
    there and back; and what the first abduction reconstructs."""
    factual: Values = r.row.values
    low, high = tools.bundle.schema.variable("age").support or (20.0, 80.0)
    years = YEARS if float(factual["age"]) < (low + high) / 2 else -YEARS
    other = {**factual, "age": float(factual["age"]) + years}

    def edited(images: np.ndarray, source: Values, *targets: Values) -> list[np.ndarray]:
        return _edited(tools, models, r, images, source, targets)[1]

    # The first edits share their abduction.
    rebuilt, (same, gone) = _edited(tools, models, r, start[None], factual, (factual, other))
    yield ("composition", "reconstruction", 1), rebuilt[0]
    for cycle in range(1, max(cycles) + 1):
        (back,) = edited(gone, other, factual)
        if cycle in cycles:
            for k, how in enumerate(HOWS):
                yield ("composition", how, cycle), same[k]
                yield ("reversibility", how, cycle), back[k]
        if cycle < max(cycles):
            (same,), (gone,) = edited(same, factual, factual), edited(back, factual, other)


def _edited(
    tools: Instruments,
    models: Models,
    r: Real,
    images: np.ndarray,
    factual: Values,
    targets: Sequence[Values],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The whole edit of images (2, D, H, W), one for each of HOWS, or of one (1, D, H, W) for both:
    their reconstructions (1 or 2, D, H, W), and (2, D, H, W) for each target."""
    schema, cap = tools.bundle.schema, tools.bundle.preprocess.intensity_cap

    def condition(values: Values) -> Condition:
        return condition_of(schema, values, models.device).repeat(len(images))

    def inside(image: np.ndarray) -> np.ndarray:
        return np.where(r.mask, np.clip(image, 0, cap), 0).astype(np.float32)

    z0 = models.encode(torch.from_numpy(images)[:, None])
    edit = edit_latent(models, z0, condition(factual), [condition(t) for t in targets], EDIT)
    same, *decoded = (
        models.decode(z)[:, 0].cpu().numpy() for z in (edit.reconstruction, *edit.counterfactuals)
    )
    # First the change added to the image, then the decoded image itself.
    edits = [np.stack([inside(images[0] + x[0] - same[0]), inside(x[-1])]) for x in decoded]
    return np.stack([inside(x) for x in same]), edits
