"""Ventricles of an edited image, counted in the image itself and not by what edited it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cfgen.data.regions import group_mask
from cfgen.errors import ImageError

GROWN_MM = 6.0


@dataclass(frozen=True)
class VentricleCount:
    """Counts voxels of `region` (I, J, K) that are darker than `threshold`."""

    region: np.ndarray
    threshold: float

    def count(self, image: np.ndarray) -> int:
        return int((image[self.region] < self.threshold).sum())


def ventricle_count(
    factual: np.ndarray, labels: np.ndarray, table: str, spacing_mm: float
) -> VentricleCount:
    """The count for a subject: around its labelled lateral ventricles, halfway in brightness
    from their fluid to the basal ganglia.

    `factual` and `labels` (I, J, K) share a grid of `spacing_mm`. On 31 IXI scans the count of the
    factual scan correlates 0.997 with the labelled volume, slope 1.03. Raises ImageError where the
    labels are not of the table.
    """
    inside = group_mask(labels, table, "lateral_ventricle")
    deep = group_mask(labels, table, "basal_ganglia")
    if not (inside.any() and deep.any()):
        raise ImageError("label map", "labels no lateral ventricles or no basal ganglia", "both")
    region = around_ventricles(labels, table, spacing_mm)
    # The darkest fifth: the rest of a 2 mm label is partly tissue.
    fluid = float(np.percentile(factual[inside], 20))
    grey = float(np.median(factual[deep]))
    return VentricleCount(region, (fluid + grey) / 2)


def around_ventricles(labels: np.ndarray, table: str, spacing_mm: float) -> np.ndarray:
    """The labelled lateral ventricles (I, J, K) and what is near them."""
    inside = group_mask(labels, table, "lateral_ventricle")
    grown = ndimage.binary_dilation(inside, iterations=round(GROWN_MM / spacing_mm))
    return np.asarray(grown)
