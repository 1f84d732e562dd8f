"""Distances between two sets: Frechet distance, KID, MMD, and what they are at no distance at all.

Sets are (n, d) float arrays: features of an extractor, region volumes, or flattened images. A
figure of these is worth little without its extractor, its n and the distance of real from real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from cfgen.errors import UsageError
from cfgen.metrics.statistics import FIT, Estimate, estimate


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of the Gaussians of two sets (n, d) and (m, d).

    The trace of (S1 S2)^(1/2) is the nuclear norm of Xc Yc^T / sqrt((n-1)(m-1)), so that nothing
    of size d x d is made, no root of a singular matrix is taken, and n < d is exact.
    """
    _check_sets(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = x.mean(0), y.mean(0)
    xc, yc = (x - mx) / np.sqrt(len(x) - 1), (y - my) / np.sqrt(len(y) - 1)
    cross = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    value = ((mx - my) ** 2).sum() + (xc**2).sum() + (yc**2).sum() - 2 * cross
    return float(max(value, 0.0))


def frechet_floor(real: np.ndarray, seed: int, splits: int = 20) -> tuple[float, int]:
    """Mean Frechet distance of random halves of the real set, and the size n of a half.

    What two samples of one distribution show at this n; no generator is better than that.
    """
    half = len(real) // 2
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(splits):
        order = draw.permutation(len(real))
        values.append(frechet(real[order[:half]], real[order[half : 2 * half]]))
    return float(np.mean(values)), half


def frechet_extrapolated(x: np.ndarray, y: np.ndarray, seed: int, points: int = 15) -> Estimate:
    """The Frechet distance of infinite sets (Chong and Forsyth 2020): its bias goes as 1 / n.

    Distances of subsets of n/4 to n, and the intercept of their line over 1 / n. The interval is
    the line's, which does not know how other people would have come out.
    """
    n = min(len(x), len(y))
    sizes = np.unique(np.linspace(max(n // 4, 3), n, points).astype(int))
    if len(sizes) < 3:
        raise UsageError("extrapolated Frechet distance", f"n = {n}", "12 or more of each set")
    draw = np.random.default_rng(seed)
    values = [
        frechet(x[draw.permutation(len(x))[:k]], y[draw.permutation(len(y))[:k]]) for k in sizes
    ]
    line = stats.linregress(1 / sizes, values)
    reach = stats.t.ppf(0.975, len(sizes) - 2) * line.intercept_stderr
    return estimate(line.intercept, line.intercept - reach, line.intercept + reach, FIT)


def kernel_distance(
    x: np.ndarray, y: np.ndarray, seed: int, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / d + 1)^3, over subsets.

    Mean and standard deviation; subsets are of min(size, n) without replacement, and where that is
    the whole of both sets there is one.
    """
    _check_sets(x, y)
    k = min(size, len(x), len(y))
    draw = np.random.default_rng(seed)
    times = 1 if k == len(x) == len(y) else subsets
    values = []
    for _ in range(times):
        a, b = (s[draw.permutation(len(s))[:k]].astype(np.float64) for s in (x, y))
        values.append(mmd_unbiased(*(_cubic(*p) for p in ((a, a), (b, b), (a, b)))))
    return float(np.mean(values)), float(np.std(values))


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def mmd_unbiased(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """MMD^2 of kernel matrices (n, n), (m, m), (n, m), without their diagonals; may be below 0."""
    n, m = xy.shape
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def mmd_biased(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    return float(xx.mean() + yy.mean() - 2 * xy.mean())


@dataclass(frozen=True)
class KernelTest:
    """MMD^2 and the share of label permutations that reach it."""

    mmd2: float
    p: float


def mmd_rbf(x: np.ndarray, y: np.ndarray, seed: int, permutations: int = 1000) -> KernelTest:
    """Unbiased MMD^2 under the mean of three Gaussian kernels, of half, one and two medians."""
    squared = _squared_distances(np.concatenate([x, y]))
    s2 = _median_off_diagonal(squared)
    kernel = np.mean([np.exp(-squared / (2 * s2 * f**2)) for f in (0.5, 1.0, 2.0)], axis=0)
    return _tested(kernel, len(x), seed, permutations)


def mmd_rbf_median(x: np.ndarray, y: np.ndarray, seed: int, permutations: int = 1000) -> KernelTest:
    """PCGM's feature MMD (as HA-GAN computes it): exp(-|x-y|^2 / s^2), unbiased, where s is the
    median of all distances of the pooled sets, each point's distance to itself included."""
    squared = _squared_distances(np.concatenate([x, y]))
    s = float(np.median(np.sqrt(squared)))
    return _tested(np.exp(-squared / s**2), len(x), seed, permutations)


def mmd_linear(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 under the linear kernel, for each value: does not depend on the image size."""
    _check_sets(x, y)
    return mmd_unbiased(*_linear(x, y)) / x.shape[1]


def mmd_linear_batches(x: np.ndarray, y: np.ndarray, batch: int = 8) -> float:
    """PCGM's image MMD (as alpha-WGAN computes it): |mean x - mean y|^2 of batches, averaged.

    Biased, and depends on batch size, brightness and image size: for the paper's table alone.
    """
    n = min(len(x), len(y)) // batch * batch
    if not n:
        raise UsageError("batch MMD", f"{min(len(x), len(y))} images", f"{batch} or more")
    parts = (s[:n].reshape(-1, batch, s.shape[1]).mean(1, dtype=np.float64) for s in (x, y))
    a, b = parts
    return float(((a - b) ** 2).sum(1).mean())


def mmd_linear_biased(x: np.ndarray, y: np.ndarray) -> float:
    """cDDGM's MMD (as GenerativeModels computes it): biased, linear kernel divided by voxels."""
    _check_sets(x, y)
    return mmd_biased(*_linear(x, y)) / x.shape[1]


def _linear(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x @ x.T, y @ y.T, x @ y.T


def _squared_distances(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    square = (z**2).sum(1)
    squared = np.maximum(square[:, None] + square[None] - 2 * z @ z.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def _median_off_diagonal(squared: np.ndarray) -> float:
    value = float(np.median(squared[np.triu_indices(len(squared), 1)]))
    return value or 1.0


def _tested(kernel: np.ndarray, n: int, seed: int, permutations: int) -> KernelTest:
    def mmd2(order: np.ndarray) -> float:
        a, b = order[:n], order[n:]
        parts = (kernel[np.ix_(p, q)] for p, q in ((a, a), (b, b), (a, b)))
        return mmd_unbiased(*parts)

    observed = mmd2(np.arange(len(kernel)))
    draw = np.random.default_rng(seed)
    reached = sum(mmd2(draw.permutation(len(kernel))) >= observed for _ in range(permutations))
    return KernelTest(observed, (reached + 1) / (permutations + 1))


def _check_sets(x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError("sets", f"shapes {x.shape} and {y.shape}", "(n, d) and (m, d)")
    if min(len(x), len(y)) < 2:
        raise UsageError("sets", f"{len(x)} and {len(y)} scans", "two or more of each")
