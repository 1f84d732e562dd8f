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


def moved_maps(
    maps: Tensor, regions: Sequence[str], prepared: Prepared, movement: Movement
) -> Tensor:
    """Maps (K, D, H, W) of regions on the model grid as the scan's tissue has moved, and sulci have
    opened: there fluid takes the place of cortex, if both are among the regions. What comes from
    beyond the brain is fluid."""
    inside = torch.from_numpy(prepared.image > 0)
    to_scan = prepared.to_native @ prepared.grid.affine
    place = _carried(voxels(tuple(maps.shape[1:])), to_scan)
    at = _carried(place, np.linalg.inv(movement.grid.affine))
    moved = sample(movement.displacement, at, "zeros").movedim(0, -1)
    around = torch.tensor([float(name == "csf") for name in regions])[:, None, None, None]
    maps = torch.where(inside, maps, around)
    out = sample(maps, _carried(place + moved, np.linalg.inv(to_scan))) * inside
    cortex = [n for n, name in enumerate(regions) if name.startswith("cortex")]
    if not cortex or "csf" not in regions:
        return out
    fluid, grey = out[regions.index("csf")], out[cortex].sum(0)
    opened = sample(movement.opened[None], at, "zeros")[0]
    # No more than there is; where there is no cortex none closes in either.
    opened = torch.minimum(torch.maximum(opened, -torch.minimum(fluid, grey)), grey)
    out[cortex] *= 1 - opened / grey.clamp(min=1e-6)
    out[regions.index("csf")] += opened
    return out


def _carried(points: Tensor, matrix: np.ndarray) -> Tensor:
    """Points (..., 3) under a matrix (4, 4)."""
    m = torch.from_numpy(matrix).float()
    return points @ m[:3, :3].T + m[:3, 3]
