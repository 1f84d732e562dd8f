"""What of a change is contrast: a curve of brightness and a smooth gain, which can move no edge.

Brightness v without the bias field is a mixture of the scan's own fluid, grey and white matter,
whose signals add (as in `contrast.py`): with h_k the hat functions between their levels,

    v -> v + sum_k h_k(v) a_k + v p(x) ,

with three numbers a_k and a polynomial p over the brain, by least squares of a change. What is
darker than fluid or brighter than white matter follows these in proportion. (A polynomial for each
tissue would make an edge that moves: walls are grey, and those of opposite sides would change by
opposite signs.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cfgen.measure.levels import Levels, powers
from cfgen.space.grids import crop_box

# Order of the gain's polynomial: what a coil or a reconstruction changes varies over 10 cm.
ORDER = 2
# Each pair of tissues keeps this part of its contrast: an edge never turns.
LEAST_SLOPE = 0.1
# Voxels that it is found from, and what holds a number that they do not tell.
MOST_VOXELS = 60_000
RIDGE = 1e-6
POWERS = powers(ORDER)

# A number, or an array (I, J, K), of each tissue.
Nodes = tuple[float, float, float] | np.ndarray


@dataclass(frozen=True)
class IntensityMap:
    """Brightness `own` (3) of fluid, grey and white matter, and where it comes to lie:
    `levels` (3, I, J, K). `explained` is the part of the change's energy in the brain."""

    own: tuple[float, float, float]
    levels: np.ndarray
    explained: float

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Brightness (I, J, K) float32 without bias field, mapped."""
        return _between(value, self.own, self.levels)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return _between(value, self.levels, self.own)


def intensity_map(
    value: np.ndarray, change: np.ndarray, brain: np.ndarray, levels: Levels
) -> IntensityMap:
    """What explains a `change` (I, J, K) of brightness `value`, both without the bias field of
    `levels`, over the `brain` (I, J, K) bool."""
    own = (levels.fluid, levels.grey, levels.white)
    axes = _axes(brain)
    places = np.argwhere(brain)
    places = places[:: max(len(places) // MOST_VOXELS, 1)]
    here = tuple(places.T)
    seen, wanted = value[here], change[here].astype(np.float64)
    point = [axis[i] for axis, i in zip(axes, here, strict=True)]
    terms = [seen * np.prod([p**k for p, k in zip(point, n, strict=True)], 0) for n in POWERS]
    design = np.concatenate([_hats(seen, own), terms])
    energies = (design**2).sum(1)
    fitted = np.linalg.solve(design @ design.T + np.diag(RIDGE * energies), design @ wanted)
    left = float(((wanted - fitted @ design) ** 2).sum())
    energy = float((wanted**2).sum())
    field = np.zeros((ORDER + 1,) * 3)
    for n, coefficient in zip(POWERS, fitted[3:], strict=True):
        field[n] = coefficient
    along = [np.vander(axis, ORDER + 1, increasing=True) for axis in axes]
    gain = 1 + np.einsum("ijk,xi,yj,zk->xyz", field, *along, optimize=True)
    moved = [o * gain + a for o, a in zip(own, fitted[:3], strict=True)]
    return IntensityMap(own, _in_order(moved, own), 1 - left / energy if energy else 1.0)


def _axes(brain: np.ndarray) -> list[np.ndarray]:
    """Coordinates along each axis, from -1 to 1 over the brain's box and constant beyond it."""
    axes = []
    for part, n in zip(crop_box(brain), brain.shape, strict=True):
        half = max((part.stop - 1 - part.start) / 2, 1.0)
        axes.append(np.clip((np.arange(n) - (part.stop - 1 + part.start) / 2) / half, -1, 1))
    return axes


def _hats(value: np.ndarray, own: tuple[float, float, float]) -> np.ndarray:
    """(3, n): shares of fluid, grey and white matter."""
    fluid, grey, white = own
    nodes = [0.0, fluid, grey, white]
    shares = np.stack([np.interp(value, nodes, np.eye(4)[k]) for k in range(1, 4)])
    shares[2] = np.where(value > white, value / white, shares[2])
    shares[0] = np.where(value < 0, value / fluid, shares[0])
    return shares


def _in_order(levels: list[np.ndarray], own: tuple[float, float, float]) -> np.ndarray:
    """(3, I, J, K) float32, each above the one before by a part of what it was."""
    low, least = np.float64(0), 0.0
    out = []
    for level, o in zip(levels, own, strict=True):
        low = np.maximum(level, low + LEAST_SLOPE * (o - least))
        least = o
        out.append(low.astype(np.float32))
    return np.stack(out)


def _between(value: np.ndarray, nodes: Nodes, targets: Nodes) -> np.ndarray:
    """From three nodes to three targets, straight between them, in proportion beyond; each a
    number or an array of the value's shape."""
    (x0, x1, x2), (y0, y1, y2) = nodes, targets
    out = value * (y0 / x0)
    out = np.where(value > x0, y0 + (value - x0) * ((y1 - y0) / (x1 - x0)), out)
    out = np.where(value > x1, y1 + (value - x1) * ((y2 - y1) / (x2 - x1)), out)
    return np.where(value > x2, value * (y2 / x2), out).astype(np.float32)
