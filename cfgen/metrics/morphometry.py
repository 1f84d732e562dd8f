"""Volumes of groups, of visits and of one edited image.

Ventricles of an edited image are counted in the image itself and not by what edited it. Groups are
compared by effect size and by transport distance, visits as trajectories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from cfgen.data.regions import group_mask
from cfgen.errors import ImageError, UsageError
from cfgen.metrics.distribution import frechet
from cfgen.metrics.statistics import PERCENTILE_OF_SETS, Estimate, estimate

GROWN_MM = 6.0


@dataclass(frozen=True)
class VentricleCount:
    """Counts voxels of `region` (I, J, K) that are darker than `threshold`."""

    region: np.ndarray
    threshold: float

    def count(self, image: np.ndarray) -> int:
        return int((image[self.region] < self.threshold).sum())


def ventricle_count(
    factual: np.ndarray, labels: np.ndarray, table: str, spacing_mm: float
) -> VentricleCount:
    """The count for a subject: around its labelled lateral ventricles, halfway in brightness
    from their fluid to the basal ganglia.

    `factual` and `labels` (I, J, K) share a grid of `spacing_mm`. On 31 IXI scans the count of the
    factual scan correlates 0.997 with the labelled volume, slope 1.03. Raises ImageError where the
    labels are not of the table.
    """
    inside = group_mask(labels, table, "lateral_ventricle")
    deep = group_mask(labels, table, "basal_ganglia")
    if not (inside.any() and deep.any()):
        raise ImageError("label map", "labels no lateral ventricles or no basal ganglia", "both")
    region = around_ventricles(labels, table, spacing_mm)
    # The darkest fifth: the rest of a 2 mm label is partly tissue.
    fluid = float(np.percentile(factual[inside], 20))
    grey = float(np.median(factual[deep]))
    return VentricleCount(region, (fluid + grey) / 2)


def around_ventricles(labels: np.ndarray, table: str, spacing_mm: float) -> np.ndarray:
    """The labelled lateral ventricles (I, J, K) and what is near them."""
    inside = group_mask(labels, table, "lateral_ventricle")
    grown = ndimage.binary_dilation(inside, iterations=round(GROWN_MM / spacing_mm))
    return np.asarray(grown)


def cohens_d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(mean a - mean b) / pooled SD of groups (n, ...) and (m, ...), one value a region."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a.mean(0) - b.mean(0)) / pooled_sd(a, b))


def pooled_sd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SD within groups (n, ...) and (m, ...), one value a region."""
    n, m = len(a), len(b)
    pooled = ((n - 1) * a.var(0, ddof=1) + (m - 1) * b.var(0, ddof=1)) / (n + m - 2)
    return np.asarray(np.sqrt(pooled))


def hedges_g(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cohen's d without its small-sample bias: times 1 - 3 / (4 df - 1)."""
    return cohens_d(a, b) * (1 - 3 / (4 * (len(a) + len(b) - 2) - 1))


def d_interval(a: np.ndarray, b: np.ndarray, seed: int = 0, samples: int = 2000) -> list[Estimate]:
    """Cohen's d of (n, K) and (m, K), a row a person, with a percentile bootstrap, people
    drawn within each group."""
    draw = np.random.default_rng(seed)
    resampled = np.stack(
        [
            cohens_d(a[draw.integers(0, len(a), len(a))], b[draw.integers(0, len(b), len(b))])
            for _ in range(samples)
        ]
    )
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return [
        estimate(*ends, PERCENTILE_OF_SETS) for ends in zip(cohens_d(a, b), low, high, strict=True)
    ]


def gaussian_w2(a: np.ndarray, b: np.ndarray) -> float:
    """WASABI's distance: squared 2-Wasserstein distance of the Gaussians of volumes (n, K)."""
    return frechet(a, b)


def exact_w2(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of the best matching of two sets (n, K) of one size, as WASABI's code
    computes it. Raises UsageError where the sizes differ."""
    if a.shape != b.shape:
        raise UsageError("optimal transport", f"{len(a)} and {len(b)} scans", "as many of each")
    cost = ((a[:, None] - b[None]) ** 2).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


@dataclass(frozen=True)
class Trajectory:
    """One subject's visits after the first: `pearson` of generated with real volumes (NaN below
    three), `nmse` sum (generated - real)^2 / sum real^2, and the slopes a year over all visits."""

    pearson: float
    nmse: float
    real_slope: float
    made_slope: float


def trajectory(ages: np.ndarray, real: np.ndarray, generated: np.ndarray) -> Trajectory:
    """Volumes (T,) of a region at `ages` (T,) in years, the first visit being what `generated`
    started from (PCGM, task 2). Raises UsageError below two visits."""
    if len(ages) < 2:
        raise UsageError("trajectory", f"{len(ages)} visit", "two or more")
    later, generated_later = real[1:], generated[1:]
    pearson = float("nan")
    # Of two points a correlation is 1 or -1, whatever they are.
    if len(later) >= 3 and later.std() > 0 and generated_later.std() > 0:
        pearson = float(np.corrcoef(later, generated_later)[0, 1])
    return Trajectory(
        pearson,
        float(((generated_later - later) ** 2).sum() / (later**2).sum()),
        float(np.polyfit(ages, real, 1)[0]),
        float(np.polyfit(ages, generated, 1)[0]),
    )
