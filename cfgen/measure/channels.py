"""What the channels of a posteriors file are, told by how many there are, and their values.

Three tools write posteriors that cfgen reads: `cfgen segment`, `mri_synthseg --post` and
`cfgen simulate`, whose channels have no side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cfgen.data.parcellation import NAMES, SIDED, SIDES, regions_of
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.regions import SYNTHSEG_CHANNELS
from cfgen.data.volume import Channels, Grid, open_channels
from cfgen.errors import ImageError
from cfgen.sim.render import CHANNELS as SIMULATED
from cfgen.space.grids import describe_difference, grid_text

# Of the sum of all channels: posteriors of 8 bits are rounded in every channel.
SUM_TOLERANCE = 0.1
# What the simulator's channels cover; the lobes of the cortex are named without 'cortex_'.
_SIMULATED = {
    "background": ("background",),
    "ventricles": ("lateral_ventricle",),
    "subarachnoid": ("csf",),
    "white_matter": ("cerebral_wm",),
    "hippocampus": ("hippocampus",),
    "fixed_white": ("cerebellum_wm", "brainstem"),
    "fixed_grey": ("thalamus", "caudate", "putamen", "pallidum", "cerebellum_gm", "brainstem"),
}


def channel_regions(count: int, where: object) -> tuple[frozenset[Region], ...]:
    """The (structure, side) that each of so many channels covers. Raises ImageError, which names
    `where`, for a number of channels that no tool writes."""
    known = {len(c): c for c in (_own(), _synthseg(), _simulated())}
    if count not in known:
        raise ImageError(
            where,
            f"{count} channels",
            f"{len(_own())} of cfgen segment, {len(_synthseg())} of mri_synthseg --post or "
            f"{len(SIMULATED)} of cfgen simulate",
        )
    return known[count]


def _own() -> tuple[frozenset[Region], ...]:
    return tuple(frozenset({region}) for region in SIDED)


def _synthseg() -> tuple[frozenset[Region], ...]:
    """The cortex of a side covers its lobes, where a label map has them."""
    places = regions_of("freesurfer")
    lobes = [name for name in NAMES if name.startswith("cortex_")]
    channels = []
    for code in SYNTHSEG_CHANNELS:
        structure, side = places[code]
        names = [structure, *lobes] if structure == "cortex" else [structure]
        channels.append(frozenset((name, side) for name in names))
    return tuple(channels)


def _simulated() -> tuple[frozenset[Region], ...]:
    covered = [_SIMULATED.get(name, (f"cortex_{name}",)) for name in SIMULATED]
    return tuple(frozenset((s, side) for s in names for side in SIDES) for names in covered)


def open_posteriors(path: Path, grid: Grid) -> tuple[Channels, tuple[frozenset[Region], ...]]:
    """Posteriors on the grid of their labels, and what their channels cover.

    Raises ImageError when they lie on another grid or are of an unknown tool.
    """
    channels, own = open_channels(path)
    if not own.matches(grid):
        raise ImageError(
            path,
            f"is on another grid than the labels: {describe_difference(own, grid)}",
            grid_text(grid),
            "give the posteriors that were written with these labels",
        )
    return channels, channel_regions(channels.shape[3], path)


def each_channel(channels: Channels, where: object) -> Iterator[np.ndarray]:
    """Channel after channel, float32 (I, J, K). Raises ImageError, after the last one, when they do
    not sum to one, and at once for a value that is no probability."""
    total = np.zeros(channels.shape[:3], np.float32)
    for k in range(channels.shape[3]):
        values = np.asarray(channels[..., k], np.float32)
        low, high = float(values.min()), float(values.max())
        # NaN fails this test too.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ImageError(
                where, f"channel {k} has values {low:g} to {high:g}", "probabilities, 0 to 1"
            )
        total += values
        yield values
    wrong = np.abs(total - 1) > SUM_TOLERANCE
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        raise ImageError(
            where,
            f"the channels do not sum to one in {wrong.mean():.2%} of the voxels: "
            f"{total[place]:.3f} at voxel {place}",
            "probabilities of all classes, background too",
            "give posteriors after softmax, with every channel",
        )
