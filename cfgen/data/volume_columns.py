"""Region volumes in tables: which columns are which structure, in whose names, and in mm3 or not.

Structures are those of `parcellation.py` (and `cortex` where no lobe is told), head size is `tiv`.
Known are these names themselves, DLMUSE's codes ('47', 'MUSE_47', 'DL_MUSE_47') and FreeSurfer's
and mri_synthseg's names. Both sides are added up. A structure of which a part has no column is left
out: half a lobe is no lobe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfgen.data.parcellation import NAMES, OUTSIDE, structure_name
from cfgen.data.regions import LOBES, table

HEAD = "tiv"
REGIONS = (*(n for n in NAMES if n not in OUTSIDE), "cortex")
_DLMUSE = re.compile(r"(?:(?:dl)?[_-]?muse[_-]?(?:volume[_-]?)?)?([0-9]{1,3})", re.I)
_DLMUSE_HEAD = 702
_FREESURFER_HEAD = ("estimatedtotalintracranialvol", "etiv", "totalintracranial")
# Whole structures that FreeSurfer sums up itself.
_FREESURFER_WHOLE = {"cerebralwhitemattervol": "cerebral_wm", "cortexvol": "cortex"}
# Labels that not every run of FreeSurfer writes, and that are next to nothing; in its tables 'CSF'
# is a sliver of the fluid.
_SMALL = re.compile(
    r"lesion|vessel|choroid|5th-ventricle|hypointensities|unknown|corpuscallosum|cc_|optic"
)
_NEVER_FREESURFER = ("csf", "other_brain")
# Middle of healthy adults (mm3), to tell mL and voxels from mm3: DLMUSE on IXI.
TYPICAL_MM3 = {
    "tiv": 1.45e6,
    "csf": 1.7e5,
    "lateral_ventricle": 1.9e4,
    "third_ventricle": 1.0e3,
    "fourth_ventricle": 2.2e3,
    "hippocampus": 7.5e3,
    "amygdala": 1.9e3,
    "thalamus": 1.5e4,
    "caudate": 6.8e3,
    "putamen": 9.0e3,
    "pallidum": 3.0e3,
    "accumbens": 8.5e2,
    "brainstem": 2.2e4,
    "cerebellum_gm": 1.05e5,
    "cerebellum_wm": 3.0e4,
    "cerebral_wm": 4.7e5,
    "cortex": 4.6e5,
    "cortex_frontal": 1.65e5,
    "cortex_parietal": 8.7e4,
    "cortex_temporal": 1.05e5,
    "cortex_occipital": 7.0e4,
    "cortex_cingulate": 2.5e4,
    "cortex_insula": 1.1e4,
}
# The middle of a cohort is within this factor of it, whatever its age and tool.
PLAUSIBLE = 5.0


@dataclass(frozen=True)
class Recognised:
    """`parts`: structure -> the columns that it is the sum of; `names`, whose they are; `rest`:
    structure -> what is left of head size without these columns."""

    parts: Mapping[str, tuple[str, ...]]
    names: str
    rest: Mapping[str, tuple[str, ...]]


def recognise(columns: Sequence[str]) -> Recognised:
    """The structures that a wide table has, in the names by which it has most; none when no column
    is known."""
    own = Recognised({name: (c,) for c in columns if (name := _own(c))}, "cfgen", {})
    codes = {int(m[1]): c for c in columns if (m := _DLMUSE.fullmatch(c.strip()))}
    return max((own, _dlmuse(codes), _freesurfer(columns)), key=lambda found: len(found.parts))


def _own(column: str) -> str:
    name = column.strip().lower().removesuffix("_mm3")
    return name if name in REGIONS or name == HEAD else ""


def _dlmuse(columns: Mapping[int, str]) -> Recognised:
    known = {c: r for c, r in table("dlmuse").items() if r.group != "background"}
    # Fluid outside the brain and the chiasm are in no volume table.
    wanted = {c: r for c, r in known.items() if r.group != "csf" and "Chiasm" not in r.name}
    parts: dict[str, list[str]] = {}
    broken = set()
    for code, region in wanted.items():
        name = structure_name(region)
        if code in columns:
            parts.setdefault(name, []).append(columns[code])
        else:
            broken.add(name)
    whole = {name: tuple(cs) for name, cs in parts.items() if name not in broken}
    rest = {}
    if _DLMUSE_HEAD in columns:
        whole[HEAD] = (columns[_DLMUSE_HEAD],)
        if not broken:
            rest["csf"] = tuple(c for name, cs in whole.items() if name != HEAD for c in cs)
    return Recognised(whole, "DLMUSE", rest)


def _freesurfer(columns: Sequence[str]) -> Recognised:
    there = {_plain(c): c for c in columns}
    parts: dict[str, list[str]] = {}
    broken = set()
    for region in table("freesurfer").values():
        if region.group in OUTSIDE or region.name.startswith("cfgen-"):
            continue
        name = structure_name(region)
        column = next((there[n] for n in _spellings(region.name) if n in there), None)
        if column is not None:
            parts.setdefault(name, []).append(column)
        elif not _SMALL.search(region.name.lower()):
            broken.add(name)
    whole = {n: tuple(dict.fromkeys(cs)) for n, cs in parts.items() if n not in broken}
    whole |= {n: (there[c],) for c, n in _FREESURFER_WHOLE.items() if c in there}
    head = next((there[n] for n in _FREESURFER_HEAD if n in there), None)
    if head is not None:
        whole[HEAD] = (head,)
    lobes = [f"cortex_{lobe}" for lobe in LOBES]
    if all(lobe in whole for lobe in lobes):
        whole.pop("cortex", None)
    kept = {n: cs for n, cs in whole.items() if n not in _NEVER_FREESURFER}
    return Recognised(kept if set(kept) - {HEAD} else {}, "FreeSurfer", {})


def _plain(name: str) -> str:
    """A name without what differs between FreeSurfer, its tables and mri_synthseg."""
    plain = re.sub(r"[\s_.-]", "", name.lower()).replace("proper", "")
    return plain.replace("inferiorlateralventricle", "inflatvent").replace("area", "")


def _spellings(name: str) -> list[str]:
    """'ctx-lh-cuneus' is 'lh_cuneus_volume' in FreeSurfer's own tables of parcels."""
    plain = _plain(name)
    return [plain, plain.removeprefix("ctx") + "volume"] if plain.startswith("ctx") else [plain]


def wrong_unit(name: str, values: np.ndarray) -> str:
    """What a column of volumes seems to be in, by its middle; '' where mm3 is plausible."""
    typical = TYPICAL_MM3.get(name)
    known = values[np.isfinite(values)]
    if typical is None or not known.size:
        return ""
    ratio = float(np.median(known)) / typical
    if 1 / PLAUSIBLE <= ratio <= PLAUSIBLE:
        return ""
    for factor, unit in ((1e-3, "mL"), (1e-6, "litres")):
        if 1 / PLAUSIBLE <= ratio / factor <= PLAUSIBLE:
            return unit
    return "voxels or another unit"
