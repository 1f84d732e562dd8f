"""Set distances against closed forms and MONAI; figures that do not depend on order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import linalg

from cfgen.errors import UsageError
from cfgen.metrics import distribution as dist
from cfgen.metrics.msssim import (
    COMPARABLE,
    choose_pairs,
    ms_ssim_pairs,
    scales_for,
)
from cfgen.metrics.statistics import (
    BCA,
    FIT,
    by_subject,
    mean_over_people,
    over_people,
    ratio_over_people,
)


@pytest.fixture
def rng() -> np.random.Generator:
    """Each test's own draws, whatever ran before it."""
    return np.random.default_rng(0)


def test_frechet_is_the_formula_with_the_matrix_root(rng):
    x, y = (
        rng.normal(size=(300, 12)),
        rng.normal(0.5, 2, size=(200, 12)) @ rng.normal(size=(12, 12)),
    )
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(s1 @ s2).real
    formula = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert dist.frechet(x, y) == pytest.approx(formula, rel=1e-8)


def test_frechet_of_few_scans_in_many_dimensions(rng):
    x = rng.normal(size=(20, 500))
    assert dist.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert dist.frechet(x, x + 2) == pytest.approx(500 * 4)
    assert dist.frechet(x, x[rng.permutation(20)]) == pytest.approx(0, abs=1e-9)


def test_frechet_of_two_samples_of_one_distribution_is_all_bias(rng):
    real = rng.normal(size=(400, 30))
    floor, half = dist.frechet_floor(real, 0)
    assert half == 200
    assert floor > 2
    other = rng.normal(size=(400, 30))
    found = dist.frechet_extrapolated(real, other, 0)
    assert abs(found.value) < dist.frechet(real, other) / 3
    assert found.low < found.value < found.high
    assert found.interval == FIT
    with pytest.raises(UsageError, match="n = 3"):
        dist.frechet_extrapolated(real[:3], other, 0)


def test_mmd_of_one_distribution_is_zero_on_average(rng):
    x = rng.normal(size=(200, 5))
    values = []
    for _ in range(1000):
        order = rng.permutation(200)
        a, b = x[order[:100]], x[order[100:]]
        values.append(dist.mmd_linear(a, b))
    # Three standard errors, 0.0013; the biased statistic is 0.02 on average.
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(1000)
    kid, spread = dist.kernel_distance(
        rng.normal(size=(500, 8)), rng.normal(size=(500, 8)), 0, 50, 100
    )
    # Subsets overlap: their spread is that of 100 drawn from 500, a fifth of it between the sets.
    assert abs(kid) < 2 * spread / np.sqrt(5)


def test_mmd_by_pairs_one_by_one(rng):
    x, y = rng.normal(size=(6, 3)), rng.normal(1, 1, size=(5, 3))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    own = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    theirs = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    cross = np.mean([k(a, b) for a in x for b in y])
    kernels = [(p @ q.T / 3 + 1) ** 3 for p, q in ((x, x), (y, y), (x, y))]
    assert dist.mmd_unbiased(*kernels) == pytest.approx(own + theirs - 2 * cross)


def test_the_papers_image_mmds(rng):
    x, y = rng.random((16, 40)), rng.random((16, 40)) + 0.3
    biased = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert dist.mmd_linear_biased(x, y) == pytest.approx(biased / 40)
    assert dist.mmd_linear_batches(x, y, 16) == pytest.approx(biased)
    single = ((x - y) ** 2).sum(1).mean()
    assert dist.mmd_linear_batches(x, y, 1) == pytest.approx(single)
    with pytest.raises(UsageError, match="16 images"):
        dist.mmd_linear_batches(x, y, 17)


@pytest.mark.parametrize("test", [dist.mmd_rbf, dist.mmd_rbf_median])
def test_permutations_tell_apart_what_differs(test, rng):
    x = rng.normal(size=(40, 4))
    same = test(x, rng.normal(size=(40, 4)), 0, 200)
    other = test(x, rng.normal(1, 1, size=(40, 4)), 0, 200)
    assert same.p > 0.01
    assert other.p == pytest.approx(1 / 201)
    assert other.mmd2 > 5 * abs(same.mmd2)


