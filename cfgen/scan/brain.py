"""Find the brain: a given mask, a stripped image, the segmenter, a head template, another tool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.config import SkullStrip
from cfgen.data.volume import Grid, Volume, read_volume
from cfgen.errors import ImageError, Notice
from cfgen.measure.background import empty_value, filled_foreground, levelled
from cfgen.measure.segmenter import LazySegmentation, load_segmenter
from cfgen.nets.segmenter import Segmenter
from cfgen.scan.external_strip import external_mask
from cfgen.space import registration
from cfgen.space.grids import (
    largest_component,
    require_grid,
    resample,
    work_grid,
)

Source = Literal["mask", "stripped", "segmenter", "template", "synthstrip", "hd-bet"]
# Heads are matched at this spacing (mm): a tenth of the time of 2 mm, and the brain's outline in
# the template is smooth.
HEAD_SPACING_MM = 4.0
# A stripped brain's filled volume (mm3), children to large adults.
STRIPPED_RANGE_MM3 = (600e3, 2200e3)
# Correlation of the warped template with the scan: below the first there is no head to see, below
# the second the outline is rough.
SIMILARITY_LIMIT = 0.45
SIMILARITY_GOOD = 0.75
# The template is a little blurred by averaging: half of its probability lies inside the brain.
BRAIN_PROBABILITY = 0.4


@dataclass(frozen=True)
class Brain:
    """`mask` (I, J, K) bool on the scan's grid, where it came from, and a note for the sidecar;
    `confidence` is the segmenter's, `notice` says that the outline is rough. `regions` are the
    scan's by the bundle's segmenter, where it has one, whoever found the brain."""

    mask: np.ndarray
    source: Source
    note: str
    notice: Notice | None = None
    confidence: float | None = None
    regions: LazySegmentation | None = None


@dataclass(frozen=True)
class SkullStripping:
    """Where the brain mask came from, in a record."""

    method: str
    note: str


@dataclass(frozen=True)
class HeadTemplate:
    """The mean whole head and the probability of brain, each (D, H, W) float32 in [0, 1]."""

    head: np.ndarray
    brain_probability: np.ndarray
    grid: Grid

    def tensors(self) -> dict[str, Tensor]:
        return {
            "head": torch.from_numpy(np.rint(self.head * 255).astype(np.uint8)),
            "brain_probability": torch.from_numpy(
                np.rint(self.brain_probability * 255).astype(np.uint8)
            ),
            "affine": torch.from_numpy(self.grid.affine),
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> HeadTemplate:
        head, probability = (
            tensors[k].numpy().astype(np.float32) / 255 for k in ("head", "brain_probability")
        )
        i, j, k = head.shape
        return HeadTemplate(head, probability, Grid((i, j, k), tensors["affine"].numpy()))


@dataclass(frozen=True)
class BrainFinder:
    """How to find brains, and the bundle's parts for it, loaded once for any number of scans."""

    how: SkullStrip = "auto"
    template: HeadTemplate | None = None
    segmenter: Segmenter | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def brain_finder(bundle: Bundle, how: SkullStrip, device: torch.device) -> BrainFinder:
    """The finder of a bundle; parts that it lacks are missed when they are needed."""
    template = segmenter = None
    if "template" in bundle.parts:
        template = HeadTemplate.from_tensors(bundle.tensors("template"))
    if "segmenter" in bundle.parts:
        segmenter = load_segmenter(bundle, device)
    return BrainFinder(how, template, segmenter, device)


def find_brain(scan: Volume, mask_path: Path | None, finder: BrainFinder) -> Brain:
    """The brain mask of a scan: `mask_path` if given, else as the finder says.

    'auto' is: stripped already, else the segmenter, else the head template. Raises ImageError when
    no plausible brain is found or the mask does not fit the scan, ToolError when a tool fails.
    """
    regions = None
    if finder.segmenter is not None:
        regions = LazySegmentation(finder.segmenter, scan, finder.device)
    brain = _outline(scan, mask_path, finder, regions)
    return replace(brain, regions=regions)


def _outline(
    scan: Volume, mask_path: Path | None, finder: BrainFinder, regions: LazySegmentation | None
) -> Brain:
    if mask_path is not None:
        return Brain(_given_mask(scan, mask_path), "mask", mask_path.name)
    if finder.how in ("synthstrip", "hd-bet"):
        mask_file, said = external_mask(scan, finder.how)
        return Brain(mask_file, finder.how, said)
    if finder.how == "none":
        return Brain(_foreground(scan), "stripped", "the scan was said to be stripped")
    if finder.how == "auto":
        stripped = stripped_mask(scan)
        if stripped is not None:
            return Brain(stripped, "stripped", "the scan's background is empty: brain only")
        if regions is not None:
            mask, confidence = regions.result.mask, regions.result.confidence
            return Brain(mask, "segmenter", f"confidence {confidence:.3f}", confidence=confidence)
    if finder.template is None:
        raise ImageError(
            scan.path or "scan",
            "a whole head, and the bundle has neither segmenter nor head template",
            "a brain mask",
            "give one with --mask",
        )
    return _from_template(scan, finder.template)


