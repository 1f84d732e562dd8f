"""What edits of age change in a year, beside what a year changed in people scanned again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfgen.causal.rates import yearly
from cfgen.evaluate.scans import Made, log_ratio, people
from cfgen.metrics.result import REAL, Result
from cfgen.metrics.statistics import NORMAL, Estimate, ratio_over_people

CHANGE_PER_YEAR = "change_per_year"
# People of OASIS-2 without dementia: their ages, by whom their volumes are, who they are.
AGES = (60.0, 97.0)
THEIRS, STUDY = "freesurfer", "OASIS-2"
# What FreeSurfer adds up to a whole, and no map has by itself.
PARTS = {
    "grey": (
        *("cortex", "cerebellum_gm", "hippocampus", "amygdala"),
        *("thalamus", "caudate", "putamen", "pallidum", "accumbens"),
    )
}
# Beside the structures: tissue, grey matter, and the head, which stays as large as it is.
WHOLES = ("cortex", "grey", "brain", "tiv")


def within_people(method: str, edits: Sequence[Made], regions: Sequence[str]) -> list[Result]:
    """Slope of log volume on the years asked for, through the origin, in % a year, by the
    segmenter; and the slope within people of each region that has one.

    Only edits of age alone whose middle is an age of those people: elsewhere a year does other
    things. Nothing below three of them.
    """
    low, high = AGES
    aged = [m for m in edits if m.changed == ("age",) and m.asked("age")]
    aged = [m for m in aged if low <= float(m.target["age"]) - m.asked("age") / 2 <= high]
    if len(people(aged)) < 3:
        return []
    years, whose = np.array([m.asked("age") for m in aged]), [m.person for m in aged]
    results = []
    for region in regions:
        known = yearly(region)
        # A part that the whole stands for was not measured.
        if known is None or known.measured_on != region:
            continue
        logs = np.array([_log_change(m, region) for m in aged])
        slope = ratio_over_people(100 * years * logs, years**2, whose)
        note = f"edits whose middle is {low:g} to {high:g} years"
        made = Result(
            n=len(people(aged)), method=method, region=region, by="segmenter", extractor="segmenter"
        )
        results.append(made.named(CHANGE_PER_YEAR, slope, "", "%", note))
        wide = 1.96 * known.se
        theirs = Estimate(known.percent, known.percent - wide, known.percent + wide, NORMAL)
        real = Result(
            n=known.people,
            method=REAL,
            region=region,
            by=THEIRS,
            extractor=f"FreeSurfer of {STUDY}",
            reference=STUDY,
        )
        note = f"within people of {low:g} to {high:g} years who were scanned again"
        results.append(real.named(CHANGE_PER_YEAR, theirs, "", "%", note))
    return results


def _log_change(m: Made, region: str) -> float:
    parts = PARTS.get(region, (region,))
    after, before = (
        {region: sum(seen.volumes[p] for p in parts)} for seen in (m.seen, m.real.seen)
    )
    return log_ratio(after, before, region)
