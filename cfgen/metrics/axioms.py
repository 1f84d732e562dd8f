"""What a counterfactual should keep and what it should reach: effectiveness, minimality, identity.

Composition and reversibility are distances of images that were edited and edited back
(`metrics/image.py`); what is measured here is how far the target was reached, how much else moved,
and whether it is still the same person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cfgen.metrics.statistics import Estimate, mean_over_people, over_people, ratio_over_people

# Changes that differ by less were asked for as the same.
SAME = 1e-6


@dataclass(frozen=True)
class Adherence:
    """How far predicted values of counterfactuals meet their targets, in the target's unit; a
    person's edits are averaged first.

    `mae` and `mse`; `r2`, the share of the targets' variance that is met, NaN where they are all
    the same; `corrected_mae` after the predictor's own bias on real scans is taken out; `signed`,
    the mean error; `slope` and `spearman` of the predicted change on the asked change, 1 at best;
    NaN where nothing was asked, or for `spearman` everybody the same. `spearman` is of the ranks of
    all edits.
    """

    mae: Estimate
    mse: Estimate
    r2: Estimate
    corrected_mae: Estimate
    signed: Estimate
    slope: Estimate
    spearman: float


def bias_line(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of predicted on true values of real scans: a predictor draws to the
    mean, which otherwise counts against every target at the ends of the range."""
    slope, intercept = np.polyfit(true, predicted, 1)
    return float(intercept), float(slope)


def adherence(
    before: np.ndarray,
    after: np.ndarray,
    factual: np.ndarray,
    target: np.ndarray,
    bias: tuple[float, float],
    subjects: Sequence[str],
) -> Adherence:
    """Of counterfactuals (n,) of `subjects`: predictions `before` and `after` the edit, values
    `factual` and `target`, and the predictor's `bias_line` on real scans."""
    error = after - target
    intercept, gain = bias
    asked, moved = target - factual, after - before
    spearman = float("nan")
    if np.ptp(asked) > SAME:
        spearman = float(stats.spearmanr(asked, moved).statistic) if np.ptp(moved) > 0 else 0.0
    corrected = (after - intercept) / gain - target if gain else np.full_like(error, np.nan)
    return Adherence(
        mean_over_people(np.abs(error), subjects),
        mean_over_people(error**2, subjects),
        variance_met_by_people(error, target, subjects),
        mean_over_people(np.abs(corrected), subjects),
        mean_over_people(error, subjects),
        # Through the origin: nothing asked, nothing moved.
        ratio_over_people(asked * moved, asked**2, subjects),
        spearman,
    )


def variance_met(error: np.ndarray, target: np.ndarray) -> float:
    """R2 of guesses (n,) that are off by `error`; NaN where the targets are all the same."""
    spread = np.square(target - target.mean()).sum()
    return float(1 - np.square(error).sum() / spread) if np.ptp(target) > 0 else float("nan")


def variance_met_by_people(
    error: np.ndarray, target: np.ndarray, subjects: Sequence[str]
) -> Estimate:
    """`variance_met` in which everybody weighs the same, however many guesses (n,) there are."""
    # About the middle, so that nothing is lost where the spread is small beside the values.
    about = target - target.mean()
    if np.ptp(target) == 0:
        return Estimate(float("nan"))
    return over_people(
        lambda e, t, tt: 1 - e.mean(-1) / (tt.mean(-1) - t.mean(-1) ** 2),
        subjects,
        error**2,
        about,
        about**2,
    )


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
    """Whether a person is found again: `top1`, `top5` and the mean reciprocal rank."""

    top1: Estimate
    top5: Estimate
    mrr: Estimate


def retrieval_ranks(
    scans: np.ndarray, whose: Sequence[str], counterfactuals: np.ndarray, subjects: Sequence[str]
) -> np.ndarray:
    """The rank (m,) from 1 of the right person for each counterfactual, by cosine similarity.

    `scans` (n, d) are embeddings of real scans of the people `whose` (n,), `counterfactuals` (m, d)
    of those of `subjects` (m,). A person is as near as the nearest of their scans, so that another
    visit of the right one is no stranger. Ties count against it.
    """
    centre = scans.mean(0)
    a, b = ((e - centre).astype(np.float64) for e in (scans, counterfactuals))
    a /= np.linalg.norm(a, axis=1, keepdims=True) + 1e-12
    b /= np.linalg.norm(b, axis=1, keepdims=True) + 1e-12
    similarity, names = b @ a.T, np.array(whose)
    people = list(dict.fromkeys(whose))
    nearest = np.stack([similarity[:, names == p].max(1) for p in people], 1)
    right = nearest[np.arange(len(b)), [people.index(p) for p in subjects]]
    return np.asarray((nearest >= right[:, None]).sum(1))


def retrieval(ranks: np.ndarray, subjects: Sequence[str]) -> Retrieval:
    """Of the ranks (m,) of counterfactuals of `subjects`."""
    return Retrieval(*(mean_over_people(x, subjects) for x in (ranks <= 1, ranks <= 5, 1 / ranks)))


def percent_change(factual: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """|edited - factual| / factual in %, of volumes (n, K); NaN where there was none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        change = 100 * np.abs(edited - factual) / factual
    return np.where(factual > 0, change, np.nan)
