"""The volumes of a report as 8-bit layers: what the page's script cuts, and still slices for print.

All layers share one lattice, turned to RAS+ by flips and swaps of axes, cropped to the brain: the
subject's left is on the left of every picture, as in `pictures.py`.
"""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import nibabel as nib
import numpy as np

from cfgen.data.volume import Grid
from cfgen.scan.pictures import PLANES, best_slice, to_ras
from cfgen.space.grids import crop_box, crop_grid, resample, work_grid

MARGIN_MM = 6.0
# Finer scans are shown on a coarser grid, so that a page stays a few megabytes.
MOST_VOXELS = 3_500_000

Kind = Literal["grey", "change", "spread"]
# ColorBrewer's RdBu, turned so that blue is darker and red brighter, and viridis: both can be told
# apart with any colour vision.
STOPS: dict[Kind, tuple[str, ...]] = {
    "grey": ("#000000", "#ffffff"),
    "change": (
        *("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7"),
        *("#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"),
    ),
    "spread": (
        *("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c"),
        *("#28ae80", "#5ec962", "#addc30", "#fde725"),
    ),
}


@dataclass(frozen=True)
class Layer:
    """`levels` (X, Y, Z) uint8 in RAS+; `low` and `high` are the values of level 0 and 255 in the
    units of the scan, `shown` the value at the bright end of the window that a page opens with."""

    name: str
    title: str
    kind: Kind
    levels: np.ndarray
    low: float
    high: float
    shown: float

    @property
    def packed(self) -> str:
        """Differences between neighbours along x, y, z (x fastest), deflated, in base64."""
        flat = self.levels.ravel(order="F")
        steps = np.diff(flat, prepend=np.uint8(0))
        return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode("ascii")


@dataclass(frozen=True)
class Display:
    """Layers on one lattice: `affine` (4, 4) voxel -> RAS+ mm, `spacing` (3,) mm, the voxel
    `start` (3,) where the page opens, and a note where the scan was resampled to be shown."""

    layers: list[Layer]
    affine: np.ndarray
    spacing: np.ndarray
    start: tuple[int, int, int]
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layers[0].levels.shape


def display(volumes: dict[str, np.ndarray], grid: Grid, brain: np.ndarray) -> Display:
    """Layers of `volumes` on `grid`: 'factual' and 'counterfactual', and 'reconstruction' and 'sd'
    where there are any; the difference is made here. `brain` (I, J, K) bool sets box and window."""
    box = crop_box(brain, margin=max(1, round(MARGIN_MM / min(grid.spacing))))
    cropped = crop_grid(grid, box)
    shown, note = _shown_grid(cropped)
    data = {name: values[box] for name, values in volumes.items()}
    inside = brain[box]
    if shown is not cropped:
        data = {name: resample(values, cropped, shown) for name, values in data.items()}
        inside = resample(inside.astype(np.float32), cropped, shown) > 0.5
    turned = {name: to_ras(values, shown)[0] for name, values in data.items()}
    inside, spacing = to_ras(inside, shown)
    turn = nib.io_orientation(shown.affine)
    affine = shown.affine @ nib.orientations.inv_ornt_aff(turn, shown.shape)
    change = turned["counterfactual"] - turned["factual"]
    start = [best_slice(change, inside, axis) for axis in range(3)]
    layers = _layers(turned, change, inside)
    return Display(layers, affine, spacing, (start[0], start[1], start[2]), note)


def _shown_grid(grid: Grid) -> tuple[Grid, str]:
    """The grid itself, or one of the same box that has few enough voxels."""
    if np.prod(grid.shape) <= MOST_VOXELS:
        return grid, ""
    spacing_mm = round((np.prod(grid.shape) * grid.voxel_mm3 / MOST_VOXELS) ** (1 / 3), 1)
    while np.prod(work_grid(grid, spacing_mm).shape) > MOST_VOXELS:
        spacing_mm += 0.1
    native = " x ".join(f"{s:.2f}" for s in grid.spacing)
    note = (
        f"The scan has {native} mm; it is shown at {spacing_mm:.1f} mm, so that the page is small."
    )
    return work_grid(grid, spacing_mm), note


