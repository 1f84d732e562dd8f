"""A scan's regions on the model grid: found there, edited there, or moved as its tissue is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfgen.causal.masks import SoftMaps, edit_masks, region_voxels
from cfgen.data.parcellation import BRAIN_FROM, SIDED, STRUCTURES
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.volume import Volume
from cfgen.scan.moved import Movement
from cfgen.scan.open import Opened
from cfgen.space.grids import crop_box
from cfgen.space.sampling import sample

# The codes that labels are written in.
TABLE = "freesurfer"
# Voxels around the brain's box: what is edited grows into the fluid there.
MARGIN = 3


@dataclass(frozen=True)
class Anatomy:
    """`labels` of a scan on the model grid, 0 outside the brain; `chances` (C, D, H, W) float32 are
    the probabilities of the brain's structures, from `BRAIN_FROM` on, and `left` (D, H, W) that of
    the left side, all 0 outside the brain."""

    labels: Volume
    chances: Tensor
    left: Tensor

    def soft_maps(self, box: tuple[slice, slice, slice]) -> SoftMaps:
        """Of every region by side, in a box."""
        left, channels, maps = self.left[box], [], []
        for structure, chance in zip(STRUCTURES[BRAIN_FROM:], self.chances, strict=True):
            by_side = {"left": left, "right": 1 - left, "both": torch.ones_like(left)}
            for name, side in SIDED:
                if name == structure.name:
                    channels.append(frozenset({(name, side)}))
                    maps.append(chance[box] * by_side[side])
        return SoftMaps(torch.stack(maps), tuple(channels))


def anatomy_of(opened: Opened, movement: Movement | None = None) -> Anatomy:
    """The segmenter's regions on the model grid, of the scan or as its tissue has moved.

    Raises ImageError when nothing in the scan looks like a brain.
    """
    posteriors, prepared = opened.posteriors, opened.prepared
    assert posteriors is not None
    inside = torch.from_numpy(prepared.mask)
    at = _carried(inside.nonzero().float(), prepared.to_native @ prepared.grid.affine)
    if movement is not None:
        place = _carried(at, np.linalg.inv(movement.grid.affine))
        at = at + sample(movement.displacement, place, "zeros").movedim(0, -1)
    where = _carried(at, np.linalg.inv(posteriors.grid.affine))
    field = torch.cat([posteriors.classes[BRAIN_FROM:], posteriors.left[None]])
    found = sample(field, where)
    codes = torch.tensor([[s.right, s.left] for s in STRUCTURES[BRAIN_FROM:]])
    labels, maps = torch.zeros(inside.shape), torch.zeros(len(found), *inside.shape)
    labels[inside] = codes[found[:-1].argmax(0), (found[-1] > 0.5).long()].float()
    maps[:, inside] = found
    volume = Volume(labels.numpy(), prepared.grid.affine, opened.volume.path)
    return Anatomy(volume, maps[:-1], maps[-1])


def _carried(points: Tensor, matrix: np.ndarray) -> Tensor:
    """Points (..., 3) under a matrix (4, 4)."""
    m = torch.from_numpy(matrix).float()
    return points @ m[:3, :3].T + m[:3, 3]


def edited(anatomy: Anatomy, changes: Mapping[str, float]) -> Volume:
    """The labels with regions grown by `changes`, logarithms of volumes by structure, as far as
    they go (`causal/masks.py`); what is not named exchanges voxels with what is. A region keeps a
    voxel at least.

    Raises UsageError for a structure that exchanges with nothing, or that does not fit in the
    skull, and ImageError where nothing that it exchanges with lies beside it.
    """
    data = anatomy.labels.data
    now = voxels_of(anatomy.labels)
    due = {r: n * float(np.exp(changes[r[0]])) for r, n in now.items() if r[0] in changes}
    if not due:
        return anatomy.labels
    box = crop_box(data > 0, MARGIN)
    result = edit_masks(
        torch.from_numpy(data[box].astype(np.int32)),
        anatomy.soft_maps(box),
        {region: max(n, 1.0) for region, n in due.items()},
        table_name=TABLE,
        voxel_mm3=1.0,
        best_effort=True,
    )
    after = data.copy()
    after[box] = result.labels.numpy()
    return anatomy.labels.like(after)


def voxels_of(labels: Volume) -> dict[Region, int]:
    """How many voxels each region of a map has."""
    return region_voxels(torch.from_numpy(labels.data.astype(np.int32)), TABLE)
