"""Errors against true counterfactuals, which a simulated cohort brings with it (G1 to G6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cfgen.batch.workers import ahead
from cfgen.data.acquisition import ACQUISITION
from cfgen.data.regions import group_mask, recognise_table
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume
from cfgen.errors import ManifestError
from cfgen.evaluate.scans import Instruments, Made, check_grid, say, volumes_of
from cfgen.measure.segmenter import segment
from cfgen.metrics.result import Better, Result
from cfgen.metrics.statistics import interval
from cfgen.metrics.truth import dice, image_truth, surface_distance_mm, volume_truth

# What is noise and what is change, in parts of the brightness of white matter.
NOISE = 0.01
WHITE = "cerebral_wm"
# Groups of the label tables that are structures of the segmenter, too.
REGIONS = ("lateral_ventricle", "hippocampus", "cerebral_wm", "cortex", "brainstem")
TISSUES = ("lateral_ventricle", "cerebral_wm", "cortex")
# Baselines that are always measured: the scan as it is, and the truth itself.
COPY, ORACLE = "copy", "oracle"
BETTER: dict[str, Better] = {
    "skill": "up",
    "mae": "down",
    "psnr_db": "up",
    "correlation": "to 1",
    "slope": "to 1",
    "leakage": "down",
}


def read_truths(rows: Sequence[Row], name: str) -> dict[tuple[str, str], Row]:
    """(subject, intervention) -> the row of its image and label map.

    Raises ManifestError where a row has no intervention.
    """
    bare = [row.source for row in rows if "intervention" not in row.extra]
    if bare:
        raise ManifestError(
            name,
            f"no column intervention ({', '.join(bare[:3])})",
            "the truth.csv of 'cfgen simulate --truth'",
        )
    return {(r.subject, r.extra["intervention"]): r for r in rows}


def truth_results(
    tools: Instruments,
    methods: Mapping[str, Sequence[Made]],
    truths: Mapping[tuple[str, str], Row],
    labels: bool,
    workers: int,
) -> list[Result]:
    """G1 to G3 and G6, and with `labels` G4, for each intervention and method, on the scanner's
    own grid. `copy` is the factual scan, `oracle` the truth itself. `workers` are processes.

    Raises ManifestError when no counterfactual has a truth.
    """
    known = {
        name: {(m.row.subject, m.label): m for m in made if (m.row.subject, m.label) in truths}
        for name, made in methods.items()
    }
    asked = {key: m for made in known.values() for key, m in made.items()}
    if not asked:
        raise ManifestError(
            "--truth",
            "no counterfactual has a truth: none has the subject and intervention of a row",
            "the interventions of 'cfgen simulate --truth'",
        )
    known = {COPY: asked, ORACLE: asked} | known
    people: dict[str, list[_Edit]] = {}
    for key in asked:
        made = {method: of[key] for method, of in known.items() if key in of}
        people.setdefault(key[0], []).append(_Edit(key[1], truths[key], made))
    found: dict[tuple[str, str], list[_Found]] = {}
    done = ahead(partial(_person, tools, labels), list(people.values()), workers)
    for number, (_, result) in enumerate(done, 1):
        for key, one in result().items():
            found.setdefault(key, []).append(one)
        say(number, len(people), "people compared with the truth")
    return [
        result
        for method in known
        for label in dict.fromkeys(label for _, label in asked)
        if (method, label) in found
        for result in _results(method, label, found[method, label])
    ]


@dataclass(frozen=True)
class _Edit:
    """What was made of one person by each method, and the row of the truth."""

    label: str
    truth: Row
    made: dict[str, Made]


@dataclass(frozen=True)
class _Scan:
    """An image and its true label map, both (I, J, K) on the scanner's grid."""

    volume: Volume
    labels: Volume | None

    @classmethod
    def read(cls, row: Row) -> _Scan:
        return cls(read_volume(row.image), read_volume(row.labels) if row.labels else None)

    def segmented(self, tools: Instruments) -> np.ndarray:
        return segment(tools.segmenter, self.volume, tools.device).labels


@dataclass(frozen=True)
class _Found:
    """Errors of one image; (factual, made, true) mm3 by region; overlaps by 'region measure'."""

    changed: tuple[str, ...]
    image: dict[str, float]
    volumes: dict[str, tuple[float, float, float]]
    overlaps: dict[str, float]


