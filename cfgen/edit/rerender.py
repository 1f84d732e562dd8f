"""A scan as another protocol would have shown it, by physics: contrast, resolution, bias and noise.

Contrast is a curve (`contrast.py`). The rest is asked for, each by itself: the point-spread
function of thicker slices or a coarser matrix, the bias field of the target's field strength, and
noise at the target's expected ratio to the signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cfgen.config import BiasField, NoiseOf
from cfgen.data.volume import Volume
from cfgen.edit.contrast import Curve, contrast_curve
from cfgen.measure.background import empty_voxels, levelled
from cfgen.measure.levels import Levels
from cfgen.scan.moved import without_noise
from cfgen.sim.physics import RECEIVE, Acquisition, by_field, noise_level

# Of a Gaussian: full width at half maximum over SD.
WIDTH_OF_SD = 2.355
# What varies by less than so many SD of the noise is noise.
NOISE_SD = 2.0


@dataclass(frozen=True)
class Effects:
    """What of the target protocol is rendered beside its contrast."""

    bias: BiasField = "keep"
    noise: NoiseOf = "keep"
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


@dataclass(frozen=True)
class OwnNoise:
    """The SD of a scan's noise, and where fresh noise is drawn from."""

    sd: float
    generator: np.random.Generator


@dataclass(frozen=True)
class Rerendered:
    """The scan (I, J, K) float32 under the target protocol, the curve of its contrast, and the bias
    fields that were divided out and put in."""

    image: np.ndarray
    curve: Curve
    bias: np.ndarray
    target_bias: np.ndarray

    def undone(self, image: np.ndarray) -> np.ndarray:
        """An image under the target protocol with the contrast and bias field of the source."""
        return self.curve.inverse(image / self.target_bias) * self.bias


def rerender(
    volume: Volume,
    levels: Levels,
    protocols: tuple[Rendering, Rendering],
    effects: Effects = EFFECTS,
    noise: OwnNoise | None = None,
) -> Rerendered:
    """A scan under the second of two `protocols`, its own being the first; `noise` is the scan's,
    where `effects` change it. Raises UsageError where a protocol's signal is not monotone."""
    source, target = protocols
    curve = contrast_curve(levels, source.scan, target.scan)
    level = levelled(volume.data)
    bias = levels.bias_on(volume.grid)
    target_bias = _target_bias(bias, effects.bias, protocols)
    ratio = target.noise / source.noise
    rest = np.float32(0)
    if effects.noise == "own" and noise is not None:
        smooth = without_noise(level, NOISE_SD * noise.sd)
        rest, level = (level - smooth) * np.float32(ratio), smooth
    out = curve(level / bias) * target_bias
    kept = 1.0
    if effects.resolution:
        sigmas = target.resolution.sigmas(source.resolution, volume.grid.spacing)
        for axis, sigma in enumerate(sigmas):
            if sigma > 0:
                out = ndimage.gaussian_filter1d(out, sigma, axis, mode="nearest")
                kept *= _noise_kept(sigma)
    out = out + rest
    if effects.noise == "fresh" and noise is not None:
        there = noise.sd * kept * curve.slope(level / bias)
        missing = np.maximum((noise.sd * ratio) ** 2 - there**2, 0)
        out = _with_noise(out, np.sqrt(missing), noise.generator)
    empty = empty_voxels(volume.data)
    nothing = volume.data == 0 if empty is None else empty
    image = np.where(nothing, volume.data, out).astype(np.float32)
    return Rerendered(image, curve, bias, target_bias)


def _target_bias(
    bias: np.ndarray, kind: BiasField, protocols: tuple[Rendering, Rendering]
) -> np.ndarray:
    if kind == "keep":
        return bias
    if kind == "remove":
        return np.ones((1, 1, 1), np.float32)
    ranges = [by_field(RECEIVE, p.scan.field_tesla) for p in protocols]
    return bias ** np.float32(ranges[1] / ranges[0])


def _noise_kept(sigma: float) -> float:
    """What a Gaussian window of SD `sigma` voxels leaves of the SD of white noise."""
    point = np.zeros(2 * int(4 * sigma + 2) + 1)
    point[len(point) // 2] = 1
    return float(np.sqrt((ndimage.gaussian_filter1d(point, sigma) ** 2).sum()))


def _with_noise(image: np.ndarray, sd: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rician: two channels of a receiver, of which the magnitude is stored. Below zero, where no
    magnitude is, the noise is added."""
    real = image + sd * generator.standard_normal(image.shape, np.float32)
    other = sd * generator.standard_normal(image.shape, np.float32)
    return np.where(image > 0, np.hypot(real, other), real)
