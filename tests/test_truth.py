"""Errors against the truth: the oracle, the copy, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cfgen.metrics.truth import (
    dice,
    group_mean_shift,
    image_truth,
    surface_distance_mm,
    volume_truth,
)

RNG = np.random.default_rng(0)
MASK = np.ones((12, 12, 12), bool)
FACTUAL = RNG.random(MASK.shape)
DUE = np.zeros(MASK.shape)
DUE[3:6] = 0.5 + 0.1 * RNG.random((3, 12, 12))


def test_the_oracle_has_skill_one_and_the_copy_none():
    oracle = image_truth(FACTUAL, FACTUAL + DUE, FACTUAL + DUE, MASK, 0.01)
    assert (oracle.skill, oracle.mae, oracle.slope, oracle.leakage) == (1, 0, pytest.approx(1), 0)
    assert oracle.correlation == pytest.approx(1)
    copy = image_truth(FACTUAL, FACTUAL, FACTUAL + DUE, MASK, 0.01)
    assert (copy.skill, copy.slope) == (0, 0)


def test_half_of_the_change_and_a_leak():
    made = FACTUAL + 0.5 * DUE
    made[9:] += 0.1
    found = image_truth(FACTUAL, made, FACTUAL + DUE, MASK, 0.01)
    assert found.slope == pytest.approx(0.5)
    mean_due = DUE[3:6].mean()
    assert found.leakage == pytest.approx(0.1 * 3 / 9 / mean_due)
    total = 0.25 * (DUE**2).sum() + 0.01 * 3 * 144
    assert found.skill == pytest.approx(1 - total / (DUE**2).sum())
    assert found.rmse == pytest.approx(np.sqrt(total / MASK.size))


def test_volumes():
    factual, true = np.array([20.0, 30, 40]), np.array([30.0, 40, 60])
    assert volume_truth(factual, true, true, "abc").nmse.value == 0
    assert volume_truth(factual, factual, true, "abc").nmse.value == 1
    half = volume_truth(factual, (factual + true) / 2, true, "abc")
    assert (half.slope.value, half.nmse.value) == (0.5, 0.25)
    assert half.error_percent.value == pytest.approx(-100 * (5 / 30 + 5 / 40 + 10 / 60) / 3)


def test_volumes_of_visits_count_as_one_person():
    factual, made, true = np.array([[20.0, 30, 40, 40], [20, 36, 49, 52], [30, 40, 60, 60]])
    found = volume_truth(factual, made, true, "abcc")
    # (0 x 10, 6 x 10, and the mean of 9 x 20 and 12 x 20) over (100, 100, 400)
    assert found.slope.value == pytest.approx((0 + 60 + 210) / 600)
    assert found.error_percent.value == pytest.approx(-100 * (10 / 30 + 4 / 40 + 9.5 / 60) / 3)
    assert np.isnan(volume_truth(factual, made, factual, "abcc").slope.value)


def test_the_mean_shift_is_right_where_everybody_changes_alike():
    factuals = [RNG.random((4, 4, 4)) for _ in range(5)]
    shift = group_mean_shift(factuals, [f + 0.3 for f in factuals])
    assert np.allclose(shift, 0.3)


def _on_face(voxels: np.ndarray) -> np.ndarray:
    """Which voxels (n, 3) of a box are of its surface."""
    return np.any((voxels == voxels.min(0)) | (voxels == voxels.max(0)), axis=1)


def test_masks():
    a = np.zeros((20, 20, 20), bool)
    a[5:10, 5:10, 5:10] = True
    b = np.roll(a, 2, 0)
    assert dice(a, b) == pytest.approx(2 * 75 / 250)
    assert dice(a & False, a & False) == 1
    assert surface_distance_mm(a, a, 2.0) == 0
    surfaces = [np.argwhere(m)[_on_face(np.argwhere(m))] * 2.0 for m in (a, b)]
    there, back = (cKDTree(x).query(y)[0] for x, y in (surfaces, surfaces[::-1]))
    expected = np.concatenate([there, back]).mean()
    assert surface_distance_mm(a, b, 2.0) == pytest.approx(expected)
    assert np.isnan(surface_distance_mm(a, a & False, 2.0))
