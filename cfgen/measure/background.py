"""The empty background of a scan: its one value, and the scan as if that were nothing.

Stripping, defacing and padding tools leave 0, -1024, 500 or whatever their image library has for
'nothing'. What looks at a scan must not take it for tissue, and a spline must not ring across it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cfgen.space.grids import largest_component

# Nearly all voxels of the volume's faces, and this share of all, have the background's value.
FACE_SHARE = 0.97
VOLUME_SHARE = 0.3


def empty_value(data: np.ndarray) -> float | None:
    """The one value of the air around a brain or head (I, J, K); None where air has noise."""
    faces = [data.take(i, axis) for axis in range(3) for i in (0, -1)]
    values, counts = np.unique(np.concatenate([f.ravel() for f in faces]), return_counts=True)
    value = values[counts.argmax()]
    if counts.max() < FACE_SHARE * counts.sum() or float((data == value).mean()) < VOLUME_SHARE:
        return None
    return float(value)


def filled_foreground(data: np.ndarray, empty: float) -> np.ndarray:
    """The largest piece of what is not empty, holes filled: (I, J, K) bool."""
    # Writing as integers with a slope, and back, moves the background by a rounding error.
    piece = largest_component(np.abs(data - empty) > 1e-6 * float(np.ptp(data)))
    return np.asarray(ndimage.binary_fill_holes(piece))


def empty_voxels(data: np.ndarray) -> np.ndarray | None:
    """Where a scan (I, J, K) holds nothing, if its background has one value that is not 0.

    A value among the tissue's own counts only outside of the filled foreground: inside it is
    tissue that happens to be as bright. None where there is no such background.
    """
    value = empty_value(data)
    if value is None or value == 0:
        return None
    empty = np.asarray(np.abs(data - value) <= 1e-6 * float(np.ptp(data)))
    if not empty.all() and value >= float(data[~empty].min()):
        empty &= ~filled_foreground(data, value)
    return empty


def levelled(data: np.ndarray) -> np.ndarray:
    """A scan (I, J, K) with its empty background at 0; the same array where it is already."""
    empty = empty_voxels(data)
    return data if empty is None else np.where(empty, np.float32(0), data)
