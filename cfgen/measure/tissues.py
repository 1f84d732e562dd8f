"""Grey matter, white matter and CSF by the bundle's tissue network, which learned from one study.

It is there to be compared, trained with scans of one scanner and tested on another's: it knows what
it was shown and no more. What measures elsewhere is the segmenter, which any contrast will do for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfgen.bundle import Bundle
from cfgen.data.table import Row
from cfgen.data.tissues import TISSUES, tissues_of
from cfgen.data.volume import Grid, Volume, read_volume
from cfgen.device import autocast
from cfgen.errors import BundleError
from cfgen.measure.segmenter import SPACING_MM, scaled
from cfgen.measure.window import head, upright
from cfgen.metrics.statistics import mean_over_people
from cfgen.nets.segmenter import SegmenterConfig, TissueNet
from cfgen.space.grids import require_grid, resample

PART = "tissues"
# Beside the tissues: the mean of a scan over them.
MEAN = "mean"
# By tissue: dice, low and high.
Figures = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class TissueScan:
    """A scan upright at 2 mm, the air around its head cut away: `image` (D, H, W) float16 as the
    network sees it and `tissues` (D, H, W) uint8, the classes of its label map."""

    image: Tensor
    tissues: Tensor
    row: Row


def read_tissue_scan(row: Row) -> TissueScan:
    """Of a row with labels. Raises ImageError for labels on another grid or of unknown codes."""
    assert row.labels is not None
    scan, labels = read_volume(row.image), read_volume(row.labels)
    require_grid(labels, scan.grid, "label map")
    image, grid = seen(scan)
    classes = tissues_of(labels.data, row.labels).astype(np.float32)
    tissues = resample(classes, labels.grid, grid, order=0).astype(np.uint8)
    return TissueScan(image.half(), torch.from_numpy(tissues), row)


def seen(scan: Volume) -> tuple[Tensor, Grid]:
    """What the network sees of a scan: (D, H, W) float32 in [0, 1], and the grid of it."""
    around = head(upright(scan, SPACING_MM))
    return scaled(torch.from_numpy(around.data)), around.grid


def load_tissues(bundle: Bundle, device: torch.device) -> TissueNet:
    """Raises BundleError when the bundle has no tissue network, or one of other classes."""
    own = bundle.part(PART).config
    if own.get("classes") != list(TISSUES):
        raise BundleError(
            bundle.path / "bundle.json",
            f"{PART}: classes {own.get('classes')}",
            str(list(TISSUES)),
            "train the part again: cfgen train-predictor --target segmentation",
        )
    return bundle.network(PART, TissueNet, SegmenterConfig, device)


@torch.inference_mode()
def tissue_map(net: TissueNet, image: Tensor, device: torch.device) -> Tensor:
    """Classes (D, H, W) uint8 of an image as `seen` gives it."""
    batch = image.float()[None, None].to(device, memory_format=torch.channels_last_3d)
    with autocast(device):
        scores = net(batch)
    return scores[0].argmax(0).to(torch.uint8).cpu()


def tissue_dice(
    net: TissueNet, scans: Sequence[TissueScan], device: torch.device
) -> dict[str, np.ndarray]:
    """Dice (N,) of every scan for each tissue; NaN where neither has a voxel of it."""
    found: dict[str, list[float]] = {name: [] for name in TISSUES[1:]}
    for scan in scans:
        labels = tissue_map(net, scan.image, device)
        for number, name in enumerate(TISSUES[1:], 1):
            found[name].append(dice(labels == number, scan.tissues == number))
    return {name: np.array(values) for name, values in found.items()}


def dice(a: Tensor, b: Tensor) -> float:
    """2 |a and b| / (|a| + |b|) of masks; NaN where both are empty."""
    size = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / size if size else float("nan")


def summary(found: Mapping[str, np.ndarray], subjects: Sequence[str]) -> Figures:
    """By tissue, and of their mean: Dice, everybody counting once, with its 95 % interval; what is
    not known is None, since JSON has no NaN."""
    figures = {}
    for name, values in {**found, MEAN: np.mean(list(found.values()), axis=0)}.items():
        value, low, high, _ = mean_over_people(values, subjects)
        numbers = {"dice": value, "low": low, "high": high}
        figures[name] = {k: None if np.isnan(x) else x for k, x in numbers.items()}
    return figures


def dice_lines(figures: Mapping[str, Figures]) -> list[str]:
    """'on val: csf 0.912 [0.905, 0.918], ...' of the `summary` of each set of scans."""
    return [
        f"on {name}: " + ", ".join(f"{tissue} {_words(f)}" for tissue, f in of_scans.items())
        for name, of_scans in figures.items()
    ]


def _words(figure: Mapping[str, float | None]) -> str:
    value, low, high = (figure[k] for k in ("dice", "low", "high"))
    if value is None:
        return "unknown"
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
