"""Multi-scale structural similarity (Wang et al. 2003) of many pairs of volumes.

The value is MONAI's `compute_ms_ssim`; the cost is not. What belongs to one volume, its means and
variances at every scale, is worked out once; a pair adds its cross moment alone. The Gaussian
window goes along one axis after another, as products with a small banded matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.errors import UsageError
from cfgen.space.sampling import gaussian_line

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SIGMA = 1.5
K1, K2 = 0.01, 0.03
# Rows of the window's banded matrix; 32 is the fastest of 16 to 56 at 160x192x176.
BLOCK = 32
# Values that are held at a time, 2.4 GB: images, means and variances of two tiles of volumes.
HELD_VALUES = 600_000_000


@dataclass(frozen=True)
class Scales:
    """`weights` of the scales, fine to coarse, and the side of the Gaussian window in voxels."""

    weights: tuple[float, ...]
    window: int

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises UsageError where the coarsest scale is smaller than MONAI allows."""
        least = (self.window - 1) * max(1, (len(self.weights) - 1) ** 2)
        if min(shape) // max(1, (len(self.weights) - 1) ** 2) <= self.window - 1:
            sides = "x".join(map(str, shape))
            raise UsageError("MS-SSIM", f"volumes of {sides}", f"sides above {least} voxels")

    @property
    def name(self) -> str:
        return f"{len(self.weights)} scales, window {self.window}"


def _first(n: int, window: int) -> Scales:
    """The first n weights, brought to a sum of 1."""
    total = sum(WEIGHTS[:n])
    return Scales(tuple(w / total for w in WEIGHTS[:n]), window)


# The same at every size, so that figures of different grids can be compared when both are brought
# to 2 mm.
COMPARABLE = _first(3, 7)


def scales_for(shape: tuple[int, ...]) -> Scales:
    """As many scales as the volume is large enough for; the paper's own from 177 voxels on."""
    side = min(shape)
    if side >= 177:
        return Scales(WEIGHTS, 11)
    if side >= 144:
        return Scales(WEIGHTS, 9)
    return _first(4, 7) if side >= 72 else _first(3, 7)


@dataclass(frozen=True)
class Level:
    """Volumes (N, D, H, W) at one scale, and window means and variances (N, D', H', W')."""

    image: Tensor
    mean: Tensor
    variance: Tensor

    def __getitem__(self, which: slice) -> Level:
        return Level(self.image[which], self.mean[which], self.variance[which])


Pyramid = list[Level]


@cache
def _banded(window: int) -> Tensor:
    """(BLOCK, BLOCK + window - 1): this times a block of a column is its Gaussian window."""
    line = gaussian_line(SIGMA, window // 2)
    matrix = torch.zeros(BLOCK, BLOCK + window - 1)
    for row in range(BLOCK):
        matrix[row, row : row + window] = line
    return matrix


def _windowed(volumes: Tensor, window: int) -> Tensor:
    """Gaussian window of volumes (N, D, H, W), where it fits."""
    n, d, h, w = volumes.shape
    means = volumes.reshape(-1, w)
    means = _blocks(means.new_empty(len(means), w - window + 1), means, window, across=True)
    means = means.view(n * d, h, -1)
    means = _blocks(means.new_empty(n * d, h - window + 1, means.shape[2]), means, window)
    means = means.view(n, d, -1)
    means = _blocks(means.new_empty(n, d - window + 1, means.shape[2]), means, window)
    return means.view(n, d - window + 1, h - window + 1, -1)


def _blocks(out: Tensor, volumes: Tensor, window: int, across: bool = False) -> Tensor:
    """Fill `out` (..., rows, columns) with the window down the columns, or `across` the rows.

    A block at a time: one banded matrix for the whole side would be zeros for the most part.
    """
    axis = -1 if across else -2
    for first in range(0, out.shape[axis], BLOCK):
        rows = min(BLOCK, out.shape[axis] - first)
        block = volumes.narrow(axis, first, rows + window - 1)
        band = _banded(window)[:rows, : rows + window - 1]
        out.narrow(axis, first, rows).copy_(block @ band.T if across else band @ block)
    return out


def pyramid(volumes: Tensor, scales: Scales) -> Pyramid:
    """What every pair with these volumes (N, D, H, W) needs. Raises UsageError if too small."""
    scales.check(tuple(volumes.shape[1:]))
    levels = []
    image = volumes.float()
    for number in range(len(scales.weights)):
        if number:
            image = F.avg_pool3d(image[:, None], 2)[:, 0]
        mean = _windowed(image, scales.window)
        variance = _windowed(image * image, scales.window) - mean * mean
        levels.append(Level(image, mean, variance))
    return levels


def ms_ssim(a: Pyramid, b: Pyramid, scales: Scales) -> Tensor:
    """(N,) of pairs of volumes in [0, 1]; where `a` has one volume it meets all of `b`."""
    c1, c2 = K1**2, K2**2
    value: Tensor = torch.ones(())
    for number, (x, y, weight) in enumerate(zip(a, b, scales.weights, strict=True)):
        # In place: at 1 mm every fresh array costs as much as the arithmetic in it.
        covariance = _windowed(x.image * y.image, scales.window).addcmul_(x.mean, y.mean, value=-1)
        similar = covariance.mul_(2).add_(c2).div_((x.variance + y.variance).add_(c2))
        if number == len(scales.weights) - 1:
            similar = similar * (2 * x.mean * y.mean + c1) / (x.mean**2 + y.mean**2 + c1)
        value = value * similar.flatten(1).mean(1).relu() ** weight
    return value


@torch.inference_mode()
def ms_ssim_pairs(volumes: Tensor, pairs: np.ndarray, scales: Scales) -> np.ndarray:
    """MS-SSIM (P,) of `pairs` (P, 2), indices into `volumes` (N, D, H, W) in [0, 1].

    Memory is bounded: moments are held for a tile of volumes at a time.
    """
    values = np.empty(len(pairs), np.float32)
    tile = max(1, HELD_VALUES // (7 * volumes[0].numel()))
    held: dict[int, Pyramid] = {}
    for (row, column), which in _tiles(pairs, tile):
        held = {k: v for k, v in held.items() if k in (row, column)}
        for k in (row, column):
            if k not in held:
                held[k] = pyramid(volumes[k * tile : (k + 1) * tile], scales)
        for i in np.unique(pairs[which, 0]):
            partners = which[pairs[which, 0] == i]
            one = [level[int(i) % tile : int(i) % tile + 1] for level in held[row]]
            for n in partners:
                j = int(pairs[n, 1]) % tile
                other = [level[j : j + 1] for level in held[column]]
                values[n] = float(ms_ssim(one, other, scales))
    return values


def _tiles(pairs: np.ndarray, tile: int) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Pairs by the tiles of volumes that they need."""
    place = pairs // tile
    for row, column in np.unique(place, axis=0):
        yield (
            (int(row), int(column)),
            np.flatnonzero((place[:, 0] == row) & (place[:, 1] == column)),
        )


def choose_pairs(n: int, most: int, seed: int) -> np.ndarray:
    """All unordered pairs (P, 2) of n volumes, or `most` of them drawn without replacement."""
    pairs = np.stack(np.triu_indices(n, 1), 1)
    if len(pairs) > most:
        drawn = np.random.default_rng(seed).choice(len(pairs), most, replace=False)
        pairs = pairs[np.sort(drawn)]
    return pairs
