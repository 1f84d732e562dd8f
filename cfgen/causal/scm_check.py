"""How good a causal model is: people held out, calibration, exact inverses, and its slopes.

Every fold is scored by a model that never saw its people. The probability integral transform of
what they have should be uniform (Dawid 1984): the distance is Kolmogorov's and Smirnov's. Noise of
two regions that goes together is a cause that the graph lacks, or one that both share.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kstest

from cfgen.causal.causal_graph import AGE, CausalGraph, Node
from cfgen.causal.design import Columns
from cfgen.causal.flows import Flow
from cfgen.causal.mechanisms import Categorical, normal_uniform
from cfgen.causal.scm import Scm
from cfgen.causal.scm_fit import fit_scm, folds_of
from cfgen.config import ScmFit

DECADES = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0)
# Years to each side over which a slope is taken.
SPAN = 5.0


@dataclass(frozen=True)
class NodeScore:
    """Of people held out: `nll` a person in nats (of a volume, of its logarithm), `ks` and `ks_p`
    the distance of their transform from uniform and its probability, None of a category."""

    nll: float
    ks: float | None
    ks_p: float | None


@dataclass(frozen=True)
class Check:
    """`round_trip` is the largest relative error of predict(abduct(x)), over numbers and volumes;
    `categories_kept` whether every category came back; `correlations` (a, b, r) of the noise of
    volumes, the strongest first."""

    nodes: Mapping[str, NodeScore]
    round_trip: float
    categories_kept: bool
    correlations: list[tuple[str, str, float]]

    @property
    def mean_correlation(self) -> float:
        """Mean absolute correlation over all pairs; 0 without pairs."""
        sizes = [abs(r) for _, _, r in self.correlations]
        return float(np.mean(sizes)) if sizes else 0.0


def check_scm(
    scm: Scm,
    columns: Columns,
    settings: ScmFit,
    normative: Scm | None = None,
    subjects: Sequence[str] = (),
) -> Check:
    """Score a model that `fit_scm` made of these people and settings; it is fitted again for every
    fold, with flows of the same shapes."""
    people = len(next(iter(columns.values())))
    who = list(subjects) or [str(i) for i in range(people)]
    fold = folds_of(who, settings)
    settings = ScmFit(**{**vars(settings), "members": 0})
    shapes = {n: m.shape for n, m in scm.mechanisms.items() if isinstance(m, Flow)}
    noise = {n.name: np.full(people, np.nan) for n in scm.graph.nodes if n.kind != "discrete"}
    density = {n.name: np.full(people, np.nan) for n in scm.graph.nodes}
    for k in range(settings.folds):
        rest, held = fold != k, fold == k
        other = fit_scm(
            scm.graph,
            {n: v[rest] for n, v in columns.items()},
            settings,
            normative,
            [w for w, r in zip(who, rest, strict=True) if r],
            shapes,
        )
        e, logs = _scored(other, {n: v[held] for n, v in columns.items()})
        for name, values in e.items():
            noise[name][held] = values
        for name, values in logs.items():
            density[name][held] = values
    scores = {n: _score(density[n], noise.get(n)) for n in scm.graph.names}
    error, kept = _round_trip(scm, columns)
    volumes = {n.name: noise[n.name] for n in scm.graph.nodes if n.kind == "volume"}
    return Check(scores, error, kept, _correlations(volumes))


def _score(density: np.ndarray, noise: np.ndarray | None) -> NodeScore:
    nll = -float(np.nanmean(density))
    if noise is None:
        return NodeScore(nll, None, None)
    result = kstest(normal_uniform(noise[~np.isnan(noise)]), "uniform")
    return NodeScore(nll, float(result.statistic), float(result.pvalue))


def _scored(scm: Scm, columns: Columns) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Noise and log density (n,) by node, NaN where a value is missing."""
    noise = scm.abduct(columns)
    acting = scm.acting(columns)
    logs = {}
    for node in scm.graph.nodes:
        mechanism = scm.mechanisms[node.name]
        values = columns[node.name]
        if isinstance(mechanism, Categorical):
            density = mechanism.log_density(values, acting)
            logs[node.name] = np.where(values == "", np.nan, density)
        else:
            logs[node.name] = mechanism.log_density(values, acting)
    numbers = {n.name: noise[n.name] for n in scm.graph.nodes if n.kind != "discrete"}
    return numbers, logs


def _round_trip(scm: Scm, columns: Columns) -> tuple[float, bool]:
    again = scm.counterfactual(columns, {})
    worst, kept = 0.0, True
    for node in scm.graph.nodes:
        before, after = columns[node.name], again[node.name]
        if node.kind == "discrete":
            kept = kept and bool((before == after).all())
            continue
        error = np.abs(after - before) / np.maximum(np.abs(before), 1e-6)
        worst = max(worst, float(np.nanmax(error)))
    return worst, kept


def _correlations(noise: Mapping[str, np.ndarray]) -> list[tuple[str, str, float]]:
    pairs = []
    for (a, x), (b, y) in itertools.combinations(noise.items(), 2):
        there = ~np.isnan(x + y)
        pairs.append((a, b, float(np.corrcoef(x[there], y[there])[0, 1])))
    return sorted(pairs, key=lambda pair: -abs(pair[2]))


def decade_slope(scm: Scm, region: str, age: float) -> float:
    """Change of the median's logarithm a decade around an age, of the average person with an
    average head: 0.1 is 10.5 %. Raises UsageError for an unknown region."""
    scm.graph.node(region, "region")
    ends = []
    for x in (age - SPAN, age + SPAN):
        noise = {n.name: _median(n) for n in scm.graph.nodes}
        ends.append(float(np.log(scm.predict(noise, {AGE: np.array([x])})[region][0])))
    return (ends[1] - ends[0]) * 10 / (2 * SPAN)


def _median(node: Node) -> np.ndarray:
    """Noise 0 of a number or volume; an unknown category, which acts as the average."""
    return np.full((1, len(node.levels)), np.nan) if node.kind == "discrete" else np.zeros(1)


def regions_that_age(graph: CausalGraph) -> list[str]:
    """The volumes that change with age."""
    changed = graph.descendants([AGE]) if AGE in graph.names else set()
    return [n.name for n in graph.nodes if n.kind == "volume" and n.name in changed]
