"""A scan as another protocol would have shown it, by physics: contrast, resolution, bias and noise.

Contrast is a curve (`contrast.py`). The rest is asked for, each by itself: the point-spread
function of thicker slices or a coarser matrix, the bias field of the target's field strength, and
noise at the target's expected ratio to the signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from cfgen.data.volume import Volume
from cfgen.edit.contrast import Curve, contrast_curve
from cfgen.measure.background import empty_voxels, levelled
from cfgen.measure.levels import Levels
from cfgen.scan.moved import without_noise
from cfgen.sim.physics import RECEIVE, Acquisition, by_field, noise_level

# 'target': the subject's own field, as much stronger or weaker as the target's field strength has
# it.
Bias = Literal["keep", "remove", "target"]
# 'own': the scan's own noise, where it is, scaled; 'fresh': what is missing is drawn anew.
Noise = Literal["keep", "own", "fresh"]
# Of a Gaussian: full width at half maximum over SD.
WIDTH_OF_SD = 2.355
# What varies by less than so many SD of the noise is noise.
NOISE_SD = 2.0


@dataclass(frozen=True)
class Effects:
    """What of the target protocol is rendered beside its contrast."""

    bias: Bias = "keep"
    noise: Noise = "keep"
    resolution: bool = False


EFFECTS = Effects()


@dataclass(frozen=True)
class Resolution:
    """What a protocol resolves: mm of a slice and in the plane, `axis` the slices' (0 to 2)."""

    slice_mm: float
    in_plane_mm: float
    axis: int

    def sigmas(self, finer: Resolution, spacing: tuple[float, ...]) -> list[float]:
        """SD, in voxels, of the window that makes this of what `finer` resolves; 0 where it is no
        coarser."""
        widths = [self.in_plane_mm] * 3
        before = [finer.in_plane_mm] * 3
        widths[self.axis], before[self.axis] = self.slice_mm, finer.slice_mm
        return [
            max(w * w - b * b, 0.0) ** 0.5 / WIDTH_OF_SD / s
            for w, b, s in zip(widths, before, spacing, strict=True)
        ]


@dataclass(frozen=True)
class Rendering:
    """A protocol with what it resolves on the scan's grid."""

    scan: Acquisition
    resolution: Resolution

    @property
    def noise(self) -> float:
        """Of white matter's signal; what is resolved is the voxel that the noise is of."""
        return noise_level(self.scan, self.resolution.in_plane_mm)


def rerender(
    volume: Volume,
    levels: Levels,
    protocols: tuple[Rendering, Rendering],
    effects: Effects = EFFECTS,
    draw: tuple[float, np.random.Generator] | None = None,
) -> tuple[np.ndarray, Curve]:
    """The scan (I, J, K) float32 under the second of two `protocols`, its own being the first, and
    the curve of its contrast. `draw` is the SD of the scan's noise, and where fresh noise comes
    from; both are needed for `effects.noise` alone.

    Raises UsageError where a protocol's signal is not monotone.
    """
    source, target = protocols
    curve = contrast_curve(levels, source.scan, target.scan)
    level = levelled(volume.data)
    bias = levels.bias_on(volume.grid)
    rest = np.float32(0)
    if effects.noise == "own" and draw is not None:
        smooth = without_noise(level, NOISE_SD * draw[0])
        rest, level = (level - smooth) * np.float32(target.noise / source.noise), smooth
    out = curve(level / bias) * _target_bias(bias, effects.bias, protocols)
    kept = 1.0
    if effects.resolution:
        for axis, sigma in enumerate(
            target.resolution.sigmas(source.resolution, volume.grid.spacing)
        ):
            if sigma > 0:
                out = ndimage.gaussian_filter1d(out, sigma, axis, mode="nearest")
                kept *= _noise_kept(sigma)
    out += rest
    if effects.noise == "fresh" and draw is not None:
        sd, generator = draw
        wanted = sd * target.noise / source.noise
        there = sd * kept * curve.slope(level / bias)
        out = _with_noise(out, np.sqrt(np.maximum(wanted**2 - there**2, 0)), generator)
    empty = empty_voxels(volume.data)
    nothing = volume.data == 0 if empty is None else empty
    return np.where(nothing, volume.data, out).astype(np.float32), curve


def _target_bias(
    bias: np.ndarray, kind: Bias, protocols: tuple[Rendering, Rendering]
) -> np.ndarray:
    if kind == "keep":
        return bias
    if kind == "remove":
        return np.ones((), np.float32)
    ranges = [by_field(RECEIVE, p.scan.field_tesla) for p in protocols]
    return bias ** np.float32(ranges[1] / ranges[0])


def _noise_kept(sigma: float) -> float:
    """What a Gaussian window of SD `sigma` voxels leaves of the SD of white noise."""
    point = np.zeros(2 * int(4 * sigma + 2) + 1)
    point[len(point) // 2] = 1
    return float(np.sqrt((ndimage.gaussian_filter1d(point, sigma) ** 2).sum()))


def _with_noise(
    image: np.ndarray, sd: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Rician: two channels of a receiver, of which the magnitude is stored. Below zero, where no
    magnitude is, the noise is added."""
    real = image + sd * generator.standard_normal(image.shape, np.float32)
    other = sd * generator.standard_normal(image.shape, np.float32)
    return np.where(image > 0, np.hypot(real, other), real)