def _person(
    tools: Instruments, labels: bool, edits: Sequence[_Edit]
) -> dict[tuple[str, str], _Found]:
    """By method and label; every one of them needs the same factual scan."""
    factual = _Scan.read(next(iter(edits[0].made.values())).real.row)
    copied = factual.segmented(tools) if labels and factual.labels else None
    out = {}
    for edit in edits:
        true = _Scan.read(edit.truth)
        for method, made in edit.made.items():
            check_grid(true.volume, made.real)
            out[method, edit.label] = _measured(tools, method, made, factual, true, copied)
    return out


def _measured(
    tools: Instruments,
    method: str,
    made: Made,
    factual: _Scan,
    true: _Scan,
    copied: np.ndarray | None,
) -> _Found:
    """`copied` are the labels that the segmenter finds in the factual scan; None: no overlaps."""
    before = made.real.seen.volumes
    if method == COPY:
        scan, volumes = factual, before
    elif method == ORACLE:
        scan, volumes = true, _seen_volumes(tools, true, made)
    else:
        scan, volumes = _Scan.read(made.row), made.seen.volumes
    overlaps = {}
    if copied is not None:
        overlaps = _overlap(copied if method == COPY else scan.segmented(tools), true)
    return _Found(
        made.changed,
        _errors(factual, scan, true),
        _volumes(factual, true, before, volumes),
        overlaps,
    )


def _errors(factual: _Scan, made: _Scan, true: _Scan) -> dict[str, float]:
    mask, white = factual.volume.data > 0, factual.volume.data
    if factual.labels is not None and true.labels is not None:
        table = recognise_table(factual.labels.data)
        mask = (factual.labels.data > 0) | (true.labels.data > 0)
        white = white[group_mask(factual.labels.data, table, WHITE)]
    sigma = NOISE * float(np.median(white[white > 0]))
    found = image_truth(factual.volume.data, made.volume.data, true.volume.data, mask, sigma)
    return {name: getattr(found, name) for name in BETTER}


def _seen_volumes(tools: Instruments, true: _Scan, m: Made) -> dict[str, float]:
    prepared = m.real.prepared()
    image = prepared.again(true.volume.data, tools.bundle.preprocess.intensity_cap)
    return volumes_of(tools, image, prepared)


def _results(method: str, label: str, found: Sequence[_Found]) -> list[Result]:
    base = Result(n=len(found), method=method, group=label, reference="simulator's truth")
    out = []
    for name, better in BETTER.items():
        values = np.array([f.image[name] for f in found])
        out.append(base.named(f"truth_{name}", interval(values), better))
    still = set(found[0].changed) <= ACQUISITION
    for region in REGIONS:
        triples = [f.volumes[region] for f in found if region in f.volumes]
        if not triples:
            continue
        of = volume_truth(*np.array(triples).T)
        own = replace(base, n=len(triples), group=f"{label} {region}", extractor="segmenter")
        # Where the true change is nothing, a slope on it says nothing.
        if not still:
            out.append(own.named("truth_volume_slope", of.slope, "to 1"))
            out.append(own.named("truth_volume_nmse", of.nmse, "down"))
        out.append(own.named("truth_volume_error", of.error_percent, "to 0", "%"))
    for name in dict.fromkeys(name for f in found for name in f.overlaps):
        region, _, what = name.partition(" ")
        values = np.array([f.overlaps[name] for f in found if name in f.overlaps])
        own = replace(base, n=len(values), group=f"{label} {region}", extractor="segmenter")
        dices = what == "dice"
        out.append(
            own.named(
                f"truth_{what}",
                interval(values),
                "up" if dices else "down",
                "" if dices else "mm",
            )
        )
    return out


def _volumes(
    factual: _Scan, true: _Scan, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, tuple[float, float, float]]:
    """(factual, made, true) mm3: true from the label maps, and made as the factual's true volume
    plus the change that the segmenter sees, so that the segmenter's own bias cancels."""
    if factual.labels is None or true.labels is None:
        return {}
    table = recognise_table(factual.labels.data)
    out = {}
    for group in REGIONS:
        old, new = (
            float(group_mask(v.data, table, group).sum()) * v.grid.voxel_mm3
            for v in (factual.labels, true.labels)
        )
        if old and new:
            out[group] = (old, old + after[group] - before[group], new)
    return out


def _overlap(found: np.ndarray, true: _Scan) -> dict[str, float]:
    """Dice and distance of surfaces of the labels that the segmenter finds and the true ones."""
    if true.labels is None:
        return {}
    table = recognise_table(true.labels.data)
    spacing = min(true.volume.grid.spacing)
    out = {}
    for group in TISSUES:
        a, b = group_mask(found, "freesurfer", group), group_mask(true.labels.data, table, group)
        out[f"{group} dice"] = dice(a, b)
        out[f"{group} surface_distance"] = surface_distance_mm(a, b, spacing)
    return out
