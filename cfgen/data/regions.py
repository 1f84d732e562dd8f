"""Label tables: which codes of a segmentation are which region, and how large the regions are.

Two tables: 'freesurfer' (aseg and aparc+aseg of FreeSurfer and FastSurfer, the output of SynthSeg,
and the whole-head label maps that SynthSeg is trained on) and 'dlmuse' (DLMUSE, NiChart).

A label belongs to one group. The inferior horns of the lateral ventricles are a group of their own,
so that 'lateral_ventricle' means the same (51 + 52 of DLMUSE, 4 + 43 of FreeSurfer) in both tables;
choroid plexus counts as the ventricle around it. 'cortex' is the whole cortex: its lobes
('cortex_frontal', ...) and what no lobe was given to. The parietal operculum of DLMUSE is frontal,
as in DLMUSE's own lobes. 'other_brain' is ventral diencephalon, basal forebrain, optic chiasm and
vessels; 'head' is what lies outside the skull's inner table.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from cfgen.errors import ImageError, UsageError

_FILES = {"freesurfer": "freesurfer", "aseg": "freesurfer", "synthseg": "freesurfer"}
_FILES |= {"dlmuse": "dlmuse"}
LOBES = ("frontal", "parietal", "temporal", "occipital", "cingulate", "insula")
GROUPS = (
    "lateral_ventricle",
    "inferior_lateral_ventricle",
    "third_ventricle",
    "fourth_ventricle",
    "hippocampus",
    "amygdala",
    "thalamus",
    "basal_ganglia",
    "brainstem",
    "cerebellum_gm",
    "cerebellum_wm",
    "cerebral_wm",
    "cortex",
    *(f"cortex_{lobe}" for lobe in LOBES),
    "csf",
    "other_brain",
    "head",
    "background",
)
# What is inside the skull and no tissue.
FLUID = (
    "csf",
    "lateral_ventricle",
    "inferior_lateral_ventricle",
    "third_ventricle",
    "fourth_ventricle",
)
# The channels of SynthSeg's posteriors: ascending labels, in which its own printed table is wrong.
SYNTHSEG_CHANNELS = (
    *(0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28),
    *(41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60),
)


@dataclass(frozen=True)
class Region:
    """One label: `side` is 'left', 'right' or 'both' (midline, or not told apart)."""

    code: int
    name: str
    group: str
    side: str


@cache
def table(name: str) -> dict[int, Region]:
    """Code -> region of 'freesurfer' (also 'aseg', 'synthseg') or 'dlmuse'. Raises UsageError."""
    if name.lower() not in _FILES:
        raise UsageError("label table", f"unknown table '{name}'", " or ".join(_FILES))
    file = resources.files("cfgen.data").joinpath("tables", f"{_FILES[name.lower()]}.csv")
    lines = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    rows = [Region(int(r["label"]), r["name"], r["group"], r["side"]) for r in lines]
    return {row.code: row for row in rows}


def recognise_table(labels: np.ndarray, where: object = "label map") -> str:
    """The table that a label map (I, J, K) was made with: the one that knows all of its codes.

    Raises ImageError, which names `where`, when no table does, both do, or nothing is labelled.
    """
    counts = _count(np.asarray(labels), where)
    if set(counts) <= {0}:
        raise ImageError(where, "nothing but background", "a segmented brain")
    unknown = {
        name: sorted(set(counts) - set(table(name))) for name in sorted(set(_FILES.values()))
    }
    fitting = [name for name, strange in unknown.items() if not strange]
    if len(fitting) == 1:
        return fitting[0]
    message = "; ".join(
        f"{n} does not know {', '.join(map(str, c[:5]))}" for n, c in unknown.items()
    )
    raise ImageError(
        where,
        "its table cannot be told: every code is in both tables" if fitting else message,
        "a whole-brain segmentation of " + " or ".join(unknown),
    )


def codes(table_name: str, group: str, side: str | None = None) -> tuple[int, ...]:
    """The codes of a group, ascending; `side` 'left' or 'right' leaves the other and midline out.

    Raises UsageError for an unknown table, group or side.
    """
    if group not in GROUPS:
        raise UsageError("region group", f"unknown group '{group}'", "one of " + ", ".join(GROUPS))
    if side not in (None, "left", "right", "both"):
        raise UsageError("region side", f"unknown side '{side}'", "left, right or both (midline)")
    return tuple(
        code
        for code, region in sorted(table(table_name).items())
        if _belongs(region.group, group) and side in (None, region.side)
    )


def group_mask(
    labels: np.ndarray, table_name: str, group: str, side: str | None = None
) -> np.ndarray:
    """Where a label map (I, J, K) is in a group: bool (I, J, K), all False when it is not there.

    Raises ImageError when the map has unknown codes or nothing but background.
    """
    wanted = codes(table_name, group, side)
    label_counts(labels, table_name)
    return np.isin(labels, wanted)


def volumes_mm3(labels: np.ndarray, voxel_mm3: float, table_name: str) -> dict[str, float]:
    """Volume of every group that the table has, by counting voxels; 0 where none is labelled.

    'cortex' is the total, its lobes included; the lobes and the head are left out where the map
    does not label them at all. Raises ImageError as `group_mask` does.
    """
    counts = label_counts(labels, table_name)
    return _totals(table(table_name), ((c, n * voxel_mm3) for c, n in counts.items()))


def soft_code_volumes_mm3(
    posteriors: Any, voxel_mm3: float, where: object = "posteriors"
) -> dict[int, float]:
    """Volume of every code from SynthSeg posteriors (I, J, K, 33), or 32 channels of its --v1.

    Sums of probabilities, as SynthSeg's own volumes are. `posteriors` may be a nibabel `dataobj`:
    one channel is read at a time. Raises ImageError, which names `where`, when it is something
    else.
    """
    shape = tuple(posteriors.shape)
    channels = {33: SYNTHSEG_CHANNELS, 32: tuple(c for c in SYNTHSEG_CHANNELS if c != 24)}
    if len(shape) != 4 or shape[3] not in channels:
        raise ImageError(
            where,
            f"shape {'x'.join(map(str, shape))}",
            "4D with 33 channels (32 with --v1), as mri_synthseg --post writes",
        )
    volumes = {}
    for k, code in enumerate(channels[shape[3]]):
        channel = np.asarray(posteriors[..., k])
        low, high = float(channel.min()), float(channel.max())
        # NaN fails this test too.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ImageError(
                where, f"channel {k} has values {low:g} to {high:g}", "probabilities, 0 to 1"
            )
        volumes[code] = float(channel.sum(dtype=np.float64)) * voxel_mm3
    if not any(v for code, v in volumes.items() if code):
        raise ImageError(where, "nothing but background", "a segmented brain")
    return volumes


def label_counts(labels: np.ndarray, table_name: str) -> dict[int, int]:
    """Voxels of every code that is there. Raises ImageError as `group_mask` does."""
    known = table(table_name)
    counts = _count(np.asarray(labels))
    strange = sorted(code for code in counts if code not in known)
    if strange:
        shown = ", ".join(map(str, strange[:10])) + (", ..." if len(strange) > 10 else "")
        raise ImageError(
            "label map",
            f"{len(strange)} unknown codes: {shown}",
            f"codes of the {table_name} table",
            "name the table that the segmentation was made with",
        )
    if set(counts) <= {0}:
        raise ImageError("label map", "nothing but background", "a segmented brain")
    return counts


def _count(labels: np.ndarray, where: object = "label map") -> dict[int, int]:
    if labels.dtype.kind not in "iub":
        whole = np.rint(labels)
        if not np.array_equal(whole, labels):
            raise ImageError(
                where,
                "has values that are no whole numbers",
                "label codes",
                "resample label maps with nearest neighbour",
            )
        labels = whole
    values, counts = np.unique(labels, return_counts=True)
    return {int(code): int(k) for code, k in zip(values, counts, strict=True)}


def _totals(known: dict[int, Region], volumes: Iterable[tuple[int, float]]) -> dict[str, float]:
    totals = {r.group: 0.0 for r in known.values() if r.group != "background"}
    for code, volume in volumes:
        if known[code].group in totals:
            totals[known[code].group] += volume
    lobes = [f"cortex_{lobe}" for lobe in LOBES]
    totals["cortex"] = totals.get("cortex", 0.0) + sum(totals[lobe] for lobe in lobes)
    # A map without lobes or head has not measured them: leave them out rather than say 0.
    unmeasured = set() if any(totals[lobe] for lobe in lobes) else set(lobes)
    if not totals.get("head"):
        unmeasured.add("head")
    return {g: totals[g] for g in GROUPS if g in totals and g not in unmeasured}


def _belongs(region_group: str, group: str) -> bool:
    return region_group == group or (group == "cortex" and region_group.startswith("cortex_"))
