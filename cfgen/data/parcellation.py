"""What cfgen's own segmenter tells apart, and how label maps of other tables are read as that.

Classes have no side: the segmenter gives the side of a voxel by itself. A label of another table is
a set of classes: FreeSurfer's 'cerebral cortex' may be any lobe, DLMUSE's 0 may be air or scalp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from cfgen.data.regions import LOBES, Region, table


@dataclass(frozen=True)
class Structure:
    """A class of the segmenter: its region group (`data/regions.py`) and the codes it is written
    with, left and right; one code for both where there is no side."""

    name: str
    group: str
    left: int
    right: int


_BASAL_GANGLIA = ("caudate", "putamen", "pallidum", "accumbens")
# FreeSurfer's codes; the lobes of the cortex, which it has none for, are 1901 and 2901 onwards.
STRUCTURES = (
    Structure("background", "background", 0, 0),
    Structure("head", "head", 516, 516),
    Structure("csf", "csf", 24, 24),
    Structure("lateral_ventricle", "lateral_ventricle", 4, 43),
    Structure("inferior_lateral_ventricle", "inferior_lateral_ventricle", 5, 44),
    Structure("third_ventricle", "third_ventricle", 14, 14),
    Structure("fourth_ventricle", "fourth_ventricle", 15, 15),
    Structure("hippocampus", "hippocampus", 17, 53),
    Structure("amygdala", "amygdala", 18, 54),
    Structure("thalamus", "thalamus", 10, 49),
    Structure("caudate", "basal_ganglia", 11, 50),
    Structure("putamen", "basal_ganglia", 12, 51),
    Structure("pallidum", "basal_ganglia", 13, 52),
    Structure("accumbens", "basal_ganglia", 26, 58),
    Structure("other_brain", "other_brain", 28, 60),
    Structure("brainstem", "brainstem", 16, 16),
    Structure("cerebellum_gm", "cerebellum_gm", 8, 47),
    Structure("cerebellum_wm", "cerebellum_wm", 7, 46),
    Structure("cerebral_wm", "cerebral_wm", 2, 41),
    *(
        Structure(f"cortex_{lobe}", f"cortex_{lobe}", 1901 + i, 2901 + i)
        for i, lobe in enumerate(LOBES)
    ),
)
NAMES = tuple(s.name for s in STRUCTURES)
BRAIN_FROM = NAMES.index("csf")
# (structure, side); side is left, right or both (midline, or not told apart).
SidedStructure = tuple[str, str]
SIDES = ("left", "right", "both")
# Every structure by side, in the order of the channels of `cfgen segment --posteriors`.
SIDED: tuple[SidedStructure, ...] = tuple(
    (s.name, side)
    for s in STRUCTURES
    for side in (("both",) if s.left == s.right else ("left", "right"))
)
_LOBES = tuple(i for i, s in enumerate(STRUCTURES) if s.group.startswith("cortex_"))
# Every set of classes that a label of some table may stand for: each class, any lobe, not brain.
NOT_BRAIN = (0, 1)
# Their names.
OUTSIDE = tuple(NAMES[n] for n in NOT_BRAIN)
SETS = (*((i,) for i in range(len(STRUCTURES))), _LOBES, NOT_BRAIN)
LEFT, RIGHT = 1, 2


def _set_of(region: Region) -> tuple[int, ...]:
    if region.group == "cortex":
        return _LOBES
    if region.group == "basal_ganglia":
        return (next(NAMES.index(n) for n in _BASAL_GANGLIA if n in region.name.lower()),)
    return (next(i for i, s in enumerate(STRUCTURES) if s.group == region.group),)


def structure_name(region: Region) -> str:
    """The structure that a region of a table is; 'cortex' where its lobe is not told."""
    members = _set_of(region)
    return NAMES[members[0]] if len(members) == 1 else "cortex"


def region_text(region: SidedStructure) -> str:
    """'left hippocampus', 'third_ventricle'."""
    structure, side = region
    return structure if side == "both" else f"{side} {structure}"


def regions_of(table_name: str) -> dict[int, SidedStructure]:
    """Code of a table -> its structure and side."""
    return {c: (structure_name(r), r.side) for c, r in table(table_name).items()}


def own_codes(labels: np.ndarray, table_name: str) -> np.ndarray:
    """Codes of a table -> our codes, int32 (I, J, K); cortex without a lobe keeps FreeSurfer's 3
    and 42, and what no structure stands for (vessels outside the brain, skull) becomes 0 or 516."""
    known = table(table_name)
    lookup = np.zeros(max(known) + 1, np.int32)
    for code, region in known.items():
        lookup[code] = _own_code(region)
    return lookup[labels.astype(np.int64)]


def _own_code(region: Region) -> int:
    members = _set_of(region)
    on_right = region.side == "right"
    if len(members) > 1:
        return 42 if on_right else 3
    structure = STRUCTURES[members[0]]
    return structure.right if on_right else structure.left


@cache
def _lookup(table_name: str, whole_head: bool) -> tuple[np.ndarray, np.ndarray]:
    known = table(table_name)
    sets = np.zeros(max(known) + 1, np.uint8)
    sides = np.zeros(max(known) + 1, np.uint8)
    for code, region in known.items():
        sets[code] = SETS.index(_set_of(region))
        sides[code] = {"left": LEFT, "right": RIGHT}.get(region.side, 0)
    if not whole_head:
        sets[0] = SETS.index(NOT_BRAIN)
    return sets, sides


def read_as_sets(
    labels: np.ndarray, table_name: str, *, whole_head: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Index into SETS and side (0 none, LEFT, RIGHT) of every voxel, uint8 (I, J, K).

    `whole_head` says that the map labels the head around the brain, so that its 0 is air.
    """
    sets, sides = _lookup(table_name, whole_head)
    whole = labels.astype(np.int64)
    return sets[whole], sides[whole]


def structures(labels: np.ndarray, table_name: str) -> np.ndarray:
    """Number in STRUCTURES of every voxel, int16 (I, J, K); -1 in cortex whose lobe is not told."""
    return _structure_lookup(table_name)[labels.astype(np.int64)]


@cache
def _structure_lookup(table_name: str) -> np.ndarray:
    known = table(table_name)
    lookup = np.zeros(max(known) + 1, np.int16)
    for code, region in known.items():
        members = _set_of(region)
        lookup[code] = members[0] if len(members) == 1 else -1
    return lookup


def membership() -> np.ndarray:
    """(sets, classes) float32: 1 where a class belongs to a set."""
    matrix = np.zeros((len(SETS), len(STRUCTURES)), np.float32)
    for row, members in enumerate(SETS):
        matrix[row, list(members)] = 1
    return matrix
