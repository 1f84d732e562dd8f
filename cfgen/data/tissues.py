"""Tissue classes, and how label maps of the brain are read as them."""

from __future__ import annotations

from functools import cache

import numpy as np

from cfgen.data.regions import FLUID, recognise_table, table

# Numbers of the classes; 0 is everything else.
TISSUES = ("background", "csf", "grey", "white")
CSF, GREY, WHITE = 1, 2, 3
# Regions whose tissue their name does not tell. On a T1w image the brainstem is as bright as white
# matter, and the ventral diencephalon counts as grey in FreeSurfer's totals.
WHITE_REGIONS = ("cerebral_wm", "cerebellum_wm", "brainstem")
OUTSIDE = ("background", "head")


def tissues_of(labels: np.ndarray, where: object = "label map") -> np.ndarray:
    """Class of every voxel (I, J, K) uint8 of a label map in codes of FreeSurfer or DLMUSE.

    Raises ImageError, which names `where`, when its table cannot be told.
    """
    lookup = _lookup(recognise_table(labels, where))
    return lookup[labels.astype(np.int64)]


@cache
def _lookup(table_name: str) -> np.ndarray:
    known = table(table_name)
    lookup = np.zeros(max(known) + 1, np.uint8)
    for code, region in known.items():
        lookup[code] = _tissue(region.group)
    return lookup


def _tissue(group: str) -> int:
    if group in OUTSIDE:
        return 0
    if group in FLUID:
        return CSF
    return WHITE if group in WHITE_REGIONS else GREY
