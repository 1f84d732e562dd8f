"""Regressions of many regions at once, whose weak effects are shrunk towards what is normal.

    y_k = Phi beta_k + s(z) sigma_k e_k,   corr(e) = R
    (beta_kj - m_kj) / sigma_k ~ N(a_k c_j, T_g(j)),   c_j ~ N(0, C)

In units of its own spread a region's effects are like those of the others, so that the regions say
how far an effect strays from the prior mean m: all alike (c; a is -1 for tissue and +1 for fluid,
which takes its place) and each by itself (T, by expectation maximisation of the marginal
likelihood). An effect that no region shows vanishes; one that most show is left alone. The design
is the same for every region, so the axes of R make them independent.
Efron & Morris 1973; Zellner 1962 for the regressions; Harvey 1976 for the spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 4
EM_STEPS = 200
# One region more, whose effects stray by this many spreads: T never quite vanishes, and a single
# region has a prior too.
PSEUDO_REGIONS, PSEUDO_STRAY = 1.0, 0.08
# A constant is not shrunk.
FREE = 1e6
# How many regions there must be to tell what all have in common.
FEWEST_FOR_COMMON = 4
# Before data, the spread changes by about this factor (logarithm) for a unit of a column.
SPREAD_PRIOR = 0.1


@dataclass(frozen=True)
class Regressions:
    """`beta` (K, F), `sigma` (K,), `gamma` (K, Z): ln of the spread is ln sigma + z gamma; `stray`
    (F,) the square root of T; `correlation` (K, K) of the residuals."""

    beta: np.ndarray
    sigma: np.ndarray
    gamma: np.ndarray
    stray: np.ndarray
    correlation: np.ndarray


@dataclass(frozen=True)
class Prior:
    """`mean` (K, F), the m; `groups` (F,), columns of one name stray alike, '1' is the constant;
    `common` (F,), the square root of C, how far a column's effects stray together; `direction`
    (K,), the a."""

    mean: np.ndarray
    groups: list[str]
    common: np.ndarray
    direction: np.ndarray


def fit_regressions(
    phi: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    prior: Prior,
) -> Regressions:
    """Fit K regions: `phi` (n, F) with the constant first, `z` (n, Z) of the spread, `y` (n, K)
    with NaN where a value is missing.

    A missing value is replaced by its expectation given the person's other regions, round by round.
    """
    n, K = y.shape
    missing = np.isnan(y)
    y = np.where(missing, np.nanmean(y, 0), y)
    gamma = np.zeros((K, z.shape[1]))
    weights = np.ones(n)
    stray = np.full(phi.shape[1], 1.0)
    correlation = np.eye(K)
    beta = _least_squares(phi, y)
    uncertain = np.zeros((n, K))
    residual = y - phi @ beta.T
    sigma = _spread(residual, np.ones((n, K)), uncertain, phi.shape[1])
    for _ in range(ROUNDS):
        beta, stray = _shrunken(phi, y, weights, sigma, correlation, prior)
        residual = y - phi @ beta.T
        gamma = _spread_effects(z, residual / sigma)
        scale = np.exp(z @ gamma.T)
        sigma = _spread(residual, scale, uncertain, phi.shape[1])
        e = residual / (scale * sigma)
        correlation = _correlation(e)
        weights = np.exp(-2 * (z @ gamma.mean(0)))
        if missing.any():
            y, uncertain = _expected(y, missing, phi @ beta.T, scale * sigma, correlation)
            uncertain *= sigma**2
    return Regressions(beta, sigma, gamma, stray, correlation)


def _least_squares(phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    gram = phi.T @ phi + 1e-3 * np.eye(phi.shape[1])
    return np.asarray(np.linalg.solve(gram, phi.T @ y).T)


def _spread(
    residual: np.ndarray, scale: np.ndarray, uncertain: np.ndarray, used: int
) -> np.ndarray:
    n = len(residual)
    squares = ((residual / scale) ** 2 + uncertain).sum(0)
    return np.asarray(np.sqrt(np.maximum(squares / max(n - used, n / 2), 1e-12)))


def _correlation(e: np.ndarray) -> np.ndarray:
    """Shrunk towards none, the more the fewer people there are to a region."""
    n, K = e.shape
    cov = e.T @ e / n
    size = np.sqrt(np.diag(cov))
    trust = n / (n + 2 * K)
    return np.asarray(trust * cov / np.outer(size, size) + (1 - trust) * np.eye(K))


def _shrunken(
    phi: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    sigma: np.ndarray,
    correlation: np.ndarray,
    prior: Prior,
) -> tuple[np.ndarray, np.ndarray]:
    """beta (K, F), and by how much every column's effects stray (F,)."""
    r, axes = np.linalg.eigh(correlation)
    r = np.maximum(r, 1e-3)
    weighted = phi * weights[:, None]
    # Information on the effects along every axis, and what the data say of them.
    A = (phi.T @ weighted) / r[:, None, None]
    b = (((y - phi @ prior.mean.T) / sigma).T @ weighted).T @ axes
    b = (b / r).T
    free = np.array([g == "1" for g in prior.groups])
    member = np.array([[g == label for g in prior.groups] for label in sorted(set(prior.groups))])
    common = np.where(free | (len(r) < FEWEST_FOR_COMMON), 0.0, prior.common)
    alpha = axes.T @ prior.direction
    T = np.where(free, FREE, 1.0)
    for _ in range(EM_STEPS):
        cov = np.linalg.inv(A + np.diag(1 / T))
        c = _common(A, b, cov, alpha, common)
        u = np.einsum("kij,kj->ki", cov, b - np.einsum("kij,j->ki", A, c) * alpha[:, None])
        second = (u**2 + np.einsum("kii->ki", cov)).sum(0)
        size = member.sum(1) * len(r) + PSEUDO_REGIONS
        pooled = (member @ second + PSEUDO_REGIONS * PSEUDO_STRAY**2) / size
        before, T = T, np.where(free, FREE, member.T @ pooled)
        if np.allclose(np.log(T), np.log(before), atol=1e-3):
            break
    d = axes @ u + np.outer(prior.direction, c)
    return prior.mean + sigma[:, None] * d, np.sqrt(T)


