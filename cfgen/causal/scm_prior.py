"""What the laws of volumes are shrunk towards: a normative law, proportion to head size, no effect.

A normative law, the one of another bundle, is read off on a grid of what both models have: it may
have other knots, other people and other causes. Of what it does not speak, such as a disease, the
regions speak together (`shrinkage.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfgen.causal.causal_graph import Node
from cfgen.causal.design import Columns, Design, Term
from cfgen.causal.mechanisms import Categorical
from cfgen.causal.scm import Scm
from cfgen.causal.shrinkage import Prior
from cfgen.data.regions import FLUID
from cfgen.data.volume_columns import HEAD

# How far the effects of all regions stray together, in spreads for a unit of a column: from no
# effect, and from a normative law, which another cohort and another segmenter have shown.
COMMON_STRAY, COMMON_STRAY_FROM_NORM = 0.5, 0.1
# The same of products: that a cause acts otherwise at another age is rarer than that it acts.
COMMON_STRAY_OF_PRODUCTS = 0.05


def prior_of(
    nodes: Sequence[Node], design: Design, parents: Columns, normative: Scm | None
) -> Prior:
    """The prior of nodes that have one design; `parents` say over which ages it is read off."""
    means = [_prior_mean(node, design, parents, normative) for node in nodes]
    told = np.all([spoken for _, spoken in means], 0)
    common = np.where(told, COMMON_STRAY_FROM_NORM, COMMON_STRAY)
    common[[":" in group for group in design.groups]] = COMMON_STRAY_OF_PRODUCTS
    common[[_is_nuisance(g, design) for g in design.groups]] = 0
    direction = np.array([1.0 if node.name in FLUID else -1.0 for node in nodes])
    return Prior(np.stack([mean for mean, _ in means]), design.groups, common, direction)


def _is_nuisance(group: str, design: Design) -> bool:
    """Sizes and scanners: how they act on one region says nothing of another."""
    return any(t.parent == group and (t.kind == "volume" or t.intercept) for t in design.terms)


def _prior_mean(
    node: Node, design: Design, parents: Columns, normative: Scm | None
) -> tuple[np.ndarray, np.ndarray]:
    """What the effects are shrunk towards (F,): those of the normative law, read off on a grid of
    what the two have in common; proportion to head size; no effect."""
    mean = np.zeros(len(design.names))
    silent = np.zeros(len(mean), bool)
    if node.kind == "volume":
        mean[[n == f"ln {HEAD}" for n in design.names]] = 1.0
    known = normative.mechanisms.get(node.name) if normative is not None else None
    if known is None or isinstance(known, Categorical):
        return mean, silent
    law = known.base
    grid = _grid(law.design, design, parents)
    if not grid:
        return mean, silent
    n = len(next(iter(grid.values())))
    asked = {t.parent: grid.get(t.parent, _neutral(t, n)) for t in law.design.terms}
    given = {t.parent: grid.get(t.parent, _neutral(t, n)) for t in design.terms}
    curve = law.location(asked, n)[0]
    phi = design.matrix(given, n)
    shown = np.ptp(phi, axis=0) > 0
    shown[0] = True
    mean[shown] = np.linalg.lstsq(phi[:, shown], curve, rcond=1e-9)[0]
    return mean, shown


def _grid(law: Design, design: Design, parents: Columns) -> dict[str, np.ndarray]:
    """Every combination of the parents that both designs have."""
    there = {t.parent: t for t in law.terms}
    axes: dict[str, np.ndarray] = {}
    for term in design.terms:
        other = there.get(term.parent)
        if other is None or other.kind != term.kind:
            continue
        if term.kind == "levels":
            shared = [level for level in term.levels if level in other.levels]
            if term.intercept or len(shared) < 2:
                continue
            axes[term.parent] = np.array(shared)
        elif term.kind == "volume":
            axes[term.parent] = other.centre * np.array([0.9, 1.0, 1.1])
        else:
            low, high = parents[term.parent].min(), parents[term.parent].max()
            axes[term.parent] = np.linspace(low, max(high, low + 10), 25)
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    return {name: m.ravel() for name, m in zip(axes, mesh, strict=True)}


def _neutral(term: Term, people: int) -> np.ndarray:
    """Values whose columns are 0."""
    if term.kind == "levels":
        return np.full(people, "", dtype=object).astype(str)
    return np.full(people, term.centre)
