"""Does a cohort of counterfactuals repeat a study? PCGM's task 3, after Sullivan et al. 2018.

Six cortical regions of controls and of people with alcohol use disorder (AUD), adjusted for head
size, and five comparisons of real and counterfactual groups. Sound counterfactuals give the known
pattern: less cortex in AUD, save occipital, whichever of the groups is counterfactual, and no
difference where a counterfactual group should be like a real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cfgen.errors import UsageError
from cfgen.metrics.morphometry import cohens_d, pooled_sd
from cfgen.metrics.statistics import by_subject

REGIONS = ("frontal", "insula", "parietal", "cingulate", "temporal", "occipital")
UNCHANGED = "occipital"
ALPHA = 0.05 / len(REGIONS)
# Groups closer than this many standard deviations count as equal.
EQUIVALENCE_D = 0.2
# Name: the two groups, and whether they should differ.
COMPARISONS = {
    "counterfactual control vs counterfactual AUD": ("cf_control", "cf_aud", True),
    "control vs counterfactual AUD": ("control", "cf_aud", True),
    "AUD vs counterfactual control": ("aud", "cf_control", True),
    "control vs counterfactual control": ("control", "cf_control", False),
    "AUD vs counterfactual AUD": ("aud", "cf_aud", False),
}


@dataclass(frozen=True)
class Cohort:
    """Scans: `subjects` (n,), `aud` (n,) bool, `supratentorial` (n,) and `regions` (n, 6) volumes
    in REGIONS' order, `made` (n, 6) the volumes of each scan's counterfactual in the other group,
    and `covariates` (n, C) that are adjusted for beside head size (C may be 0)."""

    subjects: Sequence[str]
    aud: np.ndarray
    supratentorial: np.ndarray
    regions: np.ndarray
    made: np.ndarray
    covariates: np.ndarray


@dataclass(frozen=True)
class Finding:
    """One region of one comparison: Welch's t and p, Cohen's d, the paired p where both groups are
    the same people, and the larger p of two one-sided tests that the groups are equal."""

    comparison: str
    region: str
    t: float
    p: float
    d: float
    paired_p: float
    equivalence_p: float
    should_differ: bool

    @property
    def significant(self) -> bool:
        return self.p < ALPHA

    @property
    def correct(self) -> bool:
        return self.significant == self.should_differ


def replicate(cohort: Cohort) -> list[Finding]:
    """Thirty findings, five comparisons of six regions.

    Volumes are residuals of an ordinary least-squares fit on real controls (intercept, the factual
    supratentorial volume, covariates), and the same fit serves every group: one that was fitted on
    the counterfactuals would take out what they are to show. Visits are averaged. Raises UsageError
    where a group has fewer than three people.
    """
    control = ~cohort.aud
    size = cohort.supratentorial[:, None]
    nuisance = np.concatenate([size, cohort.covariates], axis=1)
    nuisance = nuisance - nuisance[control].mean(0)
    design = np.concatenate([np.ones((len(size), 1)), nuisance], axis=1)
    weights = np.linalg.lstsq(design[control], cohort.regions[control], rcond=None)[0]
    real, counterfactual = (v - nuisance @ weights[1:] for v in (cohort.regions, cohort.made))
    sick, _ = by_subject(cohort.aud.astype(float), cohort.subjects)
    real, _ = by_subject(real, cohort.subjects)
    counterfactual, _ = by_subject(counterfactual, cohort.subjects)
    aud = sick > 0.5
    if min(aud.sum(), (~aud).sum()) < 3:
        raise UsageError(
            "AUD replication", f"{(~aud).sum()} controls, {aud.sum()} with AUD", "3 or more of each"
        )
    groups = {
        "control": real[~aud],
        "aud": real[aud],
        "cf_aud": counterfactual[~aud],
        "cf_control": counterfactual[aud],
    }
    # A real group and the counterfactuals of the same people.
    same_people = ({"control", "cf_aud"}, {"aud", "cf_control"})
    findings = []
    for name, (first, second, differ) in COMPARISONS.items():
        for k, region in enumerate(REGIONS):
            a, b = groups[first][:, k], groups[second][:, k]
            test = stats.ttest_ind(a, b, equal_var=False)
            paired = float("nan")
            if {first, second} in same_people:
                paired = float(stats.ttest_rel(a, b).pvalue)
            findings.append(
                Finding(
                    name,
                    region,
                    float(test.statistic),
                    float(test.pvalue),
                    float(cohens_d(a[:, None], b[:, None])[0]),
                    paired,
                    _equivalence(a, b),
                    differ and region != UNCHANGED,
                )
            )
    return findings


def correct(findings: Sequence[Finding]) -> dict[str, int]:
    """How many of the six regions of each comparison came out as they should."""
    return {name: sum(f.correct for f in findings if f.comparison == name) for name in COMPARISONS}


def _equivalence(a: np.ndarray, b: np.ndarray) -> float:
    """Two one-sided Welch tests that the means are within EQUIVALENCE_D pooled SD."""
    margin = EQUIVALENCE_D * pooled_sd(a, b)
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    return float(max(above, below))
