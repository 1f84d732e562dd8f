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
    data: np.ndarray,
    edits: Sequence[tuple[int, int, Edited]],
    path: Path,
    title: str,
) -> None:
    """`data` (R, A, S) is the edited scan, `edits` are places in it, the scan's own voxels, and
    what was made there; the subject's left is on the left."""
    rows = np.unique(np.linspace(0, len(edits) - 1, _ROWS).round().astype(int))
    figure, axes = new_figure(len(rows), 4, 9.0, 2.5 * len(rows) + 0.5)
    aspect = slices.zooms[1] / slices.zooms[0]
    for row, n in enumerate(rows):
        place, voxel, edit = edits[n]
        before, after = (x[:, :, place] for x in (slices.data, data))
        change = after - before
        limit = float(np.abs(change).max()) or 1.0
        grey = {"cmap": "gray", "vmin": 0, "vmax": slices.white}
        images = (before, slices.values(edit.rebuilt), after, change)
        for column, image in enumerate(images):
            how = grey if column < 3 else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            axis = axes[row, column]
            axis.imshow(image.T, origin="lower", aspect=aspect, interpolation="nearest", **how)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(f"voxel {voxel}", fontsize=8)
        for x, side in ((0.03, "L"), (0.97, "R")):
            axes[row, 0].text(
                x,
                0.5,
                side,
                transform=axes[row, 0].transAxes,
                color="#ffd166",
                fontsize=8,
                ha="center",
                va="center",
            )
    names = ("scan", "as the model sees it", "edited (synthetic)", "difference")
    for column, name in enumerate(names):
        axes[0, column].set_title(name, fontsize=9)
    figure.suptitle(f"{title} (synthetic)", fontsize=10)
    save_figure(figure, path)
