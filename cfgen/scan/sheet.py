"""A sheet of brains: a tile each with an axial and a sagittal slice, and what was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfgen.scan.pictures import new_figure, save_figure

# Tiles of a sheet; of more brains every so many is shown.
MOST = 60
COLUMNS = 10
# Heights of the axial and sagittal slices, as shares of the box from its lower end.
AXIAL, SAGITTAL = 0.5, 0.47


def chosen(count: int) -> list[int]:
    """The numbers of at most `MOST` of `count` brains, evenly spaced, both ends included."""
    if count <= MOST:
        return list(range(count))
    return [round(i * (count - 1) / (MOST - 1)) for i in range(MOST)]


def brain_sheet(images: Sequence[np.ndarray], titles: Sequence[str], path: Path) -> None:
    """Images (D, H, W) of one model grid, which is RAS, with a title each."""
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = new_figure(rows, columns, 1.3 * columns, 2.75 * rows)
    for place in axes.flat:
        place.axis("off")
    for place, image, title in zip(axes.flat, images, titles, strict=False):
        place.imshow(_tile(image), origin="lower", cmap="gray", vmin=0, vmax=1)
        place.set_title(title, fontsize=6, pad=2)
    save_figure(figure, path)


def _tile(image: np.ndarray) -> Any:
    axial = image[:, :, round(AXIAL * image.shape[2])].T
    sagittal = image[round(SAGITTAL * image.shape[0])].T
    width = max(axial.shape[1], sagittal.shape[1])
    slices = [np.pad(s, ((0, 0), (0, width - s.shape[1]))) for s in (sagittal, axial)]
    return np.concatenate(slices)
