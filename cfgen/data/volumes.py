"""Volumes of structures, and what they add up to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cfgen.data.regions import FLUID
from cfgen.data.schema import NUMBER, VOLUME_UNIT
from cfgen.data.table import Table
from cfgen.errors import ManifestError


@dataclass(frozen=True)
class RegionVolume:
    """Volume of a structure by counting labels and by summing probabilities, where there are any;
    `side` is left, right or both."""

    structure: str
    side: str
    hard_mm3: float
    soft_mm3: float | None


def read_region_volume(table: Table, line: int, cells: Mapping[str, str]) -> RegionVolume:
    """A line of a table as `segment --volumes` writes it. Raises ManifestError."""
    where = f"{table.path.name}:{line} column"
    values: dict[str, float | None] = {}
    for column in ("volume_mm3", "soft_volume_mm3"):
        text = table.cell(cells, column)
        if text and not (NUMBER.fullmatch(text) and float(text) >= 0):
            raise ManifestError(f"{where} {column}", f"'{text}'", VOLUME_UNIT)
        values[column] = float(text) if text else None
    hard = values["volume_mm3"]
    if hard is None:
        raise ManifestError(f"{where} volume_mm3", "missing", VOLUME_UNIT)
    side = table.cell(cells, "side") or "both"
    return RegionVolume(table.cell(cells, "structure"), side, hard, values["soft_volume_mm3"])


def totals(volumes: Sequence[RegionVolume]) -> list[RegionVolume]:
    """'brain', the tissue, and 'tiv', all inside the skull."""
    out = []
    tissue = [v for v in volumes if v.structure not in FLUID]
    for name, parts in (("brain", tissue), ("tiv", volumes)):
        soft = [v.soft_mm3 for v in parts if v.soft_mm3 is not None]
        hard = sum(v.hard_mm3 for v in parts)
        out.append(RegionVolume(name, "both", hard, sum(soft) if soft else None))
    return out


def sums(volumes: Iterable[RegionVolume]) -> dict[tuple[str, str], float]:
    """Summed probabilities in mm3 (counts where there are none) by structure and side; the sum of
    two sides, and that of the lobes as 'cortex', under 'both'."""
    out: dict[tuple[str, str], float] = {}
    for v in volumes:
        value = v.hard_mm3 if v.soft_mm3 is None else v.soft_mm3
        names = {v.structure, "cortex" if v.structure.startswith("cortex_") else v.structure}
        for key in itertools.product(names, {v.side, "both"}):
            out[key] = out.get(key, 0.0) + value
    return out
