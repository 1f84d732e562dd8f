"""Masks of regions out of a label map on the model grid, as networks take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from cfgen.data.grid import Grid
from cfgen.data.parcellation import BRAIN_FROM, NAMES, structures
from cfgen.data.regions import label_counts, recognise_table
from cfgen.data.volume import Volume
from cfgen.errors import ImageError, UsageError
from cfgen.nets.controlnet import pool_masks, told, zone_of
from cfgen.space.grids import describe_difference, grid_text

# Every structure of the brain, its fluid too; sides are not told apart: the place tells them.
REGIONS = NAMES[BRAIN_FROM:]


def parse_regions(text: str) -> tuple[str, ...]:
    """'cortex_frontal,csf' -> names, in the order of the segmenter's structures; '' is all.

    Raises UsageError for a name that is no structure of the brain, or that is there twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(REGIONS)
    for name in names:
        if name not in REGIONS:
            raise UsageError("--regions", f"'{name}'", "one of " + ", ".join(REGIONS))
    if len(set(names)) < len(names):
        raise UsageError("--regions", f"'{text}' has a name twice", "each once")
    return tuple(name for name in REGIONS if name in names)


def region_masks(labels: Volume, regions: Sequence[str], grid: Grid) -> np.ndarray:
    """Where a label map on `grid` is each of the regions, bool (K, D, H, W).

    Raises ImageError when it is on another grid, has codes of no known table, or tells no lobes
    where lobes are asked for.
    """
    where = labels.path or "label map"
    if not labels.grid.matches(grid):
        raise ImageError(
            where,
            f"the label map is not on the model grid: {describe_difference(labels.grid, grid)}",
            grid_text(grid),
            "take the map that 'cfgen preprocess' writes beside the scan",
        )
    table = recognise_table(labels.data, where)
    label_counts(labels.data, table)
    numbers = structures(labels.data, table)
    if any(name.startswith("cortex_") for name in regions) and bool((numbers < 0).any()):
        raise ImageError(
            where,
            "its cortex has no lobes",
            "labels of the lobes",
            "take the labels of 'cfgen segment', or --regions without lobes",
        )
    return np.stack([numbers == NAMES.index(name) for name in regions])


def told_masks(
    labels: Volume,
    regions: Sequence[str],
    grid: Grid,
    shape: Sequence[int],
    detail: int,
    edited: Sequence[str] = (),
    before: Volume | None = None,
) -> Tensor:
    """What a network is told of a label map on the model grid, as `nets.controlnet.told` has it.

    Everything, or where `edited` regions are, or were in the map `before`, and around them.
    `regions` and `detail` are those of the network's training, `shape` the latent's edges. Raises
    UsageError for an edited region that is none of them, and ImageError for one that is nowhere,
    and as `region_masks`.
    """
    require_known(edited, regions)
    maps = [labels] if before is None else [labels, before]
    pooled = []
    for volume in maps:
        masks = region_masks(volume, regions, grid)
        require_there(edited, masks, regions, volume.path or "label map")
        pooled.append(pool_masks(torch.from_numpy(masks)[None], shape, detail))
    if not edited:
        return told(pooled[0])
    chosen = torch.tensor([[name in edited for name in regions]])
    zones = torch.cat([zone_of(p, chosen) for p in pooled])
    return told(pooled[0], zones.amax(0, keepdim=True))


def require_known(names: Iterable[str], regions: Sequence[str], where: str = "masks") -> None:
    """Raises UsageError for a region that a network, trained with `regions`, was not told of."""
    for name in names:
        if name not in regions:
            known = ", ".join(regions)
            expected = f"those that the bundle was trained with: {known}"
            raise UsageError(where, f"region '{name}'", expected)


def require_there(
    names: Iterable[str], masks: np.ndarray, regions: Sequence[str], where: object
) -> None:
    """Raises ImageError, which names `where`, for a region of which masks (K, D, H, W) have
    nothing."""
    for name in names:
        if not masks[regions.index(name)].any():
            raise ImageError(where, f"its mask of {name} is empty", "a voxel of it at least")
