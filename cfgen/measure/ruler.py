"""What measures a scan's regions for a page, where a bundle can."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from cfgen.bundle import Bundle
from cfgen.data.volume import Volume
from cfgen.data.volumes import RegionVolume
from cfgen.errors import ImageError
from cfgen.measure.segmenter import LazySegmentation, load_segmenter, soft_volumes
from cfgen.nets.segmenter import Segmenter


@dataclass(frozen=True)
class Regions:
    """A scan's volumes and brain mask, and the bundle that measured them; where there are none,
    `missing` says why."""

    volumes: list[RegionVolume] = field(default_factory=list)
    mask: np.ndarray | None = None
    by: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Ruler:
    """What measures volumes: the segmenter of bundle `name`; without one `missing` says why."""

    net: Segmenter | None
    device: torch.device
    name: str = ""
    missing: str = ""

    @staticmethod
    def of(bundle: Bundle | None, device: torch.device) -> Ruler:
        if bundle is None:
            return Ruler(None, device, missing="not asked for")
        if "segmenter" not in bundle.parts:
            return Ruler(None, device, missing="the bundle has no segmenter")
        return Ruler(load_segmenter(bundle, device), device, bundle.name)

    def measure(self, scan: Volume) -> Regions:
        if self.net is None:
            return Regions(missing=self.missing)
        return self.read(LazySegmentation(self.net, scan, self.device))

    def soft(self, scan: Volume) -> list[RegionVolume]:
        """Volumes by probabilities alone, in half the time; none where they can't be had."""
        if self.net is None:
            return []
        try:
            return soft_volumes(self.net, scan, self.device)
        except ImageError:
            return []

    def read(self, segmentation: LazySegmentation) -> Regions:
        """Of a scan that this segmenter may have seen already."""
        try:
            found = segmentation.result
        except ImageError as error:
            return Regions(missing=error.found)
        return Regions(found.volumes, found.mask, self.name)
