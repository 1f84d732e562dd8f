"""A prepared scan with its regions and the brightness of its tissues, and the lock on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfgen.config import DEFAULT_GRID
from cfgen.data.volume import Volume
from cfgen.edit.lock import IntensityMap, intensity_map
from cfgen.measure.levels import Levels, tissue_levels
from cfgen.measure.segmenter import segment
from cfgen.nets.segmenter import Segmenter
from cfgen.space.grids import model_grid


@dataclass(frozen=True)
class Scan:
    """`volume` is on the model grid, `volumes` are its regions' in mm3."""

    volume: Volume
    volumes: dict[str, float]
    levels: Levels
    bias: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        return self.volume.data > 0

    def contrast(self, image: np.ndarray) -> IntensityMap:
        """What a map of brightness explains of an edit (D, H, W)."""
        change = (image - self.volume.data) / self.bias
        return intensity_map(self.volume.data / self.bias, change, self.brain, self.levels)

    def locked(self, found: IntensityMap) -> np.ndarray:
        return np.asarray(found(self.volume.data / self.bias) * self.bias)

    def undone(self, found: IntensityMap, image: np.ndarray) -> Volume:
        """An edit with the scan's own contrast: what is left is what no map explains."""
        back = found.inverse(image / self.bias) * self.bias
        return self.volume.like(np.where(self.brain, back, 0).astype(np.float32))


def look(net: Segmenter, image: Tensor) -> Scan:
    volume = Volume(image.float().numpy(), model_grid(DEFAULT_GRID).affine)
    regions = segment(net, volume, torch.device("cpu"))
    levels = tissue_levels(volume, regions.posteriors)
    return Scan(volume, regions.volumes, levels, levels.bias_on(volume.grid))
