"""Errors against true counterfactuals, which a simulated cohort brings with it (G1 to G6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cfgen.batch.workers import ahead
from cfgen.data.acquisition_columns import is_acquisition
from cfgen.data.regions import group_mask, recognise_table
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume
from cfgen.errors import ManifestError
from cfgen.evaluate.pairs import Truths, check_grid
from cfgen.evaluate.scans import Instruments, Made, volumes_of
from cfgen.measure.segmenter import segment
from cfgen.metrics.result import Better, Result
from cfgen.metrics.statistics import mean_over_people
from cfgen.metrics.truth import dice, image_truth, surface_distance_mm, volume_truth
from cfgen.progress import each

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
DICE, SURFACE_DISTANCE = "truth_dice", "truth_surface_distance"
OVERLAPS: dict[str, tuple[Better, str]] = {DICE: ("up", ""), SURFACE_DISTANCE: ("down", "mm")}


def truth_results(
    tools: Instruments,
    methods: Mapping[str, Sequence[Made]],
    truths: Truths,
    labels: bool,
    workers: int,
) -> list[Result]:
    """G1 to G3 and G6, and with `labels` G4, for each intervention and method, on the scanner's
    own grid. `copy` is the factual scan, `oracle` the truth itself. `workers` are processes.

    Raises ManifestError when no counterfactual has a truth.
    """
    scans = _edits_by_scan(methods, truths)
    if not scans:
        raise ManifestError(
            "--truth",
            "no counterfactual has a truth: none has the scan, or the subject and session, and the "
            "intervention of a row",
            "the interventions of 'cfgen simulate --truth'",
        )
    measurements: dict[tuple[str, str], list[_Measurement]] = {}
    done = ahead(partial(_scan, tools, labels), scans, workers)
    for _, result in each(done, len(scans), "scans compared with the truth"):
        for key, measurement in result().items():
            measurements.setdefault(key, []).append(measurement)
    asked = dict.fromkeys(edit.label for scan in scans for edit in scan)
    return [
        result
        for method in (COPY, ORACLE, *methods)
        for label in asked
        if (method, label) in measurements
        for result in _results(method, label, measurements[method, label])
    ]


def _edits_by_scan(methods: Mapping[str, Sequence[Made]], truths: Truths) -> list[list[_Edit]]:
    """For each factual scan, every visit of a person being one, its edits that have a truth."""
    by_scan: dict[Path, dict[str, dict[str, Made]]] = {}
    for method, counterfactuals in methods.items():
        for m in counterfactuals:
            if truths.of(m) is not None:
                by_method = by_scan.setdefault(m.real.row.image, {}).setdefault(m.label, {})
                by_method.setdefault(COPY, m)
                by_method.setdefault(ORACLE, m)
                by_method[method] = m
    scans = []
    for edits in by_scan.values():
        scan_edits = []
        for label, by_method in edits.items():
            truth = truths.of(by_method[COPY])
            assert truth is not None
            scan_edits.append(_Edit(label, truth, by_method))
        scans.append(scan_edits)
    return scans


@dataclass(frozen=True)
class _Edit:
    """What was made of one scan by each method, and the row of the truth."""

    label: str
    truth: Row
    by_method: dict[str, Made]


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
class _Measurement:
    """Errors of one image; (factual, made, true) mm3 by region; overlaps by region and metric."""

    person: str
    changed: tuple[str, ...]
    image: dict[str, float]
    volumes: dict[str, tuple[float, float, float]]
    overlaps: dict[tuple[str, str], float]


def _scan(
    tools: Instruments, labels: bool, edits: Sequence[_Edit]
) -> dict[tuple[str, str], _Measurement]:
    """By method and label; every one of them needs the same factual scan."""
    factual = _Scan.read(next(iter(edits[0].by_method.values())).real.row)
    copied = factual.segmented(tools) if labels and factual.labels else None
    measurements = {}
    for edit in edits:
        true = _Scan.read(edit.truth)
        for method, counterfactual in edit.by_method.items():
            check_grid(true.volume, counterfactual.real)
            measurements[method, edit.label] = _measured(
                tools, method, counterfactual, factual, true, copied
            )
    return measurements


def _measured(
    tools: Instruments,
    method: str,
    counterfactual: Made,
    factual: _Scan,
    true: _Scan,
    copied: np.ndarray | None,
) -> _Measurement:
    """`copied` are the labels that the segmenter finds in the factual scan; None: no overlaps."""
    before = counterfactual.real.seen.volumes
    if method == COPY:
        scan, volumes = factual, before
    elif method == ORACLE:
        scan, volumes = true, _seen_volumes(tools, true, counterfactual)
    else:
        scan, volumes = _Scan.read(counterfactual.row), counterfactual.seen.volumes
    overlaps = {}
    if copied is not None:
        overlaps = _overlap(copied if method == COPY else scan.segmented(tools), true)
    return _Measurement(
        counterfactual.person,
        counterfactual.changed,
        _errors(factual, scan, true),
        _volumes(factual, true, before, volumes),
        overlaps,
    )


def _errors(factual: _Scan, edited: _Scan, true: _Scan) -> dict[str, float]:
    mask, white = factual.volume.data > 0, factual.volume.data
    if factual.labels is not None and true.labels is not None:
        table = recognise_table(factual.labels.data)
        mask = (factual.labels.data > 0) | (true.labels.data > 0)
        white = white[group_mask(factual.labels.data, table, WHITE)]
    sigma = NOISE * float(np.median(white[white > 0]))
    errors = image_truth(factual.volume.data, edited.volume.data, true.volume.data, mask, sigma)
    return {name: getattr(errors, name) for name in BETTER}


def _seen_volumes(tools: Instruments, true: _Scan, m: Made) -> dict[str, float]:
    prepared = m.real.prepared()
    image = prepared.again(true.volume.data, tools.bundle.preprocess.intensity_cap)
    return volumes_of(tools, image, prepared)


def _results(method: str, label: str, measurements: Sequence[_Measurement]) -> list[Result]:
    base = Result(method=method, group=label, reference="simulator's truth")
    results = []
    for name, better in BETTER.items():
        line = replace(base, n=_people(measurements))
        values = np.array([f.image[name] for f in measurements])
        results.append(
            line.named(f"truth_{name}", mean_over_people(values, _whose(measurements)), better)
        )
    base = replace(base, by="segmenter", extractor="segmenter")
    still = all(map(is_acquisition, measurements[0].changed))
    for region in REGIONS:
        known = [f for f in measurements if region in f.volumes]
        if not known:
            continue
        before, edited, true = np.array([f.volumes[region] for f in known]).T
        truth = volume_truth(before, edited, true, _whose(known))
        line = replace(base, n=_people(known), region=region)
        # Where the true change is nothing, a slope on it says nothing.
        if not still:
            results.append(line.named("truth_volume_slope", truth.slope, "to 1"))
            results.append(line.named("truth_volume_nmse", truth.nmse, "down"))
        results.append(line.named("truth_volume_error", truth.error_percent, "to 0", "%"))
    for key in dict.fromkeys(key for f in measurements for key in f.overlaps):
        region, metric = key
        known = [f for f in measurements if key in f.overlaps]
        line = replace(base, n=_people(known), region=region)
        overlap = mean_over_people(np.array([f.overlaps[key] for f in known]), _whose(known))
        results.append(line.named(metric, overlap, *OVERLAPS[metric]))
    return results


def _whose(measurements: Sequence[_Measurement]) -> list[str]:
    return [f.person for f in measurements]


def _people(measurements: Sequence[_Measurement]) -> int:
    return len(set(_whose(measurements)))


def _volumes(
    factual: _Scan, true: _Scan, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, tuple[float, float, float]]:
    """(factual, made, true) mm3: true from the label maps, and made as the factual's true volume
    plus the change that the segmenter sees, so that the segmenter's own bias cancels."""
    if factual.labels is None or true.labels is None:
        return {}
    table = recognise_table(factual.labels.data)
    volumes = {}
    for group in REGIONS:
        old, new = (
            float(group_mask(v.data, table, group).sum()) * v.grid.voxel_mm3
            for v in (factual.labels, true.labels)
        )
        if old and new:
            volumes[group] = (old, old + after[group] - before[group], new)
    return volumes


def _overlap(labels: np.ndarray, true: _Scan) -> dict[tuple[str, str], float]:
    """Dice and distance of surfaces of the labels that the segmenter finds and the true ones."""
    if true.labels is None:
        return {}
    table = recognise_table(true.labels.data)
    spacing = min(true.volume.grid.spacing)
    overlaps = {}
    for group in TISSUES:
        a, b = group_mask(labels, "freesurfer", group), group_mask(true.labels.data, table, group)
        overlaps[group, DICE] = dice(a, b)
        overlaps[group, SURFACE_DISTANCE] = surface_distance_mm(a, b, spacing)
    return overlaps
