"""Two rates of ageing, named: how people of different age differ, and how one person changes.

A model of volumes that was fitted on one scan a person knows the first alone ('cohort'): people of
75 were born earlier, lived otherwise, and were well enough to come. The second ('within') is seen
in people who were scanned again. In logarithms of the volume

    within change from age a to a' = rho_r x cohort change from a to a',

so that the course over life is the cohort's and its size the person's. The ratios rho_r were fitted
on OASIS-2 (69 people of 60 to 97 years without dementia, 2 to 5 visits) against NiChart's medians
at the same ages, and shrunk towards 1 by their errors (`benchmarks/within_rates.py` has the model).
Where nothing was measured the ratio is 1. FreeSurfer's volumes have no lobes: each has the ratio of
the whole cortex. Below 60 years the ratios are an assumption.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from cfgen.config import Rates

FILE = resources.files("cfgen.causal").joinpath("tables", "within_rates.csv")
# What a ratio is shrunk to, and is where there is no measurement.
TARGET = 1.0
# What sidecars, pages and tables say.
MEANING: dict[Rates, str] = {
    "cohort": "cohort: how people of different age differ, not how one person changes",
    "within": "within: how one person changes, by repeated scans of people of 60 to 97 years "
    "(OASIS-2), as multiples of how people of different age differ",
}


@dataclass(frozen=True)
class Ratio:
    """Change in one person to difference between people, in logarithms; `se` is None and `people`
    0 where nothing was measured."""

    value: float
    se: float | None
    people: int


UNMEASURED = Ratio(TARGET, None, 0)


@dataclass(frozen=True)
class Yearly:
    """Change in one person, percent a year, of so many `people` of 60 to 97 years; `measured_on` is
    the structure that stands for it."""

    percent: float
    se: float
    measured_on: str
    people: int


@cache
def _rows() -> dict[str, dict[str, str]]:
    rows = csv.DictReader(FILE.read_text(encoding="utf-8").splitlines())
    return {row["structure"]: row for row in rows}


@cache
def _ratios() -> dict[str, Ratio]:
    return {
        name: Ratio(float(row["shrunk"]), float(row["shrunk_se"]), int(row["people"]))
        for name, row in _rows().items()
        # Head size, brain and grey matter as wholes were measured, but no law moves them so.
        if row["shrunk"]
    }


def yearly(region: str) -> Yearly | None:
    """What was measured in OASIS-2, not shrunk, also of 'brain', 'grey' and 'tiv'; None where
    nothing was."""
    row = _rows().get(region)
    if row is None:
        return None
    percent, se = float(row["within_percent_a_year"]), float(row["within_se"])
    return Yearly(percent, se, row["measured_on"], int(row["people"]))


def within(region: str) -> Ratio:
    """rho of a region, shrunk; 1 where nothing was measured (fluid around the brain, head size)."""
    return _ratios().get(region, UNMEASURED)


def change(
    scm_log_change: Mapping[str, np.ndarray],
    rates: Rates,
    ratios: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """ln V' / V by region (any shape) of a change of age alone, at the rates that were asked for.

    `ratios` stand in for those of `within`: a draw, to carry their errors into an interval. What is
    due to other causes than age has one rate: don't send it through here.
    """
    if rates == "cohort":
        return dict(scm_log_change)
    known = ratios or {}
    return {
        region: np.asarray(log_change) * known.get(region, within(region).value)
        for region, log_change in scm_log_change.items()
    }


def draw(rng: np.random.Generator) -> dict[str, float]:
    """Ratios by region, each from its normal posterior, cut at 0: lobes, which share one
    measurement, share one draw."""
    drawn: dict[Ratio, float] = {}
    values = {}
    for region, ratio in _ratios().items():
        if ratio not in drawn:
            drawn[ratio] = max(0.0, ratio.value + (ratio.se or 0.0) * rng.standard_normal())
        values[region] = drawn[ratio]
    return values