def _foreground(scan: Volume) -> np.ndarray:
    values, counts = np.unique(scan.data, return_counts=True)
    piece = largest_component(scan.data != values[counts.argmax()])
    return np.asarray(ndimage.binary_fill_holes(piece))


def _from_template(scan: Volume, template: HeadTemplate) -> Brain:
    mask, similarity = _template_mask(scan, template)
    volume_ml = float(mask.sum()) * scan.grid.voxel_mm3 / 1e3
    low, high = (v / 1e3 for v in STRIPPED_RANGE_MM3)
    if similarity < SIMILARITY_LIMIT or not low <= volume_ml <= high:
        raise ImageError(
            scan.path or "scan",
            f"brain not found: likeness to a T1w head {similarity:.2f}, brain {volume_ml:.0f} mL",
            f"at least {SIMILARITY_LIMIT:g}, and {low:.0f} to {high:.0f} mL",
            "check that it is a T1w head scan with the right voxel size, or give a --mask",
        )
    notice = None
    if similarity < SIMILARITY_GOOD:
        notice = Notice(
            "brain-rough",
            f"the brain mask is rough: likeness to the head template {similarity:.2f}, "
            f"good from {SIMILARITY_GOOD:g}; look at the picture, or give a --mask",
        )
    return Brain(mask, "template", f"likeness to the head template {similarity:.3f}", notice)


def _given_mask(scan: Volume, path: Path) -> np.ndarray:
    mask = read_volume(path)
    require_grid(mask, scan.grid, "mask")
    return np.asarray(mask.data > 0)


def stripped_mask(scan: Volume) -> np.ndarray | None:
    """The foreground of a brain-only image, holes filled; None for a whole head.

    In a brain-only image every face of the volume has one value, the background, and what stands
    out of it is of a brain's size, where a head with an erased background has its scalp and neck.
    """
    empty = empty_value(scan.data)
    if empty is None:
        return None
    filled = filled_foreground(scan.data, empty)
    volume = float(filled.sum()) * scan.grid.voxel_mm3
    if not STRIPPED_RANGE_MM3[0] <= volume <= STRIPPED_RANGE_MM3[1]:
        return None
    return filled


def _template_mask(scan: Volume, template: HeadTemplate) -> tuple[np.ndarray, float]:
    """The template's brain warped to the scan, and how alike the two heads are there."""
    work = work_grid(scan.grid, HEAD_SPACING_MM)
    head = scaled_head(resample(levelled(scan.data), scan.grid, work))
    warped_head, probability = registration.deform(
        head, work, template.head, template.grid, [template.head, template.brain_probability]
    )
    mask = largest_component(probability > BRAIN_PROBABILITY)
    if not mask.any():
        return np.zeros(scan.grid.shape, bool), 0.0
    around = ndimage.binary_dilation(mask, iterations=3)
    similarity = float(np.corrcoef(head[around], warped_head[around])[0, 1])
    native = resample(probability * mask, work, scan.grid) > BRAIN_PROBABILITY
    return np.asarray(ndimage.binary_fill_holes(native)), similarity


def scaled_head(data: np.ndarray) -> np.ndarray:
    """Intensities with the 2nd percentile at 0 and the 98th of the bright half at 1."""
    low = float(np.percentile(data, 2))
    bright = data[data > data.mean()]
    high = float(np.percentile(bright, 98)) if bright.size else 1.0
    return np.clip((data - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def build_head_template(
    heads: Iterable[tuple[Volume, np.ndarray, np.ndarray]], grid: Grid
) -> HeadTemplate:
    """Mean head and brain of (scan, brain mask, template-to-scan affine) on a template grid."""
    head = np.zeros(grid.shape, np.float64)
    brain = np.zeros(grid.shape, np.float64)
    count = 0
    for scan, mask, to_scan in heads:
        head += resample(scaled_head(scan.data), scan.grid, grid, to_scan)
        brain += resample(mask.astype(np.float32), scan.grid, grid, to_scan)
        count += 1
    return HeadTemplate((head / count).astype(np.float32), (brain / count).astype(np.float32), grid)
