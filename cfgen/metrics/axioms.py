"""What a counterfactual should keep and what it should reach: effectiveness, minimality, identity.

Composition and reversibility are distances of images that were edited and edited back
(`metrics/image.py`); what is measured here is how far the target was reached, how much else moved,
and whether it is still the same person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

# Changes that differ by less were asked for as the same.
SAME = 1e-6


@dataclass(frozen=True)
class Adherence:
    """How far predicted values of counterfactuals meet their targets, in the target's unit.

    `mae`; `r2`, the share of the targets' variance that is met, NaN where they are all the same;
    `corrected_mae` after the predictor's own bias on real scans is taken out; `signed`, the mean
    error; `slope` and `spearman` of the predicted change on the asked change, 1 at best; NaN where
    nothing was asked, or for `spearman` everybody the same.
    """

    mae: float
    r2: float
    corrected_mae: float
    signed: float
    slope: float
    spearman: float


def bias_line(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of predicted on true values of real scans: a predictor draws to the
    mean, which otherwise counts against every target at the ends of the range."""
    slope, intercept = np.polyfit(true, predicted, 1)
    return float(intercept), float(slope)


def adherence(
    before: np.ndarray, after: np.ndarray, factual: np.ndarray, target: np.ndarray, bias: tuple
) -> Adherence:
    """Of counterfactuals (n,): predictions `before` and `after` the edit, values `factual` and
    `target`, and the predictor's `bias_line` on real scans."""
    error = after - target
    intercept, gain = bias
    asked, moved = target - factual, after - before
    # Through the origin: nothing asked, nothing moved.
    slope = float((asked * moved).sum() / (asked**2).sum()) if asked.any() else float("nan")
    spearman = float("nan")
    if np.ptp(asked) > SAME:
        spearman = float(stats.spearmanr(asked, moved).statistic) if np.ptp(moved) > 0 else 0.0
    corrected = (after - intercept) / gain - target if gain else np.full_like(error, np.nan)
    return Adherence(
        float(np.abs(error).mean()),
        variance_met(error, target),
        float(np.abs(corrected).mean()),
        float(error.mean()),
        slope,
        spearman,
    )


def variance_met(error: np.ndarray, target: np.ndarray) -> float:
    """R2 of guesses (n,) that are off by `error`; NaN where the targets are all the same."""
    spread = np.square(target - target.mean()).sum()
    return float(1 - np.square(error).sum() / spread) if np.ptp(target) > 0 else float("nan")


@dataclass(frozen=True)
class Agreement:
    """Of a condition with levels: share right, mean of each level's share, and of two levels the
    area under the ROC curve; the last two NaN where only one level is asked for."""

    accuracy: float
    balanced: float
    auc: float


def agreement(guess: np.ndarray, level: np.ndarray) -> Agreement:
    """Guesses as `called` takes them, of what `level` (n,) asks for."""
    right = called(guess) == level
    if len(np.unique(level)) < 2:
        return Agreement(float(right.mean()), float("nan"), float("nan"))
    auc = area_under_roc(guess, level == 1) if guess.ndim == 1 else float("nan")
    return Agreement(float(right.mean()), mean_recall(right, level), auc)


def called(guess: np.ndarray) -> np.ndarray:
    """Levels (n,) int of guesses: of two levels the probability (n,) of the second, of more levels
    (n, levels) the probability of each."""
    return (guess > 0.5).astype(int) if guess.ndim == 1 else guess.argmax(-1)


def mean_recall(right: np.ndarray, level: np.ndarray) -> float:
    """Balanced accuracy: the share of `right` (n,) bool in each level that is there, averaged."""
    return float(np.mean([right[level == k].mean() for k in np.unique(level)]))


def area_under_roc(score: np.ndarray, target: np.ndarray) -> float:
    """The share of pairs of a True and a False in which the True scores higher; ties count half."""
    ranks = stats.rankdata(score)
    positives, n = int(target.sum()), len(target)
    above = ranks[target.astype(bool)].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (n - positives)))


def divergence(
    moved: float, to_target: np.ndarray, to_own: np.ndarray, weights: tuple[float, float]
) -> float:
    """Counterfactual latent divergence (Sanchez and Tsaftaris 2022; Melistas et al. 2024 weigh by
    .8 and .2): log(w1 exp P(S_cf <= d) + w2 exp P(S_f >= d)), lower is better.

    `moved` is the distance d of the counterfactual from its factual; S_cf are distances of the
    factual to real scans that have the target's value, S_f to those that have its own, itself left
    out. A small edit is closer than any other person of the target group, and not so small that it
    falls within the own group.
    """
    first, second = weights
    target_share = float(np.mean(to_target <= moved))
    own_share = float(np.mean(to_own >= moved))
    return float(np.log(first * np.exp(target_share) + second * np.exp(own_share)))


@dataclass(frozen=True)
class Retrieval:
    """Whether a person is found again among n: `top1`, `top5` and the mean reciprocal rank."""

    top1: float
    top5: float
    mrr: float


def retrieval_ranks(people: np.ndarray, made: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The rank (m,) from 1 of the right person for each counterfactual, by cosine similarity.

    `people` (n, d) are embeddings of the factual scans, `made` (m, d) of counterfactuals, `own`
    (m,) the index of each one's person. Ties count against it.
    """
    centre = people.mean(0)
    a, b = ((e - centre).astype(np.float64) for e in (people, made))
    a /= np.linalg.norm(a, axis=1, keepdims=True) + 1e-12
    b /= np.linalg.norm(b, axis=1, keepdims=True) + 1e-12
    similarity = b @ a.T
    right = similarity[np.arange(len(b)), own]
    return np.asarray((similarity >= right[:, None]).sum(1))


def retrieval(ranks: np.ndarray) -> Retrieval:
    return Retrieval(
        float((ranks <= 1).mean()), float((ranks <= 5).mean()), float((1 / ranks).mean())
    )


def percent_change(factual: np.ndarray, made: np.ndarray) -> np.ndarray:
    """|made - factual| / factual in %, of volumes (n, K); NaN where there was none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        change = 100 * np.abs(made - factual) / factual
    return np.where(factual > 0, change, np.nan)
