"""A scan's label map and posteriors, to the place where masks are edited and back.

There the axes run R, A, S, by flips and swaps alone, and the box is the brain's: what is edited
does not depend on how the file is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from cfgen.causal.masks import EditedMasks, SoftMaps, edit_masks, region_voxels
from cfgen.causal.partners import partners_of
from cfgen.data.parcellation import NAMES, OUTSIDE, regions_of
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.regions import label_counts, recognise_table
from cfgen.data.volume import Grid, Volume, read_volume
from cfgen.errors import ImageError, Notice
from cfgen.measure.channels import each_channel, open_posteriors
from cfgen.space.grids import crop_box

RAS = nib.orientations.axcodes2ornt("RAS")
# Without posteriors: labels under a Gaussian window of this SD stand in for them.
STAND_IN_MM = 1.0
# Voxels around the brain's box: what is edited grows into the fluid there.
MARGIN = 3


@dataclass(frozen=True)
class LabelMap:
    """A label map as it was read, the posteriors that go with it, and the box of its brain, in RAS
    order."""

    volume: Volume
    table: str
    posteriors: Path | None
    box: tuple[slice, slice, slice]

    @property
    def path(self) -> Path:
        assert self.volume.path is not None
        return self.volume.path

    @property
    def grid(self) -> Grid:
        return self.volume.grid

    @property
    def notices(self) -> list[Notice]:
        if self.posteriors is not None:
            return []
        text = (
            f"no posteriors: labels smoothed by {STAND_IN_MM:g} mm stand in for them; voxels are "
            "ranked by the shape of the labels, not by what the scan shows"
        )
        return [Notice("smoothed-labels", text)]

    def volumes_mm3(self) -> dict[Region, float]:
        """Of every region that is labelled, by side."""
        counts = region_voxels(self.labels(), self.table)
        return {r: n * self.grid.voxel_mm3 for r, n in counts.items() if r[0] not in OUTSIDE}

    def labels(self) -> torch.Tensor:
        """The codes in the box (I, J, K) int32."""
        return torch.from_numpy(self.inner(self.volume.data).astype(np.int32))

    def inner(self, data: np.ndarray) -> np.ndarray:
        """Data on the file's grid, turned to RAS and cut to the box."""
        turned = nib.apply_orientation(data, nib.io_orientation(self.grid.affine))
        return np.ascontiguousarray(turned[self.box])

    def outer(self, data: np.ndarray, around: np.ndarray) -> np.ndarray:
        """The inverse of `inner`; outside the box as it is in `around`, on the file's grid."""
        turn = nib.io_orientation(self.grid.affine)
        turned = np.array(nib.apply_orientation(around, turn))
        turned[self.box] = data
        back = nib.orientations.ornt_transform(RAS, turn)
        return np.asarray(nib.apply_orientation(turned, back))

    def regions_as_numbers(self, labels: np.ndarray) -> np.ndarray:
        """Codes as numbers of structures from 1, int16, 0 outside the brain; for pictures."""
        places = regions_of(self.table)
        names = [n for n in (*NAMES, "cortex") if n not in OUTSIDE]
        lookup = np.zeros(max(places) + 1, np.int16)
        for code, (structure, _) in places.items():
            lookup[code] = 0 if structure in OUTSIDE else names.index(structure) + 1
        return lookup[labels.astype(np.int32)]


def read_label_map(path: Path, posteriors: Path | None) -> LabelMap:
    """Raises ImageError for what is no label map of a known table, and for posteriors of an unknown
    tool or on another grid."""
    volume = read_volume(path)
    table = recognise_table(volume.data, path)
    label_counts(volume.data, table)
    if posteriors is not None:
        open_posteriors(posteriors, volume.grid)
    outside = [code for code, region in regions_of(table).items() if region[0] in OUTSIDE]
    turned = nib.apply_orientation(volume.data, nib.io_orientation(volume.affine))
    brain = ~np.isin(turned, outside)
    if not brain.any():
        raise ImageError(path, "nothing but background and head", "a segmented brain")
    return LabelMap(volume, table, posteriors, crop_box(brain, MARGIN))


def edit_label_map(
    label_map: LabelMap,
    targets: Mapping[Region, float],
    partners: Mapping[str, Sequence[str]],
    best_effort: bool,
) -> EditedMasks:
    """The map in its box, edited until regions have so many mm3 (`causal/masks.py`).

    Raises what `edit_masks` raises, and ImageError for posteriors that are none.
    """
    labels = label_map.labels()
    present = [r for r in region_voxels(labels, label_map.table) if r[0] not in OUTSIDE]
    chosen = partners_of(targets, present, partners)
    needed = {*chosen, *(p for theirs in chosen.values() for p in theirs)}
    if label_map.posteriors is None:
        maps = smoothed_labels(label_map, needed)
    else:
        maps = _read_maps(label_map, label_map.posteriors, needed)
    return edit_masks(
        labels,
        maps,
        targets,
        table_name=label_map.table,
        voxel_mm3=label_map.grid.voxel_mm3,
        partners=partners,
        best_effort=best_effort,
    )


def _read_maps(label_map: LabelMap, path: Path, needed: set[Region]) -> SoftMaps:
    """The channels that are needed, in the box. Raises ImageError as `each_channel` does."""
    channels, covered = open_posteriors(path, label_map.grid)
    values, kept = [], []
    for regions, channel in zip(covered, each_channel(channels, path), strict=True):
        if regions & needed:
            values.append(torch.from_numpy(label_map.inner(channel)))
            kept.append(regions)
    if not values:
        raise ImageError(path, "no channel of the regions that are edited", "their posteriors")
    return SoftMaps(torch.stack(values), tuple(kept))


def smoothed_labels(label_map: LabelMap, needed: set[Region]) -> SoftMaps:
    """Indicators of regions under a Gaussian window of `STAND_IN_MM`, which sum to one over all
    regions of the map."""
    labels = label_map.labels().numpy()
    turn = nib.io_orientation(label_map.grid.affine)
    spacing = np.array(label_map.grid.spacing)[np.argsort(turn[:, 0])]
    places = regions_of(label_map.table)
    order = sorted(needed)
    values = []
    for region in order:
        codes = [code for code, place in places.items() if place == region]
        here = np.isin(labels, codes).astype(np.float32)
        window = ndimage.gaussian_filter(here, STAND_IN_MM / spacing, truncate=3.0, mode="nearest")
        values.append(torch.from_numpy(window))
    return SoftMaps(torch.stack(values), tuple(frozenset({r}) for r in order))


def edited_labels(label_map: LabelMap, edited: EditedMasks) -> np.ndarray:
    """The edited codes (I, J, K) on the file's grid."""
    return label_map.outer(edited.labels.numpy().astype(np.float32), label_map.volume.data)


def edited_posteriors(label_map: LabelMap, edited: EditedMasks) -> np.ndarray:
    """All channels (I, J, K, C) uint8 in 255ths on the file's grid, the edited ones replaced.

    Only for a map that has posteriors.
    """
    assert label_map.posteriors is not None
    channels, covered = open_posteriors(label_map.posteriors, label_map.grid)
    edited_of = dict(zip(edited.posteriors.channels, edited.posteriors.values, strict=True))
    out = np.zeros(channels.shape, np.uint8)
    for k, regions in enumerate(covered):
        channel = np.asarray(channels[..., k], np.float32)
        if regions in edited_of:
            channel = label_map.outer(edited_of[regions].numpy(), channel)
        out[..., k] = np.rint(channel.clip(0, 1) * 255)
    return out
