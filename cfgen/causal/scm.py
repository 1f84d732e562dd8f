"""The structural causal model: a graph, a mechanism a node, and counterfactuals in three steps.

Abduct: from what is observed, the noise of every node. Act: what is set loses its parents. Predict:
the same noise, node by node in the graph's order (Pearl 2009, section 7.1; Pawlowski et al. 2020).
Volumes are mm3, ages years, arrays have one entry a person.

What is unknown of a person is '' for a category: the average over its levels acts. It is NaN for a
volume: it has no answer itself, and acts through its median given its parents. A column that is
left out is unknown for everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfgen.bundle import Bundle, tuples
from cfgen.causal.causal_graph import CausalGraph, Node
from cfgen.causal.design import Columns, Design, Term
from cfgen.causal.flows import Flow, Shape, context_width, net_arrays, net_of_arrays
from cfgen.causal.mechanisms import Categorical, Linear, Mechanism
from cfgen.config import SEED
from cfgen.errors import UsageError
from cfgen.streams import Purpose, stream

PART = "scm"
# What is fitted of a linear law; members differ in these.
LAW = ("beta", "gamma", "sigma")
Mechanisms = Mapping[str, Mechanism | Categorical]


@dataclass(frozen=True, eq=False)
class Scm:
    """`members` are the same mechanisms fitted to resampled people: how sure the law is."""

    graph: CausalGraph
    mechanisms: Mechanisms
    members: tuple[Mechanisms, ...] = ()

    def member(self, number: int) -> Scm:
        """The model of one member, with the same graph."""
        return Scm(self.graph, {**self.mechanisms, **self.members[number]})

    def ensemble(self) -> list[Scm]:
        """A model a member."""
        return [self.member(number) for number in range(len(self.members))]

    def abduct(self, observed: Columns) -> dict[str, np.ndarray]:
        """The exogenous noise by node: (n,) of numbers and volumes, Gumbel noise (n, levels) of
        categories, NaN where a value is unknown.

        The noise of a category is drawn, for each person by their place. Raises UsageError for a
        number that is missing, a volume that is not above zero, and a level that training did not
        have.
        """
        acting = self.acting(observed)
        people = _people(observed)
        noise: dict[str, np.ndarray] = {}
        for node in self.graph.nodes:
            mechanism = self.mechanisms[node.name]
            value = _column(node, observed, people)
            if isinstance(mechanism, Categorical):
                uniforms = _uniforms(node, people)
                noise[node.name] = mechanism.abduct(value, acting, uniforms)
            else:
                noise[node.name] = mechanism.abduct(value, acting)
        return noise

    def acting(self, observed: Columns) -> dict[str, np.ndarray]:
        """What acts on the children of every node: what is observed, and where a volume is unknown
        its median given its parents."""
        people = _people(observed)
        values: dict[str, np.ndarray] = {}
        for node in self.graph.nodes:
            value = _column(node, observed, people)
            values[node.name] = self._filled(node, value, values)
        return values

    def predict(self, noise: Mapping[str, np.ndarray], do: Columns) -> dict[str, np.ndarray]:
        """The values that this noise has where the nodes of `do` are set and cut off from their
        parents. Raises UsageError for an unknown node in `do`, or as `abduct` of its values."""
        for name in do:
            self.graph.node(name, "intervention")
        people = len(next(iter(noise.values())))
        values: dict[str, np.ndarray] = {}
        acting: dict[str, np.ndarray] = {}
        for node in self.graph.nodes:
            if node.name in do:
                given = np.broadcast_to(np.asarray(do[node.name]), (people,))
                value = _column(node, {node.name: given}, people)
            else:
                value = self.mechanisms[node.name].predict(noise[node.name], acting)
            values[node.name] = value
            acting[node.name] = self._filled(node, value, acting)
        return values

    def counterfactual(self, observed: Columns, do: Columns) -> dict[str, np.ndarray]:
        """Abduct, act, predict. With `do` that changes nothing, what was observed.

        Raises UsageError as `abduct` and `predict` do.
        """
        return self.predict(self.abduct(observed), do)

    def _filled(self, node: Node, value: np.ndarray, parents: Columns) -> np.ndarray:
        """Unknown volumes at their median given the parents."""
        if node.kind == "discrete" or not np.isnan(value).any():
            return value
        median = self.mechanisms[node.name].predict(np.zeros(len(value)), parents)
        return np.where(np.isnan(value), median, value)

    def equations(self) -> list[str]:
        """A line a node, in the graph's order."""
        return [self.mechanisms[node.name].equation(node.name) for node in self.graph.nodes]

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the part `scm` of a bundle holds: tensors, and a configuration of plain JSON."""
        arrays: dict[str, np.ndarray] = {}
        entries: list[dict[str, Any]] = []
        designs: list[Design] = []
        for number, node in enumerate(self.graph.nodes):
            mechanism = self.mechanisms[node.name]
            kind, own = _arrays(mechanism)
            if self.members and node.name in self.members[0]:
                stacks = [_arrays(member[node.name])[1] for member in self.members]
                own |= {
                    f"members.{k}": np.stack([s[k] for s in stacks]).astype(np.float32) for k in LAW
                }
            arrays |= {f"{number}.{node.name}.{key}": a for key, a in own.items()}
            design = _design(mechanism)
            designs += [] if design in designs else [design]
            entry = {"mechanism": kind, "design": designs.index(design)}
            entry |= {"shape": asdict(mechanism.shape)} if isinstance(mechanism, Flow) else {}
            entries.append({"node": asdict(node), **entry})
        tensors = {k: torch.from_numpy(np.array(a)) for k, a in arrays.items()}
        terms = [[asdict(t) for t in design.terms] for design in designs]
        return tensors, {"nodes": entries, "designs": terms, "members": len(self.members)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Scm:
        """The inverse. Raises KeyError, TypeError, ValueError or RuntimeError when the two do not
        fit each other."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        nodes, mechanisms = [], {}
        members: list[dict[str, Mechanism | Categorical]] = [{} for _ in range(config["members"])]
        designs = [Design(tuple(Term(**tuples(t)) for t in terms)) for terms in config["designs"]]
        for number, entry in enumerate(config["nodes"]):
            node, design = Node(**tuples(entry["node"])), designs[entry["design"]]
            own = _under(f"{number}.{node.name}.", arrays)
            mechanism = _mechanism(entry, node, design, own)
            nodes.append(node)
            mechanisms[node.name] = mechanism
            for i, member in enumerate(members):
                if "members.beta" in own:
                    law = {k: own[f"members.{k}"][i] for k in LAW}
                    member[node.name] = _mechanism(entry, node, design, own | law)
        return Scm(CausalGraph(tuple(nodes)), mechanisms, tuple(members))