def test_sets_that_do_not_fit_are_named():
    with pytest.raises(UsageError, match=r"\(4, 3\) and \(4, 2\)"):
        dist.frechet(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(UsageError, match="1 and 4 scans"):
        dist.mmd_linear(np.zeros((1, 3)), np.zeros((4, 3)))


def brains(n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Volumes that share what neighbours share."""
    made = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, *(s // 8 for s in shape), generator=made)
    own = torch.rand(n, 1, *(s // 4 for s in shape), generator=made)
    smooth = F.interpolate(coarse, size=shape, mode="trilinear") + 0.3 * F.interpolate(
        own, size=shape, mode="trilinear"
    )
    return (smooth / 1.3)[:, 0]


@pytest.mark.parametrize("shape", [(32, 40, 36), (80, 96, 88)])
def test_ms_ssim_is_monais(shape):
    from monai.metrics.regression import compute_ms_ssim

    volumes = brains(3, shape)
    scales = COMPARABLE if shape[0] < 64 else scales_for(shape)
    pairs = choose_pairs(3, 99, 0)
    found = ms_ssim_pairs(volumes, pairs, scales)
    for value, (i, j) in zip(found, pairs, strict=True):
        expected = compute_ms_ssim(
            volumes[i][None, None],
            volumes[j][None, None],
            3,
            kernel_size=scales.window,
            weights=scales.weights,
        )
        assert 0.3 < value < 0.99
        assert value == pytest.approx(float(expected), abs=1e-5)


def test_ms_ssim_does_not_depend_on_tiles_or_order(monkeypatch):
    volumes = brains(7, (32, 40, 36))
    pairs = choose_pairs(7, 99, 0)
    whole = ms_ssim_pairs(volumes, pairs, COMPARABLE)
    monkeypatch.setattr("cfgen.metrics.msssim.HELD_VALUES", 7 * 32 * 40 * 36 * 2)
    assert np.allclose(ms_ssim_pairs(volumes, pairs, COMPARABLE), whole, atol=1e-6)
    assert np.allclose(ms_ssim_pairs(volumes, pairs[:, ::-1].copy(), COMPARABLE), whole, atol=1e-6)
    same = ms_ssim_pairs(volumes, np.array([[2, 2]]), COMPARABLE)
    assert same[0] == pytest.approx(1, abs=1e-6)


def test_volumes_too_small_for_the_scales_are_refused():
    with pytest.raises(UsageError, match="16x16x16"):
        ms_ssim_pairs(torch.zeros(2, 16, 16, 16), np.array([[0, 1]]), COMPARABLE)


def test_pairs_are_drawn_without_replacement():
    assert len(choose_pairs(400, 10**6, 0)) == 79_800
    some = choose_pairs(400, 2000, 0)
    assert len({tuple(p) for p in some.tolist()}) == 2000
    assert (some[:, 0] < some[:, 1]).all()


def test_a_person_counts_once(rng):
    values, subjects = by_subject(np.array([1.0, 3.0, 10.0]), ["b", "b", "a"])
    assert subjects == ["b", "a"]
    assert values.tolist() == [2, 10]
    many = [f"s{k}" for k in range(200)]
    found = mean_over_people(rng.normal(3, 1, 200), many)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.2)
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=0.01)
    assert found.interval == BCA
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)

    def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (c - c.mean(-1, keepdims=True) for c in (a, b))
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))

    r = over_people(correlation, many, x, y)
    assert r.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    # Fisher's transform: (r's) interval of two normal variables is as wide as this.
    ends = np.tanh(np.arctanh(r.value) + np.array([-1.96, 1.96]) / 197**0.5)
    assert (r.low, r.high) == pytest.approx(tuple(ends), abs=0.03)


def test_rows_of_one_person_do_not_narrow_an_interval():
    """Twenty people of five rows each that hardly differ within a person."""
    rng = np.random.default_rng(0)
    own = rng.normal(0, 1, 20)
    rows = np.repeat(own, 5) + rng.normal(0, 0.01, 100)
    names = [f"s{k // 5}" for k in range(100)]
    found = mean_over_people(rows, names)
    once = mean_over_people(own, names[::5])
    assert found.high - found.low == pytest.approx(once.high - once.low, rel=0.05)
    # Of a slope, too: rows that are there again change nothing.
    x, y = rng.random(20) + 1, rng.random(20)
    slope = ratio_over_people(x * y, x * x, names[::5])
    times = rng.integers(1, 6, 20)
    again = [names[::5][k] for k in range(20) for _ in range(times[k])]
    repeated = ratio_over_people(np.repeat(x * y, times), np.repeat(x * x, times), again)
    assert repeated[:3] == pytest.approx(slope[:3])


def test_where_there_is_no_interval_none_is_named():
    for values in ([1.0, 2.0], [2.0, 2.0, 2.0], [1.0, 2.0, np.inf], [np.nan], []):
        found = mean_over_people(np.array(values), [f"s{k}" for k in range(len(values))])
        assert np.isnan(found.low)
        assert found.interval == ""
    assert mean_over_people(np.array([1.0, 2.0, np.inf]), "abc").value == np.inf
    assert mean_over_people(np.array([1.0, np.nan, 3.0, 8.0]), "aabb").value == (1 + 5.5) / 2
    assert np.isnan(ratio_over_people(np.ones(3), np.zeros(3), "abc").value)
