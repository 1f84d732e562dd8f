"""Brain mask, regions and their volumes of any head scan, by the bundle's segmenter.

The network sees the brain upright at 2 mm, through a window of one size (`window.py`). Its
probabilities, not its labels, are brought to the scan's own grid, so that a fine scan gets smooth
edges; labels and volumes are made from them there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from cfgen.bundle import Bundle, net_config
from cfgen.data.parcellation import BRAIN_FROM, NAMES, SIDED, STRUCTURES
from cfgen.data.regions import FLUID
from cfgen.data.volume import Grid, Volume
from cfgen.data.volumes import RegionVolume, totals
from cfgen.device import autocast
from cfgen.errors import BundleError, ImageError
from cfgen.measure.window import fits, head, middle, upright, window
from cfgen.nets.segmenter import Segmenter, SegmenterConfig
from cfgen.space.grids import crop_box, crop_grid, largest_component
from cfgen.space.sampling import points_in, sample

# What the network sees the scan at.
SPACING_MM = 2.0
# Native voxels are labelled in slabs, so that memory stays small at 0.7 mm.
SLAB_VOXELS = 400_000
# Fluid further than this from the brain's tissue is not inside the skull.
FLUID_REACH_MM = 12.0
# Numbers of the structures that are fluid.
FLUIDS = frozenset(n for n, s in enumerate(STRUCTURES) if s.name in FLUID)


@dataclass(frozen=True)
class Posteriors:
    """`classes` (C, D, H, W) float32, the probability of each of `parcellation.STRUCTURES`, and
    `left` (D, H, W), that of the left side, on an upright `grid`."""

    classes: Tensor
    left: Tensor
    grid: Grid

    @property
    def brain(self) -> Tensor:
        return self.classes[BRAIN_FROM:].sum(0)


@dataclass(frozen=True)
class Segmentation:
    """On the scan's grid: `mask` (I, J, K) of the brain with its fluid, `labels` (I, J, K) int32 in
    FreeSurfer's codes, 0 outside the mask. `confidence` is the mean probability of the chosen class
    inside the brain. `source` says whose labels they are."""

    mask: np.ndarray
    labels: np.ndarray
    volumes: list[RegionVolume]
    confidence: float | None
    posteriors: Posteriors | None = None
    source: str = "cfgen"


@dataclass(frozen=True)
class LazySegmentation:
    """The segmentation of a scan by a network, made when it is first asked for, and then kept."""

    net: Segmenter
    scan: Volume
    device: torch.device

    @cached_property
    def result(self) -> Segmentation:
        """Raises ImageError when nothing in the scan looks like a brain."""
        return segment(self.net, self.scan, self.device)


def segmenter_part(config: SegmenterConfig) -> dict[str, Any]:
    """The configuration of the part: the network, what it sees, and what its classes are."""
    return net_config(config) | {"spacing_mm": SPACING_MM, "structures": list(NAMES)}


def load_segmenter(bundle: Bundle, device: torch.device) -> Segmenter:
    """Raises BundleError when the bundle has no segmenter, or one of other classes or spacing."""
    own = bundle.part("segmenter").config
    for key, expected in segmenter_part(SegmenterConfig(len(NAMES))).items():
        if key != "net" and own.get(key) != expected:
            raise BundleError(
                bundle.path / "bundle.json",
                f"segmenter: {key} is {own.get(key)}",
                f"{expected}, in which this cfgen measures",
                "train the part again: cfgen train-segmenter",
            )
    return bundle.network("segmenter", Segmenter, SegmenterConfig, device)


def segment(net: Segmenter, scan: Volume, device: torch.device) -> Segmentation:
    """Raises ImageError when nothing in the scan looks like a brain."""
    found, piece = brain_posteriors(net, scan, device)
    mask, labels = _on_scan(found, scan.grid)
    chosen = found.classes[BRAIN_FROM:].amax(0)[torch.from_numpy(piece)]
    volumes = _volumes(found, _counted(labels, scan.grid))
    return Segmentation(mask, labels, volumes, float(chosen.mean()), found)


def soft_volumes(net: Segmenter, scan: Volume, device: torch.device) -> list[RegionVolume]:
    """Summed probabilities as `segment` has them, without a label map, so that counts are NaN.

    Raises ImageError when nothing in the scan looks like a brain.
    """
    found, _ = brain_posteriors(net, scan, device)
    return _volumes(found, defaultdict(lambda: float("nan")))


@torch.inference_mode()
def brain_posteriors(
    net: Segmenter, scan: Volume, device: torch.device
) -> tuple[Posteriors, np.ndarray]:
    """`posteriors` with nothing of the brain away from the largest piece of its tissue, and that
    piece (D, H, W) bool.

    Raises ImageError when nothing in the scan looks like a brain.
    """
    found = posteriors(net, scan, device)
    piece = largest_component(_tissue(found.classes).numpy() > 0.5)
    if not piece.any():
        raise ImageError(
            scan.path or "scan", "brain not found: no voxel looks like brain", "a head MRI"
        )
    # Islands outside the brain, and what looks like its fluid in nose and neck, are none of it.
    reach = round(FLUID_REACH_MM / SPACING_MM)
    near = torch.from_numpy(ndimage.binary_dilation(piece, iterations=reach)).float()
    found.classes[0] += found.brain * (1 - near)
    found.classes[BRAIN_FROM:] *= near
    return found, piece


def scaled(image: Tensor) -> Tensor:
    """The 1st percentile at 0 and the 99.5th at 1, cut there; what the segmenter sees.

    Of every seventh voxel: percentiles of all of them would cost more than the network.
    """
    some = image.flatten()[::7]
    low, high = torch.quantile(some, torch.tensor([0.01, 0.995], device=some.device)).tolist()
    return ((image - low) / max(high - low, 1e-6)).clamp(0, 1)


@torch.inference_mode()
def posteriors(net: Segmenter, scan: Volume, device: torch.device) -> Posteriors:
    """Class probabilities of a scan's brain and what is around it, upright at 2 mm.

    What the network sees does not depend on how much air or neck the scan has (`window.py`).
    """
    image = upright(scan, SPACING_MM)
    around = head(image)
    if fits(around):
        centre = (np.array(around.data.shape) - 1) / 2
    else:
        tissue = _tissue(_scores(net, torch.from_numpy(around.data), device)[0])
        seen = largest_component(tissue.numpy() > 0.5)
        centre = middle(seen if seen.any() else np.ones_like(seen))
    part = window(image, centre + around.first - image.first)
    data = torch.from_numpy(part.data)
    # As it is and mirrored, which is better than either; the mirrored one is a voxel further, so
    # that the voxels are packed and halved otherwise: the mean knows less of where they begin.
    classes, left = (F.pad(p, (0, 1) * 3) for p in _scores(net, data[:-1, :-1, :-1], device))
    mirrored, right = _scores(net, data[1:, 1:, 1:].flip(0), device)
    weight = torch.zeros(data.shape)
    weight[:-1, :-1, :-1] = 1
    weight[1:, 1:, 1:] += 1
    classes[:, 1:, 1:, 1:] += mirrored.flip(1)
    left[1:, 1:, 1:] += 1 - right.flip(0)
    # Two corners are in neither: there is no brain.
    classes[0] += weight == 0
    weight.clamp_(min=1)
    return _within(Posteriors(classes.div_(weight), left.div_(weight), part.grid), image.grid)


def _scores(net: Segmenter, data: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Probabilities (C, D, H, W) and side (D, H, W) of an image (D, H, W) of any brightness."""
    image = scaled(data)[None, None].to(device, memory_format=torch.channels_last_3d)
    with autocast(device):
        scores, side = net(image)
    return scores[0].float().softmax(0).cpu(), side[0].float().sigmoid().cpu()


