"""What counterfactuals keep of the person and what they change, from paired images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from cfgen.data.acquisition import ACQUISITION
from cfgen.data.conditions import Value
from cfgen.evaluate.scans import Instruments, Made, Real, matrix
from cfgen.metrics import axioms
from cfgen.metrics.image import psnr, ssim, ssim_map, ssim_structure
from cfgen.metrics.morphometry import trajectory
from cfgen.metrics.result import Better, Result
from cfgen.metrics.statistics import Estimate, interval, resampled

# Sanchez and Tsaftaris 2022, with the weights of Melistas et al. 2024.
DIVERGENCE_WEIGHTS = (0.8, 0.2)
# An image is this like itself.
COPIED = {
    "ssim": 1.0,
    "ssim_whole": 1.0,
    "psnr": np.inf,
    "psnr_whole": np.inf,
    "l1": 0.0,
    "perceptual": 0.0,
}
# Detail below this (SD of a Gaussian, mm) is the person's own.
DETAIL_MM = 4.0
# Images whose detail is in memory beside everybody's.
AT_ONCE = 64
INSIDE = "inside the brain"


def preservation(tools: Instruments, method: str, made: Sequence[Made]) -> list[Result]:
    """Likeness of counterfactual and factual, by image and by the judge's features."""
    rows: dict[str, list[float]] = {}
    for m in made:
        for name, value in _likeness(tools, m).items():
            rows.setdefault(name, []).append(value)
    base = Result(n=len(people(made)), method=method)
    out = []
    for name, values in rows.items():
        better: Better = "down" if name in ("l1", "perceptual") else "up"
        own = base
        if name == "perceptual":
            own = replace(base, extractor=tools.name("judge"))
        where = "whole volume" if name.endswith("_whole") else INSIDE
        unit = "dB" if name.startswith("psnr") else ""
        found = over_people(np.array(values), made)
        out.append(own.named(f"{name}_to_factual", found, better, unit, where))
    return out


