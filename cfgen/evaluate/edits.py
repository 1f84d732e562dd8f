"""What counterfactuals keep of the person and what they change, from paired images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from cfgen.data.conditions import Value
from cfgen.evaluate.scans import Instruments, Made, Real, people
from cfgen.metrics import axioms
from cfgen.metrics.image import psnr, ssim, ssim_map, ssim_structure
from cfgen.metrics.morphometry import trajectory
from cfgen.metrics.result import Better, Result
from cfgen.metrics.statistics import (
    Estimate,
    mean_over_people,
)

# Sanchez and Tsaftaris 2022, with the weights of Melistas et al. 2024.
DIVERGENCE_WEIGHTS = (0.8, 0.2)
INSIDE, WHOLE = "inside the brain", "whole volume"
# (what, where): how like itself an image is, the direction of good, the unit.
LIKENESS: dict[tuple[str, str], tuple[float, Better, str]] = {
    ("ssim", INSIDE): (1.0, "up", ""),
    ("ssim", WHOLE): (1.0, "up", ""),
    ("psnr", INSIDE): (np.inf, "up", "dB"),
    ("psnr", WHOLE): (np.inf, "up", "dB"),
    ("l1", INSIDE): (0.0, "down", ""),
    ("perceptual", WHOLE): (0.0, "down", ""),
}
COPIED = {key: value for key, (value, _, _) in LIKENESS.items()}
# Detail below this (SD of a Gaussian, mm) is the person's own.
DETAIL_MM = 4.0
# Images whose detail is in memory beside everybody's.
AT_ONCE = 64


def preservation(tools: Instruments, method: str, made: Sequence[Made]) -> list[Result]:
    """Likeness of counterfactual and factual, by image and by the judge's features."""
    likeness = [_likeness(tools, m) for m in made]
    base = Result(n=len(people(made)), method=method)
    by, extractor = tools.extractor("judge")
    out = []
    for (name, where), (_, better, unit) in LIKENESS.items():
        own = replace(base, variant=where)
        if name == "perceptual":
            own = replace(own, by=by, extractor=extractor)
        found = mean_of_edits([one[name, where] for one in likeness], made)
        out.append(own.named(f"{name}_to_factual", found, better, unit))
    return out


def _likeness(tools: Instruments, m: Made) -> dict[tuple[str, str], float]:
    if m.seen is m.real.seen:
        return COPIED
    after, before = m.seen.image.astype(np.float32), m.real.seen.image.astype(np.float32)
    mask = m.real.mask
    whole = np.ones_like(mask)
    alike = ssim_map(after, before)
    return {
        ("ssim", INSIDE): float(alike[mask].mean()),
        ("ssim", WHOLE): float(alike.mean()),
        ("psnr", INSIDE): psnr(after, before, mask),
        ("psnr", WHOLE): psnr(after, before, whole),
        ("l1", INSIDE): float(np.abs(after - before)[mask].mean()),
        ("perceptual", WHOLE): float(
            tools.judges.perceptual_distance(after[None], before[None])[0]
        ),
    }


def acquisition_likeness(
    method: str, made: Sequence[Made], real: Sequence[Real], seed: int
) -> list[Result]:
    """Structure alone against the factual scan, and SSIM against another person's, which a
    counterfactual should not come near: cDDGM has the person whose acquisition was taken over."""
    draw = np.random.default_rng(seed)
    structure, strange = [], []
    for m in made:
        mask = m.real.mask
        after = m.seen.image.astype(np.float32)
        structure.append(ssim_structure(after, m.real.seen.image.astype(np.float32), mask))
        others = [r for r in real if r.person != m.person]
        if others:
            other = others[int(draw.integers(len(others)))].seen.image.astype(np.float32)
            strange.append(ssim(after, other, mask))
    base = Result(n=len(people(made)), method=method, reference="cDDGM Tab. 3", variant=INSIDE)
    out = [base.named("ssim_structure_to_factual", mean_of_edits(structure, made), "up")]
    if len(strange) == len(made):
        out.append(base.named("ssim_to_stranger", mean_of_edits(strange, made), "down"))
    return out


