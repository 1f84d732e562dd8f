"""Volumes of regions: what an edit changes, beside what real people differ by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfgen.data.acquisition_columns import is_acquisition
from cfgen.evaluate.edits import mean_of_edits
from cfgen.evaluate.scans import Made, Real, matrix, people
from cfgen.metrics import axioms
from cfgen.metrics.result import REAL, Result
from cfgen.metrics.statistics import by_subject, over_people


def region_response(method: str, edits: Sequence[Made], regions: Sequence[str]) -> list[Result]:
    """The change of each region's volume in ten years, of edits of age alone: the slope of log
    volume on the years asked for, through the origin, as a percentage.

    Everybody weighs the same: a person's edits share one weight, so that who was edited by more
    steps does not count more.
    """
    aged = [m for m in edits if m.changed == ("age",) and m.asked("age")]
    if len(aged) < 3:
        return []
    years, whose = np.array([m.asked("age") for m in aged]), [m.person for m in aged]
    results = []
    for region in regions:
        logs = np.array([m.log_change(region) for m in aged])
        change = over_people(
            lambda xy, xx: percent_a_decade(xy.mean(-1) / xx.mean(-1)),
            whose,
            years * logs,
            years**2,
        )
        base = Result(
            n=len(people(aged)), method=method, region=region, by="segmenter", extractor="segmenter"
        )
        results.append(base.named("change_per_decade", change, "", "%"))
    return results


def cohort_response(real: Sequence[Real], regions: Sequence[str]) -> list[Result]:
    """What the real people of different age differ by in ten years, with sex and head size held:
    what `region_response` is to be read beside. A person's visits are averaged."""
    known = [r for r in real if "age" in r.row.values]
    whose = [r.person for r in known]
    n = len(set(whose))
    rows = np.array(
        [
            (
                float(r.row.values["age"]),
                np.log(r.seen.volumes["tiv"]),
                r.row.values.get("sex") == "M",
            )
            for r in known
        ]
    )
    if n < 3 or np.ptp(by_subject(rows, whose)[0][:, 0]) == 0:
        return []
    volumes = np.log(np.maximum(matrix([r.seen.volumes for r in known], regions), 1.0))
    results = []
    for k, region in enumerate(regions):
        difference = over_people(_slope_of_first, whose, volumes[:, k], *rows.T)
        base = Result(n=n, method=REAL, region=region, by="segmenter", extractor="segmenter")
        note = "people of different age, sex and head size held"
        results.append(base.named("change_per_decade", difference, "", "%", note))
    return results


def _slope_of_first(y: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """% a decade of log volumes y (..., n) on the first of `columns` (..., n), the others held, by
    least squares; a column that is the same for all has no part."""
    design = np.stack([c - c.mean(-1, keepdims=True) for c in columns], -1)
    scale = np.sqrt((design**2).sum(-2, keepdims=True))
    design = design / np.where(scale > 0, scale, 1.0)
    normal = np.linalg.pinv(np.swapaxes(design, -1, -2) @ design)
    weights = normal @ (np.swapaxes(design, -1, -2) @ y[..., None])
    return percent_a_decade(weights[..., 0, 0] / scale[..., 0, 0])


def percent_a_decade(slope: np.ndarray) -> np.ndarray:
    """Of d log(volume) / d year (...): what ten years make of a volume, in % of it."""
    return np.asarray(100 * np.expm1(10 * slope))


def untouched_regions(method: str, edits: Sequence[Made], regions: Sequence[str]) -> list[Result]:
    """Volume change where there should be none: the regions of edits of the acquisition."""
    imaged = [m for m in edits if m.changed and all(map(is_acquisition, m.changed))]
    if not imaged:
        return []
    before, after = (
        matrix(side, regions)
        for side in ([m.real.seen.volumes for m in imaged], [m.seen.volumes for m in imaged])
    )
    change = mean_of_edits(np.nanmean(axioms.percent_change(before, after), 1), imaged)
    base = Result(n=len(people(imaged)), method=method, by="segmenter", extractor="segmenter")
    return [base.named("untouched_region_change", change, "down", "%")]
