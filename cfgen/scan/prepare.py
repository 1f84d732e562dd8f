"""From a scan to the model grid, with a recorded, exact way back.

The chain: brain mask, N4 bias field, affine to the template, resampling on the model grid, robust
intensity scale. Every fitted quantity is kept in `Prepared`, so that a change made on the model
grid is carried back to the scanner's own grid and brightness.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cfgen.config import Preprocess
from cfgen.data.volume import Grid, Volume
from cfgen.errors import ImageError
from cfgen.measure.background import levelled
from cfgen.space import registration
from cfgen.space.affine import MaskedImage, affine_between
from cfgen.space.grids import (
    crop_box,
    crop_grid,
    model_grid,
    resample,
    upsample_cubic,
    work_grid,
)
from cfgen.space.template import template_brain, template_mask


@dataclass(frozen=True)
class Prepared:
    """A scan on the model grid and the way back.

    `image` (D, H, W) float32 in [0, cap], zero outside `mask`; `native_mask` on the scan's grid;
    `to_native` (4, 4) takes template mm to scanner mm; `scale` is the scan's brightness at 1;
    `log_bias` on `bias_grid` is the field that was divided out.
    """

    image: np.ndarray
    mask: np.ndarray
    grid: Grid
    native: Grid
    native_mask: np.ndarray
    to_native: np.ndarray
    scale: float
    log_bias: np.ndarray
    bias_grid: Grid

    def native_bias(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """The multiplicative bias field on a box of the native grid."""
        field = resample(self.log_bias, self.bias_grid, crop_grid(self.native, box), order=1)
        return np.exp(field)

    def again(self, data: np.ndarray, cap: float) -> np.ndarray:
        """Another image (I, J, K) of the same head on the same grid, as the scan was brought to
        the model grid: (D, H, W) float32 in [0, cap], zero outside the mask."""
        image = _on_model_grid(levelled(data), self) / self.scale
        return np.where(self.mask, np.clip(image, 0, cap), 0).astype(np.float32)

    def change_to_native(self, change: np.ndarray) -> np.ndarray:
        """An additive change of the model image, in the scan's units on the native grid.

        Zero outside the native brain mask.
        """
        out = np.zeros(self.native.shape, np.float32)
        box = crop_box(self.native_mask)
        fine, fine_grid = change, self.grid
        factor = int(np.ceil(max(self.grid.spacing) / min(self.native.spacing) - 0.25))
        if factor > 1:
            fine, fine_grid = upsample_cubic(change, self.grid, min(factor, 2))
        native_box = crop_grid(self.native, box)
        moved = resample(fine, fine_grid, native_box, np.linalg.inv(self.to_native))
        moved *= self.native_bias(box) * self.scale
        out[box] = np.where(self.native_mask[box], moved, 0)
        return out


def prepare(scan: Volume, native_mask: np.ndarray, recipe: Preprocess) -> Prepared:
    """Bring a scan with a known brain mask to the model grid.

    Raises ImageError when the mask is empty or its brain has no brightness; whether it is plausible
    is for the gate to say (`scan/gate.py`).
    """
    if not native_mask.any():
        raise ImageError(
            scan.path or "scan", "brain not found: the brain mask is empty", fix="give a --mask"
        )
    # A background of -1024 or 500 would ring through the splines into the brain's rim.
    level = levelled(scan.data)
    work = work_grid(scan.grid, recipe.work_spacing_mm)
    data = resample(level, scan.grid, work)
    mask = resample(native_mask.astype(np.float32), scan.grid, work) > 0.5
    log_bias = registration.log_bias_field(np.clip(data, 0, None), mask, work, recipe)

    brain = MaskedImage(data / np.exp(log_bias), mask, work)
    template, template_grid = template_brain()
    to_native = affine_between(MaskedImage(template, template_mask(), template_grid), brain)

    grid = model_grid(recipe.grid)
    box = crop_box(native_mask, margin=4)
    native_box = crop_grid(scan.grid, box)
    inside = resample(native_mask[box].astype(np.float32), native_box, grid, to_native) > 0.5
    if not inside.any():
        raise ImageError(
            scan.path or "scan", "the brain lies outside the model grid after registration"
        )
    way = Prepared(
        image=np.zeros(grid.shape, np.float32),
        mask=inside,
        grid=grid,
        native=scan.grid,
        native_mask=native_mask,
        to_native=to_native,
        scale=1.0,
        log_bias=log_bias,
        bias_grid=work,
    )
    moved = _on_model_grid(level, way)
    scale = float(np.percentile(moved[inside], recipe.intensity_percentile))
    if scale <= 0:
        raise ImageError(scan.path or "scan", "the brain has no positive intensities", "a T1w scan")
    image = np.where(inside, np.clip(moved / scale, 0, recipe.intensity_cap), 0)
    return replace(way, image=image.astype(np.float32), scale=scale)


def _on_model_grid(data: np.ndarray, way: Prepared) -> np.ndarray:
    """An image on the scan's grid without its bias field, on the model grid."""
    order = 3 if min(way.native.spacing) >= 0.75 * min(way.grid.spacing) else 1
    box = crop_box(way.native_mask, margin=4)
    bias = way.native_bias(box)
    box_grid = crop_grid(way.native, box)
    return resample(data[box] / bias, box_grid, way.grid, way.to_native, order=order)
