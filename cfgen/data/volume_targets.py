"""Volumes that regions are to have: from a table in mm3, or as changes like 'hippocampus=-10%'."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cfgen.data.interventions import Change, read_change, split_assignment
from cfgen.data.parcellation import SIDES, region_text
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.schema import VOLUME_UNIT, Schema, Variable
from cfgen.data.table import read_table, refuse
from cfgen.data.volume_columns import HEAD, PLAUSIBLE, REGIONS
from cfgen.data.volumes import read_region_volume
from cfgen.errors import ManifestError, UsageError

# Sums, and what the others leave: lines of `cfgen segment --volumes` that are no targets.
FOLLOWING = ("csf", "brain", HEAD)
STRUCTURES = tuple(n for n in REGIONS if n not in FOLLOWING)


def parse_region(text: str, where: object) -> Region:
    """'hippocampus' (both sides), 'left hippocampus' or 'left_hippocampus'. Raises UsageError.

    >>> parse_region("left hippocampus", "--set")
    ('hippocampus', 'left')
    """
    side, _, structure = re.sub(r"[\s_]+", "_", text.strip().lower()).partition("_")
    if side not in ("left", "right"):
        side, structure = "both", re.sub(r"\s+", "_", text.strip().lower())
    if structure not in STRUCTURES:
        follows = structure in FOLLOWING
        raise UsageError(
            where,
            f"'{structure}' follows from the others" if follows else f"no region '{text}'",
            "one of " + ", ".join(STRUCTURES),
            "'left' or 'right' may stand before it",
        )
    return structure, side


def parse_changes(texts: Sequence[str]) -> dict[Region, Change]:
    """'hippocampus=-10%', 'left hippocampus=+120' or 'third_ventricle=900', mm3, by region. Raises
    UsageError."""
    changes: dict[Region, Change] = {}
    for text in texts:
        where = f"--set {text}"
        name, value = split_assignment(text, where)
        region = parse_region(name, where)
        if region in changes:
            raise UsageError("--set", f"{region_text(region)} twice", "it once")
        volume = Variable(region_text(region), "continuous", VOLUME_UNIT, low=0.0)
        changes[region] = read_change(Schema((volume,)), volume.name, value, where)
    return changes


@dataclass(frozen=True)
class VolumeTable:
    """Target volumes (mm3) by (subject, session), both '' where the table has no such column, and
    the structures whose lines were left out, since they follow from the others."""

    path: Path
    volumes: Mapping[tuple[str, str], Mapping[Region, float]]
    left_out: tuple[str, ...]

    def of(self, subject: str, session: str) -> Mapping[Region, float]:
        """Those of one scan; of all scans where the table names none. Raises ManifestError."""
        for key in ((subject, session), (subject, ""), ("", "")):
            if key in self.volumes:
                return self.volumes[key]
        who = f"{subject} {session}".strip()
        raise ManifestError(self.path, f"has no line of '{who}'", "target volumes of every scan")


def read_volume_table(path: Path) -> VolumeTable:
    """A table with the columns structure, side (or none: both), volume_mm3 and, for many scans,
    subject and session: as `cfgen segment --volumes` writes it.

    Raises ManifestError with every fault as 'file:line column ...'.
    """
    table = read_table(path)
    missing = [c for c in ("structure", "volume_mm3") if table.column(c) is None]
    if missing:
        raise ManifestError(
            path,
            f"no column {' and '.join(missing)}; found {', '.join(table.columns)}",
            "structure, side, volume_mm3",
        )
    faults: list[str] = []
    left_out: dict[str, None] = {}
    volumes: dict[tuple[str, str], dict[Region, float]] = {}
    for line, cells in table.lines:
        where = f"{path.name}:{line}"
        structure = table.cell(cells, "structure")
        if structure in FOLLOWING:
            left_out[structure] = None
            continue
        try:
            volume = read_region_volume(table, line, cells)
        except ManifestError as error:
            faults.append(str(error))
            continue
        side, mm3 = volume.side.lower(), volume.hard_mm3
        if structure not in STRUCTURES:
            near = get_close_matches(structure.lower(), STRUCTURES, 1)
            meant = f", did you mean {near[0]}?" if near else ""
            faults.append(f"{where} column structure: '{structure}'; expected a region{meant}")
        elif side not in SIDES:
            faults.append(f"{where} column side: '{side}'; expected left, right or both")
        elif mm3 == 0:
            faults.append(f"{where} column volume_mm3: '0'; expected mm3 above 0")
        else:
            key = (table.cell(cells, "subject"), table.cell(cells, "session"))
            own = volumes.setdefault(key, {})
            if (structure, side) in own:
                faults.append(f"{where}: {side} {structure} twice; expected it once")
            own[structure, side] = mm3
    refuse(path, faults)
    if not volumes:
        only = f": {', '.join(left_out)} follow from others" if left_out else ""
        raise ManifestError(path, f"has no target{only}", "one of " + ", ".join(STRUCTURES))
    return VolumeTable(path, volumes, tuple(left_out))


def refuse_ml(
    where: object, targets: Mapping[Region, float], volumes: Mapping[Region, float]
) -> None:
    """Raises UsageError for a target (mm3) that is a volume only if it is meant in mL."""
    for region, mm3 in targets.items():
        now = volumes.get(region, 0.0)
        if now / PLAUSIBLE < 1000 * mm3 < now * PLAUSIBLE:
            raise UsageError(
                where,
                f"{mm3:g} for {region_text(region)}, now {now:g}, looks like mL",
                "mm3",
                "write it 1000 times larger if that is what it is",
            )