def _layers(data: dict[str, np.ndarray], change: np.ndarray, brain: np.ndarray) -> list[Layer]:
    white = float(np.percentile(data["factual"][brain], 99.8)) or 1.0
    names = {"factual": "factual", "reconstruction": "reconstruction"}
    names["counterfactual"] = "counterfactual"
    layers = [
        # A quarter above white is kept, so that the window can be opened.
        Layer(name, title, "grey", _levels(data[name], 0, 1.25 * white), 0, 1.25 * white, white)
        for name, title in names.items()
        if name in data
    ]
    size = np.abs(change[brain])
    top, shown = (float(np.percentile(size, p)) for p in (99.95, 99.5))
    top = top or 1.0
    # No change is a level, 128, of its own: there is one more below it than above.
    low = -top * 128 / 127
    change_levels = _levels(change, low, top)
    layers.append(
        Layer("difference", "difference", "change", change_levels, low, top, shown or top)
    )
    if "sd" in data:
        most = float(np.percentile(data["sd"][brain], 99.8)) or 1.0
        layers.append(
            Layer("sd", "SD of samples", "spread", _levels(data["sd"], 0, most), 0, most, most)
        )
    return layers


def _levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.rint((values - low) / (high - low) * 255), 0, 255).astype(np.uint8)


@cache
def palette(kind: Kind) -> np.ndarray:
    """256 colours (256, 3) uint8, straight lines between the stops."""
    stops = np.array([[int(s[i : i + 2], 16) for i in (1, 3, 5)] for s in STOPS[kind]], float)
    at = np.linspace(0, len(stops) - 1, 256)
    colours = [np.interp(at, np.arange(len(stops)), channel) for channel in stops.T]
    return np.rint(np.stack(colours, 1)).astype(np.uint8)


def still(layer: Layer, axis: int, index: int) -> np.ndarray:
    """A slice (rows from the top, columns, 3) uint8 in colour, in the first window."""
    cut = layer.levels.take(index, axis).T[::-1].astype(np.float32)
    value = layer.low + cut / 255 * (layer.high - layer.low)
    low = -layer.shown if layer.kind == "change" else layer.low
    return palette(layer.kind)[_levels(value, low, layer.shown)]


def png_address(picture: np.ndarray) -> str:
    """A picture (rows, columns, 3) uint8 as a data: address."""
    from PIL import Image

    file = io.BytesIO()
    grey = bool((picture == picture[..., :1]).all())
    Image.fromarray(picture[..., 0] if grey else picture).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def planes(shown: Display) -> list[dict[str, Any]]:
    """Each plane for the page: axis that is cut, axes across and up, letters, size in mm, and a
    still slice of every layer."""
    extent = np.array(shown.shape) * shown.spacing
    widest = max(extent[0], extent[1])
    views = []
    for name, axis, across_letters, up_letters in PLANES:
        across, up = (int(a) for a in np.delete(range(3), axis))
        views.append(
            {
                "name": name,
                "axis": axis,
                "across": across,
                "up": up,
                "letters": (*across_letters, *up_letters),
                "ratio": f"{extent[across]:.2f} / {extent[up]:.2f}",
                "width": f"{100 * extent[across] / widest:.1f}%",
                "slices": shown.shape[axis],
                "start": shown.start[axis],
                "ends": ("L", "R") if axis == 0 else ("P", "A") if axis == 1 else ("I", "S"),
                "stills": {
                    layer.name: png_address(still(layer, axis, shown.start[axis]))
                    for layer in shown.layers
                },
            }
        )
    return views


def thumbnail(shown: Display, height: int = 96) -> bytes:
    """Factual, counterfactual and difference side by side, an axial slice each, as JPEG."""
    from PIL import Image

    x, y = (shown.shape[a] * shown.spacing[a] for a in (0, 1))
    size = (round(height * x / y), height)
    chosen = {layer.name: layer for layer in shown.layers}
    strip = Image.new("RGB", (3 * size[0] + 4, height), "white")
    for place, name in enumerate(("factual", "counterfactual", "difference")):
        picture = Image.fromarray(still(chosen[name], 2, shown.start[2]))
        strip.paste(picture.resize(size, Image.Resampling.BICUBIC), (place * (size[0] + 2), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=82, subsampling=0)
    return file.getvalue()
