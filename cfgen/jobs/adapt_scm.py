"""Move a bundle's causal model to people measured elsewhere, of whom there are few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfgen.bundle import Bundle, copy_bundle, read_bundle, write_part
from cfgen.causal.adaptation import adapt_scm
from cfgen.causal.scm import PART, Scm, load_scm
from cfgen.config import FEWEST_SCANS
from cfgen.data.cohort_table import CohortTable, read_cohort_table, train_rows
from cfgen.data.volume import refuse_existing
from cfgen.errors import ManifestError

# The split that the law is not moved by.
VAL = "val"


@dataclass(frozen=True)
class MovedLaw:
    """`shifts` by how much a region's volume is larger than the parent's law says, as a ratio less
    1; `held_out` the mean log density of a volume of people of split val, by the parent's law and
    by the moved one, None without such people."""

    bundle: Bundle
    people: int
    shifts: dict[str, float]
    held_out: tuple[float, float] | None

    def text(self) -> str:
        lines = [f"{self.people} people; volumes beside the parent's law:"]
        lines += [f"  {name:28}{100 * shift:+7.1f} %" for name, shift in self.shifts.items()]
        if self.held_out is not None:
            before, after = self.held_out
            lines.append(f"log density of a volume of split val: {before:.3f}, now {after:.3f}")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle.path),
            "people": self.people,
            "shifts": self.shifts,
            "held_out": self.held_out,
        }


def move_law(
    table: Path,
    volumes: Path | None,
    parent: Path,
    source: Path,
    out: Path,
    *,
    overwrite: bool = False,
) -> MovedLaw:
    """The bundle `source` in a new folder with the law of `parent`, moved (causal/adaptation.py).

    Raises ManifestError for too few people and for a number that the law needs and the table does
    not have, UsageError for a level that the law does not know, BundleError where the parent has no
    causal model.
    """
    refuse_existing(out / "bundle.json", overwrite)
    people = check_few(table, volumes, parent)
    law = load_scm(read_bundle(parent))
    whole = read_cohort_table(table, volumes)
    moved, by = adapt_scm(law, _columns(train_rows(whole), law))
    shifts = {name: math.expm1(_sigma(law, name) * spreads) for name, spreads in by.items()}
    split = whole.columns.get("split")
    held_out = None
    if split is not None and (split == VAL).any():
        columns = _columns(whole.rows(split == VAL), law)
        held_out = _log_density(law, columns, list(by)), _log_density(moved, columns, list(by))
    tensors, config = moved.to_tensors()
    trained = {"people": people, "from": read_bundle(parent).part(PART).trained}
    written = write_part(copy_bundle(read_bundle(source), out), PART, tensors, config, trained)
    return MovedLaw(written, people, shifts, held_out)


def check_few(table: Path, volumes: Path | None, parent: Path) -> int:
    """How many people there are to learn from. Raises as `move_law`."""
    law = load_scm(read_bundle(parent))
    few = train_rows(read_cohort_table(table, volumes))
    people = len(set(few.subjects))
    if people < FEWEST_SCANS["none"]:
        least = f"at least {FEWEST_SCANS['none']}"
        raise ManifestError(table, f"{people} people to learn from", least)
    _columns(few, law)
    return people


def _sigma(law: Scm, name: str) -> float:
    mechanism = law.mechanisms[name]
    return mechanism.base.sigma  # type: ignore[union-attr]


def _columns(table: CohortTable, law: Scm) -> dict[str, np.ndarray]:
    """What the law knows of the table. Raises ManifestError for a number that is missing, by
    line."""
    columns = {}
    for node in law.graph.nodes:
        if node.name not in table.columns:
            if node.kind == "continuous":
                raise ManifestError(table.path, f"no column {node.name}", "what the law knows")
            continue
        values = table.columns[node.name]
        gone = table.missing(node.name)
        if node.kind == "continuous" and gone:
            raise ManifestError(f"{gone[0]} column {node.name}", "missing", "a number")
        if node.kind == "discrete" and values.dtype.kind == "f":
            values = np.array([f"{x:g}" if x == x else "" for x in values])
        columns[node.name] = values
    if not any(node.kind == "volume" and node.name in columns for node in law.graph.nodes):
        raise ManifestError(table.path, "has no volume that the law knows", "its regions' names")
    return columns


def _log_density(law: Scm, columns: dict[str, np.ndarray], names: list[str]) -> float:
    acting = law.acting(columns)
    found = [law.mechanisms[name].log_density(columns[name], acting) for name in names]
    return float(np.nanmean(np.stack(found)))
