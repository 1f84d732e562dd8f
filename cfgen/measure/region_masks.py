"""Masks of regions on the model grid, as networks take them: of a scan, or of a label map.

A region's border moves by a tenth of a millimetre where people differ, and a label map shows that
only where a voxel happens to flip. Networks are therefore told how much of a voxel is of a region,
as the segmenter and the scan's intensities together say it (`fractions.py`). Of the true changes
that ageing and alcohol make to simulated people these maps hold 0.72 and 0.80 in the cortex (skill,
parts of 4 mm), true label maps of 2 mm less than nothing (docs/by.md).
"""

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
from cfgen.measure.fractions import refined
from cfgen.measure.segmenter import brain_posteriors
from cfgen.nets.segmenter import Segmenter
from cfgen.space.grids import describe_difference, grid_text
from cfgen.space.sampling import points_in, sample

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


@torch.inference_mode()
def region_fractions(
    net: Segmenter, scan: Volume, regions: Sequence[str], device: torch.device
) -> Tensor:
    """How much of each voxel of a stripped `scan` is of each of the regions, (K, D, H, W) float32
    of sum 1 at most, 0 outside the brain.

    Raises ImageError when nothing in the scan looks like a brain.
    """
    found, _ = brain_posteriors(net, scan, device)
    data = torch.from_numpy(np.stack([scan.data, scan.data > 0]).astype(np.float32)).to(device)
    image, brain = sample(data, points_in(scan.grid, found.grid).to(device), "zeros")
    spacing = float(found.grid.spacing[0])
    maps = refined(found.classes.to(device), image, brain > 0.5, spacing)
    maps = maps[[NAMES.index(name) - BRAIN_FROM for name in regions]]
    fractions = sample(maps, points_in(found.grid, scan.grid).to(device), "zeros")
    return (fractions * data[1]).cpu()


def require_known(names: Iterable[str], regions: Sequence[str], where: str = "masks") -> None:
    """Raises UsageError for a region that a network, trained with `regions`, was not told of."""
    for name in names:
        if name not in regions:
            known = ", ".join(regions)
            expected = f"those that the bundle was trained with: {known}"
            raise UsageError(where, f"region '{name}'", expected)
