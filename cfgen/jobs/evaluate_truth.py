"""Errors against true counterfactuals, which a simulated cohort brings with it (G1 to G6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cfgen.data.regions import group_mask, recognise_table
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume
from cfgen.errors import ManifestError
from cfgen.jobs.evaluate_edits import ACQUISITION
from cfgen.jobs.evaluate_read import Instruments, Made, check_grid, see
from cfgen.jobs.segment import segment
from cfgen.metrics.result import Better, Result
from cfgen.metrics.statistics import interval
from cfgen.metrics.truth import dice, image_truth, surface_distance_mm, volume_truth

# What is noise and what is change, in parts of the brightness of white matter.
NOISE = 0.01
WHITE = "cerebral_wm"
# Groups of the label tables that are structures of the segmenter, too.
REGIONS = ("lateral_ventricle", "hippocampus", "cerebral_wm", "cortex", "brainstem")
TISSUES = ("lateral_ventricle", "cerebral_wm", "cortex")
BETTER: dict[str, Better] = {
    "skill": "up",
    "mae": "down",
    "psnr_db": "up",
    "correlation": "to 1",
    "slope": "to 1",
    "leakage": "down",
}


@dataclass(frozen=True)
class Truth:
    """The true counterfactual of one scan and intervention: image and label map."""

    row: Row
    image: Path
    labels: Path | None


def read_truths(rows: Sequence[Row], name: str) -> dict[tuple[str, str], Truth]:
    """(subject, intervention) -> its truth. Raises ManifestError without that column."""
    bare = [row.source for row in rows if "intervention" not in row.extra]
    if bare:
        raise ManifestError(
            name,
            f"no column intervention ({', '.join(bare[:3])})",
            "the truth.csv of 'cfgen simulate --truth'",
        )
    return {(r.subject, r.extra["intervention"]): Truth(r, r.image, r.labels) for r in rows}


def truth_results(
    tools: Instruments,
    methods: Mapping[str, Sequence[Made]],
    truths: dict[tuple[str, str], Truth],
    labels: bool,
) -> list[Result]:
    """G1 to G3 and G6, and with `labels` G4, for each intervention and method, on the scanner's
    own grid. `copy` is the factual scan, `oracle` the truth itself.

    Raises ManifestError when no counterfactual has a truth.
    """
    out: list[Result] = []
    some: dict[str, Sequence[Made]] = {
        k: [m for m in v if (m.row.subject, m.label) in truths] for k, v in methods.items()
    }
    if not any(some.values()):
        raise ManifestError(
            "--truth",
            "no counterfactual has a truth: none has the subject and intervention of a row",
            "the interventions of 'cfgen simulate --truth'",
        )
    first = next(v for v in some.values() if v)
    some = {"copy": first, "oracle": first} | some
    for method, made in some.items():
        for label in dict.fromkeys(m.label for m in made):
            own = [m for m in made if m.label == label]
            pairs = [(m, truths[(m.row.subject, label)]) for m in own]
            out += _query(tools, method, label, pairs, labels)
    return out


def _query(
    tools: Instruments,
    method: str,
    label: str,
    pairs: Sequence[tuple[Made, Truth]],
    with_labels: bool,
) -> list[Result]:
    images: dict[str, list[float]] = {}
    volumes: dict[str, list[tuple[float, float, float]]] = {}
    overlaps: dict[str, list[float]] = {}
    for m, truth in pairs:
        factual, true = read_volume(m.real.row.image), read_volume(truth.image)
        check_grid(true, m.real)
        made = {"copy": factual, "oracle": true}.get(method) or read_volume(m.row.image)
        before, after = _labels(m.real.row.labels), _labels(truth.labels)
        mask, white = factual.data > 0, factual.data
        if before is not None and after is not None:
            table = recognise_table(before.data)
            mask = (before.data > 0) | (after.data > 0)
            white = factual.data[group_mask(before.data, table, WHITE)]
        sigma = NOISE * float(np.median(white[white > 0]))
        found = image_truth(factual.data, made.data, true.data, mask, sigma)
        for name in BETTER:
            images.setdefault(name, []).append(getattr(found, name))
        if before is None or after is None or not with_labels:
            continue
        for region, triple in _volumes(tools, method, m, true, before, after).items():
            volumes.setdefault(region, []).append(triple)
        for name, value in _overlap(tools, made, after).items():
            overlaps.setdefault(name, []).append(value)
    base = Result(n=len(pairs), method=method, group=label, reference="simulator's truth")
    out = [
        base.named(f"truth_{name}", interval(np.array(v)), BETTER[name])
        for name, v in images.items()
    ]
    still = set(pairs[0][0].changed) <= ACQUISITION
    for region, triples in volumes.items():
        of = volume_truth(*np.array(triples).T)
        own = replace(base, group=f"{label} {region}", extractor="segmenter")
        # Where the true change is nothing, a slope on it says nothing.
        if not still:
            out.append(own.named("truth_volume_slope", of.slope, "to 1"))
            out.append(own.named("truth_volume_nmse", of.nmse, "down"))
        out.append(own.named("truth_volume_error", of.error_percent, "to 0", "%"))
    for name, values in overlaps.items():
        region, _, what = name.partition(" ")
        own = replace(base, group=f"{label} {region}", extractor="segmenter")
        better: Better = "up" if what == "dice" else "down"
        unit = "" if what == "dice" else "mm"
        out.append(own.named(f"truth_{what}", interval(np.array(values)), better, unit))
    return out


def _labels(path: Path | None) -> Volume | None:
    return None if path is None else read_volume(path)


def _volumes(
    tools: Instruments, method: str, m: Made, true: Volume, before: Volume, after: Volume
) -> dict[str, tuple[float, float, float]]:
    """(factual, made, true) mm3: true from the label maps, and made as the factual's true volume
    plus the change that the segmenter sees, so that the segmenter's own bias cancels."""
    table = recognise_table(before.data)
    seen = {"copy": m.real.seen.volumes}.get(method, m.seen.volumes)
    if method == "oracle":
        image = m.real.prepared.again(true.data, tools.bundle.preprocess.intensity_cap)
        seen = see(tools, image, m.real.prepared).volumes
    out = {}
    for group in REGIONS:
        old, new = (
            float(group_mask(v.data, table, group).sum()) * v.grid.voxel_mm3
            for v in (before, after)
        )
        if old and new:
            out[group] = (old, old + seen[group] - m.real.seen.volumes[group], new)
    return out


def _overlap(tools: Instruments, made: Volume, after: Volume) -> dict[str, float]:
    found = segment(tools.segmenter, made, tools.device).labels
    table, spacing = recognise_table(after.data), min(made.grid.spacing)
    out = {}
    for group in TISSUES:
        a, b = group_mask(found, "freesurfer", group), group_mask(after.data, table, group)
        out[f"{group} dice"] = dice(a, b)
        out[f"{group} surface_distance"] = surface_distance_mm(a, b, spacing)
    return out
