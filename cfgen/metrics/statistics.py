"""What a figure is over: people. Value and interval of rows of which a person may have many.

A person's rows (edits, visits, images) are averaged first, so that everybody counts once, and
people are what the bootstrap draws, each with all of their rows. A slope or another quotient of
sums is taken of the averaged numerators and denominators. Every interval says what it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

BOOTSTRAP = 2000
# One object: results without an interval are equal, and NaN is not.
NAN = float("nan")
BCA = "95 % BCa bootstrap over people"
PERCENTILE = "95 % percentile bootstrap over people"
PERCENTILE_OF_SETS = "95 % percentile bootstrap over people, each set drawn by itself"
NORMAL = "95 % normal, from a published standard error"
FIT = "95 % Student t of the fit over subset sizes"


class Estimate(NamedTuple):
    """A value and its interval: `low` and `high` are NaN and `interval`, what it is by, is empty
    where there is none."""

    value: float
    low: float = NAN
    high: float = NAN
    interval: str = ""


def estimate(value: float, low: float, high: float, interval: str) -> Estimate:
    """An interval without ends is none."""
    value = float(value) if value == value else NAN
    if not (np.isfinite(low) and np.isfinite(high)):
        return Estimate(value)
    return Estimate(value, float(low), float(high), interval)


def by_subject(values: np.ndarray, subjects: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Mean of (n, ...) values over the rows of each subject, in order of first appearance."""
    order = list(dict.fromkeys(subjects))
    place = {s: k for k, s in enumerate(order)}
    index = np.array([place[s] for s in subjects], int)
    sums = np.zeros((len(order), *values.shape[1:]))
    np.add.at(sums, index, values)
    times = np.bincount(index, minlength=len(order))
    return sums / times.reshape(-1, *[1] * (values.ndim - 1)), order


def mean_over_people(values: np.ndarray, subjects: Sequence[str], seed: int = 0) -> Estimate:
    """Mean of the means of each subject's values (n,); rows that are NaN are left out."""
    return over_people(lambda x: x.mean(-1), subjects, values, seed=seed)


def ratio_over_people(over: np.ndarray, under: np.ndarray, subjects: Sequence[str]) -> Estimate:
    """sum(over) / sum(under) of (n,) rows in which everybody weighs the same: with x y and x^2 the
    slope through the origin. NaN where `under` is nothing for all."""
    if not np.any(under):
        return Estimate(NAN)
    return over_people(lambda a, b: a.mean(-1) / b.mean(-1), subjects, over, under)


def over_people(
    statistic: Callable[..., np.ndarray],
    subjects: Sequence[str],
    *columns: np.ndarray,
    seed: int = 0,
    samples: int = BOOTSTRAP,
) -> Estimate:
    """A statistic of paired columns (n,), one mean a subject, and its BCa bootstrap interval.

    `statistic` takes columns (..., people) to (...). Rows with a NaN are left out. There is no
    interval below three people, where a value is infinite, and where the statistic is the same
    whoever is drawn.
    """
    kept = ~np.any([np.isnan(c) for c in columns], axis=0)
    names = [s for s, k in zip(subjects, kept, strict=True) if k]
    if not names:
        return Estimate(NAN)
    data = [by_subject(np.asarray(c, np.float64)[kept], names)[0] for c in columns]
    with np.errstate(all="ignore"):
        value = float(statistic(*data))
    if len(data[0]) < 3 or not np.isfinite(data).all():
        return estimate(value, NAN, NAN, "")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A constant sample has no interval, which NaN says.
        warnings.simplefilter("ignore")
        interval = stats.bootstrap(
            data,
            lambda *x, axis: statistic(*(np.moveaxis(c, axis, -1) for c in x)),
            paired=len(data) > 1,
            vectorized=True,
            n_resamples=samples,
            method="BCa",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return estimate(value, interval.low, interval.high, BCA)
