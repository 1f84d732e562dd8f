"""The causal graph: what is a cause of what, in the order in which it can be worked out.

A file or the default says who has which parents (`Sketch`, `graph_files.py`); a table says what
the variables are. A node named `volumes` stands for every region volume of the table that the
sketch does not name. Head size (`tiv`), where there is one, is a parent of every volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, get_args

from cfgen.data.volume_columns import HEAD
from cfgen.errors import UsageError

Kind = Literal["continuous", "discrete", "volume"]
KINDS = get_args(Kind)
AGE = "age"
EVERY_VOLUME = "volumes"


@dataclass(frozen=True)
class Declared:
    """A variable of a graph file. `kind` None: as the table has it. `optional`: left out where the
    table has no such column. `intercept`: acts the same at any age, as a scanner does."""

    parents: tuple[str, ...] = ()
    kind: Kind | None = None
    unit: str = ""
    optional: bool = False
    intercept: bool = False


@dataclass(frozen=True)
class Sketch:
    """A graph as a file has it: name -> declaration. `where` is the file."""

    nodes: Mapping[str, Declared]
    where: str = "graph"


@dataclass(frozen=True)
class Node:
    """One variable. `levels` of a discrete one; `support`, the lowest and highest in training, of a
    number or volume (mm3)."""

    name: str
    kind: Kind
    unit: str = ""
    levels: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    support: tuple[float, float] | None = None
    intercept: bool = False


@dataclass(frozen=True)
class CausalGraph:
    """Nodes, every one after its parents."""

    nodes: tuple[Node, ...] = field(default=())

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.nodes]

    def node(self, name: str, where: object = "causal graph") -> Node:
        """Raises UsageError, which lists the names, when there is no such node."""
        for node in self.nodes:
            if node.name == name:
                return node
        near = get_close_matches(name, self.names, 1)
        hint = f"did you mean '{near[0]}'?" if near else ""
        raise UsageError(where, f"unknown variable '{name}'", ", ".join(self.names), hint)

    def descendants(self, names: Iterable[str]) -> set[str]:
        """What changes with the named nodes, themselves left out."""
        changed, out = set(names), set()
        for node in self.nodes:
            if node.name not in changed and changed & set(node.parents):
                changed.add(node.name)
                out.add(node.name)
        return out


def spread_out(sketch: Sketch, volumes: Iterable[str], columns: Iterable[str]) -> Sketch:
    """The sketch for a table: `volumes` in place of the node of that name, optional nodes without a
    column left out, head size a parent of every volume.

    `volumes` are the region volumes of the table, `columns` all that it has. Raises UsageError for
    unknown parents, columns that are missing, and cycles.
    """
    there, regions = set(columns), [v for v in volumes if v not in sketch.nodes]
    nodes = dict(sketch.nodes)
    every = nodes.pop(EVERY_VOLUME, None)
    if every is not None:
        nodes |= {v: Declared(every.parents, "volume", "mm3") for v in regions if v != HEAD}
    gone = {n for n, d in nodes.items() if d.optional and n not in there}
    nodes = {n: d for n, d in nodes.items() if n not in gone}
    out: dict[str, Declared] = {}
    known = set(volumes) | {HEAD}
    for name, declared in nodes.items():
        parents = [p for p in declared.parents if p not in gone]
        if every is not None and EVERY_VOLUME in parents:
            raise UsageError(
                sketch.where,
                f"'{EVERY_VOLUME}' is a parent of '{name}'",
                "parents that are single variables",
                "name the volumes that are causes",
            )
        kind = declared.kind or ("volume" if name in known else None)
        if kind == "volume" and name != HEAD and HEAD in nodes and HEAD not in parents:
            parents.append(HEAD)
        out[name] = Declared(tuple(parents), kind, declared.unit, False, declared.intercept)
    _refuse_unknown(out, sketch.where)
    missing = [n for n in out if n not in there]
    if missing:
        expected = f"columns of the table: {', '.join(sorted(there))}"
        fix = "add the column, or leave the node out of the graph (optional = true)"
        raise UsageError(sketch.where, f"no column for {', '.join(missing)}", expected, fix)
    ordered = in_order({n: d.parents for n, d in out.items()}, sketch.where)
    return Sketch({n: out[n] for n in ordered}, sketch.where)


def _refuse_unknown(nodes: Mapping[str, Declared], where: str) -> None:
    for name, declared in nodes.items():
        unknown = [p for p in declared.parents if p not in nodes]
        if unknown:
            near = get_close_matches(unknown[0], nodes, 1)
            raise UsageError(
                where,
                f"'{name}' has an unknown parent '{unknown[0]}'",
                f"one of {', '.join(nodes)}",
                f"did you mean '{near[0]}'?" if near else "",
            )


def in_order(parents: Mapping[str, tuple[str, ...]], where: str = "graph") -> list[str]:
    """Every name after its parents, otherwise as given. Raises UsageError, which prints the cycle,
    when there is one."""
    order: list[str] = []
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in open_:
            # From child back to parent, so turned round it reads as the arrows do.
            cycle = [*open_[open_.index(name) :], name][::-1]
            raise UsageError(
                where, f"has a cycle: {' -> '.join(cycle)}", "no variable that causes itself"
            )
        open_.append(name)
        for parent in parents[name]:
            visit(parent)
        open_.pop()
        order.append(name)

    for name in parents:
        visit(name)
    return order