def _common(
    A: np.ndarray, b: np.ndarray, cov: np.ndarray, alpha: np.ndarray, common: np.ndarray
) -> np.ndarray:
    """c (F,), by generalised least squares over the axes, with its own prior."""
    t = np.flatnonzero(common)
    c = np.zeros(len(common))
    if not t.size:
        return c
    information = np.einsum("k,kij->ij", alpha**2, A - A @ cov @ A)
    evidence = np.einsum("k,ki->i", alpha, b - np.einsum("kij,kjl,kl->ki", A, cov, b))
    inner = information[np.ix_(t, t)] + np.diag(1 / common[t] ** 2)
    c[t] = np.linalg.solve(inner, evidence[t])
    return c


def _spread_effects(z: np.ndarray, e: np.ndarray) -> np.ndarray:
    """gamma (K, Z): a common effect on all regions, and of each region what it shows beyond.

    Fisher scoring of the Gaussian likelihood: the information of ln s is 2 a person.
    """
    K = e.shape[1]
    if z.shape[1] == 0:
        return np.zeros((K, 0))
    centred = z - z.mean(0)
    information = 2 * centred.T @ centred
    prior = np.eye(z.shape[1]) / SPREAD_PRIOR**2

    def scored(
        squares: np.ndarray, start: np.ndarray, many: float, tight: np.ndarray
    ) -> np.ndarray:
        gamma = start.copy()
        for _ in range(20):
            scaled = squares * np.exp(-2 * centred @ gamma)
            score = centred.T @ (scaled / scaled.mean() - 1) * many - tight @ (gamma - start)
            step = np.linalg.solve(many * information + tight, score)
            gamma = gamma + np.clip(step, -0.2, 0.2)
        return gamma

    # Regions share a person's age: they count as fewer than they are.
    together = scored((e**2 / (e**2).mean(0)).mean(1), np.zeros(z.shape[1]), K**0.5, prior)
    if K == 1:
        return together[None]
    cov = np.linalg.inv(information + prior)
    alone = np.array([scored(e[:, k] ** 2, together, 1.0, prior) for k in range(K)])
    beyond = np.mean((alone - together) ** 2, 0) - np.diag(cov)
    tight = np.diag(1 / np.clip(beyond, 1e-4, SPREAD_PRIOR**2))
    return np.array([scored(e[:, k] ** 2, together, 1.0, tight) for k in range(K)])


def _expected(
    y: np.ndarray,
    missing: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    correlation: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """y with missing values replaced by their expectation, and the variance of these, in squares
    of the spread."""
    e = (y - mean) / spread
    uncertain = np.zeros_like(y)
    for i in np.flatnonzero(missing.any(1)):
        gone, there = missing[i], ~missing[i]
        weights = np.linalg.solve(
            correlation[np.ix_(there, there)], correlation[np.ix_(there, gone)]
        )
        e[i, gone] = e[i, there] @ weights
        known = np.einsum("tg,tg->g", weights, correlation[np.ix_(there, gone)])
        uncertain[i, gone] = 1 - known
    return np.where(missing, mean + spread * e, y), uncertain
