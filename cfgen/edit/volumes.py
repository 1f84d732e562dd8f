"""What the causal model says of one scan: the volume that every region is to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfgen.causal.causal_graph import AGE
from cfgen.causal.centiles import CentileRecord, compare
from cfgen.causal.design import Columns
from cfgen.causal.rates import MEANING
from cfgen.causal.scm import Scm
from cfgen.causal.worlds import column, counterfactual, keeping_head, outside, volume_names
from cfgen.config import Rates
from cfgen.data.conditions import Values
from cfgen.data.volume_columns import HEAD
from cfgen.data.volumes import RegionVolume, sums
from cfgen.errors import Notice

# What the flow of tissue leaves to make room.
FLUID_AROUND = "csf"
# The structure whose centiles the page and the sidecar speak of.
SPOKEN_OF = "lateral_ventricle"


@dataclass(frozen=True)
class Law:
    """How volumes follow from conditions: the causal model, at which rates of ageing. With
    `scale_head` the head itself follows too; else it keeps its size."""

    scm: Scm
    rates: Rates
    scale_head: bool = False

    @property
    def meaning(self) -> str:
        return MEANING[self.rates]


@dataclass(frozen=True)
class World:
    """One counterfactual of one scan. `volumes` (mm3) by structure, both sides together, with
    `tiv`; `changes` are logarithms of counterfactual over factual volumes, of what is to move."""

    volumes: dict[str, float]
    changes: dict[str, float]
    centile: CentileRecord | None
    notices: list[Notice]

    @property
    def within_head(self) -> dict[str, float]:
        """The changes that are left once the head has been scaled."""
        head = self.changes.get(HEAD, 0.0)
        return {name: change - head for name, change in self.changes.items() if name != HEAD}

    @property
    def head_scale(self) -> float:
        """Of lengths: 1 where the head keeps its size."""
        return float(np.exp(self.changes.get(HEAD, 0.0) / 3))


def volumes_by_structure(volumes: Sequence[RegionVolume]) -> dict[str, float]:
    """mm3 of both sides together, and `tiv`, as the causal model names them."""
    return {name: value for (name, side), value in sums(volumes).items() if side == "both"}


def both_sides(volumes: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """mm3 by structure of a map's regions by side, and `tiv`, all of them together."""
    out: dict[str, float] = {}
    for (structure, _), mm3 in volumes.items():
        out[structure] = out.get(structure, 0.0) + mm3
    return out | {HEAD: sum(volumes.values())}


def world(law: Law, factual: Values, target: Values, member: int | None = None) -> World:
    """Abduct, act, predict. `factual` and `target` hold conditions and volumes (mm3); volumes of
    the target that differ are set, and keep what they are set to.

    `member` is one of the laws fitted to resampled people. Raises UsageError where the model can't
    take a value.
    """
    scm = law.scm if member is None else law.scm.member(member)
    observed: Columns = {
        n: column(scm.graph, n, [factual]) for n in scm.graph.names if n in factual
    }
    do: Columns = {n: column(scm.graph, n, [target]) for n in observed if target[n] != factual[n]}
    if not law.scale_head:
        observed, do = keeping_head(scm, observed, do)
    after = counterfactual(scm, observed, do, law.rates)
    volumes = {n: float(after[n][0]) for n in volume_names(scm.graph) if n in factual}
    changes = {n: float(np.log(v / float(factual[n]))) for n, v in volumes.items()}
    changes.pop(FLUID_AROUND, None)
    # Of conditions the schema says it.
    strange = outside(scm.graph, {n: after[n] for n in volumes}, 0)
    notices = [Notice("volume-support", f"beyond what the causal model saw: {t}") for t in strange]
    return World(volumes, changes, _centile(factual, {**target, **volumes}), notices)


def _centile(factual: Values, target: Values) -> CentileRecord | None:
    if AGE not in factual or SPOKEN_OF not in factual:
        return None
    return compare(SPOKEN_OF, factual, target)
