"""How well anybody can read a protocol from a scan, for benchmarks/acquisition_tables.py.

Boosted trees that know exactly how bright grey matter and fluid are beside white matter, how strong
noise and coil are and how thick a slice is, learn the parameters of 10,000 simulated scanners. What
they get wrong no predictor of images gets right but by luck: protocols that differ look the same.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from cfgen.data.acquisition import Protocol
from cfgen.data.schema import Value
from cfgen.sim.physics import (
    RECEIVE,
    TISSUES,
    Acquisition,
    noise_level,
    protocol_of,
    signal,
    tissue,
)
from cfgen.sim.protocols import acquisition, draw_scanner

SCANNERS = 20_000
# What the scanner of a cohort is drawn by (sim/cohort.py), where age does not decide.
ROOTS, ANY_AGE = 9, 40.0
SPACING_MM = 2.0


def traces(scan: Acquisition) -> list[float]:
    """What a protocol leaves in an image: log signals over white matter's, noise, coil, slice."""
    white, *others = (float(signal(tissue(t, scan.field_tesla), scan)) for t in TISSUES)
    noise = np.log(noise_level(scan, SPACING_MM))
    left = [RECEIVE[scan.field_tesla], max(scan.slice_mm, SPACING_MM)]
    return [*(float(np.log(s / white)) for s in others), float(noise), *left]


def fitted_guess(x: np.ndarray, y: list[Value], unseen: np.ndarray) -> np.ndarray:
    """Of features (n, K) and their values, the values of `unseen` (m, K) by boosted trees."""
    trees = (
        HistGradientBoostingClassifier if isinstance(y[0], str) else HistGradientBoostingRegressor
    )
    return np.asarray(trees(random_state=0).fit(x, y).predict(unseen))


def reading_score(guess: np.ndarray, truth: list[Value]) -> float:
    """Of texts how many are right, of numbers the mean squared error."""
    if isinstance(truth[0], str):
        return float(np.mean(guess == np.array(truth)))
    return float(np.mean((guess - np.array(truth, float)) ** 2))


def most_readable(names: list[str]) -> dict[str, float]:
    """By parameter `reading_score` of who learned from half of the scanners, of the other half."""
    draw = np.random.default_rng(0)
    scans = [
        acquisition(draw_scanner(draw.uniform(size=ROOTS), ANY_AGE, 0.0)) for _ in range(SCANNERS)
    ]
    protocols: list[Protocol] = [protocol_of(scan) for scan in scans]
    x = np.array([traces(scan) for scan in scans])
    found = {}
    for name in names:
        there = np.array([n for n, p in enumerate(protocols) if name in p])
        first, second = np.array_split(there, 2)
        learned, unseen = ([protocols[n][name] for n in some] for some in (first, second))
        found[name] = reading_score(fitted_guess(x[first], learned, x[second]), unseen)
    return found
