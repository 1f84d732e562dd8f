"""Label maps and labelled scans for training the segmenter, upright and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cfgen.data.parcellation import read_as_sets
from cfgen.data.regions import recognise_table, table
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume
from cfgen.errors import ImageError, UsageError
from cfgen.measure.segmenter import SPACING_MM
from cfgen.space.grids import crop_box, require_grid, resample, upright_grid
from cfgen.train.segmenter import LabelledScan, LabelMap

# Painted maps are read finer than the segmenter sees, so that edges stay where they are.
MAP_SPACING_MM = 1.0


def read_label_maps(folder: Path) -> list[LabelMap]:
    """The whole-head label maps of a folder, in FreeSurfer codes, by name.

    Raises UsageError when there is none, ImageError when one has other codes or no head.
    """
    paths = sorted(p for p in folder.glob("*.nii*") if p.is_file())
    if not paths:
        raise UsageError("--label-maps", f"no label map in {folder}", "*.nii or *.nii.gz")
    return [_label_map(read_volume(path)) for path in paths]


def _label_map(volume: Volume) -> LabelMap:
    codes = _upright(volume, MAP_SPACING_MM, order=0).astype(np.int64)
    if recognise_table(codes) != "freesurfer":
        raise ImageError(volume.path or "label map", "is no FreeSurfer label map", "its codes")
    codes = codes[crop_box(codes > 0)]
    if not any(table("freesurfer")[c].group == "head" for c in np.unique(codes).tolist()):
        raise ImageError(
            volume.path or "label map", "labels no skull or scalp", "a whole-head label map"
        )
    tissue, count = _tissue_numbers(np.unique(codes).tolist())
    sets, sides = read_as_sets(codes, "freesurfer", whole_head=True)
    tissues = torch.from_numpy(tissue[codes])
    return LabelMap(tissues, count, torch.from_numpy(sets), torch.from_numpy(sides), MAP_SPACING_MM)


def _tissue_numbers(codes: Sequence[int]) -> tuple[np.ndarray, int]:
    """Code -> number of what has one brightness: left and right of a structure share theirs."""
    known = table("freesurfer")
    names = [known[c].name.removeprefix("Left-").removeprefix("Right-") for c in codes]
    order = {name: n for n, name in enumerate(dict.fromkeys(["Background", *names]))}
    numbers = np.zeros(max(codes) + 1, np.uint8)
    for code, name in zip(codes, names, strict=True):
        numbers[code] = order[name]
    return numbers, len(order)


def read_labelled_scans(rows: Sequence[Row]) -> list[LabelledScan]:
    """The rows that have label maps of the brain; what is 0 in these may be head or air.

    Raises ImageError when a label map is on another grid than its scan.
    """
    scans = []
    for row in rows:
        if row.labels is None:
            continue
        image, labels = read_volume(row.image), read_volume(row.labels)
        require_grid(labels, image.grid, "label map")
        codes = _upright(labels, SPACING_MM, order=0).astype(np.int64)
        sets, sides = read_as_sets(codes, recognise_table(codes), whole_head=False)
        data = torch.from_numpy(_upright(image, SPACING_MM, order=1)).half()
        scans.append(
            LabelledScan(data, torch.from_numpy(sets), torch.from_numpy(sides), SPACING_MM)
        )
    return scans


def _upright(volume: Volume, spacing_mm: float, order: int) -> np.ndarray:
    return resample(volume.data, volume.grid, upright_grid(volume.grid, spacing_mm), order=order)
