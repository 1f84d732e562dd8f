"""Worlds of a causal model of volumes: at either rate of ageing, with intervals and support.

What it adds to `Scm.counterfactual` (abduct, act, predict): the part of a change that is due to age
may go at a person's own rate (`rates.py`), and the law's own uncertainty is carried through. The
table of `cfgen counterfactual --table` and the edit of an image ask here, so that both give one
answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from cfgen.causal.causal_graph import CausalGraph, Node
from cfgen.causal.rates import Rates, change, draw
from cfgen.data.schema import VOLUME_UNIT, Schema, Variable, number_text
from cfgen.streams import Purpose, stream

AGE = "age"
# Shares of the intervals' ends.
INTERVAL = (0.025, 0.975)
# Volumes this many times beyond those of training are taken for another unit or another organ.
_BEYOND = 10.0
# One entry a person (n,): float64, mm3 for volumes, text for discrete nodes.
Columns = Mapping[str, np.ndarray]


class Law(Protocol):
    """What is asked of a causal model (`scm.py`)."""

    @property
    def graph(self) -> CausalGraph: ...

    def counterfactual(self, observed: Columns, do: Columns) -> dict[str, np.ndarray]: ...


def volume_names(graph: CausalGraph) -> list[str]:
    return [node.name for node in graph.nodes if node.kind == "volume"]


def settable(graph: CausalGraph, conditions: Schema) -> Schema:
    """The nodes as variables that options and tables may set: `--set hippocampus=-10%`.

    Conditions that the bundle's schema knows keep their limits. A volume's limits are a tenth of the
    smallest and ten times the largest of training, so that mL, 1000 times less, are told.
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
    law: Law,
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
    after = law.counterfactual(observed, do)
    if rates == "cohort" or AGE not in do:
        return after
    held = {name: observed[name] for name in do if name != AGE}
    aged = law.counterfactual(observed, {**held, AGE: do[AGE]})
    moved = [name for name in volume_names(law.graph) if name not in do]
    cohort = {name: np.log(aged[name] / observed[name]) for name in moved}
    own = change(cohort, rates, ratios)
    return after | {name: after[name] * np.exp(own[name] - cohort[name]) for name in moved}


def interval(
    members: Sequence[Law], observed: Columns, do: Columns, rates: Rates, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Ends of the 95 % interval of every volume (mm3): quantiles over laws that were fitted on
    bootstrap samples of the people of training, each with ratios of its own at rates 'within'.

    It is what is not known of the law. A person's own noise is abducted anew under every law, so
    that people who were measured wrongly are no surer. None without members.
    """
    if not members:
        return None
    worlds = [
        counterfactual(law, observed, do, rates, draw(stream(seed, Purpose.RATES, step=b)))
        for b, law in enumerate(members)
    ]
    ends = {
        name: np.quantile(np.stack([world[name] for world in worlds]), INTERVAL, axis=0)
        for name in volume_names(members[0].graph)
    }
    return {n: low for n, (low, _) in ends.items()}, {n: high for n, (_, high) in ends.items()}


def outside(graph: CausalGraph, columns: Columns, person: int) -> list[str]:
    """What of a person training never saw the like of: 'age 92 above 86'."""
    texts = []
    for node in graph.nodes:
        if node.support is None:
            continue
        low, high = node.support
        x = float(columns[node.name][person])
        # Written volumes have one decimal.
        slack = 0.05 if node.kind == "volume" else 0.0
        if not low - slack <= x <= high + slack:
            side, end = ("below", low) if x < low else ("above", high)
            short = number_text(round(x, 1))
            texts.append(f"{node.name} {short} {side} {number_text(round(end, 1))}")
    return texts
