"""A probe: a small classifier that is trained in folds of people, nobody on both sides.

An edit that fools a classifier which was trained before may still be told by one that is trained
again: one harmonisation went from a balanced accuracy of .21 to .70 that way (arXiv 2610.14140).
Logistic regression is convex, so that training again means training to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfgen.metrics.statistics import BOOTSTRAP, NAN, PERCENTILE, Estimate, estimate

FOLDS = 5
# People are dealt to folds so many times: with forty people an AUC by one deal is off by 0.05.
DEALS = 5
# Of the squared weights, beside the log loss of standardised numbers.
STRENGTH = 0.1


@dataclass(frozen=True)
class Samples:
    """Features (n, K), which level (n,) int, and whose they are."""

    features: np.ndarray
    level: np.ndarray
    subjects: Sequence[str]


def probabilities(learn: Samples, test: Samples, levels: int, seed: int = 0) -> np.ndarray:
    """(n, levels) of the test samples, by probes that learned from other people alone.

    People are dealt to `FOLDS` folds level by level, and the probabilities of `DEALS` deals are
    averaged. Every level counts alike in training. NaN where the other people have one level only.
    """
    draw = np.random.default_rng(seed)
    people = [pair for x in (learn, test) for pair in zip(x.level, x.subjects, strict=True)]
    deals = [_dealt(learn, test, levels, folds(people, draw)) for _ in range(DEALS)]
    return np.asarray(np.mean(deals, axis=0))


def _dealt(learn: Samples, test: Samples, levels: int, fold_of: Mapping[str, int]) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    of_learn, of_test = (np.array([fold_of[s] for s in x.subjects]) for x in (learn, test))
    found = np.full((len(test.level), levels), np.nan)
    for k in range(FOLDS):
        others, own = of_learn != k, of_test == k
        if not own.any() or len(np.unique(learn.level[others])) < 2:
            continue
        model = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=2000),
        )
        model.fit(learn.features[others], learn.level[others])
        found[own] = 0.0
        found[np.ix_(own, model.classes_)] = model.predict_proba(test.features[own])
    return found


def folds(people: Sequence[tuple[int, str]], draw: np.random.Generator) -> dict[str, int]:
    """Fold of every subject of (level, subject): each level's people are shuffled and dealt in
    turn; somebody of two levels with the first."""
    first: dict[str, int] = {}
    for level, subject in people:
        first.setdefault(subject, level)
    shuffled = draw.permutation(sorted(first)).tolist()
    ordered = sorted(shuffled, key=lambda s: first[s])
    return {subject: n % FOLDS for n, subject in enumerate(ordered)}


def auc_over_people(
    score: np.ndarray, positive: np.ndarray, subjects: Sequence[str], seed: int = 0
) -> Estimate:
    """Area under the ROC curve of scores (n,), everybody weighing the same among the positive, and
    among the others; ties count half."""
    above = score[positive][:, None] - score[~positive][None]
    won = (above > 0) + 0.5 * (above == 0)

    def area(weight: np.ndarray) -> np.ndarray:
        of, against = weight[:, positive], weight[:, ~positive]
        pairs = ((of @ won) * against).sum(1)
        return np.asarray(pairs / (of.sum(1) * against.sum(1)))

    return _drawn(area, positive.astype(int), subjects, seed)


def recall_over_people(
    right: np.ndarray, level: np.ndarray, subjects: Sequence[str], seed: int = 0
) -> Estimate:
    """Balanced accuracy: the share of `right` (n,) in each level, everybody weighing the same in
    it, averaged over the levels that there are."""
    there = np.unique(level)

    def balanced(weight: np.ndarray) -> np.ndarray:
        shares = [
            (weight[:, level == k] @ right[level == k]) / weight[:, level == k].sum(1)
            for k in there
        ]
        return np.asarray(np.mean(shares, axis=0))

    return _drawn(balanced, level, subjects, seed)


def _drawn(
    statistic: Callable[[np.ndarray], np.ndarray],
    level: np.ndarray,
    subjects: Sequence[str],
    seed: int,
) -> Estimate:
    """The statistic of weights (draws, n), with its interval over people who are drawn again."""
    names, person = np.unique(np.array(subjects), return_inverse=True)
    _, place, count = np.unique(
        np.stack([person, level]), axis=1, return_inverse=True, return_counts=True
    )
    own = 1.0 / count[place]
    times = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), BOOTSTRAP
    )
    with np.errstate(all="ignore"):
        value = float(statistic(own[None])[0])
        draws = statistic(times[:, person] * own)
    draws = draws[np.isfinite(draws)]
    if len(names) < 3 or not len(draws):
        return Estimate(value if np.isfinite(value) else NAN)
    low, high = np.quantile(draws, [0.025, 0.975])
    return estimate(value, float(low), float(high), PERCENTILE)
