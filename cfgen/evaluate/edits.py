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


def preservation(tools: Instruments, method: str, edits: Sequence[Made]) -> list[Result]:
    """Likeness of counterfactual and factual, by image and by the judge's features."""
    likeness = [_likeness(tools, m) for m in edits]
    base = Result(n=len(people(edits)), method=method)
    by, extractor = tools.extractor("judge")
    results = []
    for (name, where), (_, better, unit) in LIKENESS.items():
        line = replace(base, variant=where)
        if name == "perceptual":
            line = replace(line, by=by, extractor=extractor)
        mean = mean_of_edits([one[name, where] for one in likeness], edits)
        results.append(line.named(f"{name}_to_factual", mean, better, unit))
    return results


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
    method: str, edits: Sequence[Made], real: Sequence[Real], seed: int
) -> list[Result]:
    """Structure alone against the factual scan, and SSIM against another person's, which a
    counterfactual should not come near: cDDGM has the person whose acquisition was taken over."""
    draw = np.random.default_rng(seed)
    structure, strange = [], []
    for m in edits:
        mask = m.real.mask
        after = m.seen.image.astype(np.float32)
        structure.append(ssim_structure(after, m.real.seen.image.astype(np.float32), mask))
        others = [r for r in real if r.person != m.person]
        if others:
            other = others[int(draw.integers(len(others)))].seen.image.astype(np.float32)
            strange.append(ssim(after, other, mask))
    base = Result(n=len(people(edits)), method=method, reference="cDDGM Tab. 3", variant=INSIDE)
    results = [base.named("ssim_structure_to_factual", mean_of_edits(structure, edits), "up")]
    if len(strange) == len(edits):
        results.append(base.named("ssim_to_stranger", mean_of_edits(strange, edits), "down"))
    return results


def minimality(
    tools: Instruments, method: str, edits: Sequence[Made], real: Sequence[Real]
) -> list[Result]:
    """Counterfactual latent divergence for each variable that was changed."""
    embeddings = np.stack([r.seen.embedding for r in real]).astype(np.float64)
    results = []
    for name in sorted({n for m in edits for n in m.changed}):
        values, compared = [], []
        for m in (m for m in edits if m.changed == (name,)):
            factual = m.real.seen.embedding
            distance = np.linalg.norm(embeddings - factual, axis=1)
            # Another visit of the same person is no other person.
            others = [r.person != m.person for r in real]
            like_target = [
                o and _alike(r.row.values.get(name), m.target[name])
                for o, r in zip(others, real, strict=True)
            ]
            like_factual = [
                o and _alike(r.row.values.get(name), m.real.row.values[name])
                for o, r in zip(others, real, strict=True)
            ]
            if any(like_target) and any(like_factual):
                moved = float(np.linalg.norm(m.seen.embedding - factual))
                values.append(
                    axioms.divergence(
                        moved, distance[like_target], distance[like_factual], DIVERGENCE_WEIGHTS
                    )
                )
                compared.append(m)
        if values:
            by, extractor = tools.extractor("judge")
            base = Result(
                n=len(people(compared)),
                method=method,
                variable=name,
                by=by,
                extractor=extractor,
                reference="Melistas 2024",
            )
            results.append(base.named("latent_divergence", mean_of_edits(values, compared), "down"))
    return results


def _alike(a: Value | None, b: Value) -> bool:
    """In one bin: the same word, or numbers within a tenth of 0 to 1, five years or 5 %."""
    if a is None or isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(float(a) - float(b)) <= max(0.1 if abs(float(b)) <= 1 else 5.0, 0.05 * abs(float(b)))


def identity(method: str, edits: Sequence[Made], real: Sequence[Real]) -> list[Result]:
    """Is the person found again among all, by the brain's own fine detail?"""
    brain = np.mean([r.mask for r in real], axis=0) > 0.5
    spacing = min(real[0].grid.spacing)
    everybody = np.stack([_detail(r.seen.image, brain, spacing) for r in real])
    whose, subjects = [r.person for r in real], [m.person for m in edits]
    ranks = []
    for start in range(0, len(edits), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        details = np.stack([_detail(m.seen.image, brain, spacing) for m in edits[part]])
        ranks.append(axioms.retrieval_ranks(everybody, whose, details, subjects[part]))
    retrieval = axioms.retrieval(np.concatenate(ranks), subjects)
    base = Result(
        n=len(people(edits)),
        method=method,
        by="detail",
        extractor=f"detail below {DETAIL_MM:g} mm",
        note=f"chance {1 / len(people(real)):.3f}",
    )
    return [
        base.named("identity_top1", retrieval.top1, "up"),
        base.named("identity_top5", retrieval.top5, "up"),
        base.named("identity_mrr", retrieval.mrr, "up"),
    ]


def _detail(image: np.ndarray, brain: np.ndarray, spacing_mm: float) -> np.ndarray:
    x = image.astype(np.float32)
    fine = x - ndimage.gaussian_filter(x, DETAIL_MM / spacing_mm)
    return np.asarray(fine[brain])


def trajectories(
    method: str, edits: Sequence[Made], real: Sequence[Real], region: str
) -> list[Result]:
    """Later visits against counterfactuals of the first at their age (PCGM, task 2)."""
    visits: dict[str, list[Real]] = {}
    for r in real:
        if "age" in r.row.values:
            visits.setdefault(r.person, []).append(r)
    paths, whose = [], []
    for person, scans in visits.items():
        scans.sort(key=lambda r: float(r.row.values["age"]))
        edit_at = {
            round(float(m.target["age"]), 1): m
            for m in edits
            if m.real is scans[0] and m.changed == ("age",)
        }
        later = [r for r in scans[1:] if round(float(r.row.values["age"]), 1) in edit_at]
        if not later:
            continue
        series = [scans[0], *later]
        ages = np.array([float(r.row.values["age"]) for r in series])
        true = np.array([r.seen.volumes[region] for r in series])
        shown = [
            scans[0].seen,
            *(edit_at[round(float(r.row.values["age"]), 1)].seen for r in later),
        ]
        paths.append(trajectory(ages, true, np.array([s.volumes[region] for s in shown])))
        whose.append(person)
    if len(paths) < 3:
        return []
    base = Result(
        n=len(paths),
        method=method,
        region=region,
        reference="PCGM Fig. 3",
        by="segmenter",
        extractor="segmenter",
    )
    nmse = np.array([t.nmse for t in paths])
    results = [base.named("trajectory_nmse", mean_over_people(nmse, whose), "down")]
    pearson = np.array([t.pearson for t in paths])
    if np.isfinite(pearson).any():
        known = replace(base, n=int(np.isfinite(pearson).sum()))
        results.append(known.named("trajectory_pearson", mean_over_people(pearson, whose), "to 1"))
    slopes = mean_over_people(np.array([t.made_slope - t.real_slope for t in paths]) / 1e3, whose)
    return [*results, base.named("trajectory_slope_error", slopes, "to 0", "mL/year")]


def mean_of_edits(values: Sequence[float] | np.ndarray, edits: Sequence[Made]) -> Estimate:
    """Mean over people, each the mean of its edits, with an interval over people."""
    return mean_over_people(np.array(values), [m.person for m in edits])
