"""How much of every voxel of the model grid a scan's regions fill, and do once tissue has moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cfgen.data.volume import Volume
from cfgen.edit.engine import Engine
from cfgen.measure.region_masks import region_fractions
from cfgen.scan.moved import Movement
from cfgen.scan.open import Opened
from cfgen.scan.prepare import Prepared
from cfgen.space.sampling import sample
from cfgen.space.warp import voxels


def anatomy_of(engine: Engine, opened: Opened, regions: Sequence[str]) -> Tensor:
    """Maps (K, D, H, W) of a scan's regions, read in the prepared image, as a network that is told
    masks learned them (`train/masks.py`).

    Raises ImageError when nothing in the scan looks like a brain.
    """
    net, prepared = engine.finder.segmenter, opened.prepared
    assert net is not None
    image = Volume(prepared.image, prepared.grid.affine, opened.volume.path)
    return region_fractions(net, image, regions, engine.device)


def moved_maps(maps: Tensor, prepared: Prepared, movement: Movement) -> Tensor:
    """Maps (K, D, H, W) on the model grid as the scan's tissue has moved."""
    to_scan = prepared.to_native @ prepared.grid.affine
    place = _carried(voxels(tuple(maps.shape[1:])), to_scan)
    at = _carried(place, np.linalg.inv(movement.grid.affine))
    moved = sample(movement.displacement, at, "zeros").movedim(0, -1)
    return sample(maps, _carried(place + moved, np.linalg.inv(to_scan)))


def _carried(points: Tensor, matrix: np.ndarray) -> Tensor:
    """Points (..., 3) under a matrix (4, 4)."""
    m = torch.from_numpy(matrix).float()
    return points @ m[:3, :3].T + m[:3, 3]
