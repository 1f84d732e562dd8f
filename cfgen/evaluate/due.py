"""Volumes that edits were due to reach, by their sidecars, beside those that they reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cfgen.data.volume import strip_suffix
from cfgen.edit.sidecar import RegionRecord, read_sidecar, region_volumes
from cfgen.errors import ImageError
from cfgen.evaluate.scans import Made, people
from cfgen.metrics.result import Result
from cfgen.metrics.statistics import NAN, mean_over_people, ratio_over_people

# Whose volumes: those that the sidecar says were measured anew on the written image.
RECORD = "sidecar"
RATIO, SLOPE, SIGN = "achieved_over_target", "change_over_due", "change_of_due_sign"


@dataclass(frozen=True)
class _Due:
    """Volumes of one region and edit, mm3; `achieved` is NaN where it was not measured."""

    made: Made
    factual: float
    target: float
    achieved: float


def due_results(method: str, edits: Sequence[Made]) -> list[Result]:
    """Of every region that has targets: achieved over target volume by the sidecars' own figures,
    and the change that the segmenter sees over the change that was due, in logarithms, as a slope
    through the origin and as a share of right signs. Nothing where no sidecar has a target."""
    by_region: dict[str, list[_Due]] = {}
    for m in edits:
        records = _records(m)
        factual, achieved = (region_volumes(records, w) for w in ("factual", "achieved"))
        if m.seen is m.real.seen:
            # A copy has its scan's volumes, whatever the edit of the same row achieved.
            achieved = factual
        for (region, side), target in region_volumes(records, "target").items():
            key = (region, side)
            if side == "both" and target > 0 and factual.get(key, 0.0) > 0:
                due = _Due(m, factual[key], target, achieved.get(key, NAN))
                by_region.setdefault(region, []).append(due)
    return [r for region, due in by_region.items() for r in _of_region(method, region, due)]


def _records(m: Made) -> list[RegionRecord]:
    """None for an image that another tool made."""
    if not m.row.image.with_name(strip_suffix(m.row.image) + ".json").exists():
        return []
    try:
        return read_sidecar(m.row.image).regions
    except ImageError:
        return []


def _of_region(method: str, region: str, due: Sequence[_Due]) -> list[Result]:
    made = [d.made for d in due]
    whose = [m.person for m in made]
    factual, target, achieved = np.array([(d.factual, d.target, d.achieved) for d in due]).T
    base = Result(n=len(people(made)), method=method, region=region)
    results = []
    if np.isfinite(achieved).any():
        line = replace(base, by=RECORD, extractor="measured anew on the written image")
        ratio = mean_over_people(achieved / target, whose)
        results.append(line.named(RATIO, ratio, "to 1"))
    if all(region in m.seen.volumes for m in made):
        line = replace(base, by="segmenter", extractor="segmenter")
        asked = np.log(target / factual)
        change = np.array([m.log_change(region) for m in made])
        slope = ratio_over_people(change * asked, asked**2, whose)
        results.append(line.named(SLOPE, slope, "to 1"))
        right = np.where(asked != 0, 100.0 * (np.sign(change) == np.sign(asked)), NAN)
        signs = mean_over_people(right, whose)
        if np.isfinite(signs.value):
            results.append(line.named(SIGN, signs, "up", "%"))
    return results