def _tissue(classes: Tensor) -> Tensor:
    """Probability of the brain without its fluid."""
    return classes[[n for n in range(BRAIN_FROM, len(STRUCTURES)) if n not in FLUIDS]].sum(0)


def _within(found: Posteriors, field: Grid) -> Posteriors:
    """What lies in the field of view: nothing is known of a brain beyond it."""
    first = np.rint((field.affine[:3, 3] - found.grid.affine[:3, 3]) / SPACING_MM).astype(int)
    size = np.array(found.left.shape)
    low, high = np.clip(first, 0, size), np.clip(first + np.array(field.shape), 0, size)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    grid = crop_grid(found.grid, (i, j, k))
    return Posteriors(found.classes[:, i, j, k].contiguous(), found.left[i, j, k], grid)


def _on_scan(found: Posteriors, native: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Brain mask and labels on the scan's grid."""
    box = _box_of_brain(found, native)
    grid = crop_grid(native, box)
    inside = np.zeros(grid.shape, bool)
    for slab in _slabs(grid):
        points = points_in(found.grid, crop_grid(grid, slab))
        inside[slab] = (sample(found.brain[None], points)[0] > 0.5).numpy()
    inside = ndimage.binary_fill_holes(largest_component(inside))
    mask, labels = np.zeros(native.shape, bool), np.zeros(native.shape, np.int32)
    mask[box] = inside
    field = torch.cat([found.classes[BRAIN_FROM:], found.left[None]])
    left = np.array([s.left for s in STRUCTURES[BRAIN_FROM:]], np.int32)
    right = np.array([s.right for s in STRUCTURES[BRAIN_FROM:]], np.int32)
    # Half of the box is no brain, and has no label.
    for slab in _slabs(grid):
        brain = inside[slab]
        points = points_in(found.grid, crop_grid(grid, slab))[torch.from_numpy(brain)]
        values = sample(field, points)
        best = values[:-1].argmax(0).numpy()
        labels[box][slab][brain] = np.where(values[-1].numpy() > 0.5, left[best], right[best])
    return mask, labels


def _slabs(grid: Grid) -> Iterator[tuple[slice, slice, slice]]:
    """The boxes that a grid is done in."""
    first, *others = (slice(0, n) for n in grid.shape)
    depth = max(1, SLAB_VOXELS // int(np.prod(grid.shape[1:])))
    for start in range(0, first.stop, depth):
        yield slice(start, min(start + depth, first.stop)), others[0], others[1]


def _box_of_brain(found: Posteriors, native: Grid) -> tuple[slice, slice, slice]:
    """The box of the scan's voxels that holds the brain, with a margin of a segmenter's voxel."""
    box = crop_box(found.brain.numpy() > 0.01, margin=1)
    ends = np.array([[b.start, b.stop - 1] for b in box], float)
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    matrix = np.linalg.inv(native.affine) @ found.grid.affine
    voxels = corners @ matrix[:3, :3].T + matrix[:3, 3]
    low = np.clip(np.floor(voxels.min(0)), 0, np.array(native.shape) - 1).astype(int)
    high = np.clip(np.ceil(voxels.max(0)) + 1, low + 1, native.shape).astype(int)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def channels_on(found: Posteriors, native: Grid) -> np.ndarray:
    """Posteriors on a scan's grid: (I, J, K, channels) uint8 in 255ths, a channel for every
    structure and side in the order of `SIDED`."""
    out = np.zeros((*native.shape, len(SIDED)), np.uint8)
    out[..., 0] = 255
    field = torch.cat([found.classes, found.left[None]])
    for start in range(0, native.shape[0], 4):
        slab = (slice(start, min(start + 4, native.shape[0])), slice(None), slice(None))
        whole = tuple(slice(*s.indices(n)) for s, n in zip(slab, native.shape, strict=True))
        points = points_in(found.grid, crop_grid(native, (whole[0], whole[1], whole[2])))
        values = sample(field, points)
        left, channel = values[-1], 0
        for s, p in zip(STRUCTURES, values[:-1], strict=True):
            parts = [p] if s.left == s.right else [p * left, p * (1 - left)]
            for part in parts:
                out[slab][..., channel] = (part * 255).round().byte().numpy()
                channel += 1
    return out


def _counted(labels: np.ndarray, grid: Grid) -> defaultdict[int, float]:
    """The volume (mm3) of every label, 0 of those that are not there."""
    counts = np.bincount(labels.ravel()) * grid.voxel_mm3
    return defaultdict(float, enumerate(counts.tolist()))


def _volumes(found: Posteriors, hard: defaultdict[int, float]) -> list[RegionVolume]:
    """Every structure by side, then the totals; `hard` are volumes (mm3) by label."""
    soft_voxel = found.grid.voxel_mm3
    out = []
    for number, structure in enumerate(STRUCTURES[BRAIN_FROM:], BRAIN_FROM):
        p = found.classes[number]
        if structure.left == structure.right:
            soft = float(p.sum()) * soft_voxel
            out.append(RegionVolume(structure.name, "both", hard[structure.left], soft))
            continue
        on_left = float((p * found.left).sum()) * soft_voxel
        on_right = float((p * (1 - found.left)).sum()) * soft_voxel
        out.append(RegionVolume(structure.name, "left", hard[structure.left], on_left))
        out.append(RegionVolume(structure.name, "right", hard[structure.right], on_right))
    return out + totals(out)
