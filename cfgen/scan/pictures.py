"""Pictures: what was prepared, and what an edit changed, in three planes with side labels.

Slices are shown in the scan's own voxels, turned to RAS+ by flips and swaps of axes alone, seen
from behind and above: the subject's left is on the left of the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cfgen.data.volume import Grid, write_atomically
from cfgen.space.grids import crop_box

# Axis that is cut, axes across and up in the picture, and the letters at their ends.
PLANES = (
    ("axial", 2, ("L", "R"), ("P", "A")),
    ("coronal", 1, ("L", "R"), ("I", "S")),
    ("sagittal", 0, ("P", "A"), ("I", "S")),
)
# Voxels of a picture around what it shows.
BORDER = 3


def to_ras(data: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The array with axes in the order and direction R, A, S, and its spacing (3,) in mm."""
    turn = nib.io_orientation(grid.affine)
    order = np.argsort(turn[:, 0])
    spacing = np.array(grid.spacing)[order]
    return np.asarray(nib.apply_orientation(data, turn)), spacing


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    return volume.take(index, axis).T


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(
    axes: Any, cut: np.ndarray, plane: tuple[Any, ...], spacing: np.ndarray, **how: Any
) -> Any:
    """One slice in mm with its four side letters."""
    _, axis, across, up = plane
    step_across, step_up = np.delete(spacing, axis)
    drawn = axes.imshow(
        cut, origin="lower", aspect=step_up / step_across, interpolation="nearest", **how
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for x, y, letter in (
        (0.02, 0.5, across[0]),
        (0.98, 0.5, across[1]),
        (0.5, 0.02, up[0]),
        (0.5, 0.98, up[1]),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color="#ffd166",
            fontsize=8,
            weight="bold",
            ha={0.02: "left", 0.98: "right"}.get(x, "center"),
            va={0.02: "bottom", 0.98: "top"}.get(y, "center"),
        )
    return drawn


def save_figure(figure: Any, path: Path) -> None:
    # No software or date in the file: the same picture has the same bytes.
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None})
    )


