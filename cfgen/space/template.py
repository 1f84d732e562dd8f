"""The template that nilearn carries, MNI152NLin2009aSym without skull, and its maps of tissues.

Its files are read as they lie in the package: nilearn's own loaders import scikit-learn and pandas
and resample by splines, seconds for what is every second voxel.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from cfgen.data.grid import Grid
from cfgen.errors import ToolError

Map = Literal["t1", "gm", "wm"]
# What is brighter is brain or its fluid.
BRAIN_ABOVE = 0.05


@cache
def mni152(name: Map, spacing_mm: int) -> tuple[np.ndarray, Grid]:
    """T1w brightness, or the share of grey or white matter, (D, H, W) float32 in [0, 1].

    Raises ToolError where nilearn keeps the template elsewhere.
    """
    import nibabel as nib
    import nilearn

    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.exists():
        expected = "the template, as nilearn 0.12 to 0.14 carry it"
        raise ToolError(path, "is missing", expected, "install one of these")
    image = nib.load(path)
    data = np.asarray(image.dataobj, np.float32)
    data = data[(slice(None, None, spacing_mm),) * 3] / data.max()
    affine = image.affine @ np.diag([spacing_mm] * 3 + [1.0])
    i, j, k = data.shape
    return data, Grid((i, j, k), affine)


def template_brain() -> tuple[np.ndarray, Grid]:
    """The template's T1w image at 2 mm, in [0, 1]."""
    return mni152("t1", 2)


@cache
def template_mask() -> np.ndarray:
    """The template's brain with its fluid (D, H, W) bool at 2 mm."""
    return np.asarray(ndimage.binary_fill_holes(template_brain()[0] > BRAIN_ABOVE))
