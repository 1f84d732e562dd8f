"""Counterfactuals of a phantom: partial volumes at borders change, and no tissue moves.

A second truth, which shares no law with a deformation. As makers of atrophy phantoms do (Rusak et
al. 2022, Medical Image Analysis), a region takes what it gains from its neighbours, voxel by voxel,
in order of the distance to it, until its volume is the one asked for; the image changes by what the
fractions changed, painted with the local means of the classes. Everything else keeps its bits:
shape, texture, fields and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.sim.anatomy import Anatomy, scale_to_rendered, solve
from cfgen.sim.graph import Graph, Volumes
from cfgen.sim.reference import CORTEX, Reference
from cfgen.space.grids import crop_box

# A border is known to a part of a voxel: distances are measured on a grid this much finer.
FINE = 2
# No border goes farther (mm).
FARTHEST_MM = 12.0
# Window (SD, mm) of the means of the classes, and what holds them to the whole head's where a class
# is hardly there.
MEANS_MM = 10.0
HOLD = 0.01


def grown(
    fractions: Tensor, growing: Sequence[int], giving: Sequence[int], gain: float, spacing_mm: float
) -> Tensor:
    """Fractions (K, D, H, W) after the channels `growing` took `gain` voxels from `giving`.

    The border goes out by one distance everywhere, and stops where there is nothing to take; what
    a voxel gives comes from its giving channels in their proportion, and goes to the growing
    channel that is nearest. Raises UsageError where there is not as much to take within
    FARTHEST_MM.
    """
    if gain <= 0:
        return fractions
    taken, available = fractions[list(growing)].sum(0), fractions[list(giving)].sum(0)
    box = _box(taken, available, spacing_mm)
    taken, available = taken[box], available[box]
    distance = _fine_distance(taken)

    def gained(fine: float) -> Tensor:
        covered = (fine - (distance - 1)).clamp(0, 1) * (distance > 0)
        return torch.minimum(F.avg_pool3d(covered[None, None], FINE)[0, 0], available)

    def gained_ml(fine: float) -> float:
        return float(gained(fine).double().sum()) * spacing_mm**3 / 1000

    far, gain_ml = FARTHEST_MM / spacing_mm * FINE, gain * spacing_mm**3 / 1000
    # Borders that go less than a voxel are most.
    high = FINE if gained_ml(FINE) > gain_ml else far
    change = gained(solve(gained_ml, gain_ml, 0.0, high, "partial volumes"))
    after = fractions.clone()
    part = after[(slice(None), *box)]
    share = change / available.clamp(min=1e-12)
    for channel in giving:
        part[channel] -= part[channel] * share
    nearest = _nearest(part[list(growing)], taken)
    for n, channel in enumerate(growing):
        part[channel] += change * (nearest == n)
    return after


def _box(taken: Tensor, available: Tensor, spacing_mm: float) -> tuple[slice, slice, slice]:
    """Where the border can go, and what is within its reach."""
    margin = round(FARTHEST_MM / spacing_mm)
    both = [crop_box((m > 0).numpy(), margin) for m in (taken, available) if bool((m > 0).any())]
    if len(both) < 2:
        raise UsageError("partial volumes", "a region without a voxel", "one that is there")
    i, j, k = (
        slice(max(a.start, b.start), max(min(a.stop, b.stop), max(a.start, b.start) + 1))
        for a, b in zip(*both, strict=True)
    )
    return i, j, k


def _fine_distance(taken: Tensor) -> Tensor:
    """Fine voxels (FINE D, FINE H, FINE W) from the nearest one that is mostly taken."""
    fine = F.interpolate(taken[None, None], scale_factor=FINE, mode="trilinear")[0, 0]
    outside = (fine <= 0.5).numpy()
    if outside.all():
        raise UsageError("partial volumes", "a region that fills no voxel", "a larger one")
    return torch.from_numpy(ndimage.distance_transform_edt(outside).astype(np.float32))


def _nearest(channels: Tensor, taken: Tensor) -> Tensor:
    """(D, H, W): the channel that is largest in the nearest voxel that is mostly taken."""
    if len(channels) == 1:
        return torch.zeros(taken.shape, dtype=torch.long)
    largest = channels.argmax(0)
    mostly = (taken > 0.5).numpy()
    if not mostly.any():
        return largest
    i, j, k = ndimage.distance_transform_edt(~mostly, return_distances=False, return_indices=True)
    return largest[i, j, k]


def painted(image: Tensor, before: Tensor, after: Tensor, spacing_mm: float) -> Tensor:
    """The image (D, H, W) of fractions `after`, from that of `before` (C, D, H, W): changed by the
    change of each class times its local mean.

    Means are those that explain the image best in a window (weighted least squares), so that no
    voxel need be pure. Where the fractions are as they were, so is every bit.
    """
    moved = (after != before).any(0)
    if not moved.any():
        return image.clone()

    def local(volume: Tensor) -> Tensor:
        window = MEANS_MM / spacing_mm
        smooth = ndimage.gaussian_filter(volume.numpy(), window, mode="constant", truncate=3.0)
        return torch.from_numpy(smooth)[moved]

    within = ((image > 0) & (before.sum(0) > 0)).float()
    known = before * within
    whole = torch.linalg.lstsq(known.flatten(1).T.double(), (image * within).flatten().double())
    mean = whole.solution.float()
    classes = len(before)
    matrix = torch.zeros(classes, classes, int(moved.sum()))
    right = torch.zeros(classes, int(moved.sum()))
    weight = local(within).clamp(min=1e-6)
    for a in range(classes):
        right[a] = local(known[a] * image) / weight
        for b in range(a, classes):
            matrix[a, b] = matrix[b, a] = local(known[a] * known[b]) / weight
    hold = HOLD * torch.eye(classes)
    means = torch.linalg.solve(
        (matrix + hold[..., None]).permute(2, 0, 1), (right + HOLD * mean[:, None]).T
    )
    result = image.clone()
    change = ((after - before)[:, moved].T * means).sum(1)
    result[moved] = (image[moved] + change).clamp(min=0)
    return result


def shift_borders(model: Graph, head: Reference, anatomy: Anatomy, volumes: Volumes) -> Anatomy:
    """A simulated subject's anatomy with other `volumes` (arrays of length 1), each border shifted
    in turn: ventricles to white matter, white matter to cortex, each lobe to the fluid over it.

    Raises UsageError where a volume cannot be reached.
    """
    ml, spacing = head.grid.voxel_mm3 / 1000, head.grid.spacing[0]
    wanted = volumes.regions[0] * scale_to_rendered(model, head) / ml
    target = dict(zip(model.regions, map(float, wanted), strict=True))
    subarachnoid = (anatomy.fluid - anatomy.ventricles).clamp(min=0)
    start = torch.stack([anatomy.ventricles, anatomy.white_matter, *anatomy.cortex, subarachnoid])
    ventricles, white, lobes, fluid = (0,), (1,), range(2, 2 + len(CORTEX)), (2 + len(CORTEX),)
    soft = _reach(start, ventricles, white, target["ventricles"], spacing)
    soft = _reach(soft, white, lobes, target["white_matter"], spacing)
    for channel, name in zip(lobes, CORTEX, strict=True):
        soft = _reach(soft, (channel,), fluid, target[name], spacing)
    change = soft - start
    channels = {"ventricles": 0, "white_matter": 1} | dict(zip(CORTEX, lobes, strict=True))
    measured = soft.double().sum((1, 2, 3)) * ml
    cortex = change[list(lobes)]
    return replace(
        anatomy,
        white=anatomy.white + change[1],
        grey=anatomy.grey + cortex.sum(0),
        fluid=anatomy.fluid + change[0] + change[-1],
        ventricles=soft[0],
        cortex=soft[list(lobes)],
        white_matter=soft[1],
        volumes_ml=np.array([float(measured[channels[name]]) for name in model.regions]),
    )


def _reach(
    soft: Tensor, region: Sequence[int], partners: Sequence[int], target: float, spacing_mm: float
) -> Tensor:
    """The region grown into its partners, or they into it."""
    gain = target - float(soft[list(region)].double().sum())
    if gain > 0:
        return grown(soft, region, partners, gain, spacing_mm)
    return grown(soft, partners, region, -gain, spacing_mm)
