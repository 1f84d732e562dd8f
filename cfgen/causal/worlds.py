"""Worlds of a causal model of volumes: at either rate of ageing, with intervals and support.

What it adds to `Scm.counterfactual` (abduct, act, predict): the part of a change that is due to age
may go at a person's own rate (`rates.py`), and the law's own uncertainty is carried through. The
table of `cfgen counterfactual --table` and the edit of an image ask here, so that both give one
answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t as student

from cfgen.causal.causal_graph import AGE, CausalGraph, Node
from cfgen.causal.design import Columns
from cfgen.causal.rates import change, draw
from cfgen.causal.scm import Scm
from cfgen.config import Rates
from cfgen.data.schema import VOLUME_UNIT, Schema, Values, Variable, number_text
from cfgen.data.volume_columns import HEAD
from cfgen.streams import Purpose, stream

# Of the intervals.
CONFIDENCE = 0.95
# Volumes this many times beyond those of training are taken for another unit or another organ.
_BEYOND = 10.0


def volume_names(graph: CausalGraph) -> list[str]:
    return [node.name for node in graph.nodes if node.kind == "volume"]


def column(graph: CausalGraph, name: str, people: Sequence[Values]) -> np.ndarray:
    """A node's values (n,) of people as mappings; NaN or '' where one is unknown."""
    if graph.node(name).kind == "discrete":
        return np.array([str(values.get(name, "")) for values in people])
    return np.array([float(values.get(name, np.nan)) for values in people])


def settable(graph: CausalGraph, conditions: Schema) -> Schema:
    """The nodes as variables that options and tables may set: `--set hippocampus=-10%`.

    Conditions that the bundle's schema knows keep their limits. A volume's limits are a tenth of
    the smallest and ten times the largest of training, so that mL, 1000 times less, are told.
    """
    known = {v.name: v for v in conditions.variables}
    return Schema(tuple(_variable(node, known.get(node.name)) for node in graph.nodes))


def _variable(node: Node, known: Variable | None) -> Variable:
    if node.kind == "discrete":
        return Variable(node.name, "categorical", levels=node.levels, seen=node.levels)
    if node.kind == "volume":
        low, high = node.support or (0.0, np.inf)
        limits = (float(f"{low / _BEYOND:.2g}"), float(f"{high * _BEYOND:.2g}"))
        return Variable(node.name, "continuous", VOLUME_UNIT, *limits, node.support)
    if known is not None and known.kind == "continuous":
        return replace(known, support=node.support)
    return Variable(node.name, "continuous", node.unit, support=node.support)


def counterfactual(
    scm: Scm,
    observed: Columns,
    do: Columns,
    rates: Rates,
    ratios: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Every node of the graph for people who are `observed`, had `do` been.

    At rates 'within' the effect of age alone, all else that is set held at its factual value, is
    scaled in logarithms; what else is set has its effect at the new age as the law has it. Volumes
    that are set are as they are set. `ratios` as in `rates.change`.
    """
    after = scm.counterfactual(observed, do)
    if rates == "cohort" or AGE not in do:
        return after
    held = {name: observed[name] for name in do if name != AGE}
    aged = scm.counterfactual(observed, {**held, AGE: do[AGE]})
    moved = [n for n in volume_names(scm.graph) if n in observed and n not in do]
    cohort = {name: np.log(aged[name] / observed[name]) for name in moved}
    own = change(cohort, rates, ratios)
    return after | {name: after[name] * np.exp(own[name] - cohort[name]) for name in moved}


def keeping_head(scm: Scm, observed: Columns, do: Columns) -> tuple[Columns, Columns]:
    """What is observed and what is set so that heads keep their size, unless `do` sets it.

    The direct effect, of sex above all: its total effect acts through the head's size too. A head
    that is unknown is taken at its median given its parents, before and after.
    """
    if HEAD not in scm.graph.names or HEAD in do:
        return observed, do
    head = scm.acting(observed)[HEAD]
    return {**observed, HEAD: head}, {**do, HEAD: head}


def interval(
    scm: Scm, observed: Columns, do: Columns, rates: Rates, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ends (n,) of the 95 % interval of every volume (mm3); none where the model has no ensemble.

    The spread of ln V' over laws that were fitted to resampled people, each with ratios of its own
    at rates 'within', by Student's t about the answer itself: an ensemble is too small to read
    quantiles off. It is what is not known of the law. A person's noise is abducted anew under every
    law.
    """
    members = scm.ensemble()
    if len(members) < 2:
        return {}
    # All members at once would be the size of a cohort times the ensemble.
    centre = counterfactual(scm, observed, do, rates)
    names = volume_names(scm.graph)
    sums = {name: np.zeros((2, len(centre[name]))) for name in names}
    for b, member in enumerate(members):
        ratios = draw(stream(seed, Purpose.RATES, step=b))
        world = counterfactual(member, observed, do, rates, ratios)
        for name in names:
            off = np.log(world[name] / centre[name])
            sums[name] += np.stack([off, off**2])
    n = len(members)
    t = float(student.ppf((1 + CONFIDENCE) / 2, n - 1))
    ends = {}
    for name, (first, second) in sums.items():
        sd = np.sqrt(np.maximum(second - first**2 / n, 0) / (n - 1))
        ends[name] = (centre[name] * np.exp(-t * sd), centre[name] * np.exp(t * sd))
    return ends


def outside(graph: CausalGraph, columns: Columns, person: int) -> list[str]:
    """What of a person training never saw the like of: 'age 92 above 86'; of the columns
    that are given."""
    texts = []
    for node in graph.nodes:
        if node.support is None or node.name not in columns:
            continue
        low, high = node.support
        x = float(columns[node.name][person])
        if np.isnan(x):
            continue
        # Written volumes have one decimal.
        slack = 0.05 if node.kind == "volume" else 0.0
        if not low - slack <= x <= high + slack:
            side, end = ("below", low) if x < low else ("above", high)
            short = number_text(round(x, 1))
            texts.append(f"{node.name} {short} {side} {number_text(round(end, 1))}")
    return texts