def minimality(
    tools: Instruments, method: str, made: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Counterfactual latent divergence for each variable that was changed."""
    embeddings = np.stack([r.seen.embedding for r in real]).astype(np.float64)
    out = []
    for name in sorted({n for m in made for n in m.changed}):
        values, some = [], []
        for m in (m for m in made if m.changed == (name,)):
            own = m.real.seen.embedding
            distance = np.linalg.norm(embeddings - own, axis=1)
            # Another visit of the same person is no other person.
            others = [r.person != m.person for r in real]
            like_target = [
                o and _alike(r.row.values.get(name), m.target[name])
                for o, r in zip(others, real, strict=True)
            ]
            like_own = [
                o and _alike(r.row.values.get(name), m.real.row.values[name])
                for o, r in zip(others, real, strict=True)
            ]
            if any(like_target) and any(like_own):
                moved = float(np.linalg.norm(m.seen.embedding - own))
                values.append(
                    axioms.divergence(
                        moved, distance[like_target], distance[like_own], DIVERGENCE_WEIGHTS
                    )
                )
                some.append(m)
        if values:
            by, extractor = tools.extractor("judge")
            base = Result(
                n=len(people(some)),
                method=method,
                variable=name,
                by=by,
                extractor=extractor,
                reference="Melistas 2024",
            )
            out.append(base.named("latent_divergence", mean_of_edits(values, some), "down"))
    return out


def _alike(a: Value | None, b: Value) -> bool:
    """In one bin: the same word, or numbers within a tenth of 0 to 1, five years or 5 %."""
    if a is None or isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(float(a) - float(b)) <= max(0.1 if abs(float(b)) <= 1 else 5.0, 0.05 * abs(float(b)))


def identity(method: str, made: Sequence[Made], real: Sequence[Real]) -> list[Result]:
    """Is the person found again among all, by the brain's own fine detail?"""
    brain = np.mean([r.mask for r in real], axis=0) > 0.5
    spacing = min(real[0].grid.spacing)
    everybody = np.stack([_detail(r.seen.image, brain, spacing) for r in real])
    whose, own = [r.person for r in real], [m.person for m in made]
    ranks = []
    for start in range(0, len(made), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        some = np.stack([_detail(m.seen.image, brain, spacing) for m in made[part]])
        ranks.append(axioms.retrieval_ranks(everybody, whose, some, own[part]))
    found = axioms.retrieval(np.concatenate(ranks), own)
    base = Result(
        n=len(people(made)),
        method=method,
        by="detail",
        extractor=f"detail below {DETAIL_MM:g} mm",
        note=f"chance {1 / len(people(real)):.3f}",
    )
    return [
        base.named("identity_top1", found.top1, "up"),
        base.named("identity_top5", found.top5, "up"),
        base.named("identity_mrr", found.mrr, "up"),
    ]


def _detail(image: np.ndarray, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    x = image.astype(np.float32)
    fine = x - ndimage.gaussian_filter(x, DETAIL_MM / spacing_mm)
    return np.asarray(fine[brain])


def trajectories(
    method: str, made: Sequence[Made], real: Sequence[Real], region: str
) -> list[Result]:
    """Later visits against counterfactuals of the first at their age (PCGM, task 2)."""
    visits: dict[str, list[Real]] = {}
    for r in real:
        if "age" in r.row.values:
            visits.setdefault(r.person, []).append(r)
    found, whose = [], []
    for person, own in visits.items():
        own.sort(key=lambda r: float(r.row.values["age"]))
        made_at = {
            round(float(m.target["age"]), 1): m
            for m in made
            if m.real is own[0] and m.changed == ("age",)
        }
        later = [r for r in own[1:] if round(float(r.row.values["age"]), 1) in made_at]
        if not later:
            continue
        series = [own[0], *later]
        ages = np.array([float(r.row.values["age"]) for r in series])
        true = np.array([r.seen.volumes[region] for r in series])
        shown = [own[0].seen, *(made_at[round(float(r.row.values["age"]), 1)].seen for r in later)]
        found.append(trajectory(ages, true, np.array([s.volumes[region] for s in shown])))
        whose.append(person)
    if len(found) < 3:
        return []
    base = Result(
        n=len(found),
        method=method,
        region=region,
        reference="PCGM Fig. 3",
        by="segmenter",
        extractor="segmenter",
    )
    nmse = np.array([t.nmse for t in found])
    out = [base.named("trajectory_nmse", mean_over_people(nmse, whose), "down")]
    pearson = np.array([t.pearson for t in found])
    if np.isfinite(pearson).any():
        known = replace(base, n=int(np.isfinite(pearson).sum()))
        out.append(known.named("trajectory_pearson", mean_over_people(pearson, whose), "to 1"))
    slopes = mean_over_people(np.array([t.made_slope - t.real_slope for t in found]) / 1e3, whose)
    return [*out, base.named("trajectory_slope_error", slopes, "to 0", "mL/year")]


def mean_of_edits(values: Sequence[float] | np.ndarray, made: Sequence[Made]) -> Estimate:
    """Mean over people, each the mean of its edits, with an interval over people."""
    return mean_over_people(np.array(values), [m.person for m in made])
