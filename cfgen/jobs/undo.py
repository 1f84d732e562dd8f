"""Carry an edit of a prepared image back to the scan it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cfgen import __version__
from cfgen.data.volume import read_volume, refuse_existing, write_like
from cfgen.errors import ImageError
from cfgen.scan.prepared import load_prepared


def undo(edited: Path, prepared_image: Path, scan_path: Path, out: Path, overwrite: bool) -> Path:
    """Carry an edited model image back: the scan plus the change, on the scan's grid.

    `edited` is on the grid of `prepared_image`. What was not changed stays as it was, to the bit.
    """
    refuse_existing(out, overwrite)
    prepared, scan, image = (
        load_prepared(prepared_image),
        read_volume(scan_path),
        read_volume(edited),
    )
    if not scan.grid.matches(prepared.native):
        raise ImageError(scan_path, "is not the scan that was prepared", "the same grid")
    if not image.grid.matches(prepared.grid):
        raise ImageError(edited, "is not on the model grid", f"the grid of {prepared_image.name}")
    change = np.where(prepared.mask, image.data - prepared.image, 0)
    data = scan.data + prepared.change_to_native(change) if change.any() else scan.data
    write_like(scan, data, out, description=f"cfgen {__version__} undo")
    return out
