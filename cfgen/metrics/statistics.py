"""Intervals and tests over subjects; a subject with several scans counts once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

BOOTSTRAP = 2000


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def by_subject(values: np.ndarray, subjects: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Mean of (n, ...) values over the scans of each subject, in order of first appearance."""
    order = list(dict.fromkeys(subjects))
    names = np.array(subjects)
    return np.stack([np.mean(values[names == s], axis=0) for s in order]), order


def interval(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of (n,) values and its BCa bootstrap interval, one value a subject; NaN are left out."""
    return resampled(lambda x: x.mean(-1), values, seed=seed)


def resampled(
    statistic: Callable[..., np.ndarray],
    *columns: np.ndarray,
    seed: int = 0,
    samples: int = BOOTSTRAP,
) -> Estimate:
    """A statistic of paired columns (n,) and its BCa bootstrap interval over their rows.

    `statistic` takes columns (..., n) to (...). Rows with a NaN are left out. The interval is NaN
    below three rows and where the statistic is the same whatever is drawn.
    """
    kept = np.all([np.isfinite(c) for c in columns], axis=0)
    data = [np.asarray(c, np.float64)[kept] for c in columns]
    if not len(data[0]):
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = float(statistic(*data))
    if len(data[0]) < 3:
        return Estimate(value, float("nan"), float("nan"))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A constant sample has no interval, which NaN says.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            data,
            lambda *x, axis: statistic(*(np.moveaxis(c, axis, -1) for c in x)),
            paired=len(data) > 1,
            vectorized=True,
            n_resamples=samples,
            method="BCa",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))
