"""Fit a structural causal model to a table of people.

Volumes of the same parents are fitted together (`shrinkage.py`): what a few people say weakly is
shrunk towards a normative law where one is given, and towards what the regions have in common. Head
size stands in every volume with a prior exponent of 1: a head twice as large has every region twice
as large, until the people say otherwise.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from cfgen.causal.causal_graph import AGE, CausalGraph, Declared, Node, Sketch
from cfgen.causal.design import Columns, Design, Term
from cfgen.causal.flows import (
    STEPS,
    Flow,
    Residuals,
    Shape,
    best_shape,
    context_of,
    context_width,
    new_net,
    train_flow,
)
from cfgen.causal.mechanisms import Categorical, Linear, Mechanism, level_numbers
from cfgen.causal.scm import Scm
from cfgen.causal.scm_prior import prior_of
from cfgen.causal.shrinkage import fit_regressions
from cfgen.config import SCM_FIT, ScmFit
from cfgen.data.volume_columns import HEAD
from cfgen.errors import UsageError
from cfgen.streams import Purpose, stream

log = logging.getLogger("cfgen")

AGE_CENTRE, AGE_SCALE = 50.0, 10.0
# Fewer people carry no law; with a normative law under it the first number is enough.
FEWEST, FEWEST_A_COLUMN = 20, 2
# Of logits, in squares of the columns' units.
LOGIT_RIDGE = 1.0


def graph_of(sketch: Sketch, columns: Columns) -> CausalGraph:
    """The graph with the kinds, levels and support of the table. `sketch` is in order.

    Raises UsageError for a column that cannot be of its kind.
    """
    nodes = []
    for name, declared in sketch.nodes.items():
        nodes.append(_node(name, declared, columns[name], sketch.where))
    return CausalGraph(tuple(nodes))


def _node(name: str, declared: Declared, values: np.ndarray, where: str) -> Node:
    numeric = values.dtype.kind == "f"
    kind = declared.kind or ("continuous" if numeric else "discrete")
    if kind != "discrete" and not numeric:
        raise UsageError(where, f"column '{name}' is text", f"a {kind} variable: numbers")
    unit = declared.unit or ("mm3" if kind == "volume" else "")
    node = Node(name, kind, unit, parents=declared.parents, intercept=declared.intercept)
    if kind == "discrete":
        levels = tuple(sorted({_level(v) for v in values.tolist()} - {""}))
        if len(levels) < 2:
            only = f"only '{levels[0]}'" if levels else "no value"
            raise UsageError(where, f"column '{name}' has {only}", "two levels or more")
        return replace(node, levels=levels)
    return replace(node, support=(float(np.nanmin(values)), float(np.nanmax(values))))


def _level(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}" if value == value else ""


def fit_scm(
    graph: CausalGraph,
    columns: Columns,
    settings: ScmFit = SCM_FIT,
    normative: Scm | None = None,
    subjects: Sequence[str] = (),
    shapes: Mapping[str, Shape] | None = None,
) -> Scm:
    """The model of these people: `columns` as in `graph`, one entry a person or visit, NaN or ''
    where a value is missing; `subjects` say whose a visit is, for resampling and folds; `shapes`
    of the flows, by node, where they are known.

    Raises UsageError when people are too few.
    """
    people = len(next(iter(columns.values())))
    who = list(subjects) or [str(i) for i in range(people)]
    designs = {node.name: design_of(node, graph, columns, settings) for node in graph.nodes}
    _refuse_few(designs, len(set(who)), normative)
    mechanisms = _fit_laws(graph, designs, columns, normative)
    if settings.mechanism == "flow":
        if shapes is None:
            shapes = _flow_shapes(graph, designs, columns, normative, settings, who)
        mechanisms = _with_flows(graph, mechanisms, columns, settings, shapes)
    members: list[dict[str, Mechanism | Categorical]] = []
    for rows in resampled(who, settings):
        drawn = {name: values[rows] for name, values in columns.items()}
        laws = _fit_laws(graph, designs, drawn, normative)
        members.append(_over(mechanisms, laws))
    return Scm(graph, mechanisms, tuple(members))


def design_of(node: Node, graph: CausalGraph, columns: Columns, settings: ScmFit) -> Design:
    """The regression of a node on its parents, with what the people fix: centres, shares, knots."""
    return Design(tuple(_term(graph.node(p), columns[p], settings) for p in node.parents))


def _term(parent: Node, values: np.ndarray, settings: ScmFit) -> Term:
    if parent.kind == "volume":
        centre = float(np.exp(np.nanmean(np.log(values))))
        return Term(parent.name, "volume", centre=centre)
    if parent.kind == "discrete":
        known = values[values != ""]
        shares = tuple(float(np.mean(known == level)) for level in parent.levels)
        return Term(
            parent.name,
            "levels",
            levels=parent.levels,
            shares=shares,
            intercept=parent.intercept,
        )
    if parent.name == AGE:
        knots = knots_within(settings.age_knots, values)
        return Term(AGE, "number", AGE_CENTRE, AGE_SCALE, knots)
    spread = float(np.std(values)) or 1.0
    return Term(parent.name, "number", float(np.mean(values)), spread, intercept=parent.intercept)


def knots_within(knots: tuple[float, ...], ages: np.ndarray) -> tuple[float, ...]:
    """The knots, clipped to the ages that there are; quantiles where fewer than three are left."""
    low, high = float(np.min(ages)), float(np.max(ages))
    inside = tuple(dict.fromkeys(float(np.clip(k, low, high)) for k in knots))
    # Two knots that are almost one make a curve that no people can tell.
    apart = all(b - a >= (high - low) / 20 for a, b in pairwise(inside))
    if len(inside) < 3 or not apart:
        inside = tuple(float(q) for q in np.quantile(ages, [0.05, 0.35, 0.65, 0.95]))
    return inside if len(set(inside)) == len(inside) else ()


def _refuse_few(designs: Mapping[str, Design], people: int, normative: Scm | None) -> None:
    widest = max(len(d.names) for d in designs.values())
    needed = FEWEST if normative is not None else max(FEWEST, FEWEST_A_COLUMN * widest)
    if people < needed:
        raise UsageError(
            "table",
            f"{people} people",
            f"at least {needed} for {widest} coefficients a region",
            "add people, or take parents out of the graph"
            + ("" if normative is not None else ", or give a normative law: --prior BUNDLE"),
        )


def _fit_laws(
    graph: CausalGraph, designs: Mapping[str, Design], columns: Columns, normative: Scm | None
) -> dict[str, Mechanism | Categorical]:
    """The mechanism of every node, linear where it is no category."""
    fitted: dict[str, Mechanism | Categorical] = {}
    for block in _blocks(graph):
        if block[0].kind == "discrete":
            node = block[0]
            fitted[node.name] = _fit_categorical(node, designs[node.name], columns)
            continue
        fitted |= _fit_block(block, designs[block[0].name], columns, normative)
    return {name: fitted[name] for name in graph.names}


def _blocks(graph: CausalGraph) -> Iterator[list[Node]]:
    """Volumes of the same parents together, every other node by itself."""
    together: dict[tuple[str, ...], list[Node]] = {}
    for node in graph.nodes:
        if node.kind == "volume" and node.name != HEAD:
            together.setdefault(node.parents, []).append(node)
        else:
            yield [node]
    yield from together.values()


def _fit_block(
    nodes: list[Node], design: Design, columns: Columns, normative: Scm | None
) -> dict[str, Mechanism]:
    volumes = nodes[0].kind == "volume"
    parents = {t.parent: _imputed(t, columns[t.parent]) for t in design.terms}
    y = np.stack([columns[n.name] for n in nodes], 1).astype(np.float64)
    y = np.log(y) if volumes else y
    phi = design.matrix(parents, len(y))
    z = phi[:, np.array(design.spreading)]
    fit = fit_regressions(phi, z, y, prior_of(nodes, design, parents, normative))
    return {
        n.name: Linear(design, fit.beta[k], fit.gamma[k], float(fit.sigma[k]), volumes)
        for k, n in enumerate(nodes)
    }


def _imputed(term: Term, values: np.ndarray) -> np.ndarray:
    """Unknown volumes of a parent as their geometric mean; unknown levels act as the average."""
    if term.kind == "volume":
        return np.where(np.isnan(values), term.centre, values)
    return values


def _fit_categorical(node: Node, design: Design, columns: Columns) -> Categorical:
    """Multinomial logistic regression with a slight ridge, of the people whose level is known."""
    values = columns[node.name]
    known = values != ""
    parents = {t.parent: _imputed(t, columns[t.parent])[known] for t in design.terms}
    phi = design.matrix(parents, int(known.sum()))
    place = level_numbers(values[known], node.levels)
    chosen = np.eye(len(node.levels))[place]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W = flat.reshape(len(node.levels), -1)
        logits = phi @ W.T
        total = logsumexp(logits, axis=1, keepdims=True)
        value = float((total[:, 0] - (logits * chosen).sum(1)).sum())
        slope = (np.exp(logits - total) - chosen).T @ phi
        penalised = W.copy()
        penalised[:, 0] = 0
        value += LOGIT_RIDGE * float((penalised**2).sum()) / 2
        return value, (slope + LOGIT_RIDGE * penalised).ravel()

    counts = Counter(place.tolist())
    start = np.zeros((len(node.levels), phi.shape[1]))
    start[:, 0] = np.log([counts[i] / len(place) for i in range(len(node.levels))])
    if phi.shape[1] == 1:
        return Categorical(design, node.levels, start)
    result = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B")
    return Categorical(design, node.levels, result.x.reshape(start.shape))


def _flow_shapes(
    graph: CausalGraph,
    designs: Mapping[str, Design],
    columns: Columns,
    normative: Scm | None,
    settings: ScmFit,
    who: Sequence[str],
) -> dict[str, Shape]:
    """The flow of every node that helps people of other folds."""
    fold = folds_of(who, settings)
    laws = []
    for k in range(settings.folds):
        rest = {name: values[fold != k] for name, values in columns.items()}
        laws.append(_fit_laws(graph, designs, rest, normative))
    shapes = {}
    for node in graph.nodes:
        if node.kind == "discrete":
            continue
        curves: dict[bool, list[np.ndarray]] = {False: [], True: []}
        for follows, k in product(curves, range(settings.folds)):
            law, shape = _law(laws[k][node.name]), Shape(STEPS, follows)
            inner, outer = (
                _residuals(law, node, columns, rows, shape) for rows in (fold != k, fold == k)
            )
            net = new_net(context_width(law.design), settings.seed, node.name)
            curves[follows].append(train_flow(net, inner, STEPS, outer))
        there = ~np.isnan(columns[node.name])
        people = [int((there & (fold == k)).sum()) for k in range(settings.folds)]
        shapes[node.name] = best_shape(curves[False], curves[True], people)
        log.info("flow of %s: %s", node.name, shapes[node.name])
    return shapes


def _with_flows(
    graph: CausalGraph,
    laws: Mapping[str, Mechanism | Categorical],
    columns: Columns,
    settings: ScmFit,
    shapes: Mapping[str, Shape],
) -> dict[str, Mechanism | Categorical]:
    """A flow over every linear law."""
    everybody = np.ones(len(next(iter(columns.values()))), bool)
    fitted = dict(laws)
    for node in graph.nodes:
        if node.kind == "discrete":
            continue
        law = _law(laws[node.name])
        net = new_net(context_width(law.design), settings.seed, node.name)
        shape = shapes[node.name]
        train_flow(net, _residuals(law, node, columns, everybody, shape), shape.steps)
        fitted[node.name] = Flow(law, net, shape)
    return fitted


def _law(mechanism: Mechanism | Categorical) -> Linear:
    assert not isinstance(mechanism, Categorical)
    return mechanism.base


def _over(
    mechanisms: Mapping[str, Mechanism | Categorical], laws: Mapping[str, Mechanism | Categorical]
) -> dict[str, Mechanism | Categorical]:
    """The mechanisms of numbers and volumes over other laws."""
    return {
        name: mechanism.on(_law(laws[name]))
        for name, mechanism in mechanisms.items()
        if not isinstance(mechanism, Categorical)
    }


def _residuals(
    law: Linear, node: Node, columns: Columns, rows: np.ndarray, shape: Shape
) -> Residuals:
    rows = rows & ~np.isnan(columns[node.name])
    parents = {t.parent: _imputed(t, columns[t.parent])[rows] for t in law.design.terms}
    e = law.abduct(columns[node.name][rows], parents)
    return Residuals(torch.from_numpy(e), context_of(law.design, parents, len(e), shape))


def folds_of(subjects: Sequence[str], settings: ScmFit) -> np.ndarray:
    """The fold (n,) of every row, the same for all visits of a person."""
    people = sorted(set(subjects))
    order = stream(settings.seed, Purpose.RESAMPLING, "folds").permutation(len(people))
    fold = {people[p]: i % settings.folds for i, p in enumerate(order)}
    return np.array([fold[s] for s in subjects])


def resampled(subjects: Sequence[str], settings: ScmFit) -> Iterator[np.ndarray]:
    """Rows (m,) of people drawn again with replacement, all visits of a person together; one array
    a member."""
    people = sorted(set(subjects))
    rows: dict[str, list[int]] = {}
    for i, s in enumerate(subjects):
        rows.setdefault(s, []).append(i)
    for member in range(settings.members):
        draw = stream(settings.seed, Purpose.RESAMPLING, member)
        chosen = draw.integers(len(people), size=len(people))
        yield np.array([i for c in chosen for i in rows[people[c]]])
