"""A picture of an edit: a row a slice, with the scan, what the model sees of it, and the edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfgen.scan.pictures import new_figure, save_figure
from cfgen.sd.sampling import Edited
from cfgen.sd.slices import Slices

# More rows than this would be too small to see.
_ROWS = 5


def slices_picture(
    slices: Slices,
    places: Sequence[int],
    data: np.ndarray,
    edits: Sequence[Edited],
    path: Path,
    title: str,
) -> None:
    """`data` (R, A, S) is the edited scan; the subject's left is on the left."""
    shown = np.unique(np.linspace(0, len(places) - 1, _ROWS).round().astype(int))
    figure, axes = new_figure(len(shown), 4, 9.0, 2.5 * len(shown) + 0.5)
    aspect = slices.zooms[1] / slices.zooms[0]
    for row, n in enumerate(shown):
        before, after = (x[:, :, places[n]] for x in (slices.data, data))
        change = after - before
        limit = float(np.abs(change).max()) or 1.0
        grey = {"cmap": "gray", "vmin": 0, "vmax": slices.white}
        images = (before, slices.values(edits[n].rebuilt), after, change)
        for column, image in enumerate(images):
            how = grey if column < 3 else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            axis = axes[row, column]
            axis.imshow(image.T, origin="lower", aspect=aspect, interpolation="nearest", **how)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(f"slice {places[n]}", fontsize=8)
    names = ("scan", "as the model sees it", "edited (synthetic)", "difference")
    for column, name in enumerate(names):
        axes[0, column].set_title(name, fontsize=9)
    figure.suptitle(f"{title} (synthetic)", fontsize=10)
    save_figure(figure, path)