def _likeness(tools: Instruments, m: Made) -> dict[str, float]:
    if m.seen is m.real.seen:
        return COPIED
    after, before = m.seen.image.astype(np.float32), m.real.seen.image.astype(np.float32)
    mask = m.real.mask
    whole = np.ones_like(mask)
    alike = ssim_map(after, before)
    return {
        "ssim": float(alike[mask].mean()),
        "ssim_whole": float(alike.mean()),
        "psnr": psnr(after, before, mask),
        "psnr_whole": psnr(after, before, whole),
        "l1": float(np.abs(after - before)[mask].mean()),
        "perceptual": float(tools.judges.perceptual_distance(after[None], before[None])[0]),
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
        others = [r for r in real if r.row.subject != m.row.subject]
        if others:
            other = others[int(draw.integers(len(others)))].seen.image.astype(np.float32)
            strange.append(ssim(after, other, mask))
    base = Result(n=len(people(made)), method=method, reference="cDDGM Tab. 3", note=INSIDE)
    out = [base.named("ssim_structure_to_factual", over_people(np.array(structure), made), "up")]
    if len(strange) == len(made):
        out.append(base.named("ssim_to_stranger", over_people(np.array(strange), made), "down"))
    return out


def region_response(
    method: str, made: Sequence[Made], real: Sequence[Real], regions: Sequence[str]
) -> list[Result]:
    """The change of each region's volume, for every year that was asked for, against what the real
    cohort's people of different age differ by: slopes of the log volume."""
    aged = [m for m in made if m.changed == ("age",)]
    if len(aged) < 3:
        return []
    years = np.array([m.asked("age") for m in aged])

    def slope(y: np.ndarray, change: np.ndarray) -> np.ndarray:
        return np.asarray(1000 * (y * change).sum(-1) / (y**2).sum(-1))

    out = []
    for region, due in zip(regions, cohort_slopes(real, regions), strict=True):
        before, after = (
            np.log([max(s.volumes[region], 1.0) for s in side])
            for side in ([m.real.seen for m in aged], [m.seen for m in aged])
        )
        base = Result(n=len(people(aged)), method=method, group=region, extractor="segmenter")
        said = f"real people of different age: {1000 * due:+.1f} % a decade"
        found = resampled(slope, years, after - before)
        out.append(base.named("change_per_decade", found, "", "%", said))
    return out


def cohort_slopes(real: Sequence[Real], regions: Sequence[str]) -> np.ndarray:
    """d log(volume) / d age (K,) over real people, with sex and head size held."""
    known = [r for r in real if "age" in r.row.values]
    volumes = np.log(np.maximum(matrix([r.seen.volumes for r in known], regions), 1.0))
    head = np.log([r.seen.volumes["tiv"] for r in known])
    age = np.array([float(r.row.values["age"]) for r in known])
    sex = np.array([r.row.values.get("sex") == "M" for r in known], float)
    columns = [c - c.mean() for c in (age, head, sex) if np.ptp(c) > 0]
    design = np.stack([np.ones_like(age), *columns], 1)
    return np.asarray(np.linalg.lstsq(design, volumes, rcond=None)[0][1])


def untouched_regions(method: str, made: Sequence[Made], regions: Sequence[str]) -> list[Result]:
    """Volume change where there should be none: the regions of edits of the acquisition."""
    imaged = [m for m in made if m.changed and set(m.changed) <= ACQUISITION]
    if not imaged:
        return []
    before, after = (
        matrix(side, regions)
        for side in ([m.real.seen.volumes for m in imaged], [m.seen.volumes for m in imaged])
    )
    found = over_people(np.nanmean(axioms.percent_change(before, after), 1), imaged)
    base = Result(n=len(people(imaged)), method=method, extractor="segmenter")
    return [base.named("untouched_region_change", found, "down", "%")]


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
            others = [r is not m.real for r in real]
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
            base = Result(
                n=len(people(some)),
                method=method,
                group=name,
                extractor=tools.name("judge"),
                reference="Melistas 2024",
            )
            found = over_people(np.array(values), some)
            out.append(base.named("latent_divergence", found, "down"))
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
    people_ = np.stack([_detail(r.seen.image, brain, spacing) for r in real])
    own = np.array([next(k for k, r in enumerate(real) if r is m.real) for m in made])
    ranks = []
    for start in range(0, len(made), AT_ONCE):
        some = [_detail(m.seen.image, brain, spacing) for m in made[start : start + AT_ONCE]]
        ranks.append(axioms.retrieval_ranks(people_, np.stack(some), own[start : start + AT_ONCE]))
    found = axioms.retrieval(np.concatenate(ranks))
    base = Result(
        n=len(people(made)),
        method=method,
        extractor=f"detail below {DETAIL_MM:g} mm",
        note=f"chance {1 / len(real):.3f}",
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
            visits.setdefault(r.row.subject, []).append(r)
    found = []
    for own in visits.values():
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
    if len(found) < 3:
        return []
    base = Result(
        n=len(found),
        method=method,
        group=region,
        extractor="segmenter",
        reference="PCGM Fig. 3",
    )
    out = [base.named("trajectory_nmse", interval(np.array([t.nmse for t in found])), "down")]
    pearson = np.array([t.pearson for t in found])
    if np.isfinite(pearson).any():
        out.append(base.named("trajectory_pearson", interval(pearson), "to 1"))
    slopes = np.array([(t.made_slope - t.real_slope) / 1e3 for t in found])
    return [*out, base.named("trajectory_slope_error", interval(slopes), "to 0", "mL/year")]


def people(made: Sequence[Made]) -> list[str]:
    return list(dict.fromkeys(m.row.subject for m in made))


def over_people(values: np.ndarray, made: Sequence[Made]) -> Estimate:
    """Mean over people, each the mean of its edits, with an interval over people."""
    own: dict[str, list[float]] = {}
    for m, value in zip(made, values, strict=True):
        own.setdefault(m.row.subject, []).append(float(value))
    means = np.array([np.mean(v) for v in own.values()])
    if np.isinf(means).any():
        return Estimate(float(means.mean()), float("nan"), float("nan"))
    return interval(means)