def load_scm(bundle: Bundle) -> Scm:
    """The causal model of a bundle. Raises BundleError when it is missing or damaged."""
    config = bundle.part(PART).config
    tensors = bundle.tensors(PART)
    with bundle.fitting(PART):
        return Scm.from_tensors(tensors, config)


def _design(mechanism: Mechanism | Categorical) -> Design:
    return (mechanism if isinstance(mechanism, Categorical) else mechanism.base).design


def _arrays(mechanism: Mechanism | Categorical) -> tuple[str, dict[str, np.ndarray]]:
    if isinstance(mechanism, Categorical):
        return "gumbel", {"logits": mechanism.logits}
    law = mechanism.base
    own = {"beta": law.beta, "gamma": law.gamma, "sigma": np.array(law.sigma)}
    if mechanism is law:
        return "linear", own
    assert isinstance(mechanism, Flow)
    return "flow", own | {f"net.{k}": np.asarray(a) for k, a in net_arrays(mechanism.net).items()}


def _mechanism(
    entry: Mapping[str, Any], node: Node, design: Design, own: Mapping[str, np.ndarray]
) -> Mechanism | Categorical:
    kind = entry["mechanism"]
    if kind == "gumbel":
        return Categorical(design, node.levels, own["logits"])
    law = Linear(
        design,
        own["beta"].astype(np.float64),
        own["gamma"].astype(np.float64),
        float(own["sigma"]),
        node.kind == "volume",
    )
    if kind == "linear":
        return law
    if kind != "flow":
        raise ValueError(f"mechanism '{kind}'")
    net = net_of_arrays(context_width(design), _under("net.", own))
    return Flow(law, net, Shape(**entry["shape"]))


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, without it."""
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _people(observed: Columns) -> int:
    if not observed:
        raise UsageError("observed", "no columns", "what is known of at least one person")
    return len(next(iter(observed.values())))


def _column(node: Node, columns: Columns, people: int) -> np.ndarray:
    """The values of a node, checked; unknown where the column is left out."""
    if node.kind == "discrete":
        if node.name not in columns:
            return np.full(people, "")
        value = np.asarray(columns[node.name]).astype(str)
        unknown = sorted(set(value.tolist()) - {"", *node.levels})
        if unknown:
            found = f"'{unknown[0]}' was not in training"
            raise UsageError(node.name, found, f"one of {', '.join(node.levels)}")
        return value
    if node.name not in columns:
        value = np.full(people, np.nan)
    else:
        value = np.asarray(columns[node.name], dtype=np.float64)
    if node.kind == "continuous" and not np.isfinite(value).all():
        raise UsageError(node.name, "is missing", f"a number of {node.unit or 'its unit'}")
    if node.kind == "volume" and (value <= 0).any():
        raise UsageError(node.name, f"{np.nanmin(value):g} mm3", "a volume above zero")
    return value


def _uniforms(node: Node, people: int) -> np.ndarray:
    """Numbers in (0, 1) (n, L), a person's whoever else is there."""
    draws = [
        stream(SEED, Purpose.GUMBEL, node.name, number).random(len(node.levels))
        for number in range(people)
    ]
    return np.clip(np.array(draws).reshape(people, len(node.levels)), 1e-12, 1 - 1e-12)