def counterfactual_picture(
    factual: np.ndarray,
    edited: np.ndarray,
    grid: Grid,
    mask: np.ndarray,
    path: Path,
    title: str,
) -> None:
    """Factual, counterfactual and signed difference (rows: planes) through the largest change.

    `factual`, `edited` and `mask` are on `grid`. Both images share one grey window; the difference
    has a symmetric scale, blue where the image became darker and red where brighter.
    """
    before, spacing = to_ras(factual, grid)
    after, _ = to_ras(edited, grid)
    brain, _ = to_ras(mask, grid)
    box = crop_box(brain, BORDER)
    before, after, brain = before[box], after[box], brain[box]
    change = after - before
    window = {"vmin": 0.0, "vmax": float(np.percentile(before[brain], 99.8)), "cmap": "gray"}
    limit = float(np.percentile(np.abs(change[brain]), 99.5)) or 1.0
    figure, axes = new_figure(3, 3, 9.0, 9.6)
    drawn = None
    for row, plane in enumerate(PLANES):
        index = best_slice(change, brain, plane[1])
        for column, volume in enumerate((before, after)):
            _show(axes[row, column], _cut(volume, plane[1], index), plane, spacing, **window)
        drawn = _show(
            axes[row, 2],
            _cut(change, plane[1], index),
            plane,
            spacing,
            vmin=-limit,
            vmax=limit,
            cmap="RdBu_r",
        )
        axes[row, 0].set_ylabel(plane[0], fontsize=9)
    for column, name in enumerate(("factual", "counterfactual (synthetic)", "difference")):
        axes[0, column].set_title(name, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes[:, 2], shrink=0.5, location="right")
    bar.set_label("counterfactual - factual, units of the scan", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def best_slice(change: np.ndarray, brain: np.ndarray, axis: int) -> int:
    """The slice with the most change in the middle half of the brain."""
    others = tuple(int(a) for a in np.delete(range(3), axis))
    amount = (np.abs(change) * brain).sum(others)
    extent = np.flatnonzero(brain.any(axis=others))
    quarter = len(extent) // 4
    middle = extent[quarter : len(extent) - quarter]
    if not amount.any():
        return int(middle[len(middle) // 2])
    return int(middle[amount[middle].argmax()])


def preparation_picture(
    scan: np.ndarray,
    mask: np.ndarray,
    native: Grid,
    image: np.ndarray,
    grid: Grid,
    template: np.ndarray,
    path: Path,
    title: str,
) -> None:
    """The scan with the outline of its brain mask, and the prepared image beside the template.

    `template` is on `grid`, as `image` is.
    """
    own, own_spacing = to_ras(scan, native)
    brain, _ = to_ras(mask, native)
    figure, axes = new_figure(3, 3, 9.0, 9.6)
    window = float(np.percentile(own, 99.7))
    for row, plane in enumerate(PLANES):
        axis = plane[1]
        index = best_slice(np.zeros_like(own), brain, axis)
        _show(
            axes[row, 0],
            _cut(own, axis, index),
            plane,
            own_spacing,
            vmin=0,
            vmax=window,
            cmap="gray",
        )
        axes[row, 0].contour(_cut(brain, axis, index), [0.5], colors="#e63946", linewidths=0.8)
        middle = image.shape[axis] // 2
        for column, volume in ((1, image), (2, template)):
            _show(
                axes[row, column],
                _cut(volume, axis, middle),
                plane,
                np.array(grid.spacing),
                vmin=0,
                vmax=1,
                cmap="gray",
            )
        axes[row, 0].set_ylabel(plane[0], fontsize=9)
    for column, name in enumerate(("scan and brain mask", "prepared", "template")):
        axes[0, column].set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def segmentation_picture(
    scan: np.ndarray, labels: np.ndarray, grid: Grid, path: Path, title: str
) -> None:
    """The scan, and its labels in colour over it (rows: planes), through the middle of the brain.

    `labels` (I, J, K) on `grid` are numbers from 1 up to the number of structures, 0 outside.
    """
    own, spacing = to_ras(scan, grid)
    regions, _ = to_ras(labels, grid)
    brain = regions > 0
    figure, axes = new_figure(3, 2, 6.4, 9.6)
    window = float(np.percentile(own, 99.7))
    for row, plane in enumerate(PLANES):
        axis = plane[1]
        index = best_slice(np.zeros_like(own), brain, axis)
        cut = _cut(own, axis, index)
        for column in range(2):
            _show(axes[row, column], cut, plane, spacing, vmin=0, vmax=window, cmap="gray")
        painted = np.ma.masked_equal(_cut(regions, axis, index), 0)
        _show(
            axes[row, 1],
            painted,
            plane,
            spacing,
            vmin=1,
            vmax=int(regions.max()),
            cmap="nipy_spectral",
            alpha=0.6,
        )
        axes[row, 0].contour(_cut(brain, axis, index), [0.5], colors="#e63946", linewidths=0.8)
        axes[row, 0].set_ylabel(plane[0], fontsize=9)
    for column, name in enumerate(("scan and brain mask", "regions")):
        axes[0, column].set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def masks_picture(
    before: np.ndarray,
    after: np.ndarray,
    grid: Grid,
    scan: np.ndarray | None,
    path: Path,
    title: str,
) -> None:
    """Regions before and after, and the voxels that changed, in the colours of what they became
    (rows: planes), through the largest change.

    `before` and `after` (I, J, K) on `grid` are numbers from 1, 0 outside. Behind them is the scan,
    or, where there is none, the shape of the regions in grey.
    """
    old, spacing = to_ras(before, grid)
    new, _ = to_ras(after, grid)
    own, _ = to_ras(before if scan is None else scan, grid)
    box = crop_box(old > 0, BORDER)
    old, new, own = old[box], new[box], own[box]
    top = float(np.percentile(own, 99.7)) or 1.0
    highest = int(max(old.max(), new.max()))
    figure, axes = new_figure(3, 3, 9.0, 9.6)
    for row, plane in enumerate(PLANES):
        axis = plane[1]
        index = best_slice(old != new, old > 0, axis)
        cut = _cut(own, axis, index)
        changed = _cut(np.where(old != new, new, -1), axis, index)
        regions = [_cut(old, axis, index), _cut(new, axis, index), changed]
        for column, shown in enumerate(regions):
            _show(axes[row, column], cut, plane, spacing, vmin=0, vmax=top, cmap="gray")
            # Where the change is to nothing, 0, it is shown too.
            hidden = np.ma.masked_less(shown, 0 if column == 2 else 1)
            _show(
                axes[row, column],
                hidden,
                plane,
                spacing,
                vmin=0,
                vmax=highest,
                cmap="nipy_spectral",
                alpha=0.6 if column < 2 else 1.0,
            )
        axes[row, 0].set_ylabel(plane[0], fontsize=9)
    for column, name in enumerate(("factual regions", "edited regions", "changed to")):
        axes[0, column].set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
