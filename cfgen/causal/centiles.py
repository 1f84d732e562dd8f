"""Where a volume stands among healthy people of the same age: centiles, and their course.

The norms are NiChart's centiles of DLMUSE volumes (cognitively normal, 40 to 92 years, harmonised
over many scanners), reduced to cfgen's structures by `benchmarks/normative_table.py`. With the
volume inside the skull, the norm is the one at equal head size, which is what neuroradiology
reports against: a big head has big ventricles. NiChart has it for both sexes together, between whom
little is left once the head is as big. Without it the norm is of the same sex alone. A scan's own
site and segmenter are in its centile: the step from one centile to another is surer than either,
above all in cortex and white matter, where tools and scanners differ by a standard deviation.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from scipy.special import ndtr, ndtri

FILE = resources.files("cfgen.causal").joinpath("tables", "nichart_centiles.csv")
SOURCE = (
    "NiChart centiles of DLMUSE volumes, cognitively normal (CBICA, University of Pennsylvania)"
)
# Years at which the shipped table has rows.
AGES = np.array([*range(40, 91, 5), 92], float)
CENTILES = (5, 25, 50, 75, 95)
_Z = ndtri(np.array(CENTILES) / 100)
# Head size of NiChart's ICV-normalised table, mm3. Not said there: it is what makes the median at
# one head size equal to the plain median over the median head (median of 249 regions and 54 years).
SIZE_TO_MM3 = 1.430e6
# Centiles beyond are not told apart by five points.
LOWEST, HIGHEST = 1.0, 99.0
# Years around an age over which a slope is taken.
_SPAN = 5.0
# As one says it, where it is not the name.
_PLURALS = {
    "lateral_ventricle": "lateral ventricles",
    "inferior_lateral_ventricle": "inferior horns",
    "hippocampus": "hippocampi",
}


@dataclass(frozen=True)
class Standing:
    """A volume among its peers; `centile` is None where there is no norm for them."""

    age: float
    volume_mm3: float
    centile: float | None


@dataclass(frozen=True)
class CentileRecord:
    """Of one structure, before and after; `norm` says among whom."""

    structure: str
    factual: Standing
    counterfactual: Standing
    norm: str
    text: str


@cache
def _table() -> dict[tuple[str, str], np.ndarray]:
    """(structure, 'F', 'M', 'all' or 'size') -> mm3 (ages, centiles)."""
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for row in csv.DictReader(FILE.read_text(encoding="utf-8").splitlines()):
        values = [float(row[f"centile_{p}"]) for p in CENTILES]
        rows.setdefault((row["structure"], row["kind"]), []).append(values)
    return {name: np.array(values) for name, values in rows.items()}


def structures() -> list[str]:
    """The structures that have norms; fluid around the brain and head size have none."""
    return list(dict.fromkeys(structure for structure, _ in _table()))


def _at(structure: str, kind: str, age: float) -> np.ndarray | None:
    """mm3 of the five centiles; None outside the table."""
    rows = _table().get((structure, kind))
    if rows is None or not AGES[0] <= age <= AGES[-1]:
        return None
    return np.array([np.interp(age, AGES, column) for column in rows.T])


def centile(
    region: str, sex: str | None, age: float, volume_mm3: float, tiv_mm3: float | None = None
) -> float | None:
    """1 to 99: the share of healthy peers with a smaller volume, in percent.

    `sex` is M, F, or None where it is unknown (then both together). With `tiv_mm3` peers have the
    same head size. Between the five centiles, and past them, the normal quantile is linear in the
    volume, or in its logarithm where the five are more even so (ventricles). None for a region that
    has no norm, and outside 40 to 92 years.
    """
    kind = "size" if tiv_mm3 is not None else sex if sex in ("F", "M") else "all"
    knots = _at(region, kind, age)
    if knots is None or not np.isfinite(volume_mm3):
        return None
    x = volume_mm3 if tiv_mm3 is None else volume_mm3 * SIZE_TO_MM3 / tiv_mm3
    # NiChart's smallest centiles of inferior horns and third ventricle come near 0, or under it.
    if knots[0] > 0 and abs(_skew(np.log(knots))) < abs(_skew(knots)):
        if x <= 0:
            return LOWEST
        knots, x = np.log(knots), float(np.log(x))
    i = int(np.clip(np.searchsorted(knots, x) - 1, 0, len(knots) - 2))
    slope = (_Z[i + 1] - _Z[i]) / (knots[i + 1] - knots[i])
    z = _Z[i] + slope * (x - knots[i])
    return float(np.clip(100 * ndtr(z), LOWEST, HIGHEST))


def _skew(q: np.ndarray) -> float:
    """0 for evenly spread quantiles, towards 1 for a long upper tail."""
    return float((q[4] - 2 * q[2] + q[0]) / (q[4] - q[0]))


def median_slope(region: str, age: float) -> float | None:
    """d ln V / d decade of the median at equal head size, both sexes, over five years to each side
    of `age` (fewer at the ends of the table); None where there is no norm."""
    if _at(region, "size", age) is None:
        return None
    low, high = max(age - _SPAN, AGES[0]), min(age + _SPAN, AGES[-1])
    ends = log_median(region, np.array([low, high]))
    return float(10 * (ends[1] - ends[0]) / (high - low))


def log_median(region: str, age: np.ndarray) -> np.ndarray:
    """ln V of the median at equal head size at `age` (n,), held at the ends of the table.

    Raises KeyError for a region without a norm.
    """
    return np.interp(age, AGES, np.log(_table()[region, "size"][:, 2]))


def compare(
    region: str,
    before: Mapping[str, float | str],
    after: Mapping[str, float | str],
) -> CentileRecord:
    """The centiles of a region before and after, and the line that says so.

    Both hold the region's volume (mm3) under its name and `age` (years); `sex` and `tiv` (mm3)
    where they are known. Peers have the age, sex and head size that are given beside each volume.
    """
    sized = "tiv" in before and "tiv" in after
    standings = []
    for values in (before, after):
        age, volume = float(values["age"]), float(values[region])
        sex = str(values["sex"]) if "sex" in values else None
        tiv = float(values["tiv"]) if sized else None
        standings.append(Standing(age, volume, centile(region, sex, age, volume, tiv)))
    factual, counterfactual = standings
    if sized:
        peers = "healthy people of the same age and head size"
    elif "sex" in before and "sex" in after:
        peers = "healthy people of the same age and sex"
    else:
        peers = "healthy people of the same age"
    text = f"{spoken(region)} at {_text(factual)}; counterfactual at {_text(counterfactual)}"
    return CentileRecord(region, factual, counterfactual, peers, text)


def spoken(region: str) -> str:
    """'lateral ventricles', 'frontal cortex'."""
    if region.startswith("cortex_"):
        return f"{region.removeprefix('cortex_')} cortex"
    return _PLURALS.get(region, region.replace("_", " "))


def _text(standing: Standing) -> str:
    """'centile 62 for 67 y'."""
    age = f"{standing.age:.0f} y"
    if standing.centile is None:
        span = f"{AGES[0]:.0f} to {AGES[-1]:.0f}"
        outside = not AGES[0] <= standing.age <= AGES[-1]
        return f"no centile for {age} (norms are for {span} y)" if outside else "no centile"
    if standing.centile in (LOWEST, HIGHEST):
        beyond = "centile 1 or below" if standing.centile == LOWEST else "centile 99 or above"
        return f"{beyond} for {age}"
    return f"centile {standing.centile:.0f} for {age}"
