"""How bright a scan's white matter, grey matter and fluid are, and its bias field.

One regression for all: in voxels that are surely white or surely cortex the logarithm of brightness
is that of its tissue plus a smooth field,

    ln I(x) = ln level(tissue) + sum_i a_i p_i(x) ,

with p_i the monomials up to order `ORDER`. Voxels that are neither (vessels, lesions, partial
volumes) are found by their residual and left out. A segmenter at 2 mm blurs: its white matter is
taken a voxel from its border, and what is darker than its tissue is sooner left out, since partial
volumes of cortex would pull the field down all around the brain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.data.parcellation import STRUCTURES
from cfgen.data.volume import Grid, Volume
from cfgen.errors import ImageError
from cfgen.measure.background import levelled
from cfgen.measure.fractions import TISSUES, tissue_of
from cfgen.measure.segmenter import Posteriors
from cfgen.space.grids import crop_box, resample
from cfgen.space.sampling import sample

# Order of the field's polynomial: the receive field of a head coil varies over 10 cm.
ORDER = 3
# A voxel of this probability is surely of its tissue.
SURE = 0.9
# Residuals beyond so many of their SD, darker and brighter, are of something else.
DARKER_SD, BRIGHTER_SD = 1.0, 2.5
ROUNDS = 4
# The least voxels of a tissue that say how bright it is.
LEAST_VOXELS = 30
SLAB_VOXELS = 1_000_000


@dataclass(frozen=True)
class Levels:
    """Brightness of the tissues without the bias field, and that field's logarithm (D, H, W) on
    `grid`, of mean 0 over the white matter."""

    white: float
    grey: float
    fluid: float
    log_bias: Tensor
    grid: Grid

    def bias_on(self, native: Grid) -> np.ndarray:
        """The multiplicative field (I, J, K) float32 on a scan's grid; beyond the brain's box it
        goes on as at its rim."""
        matrix = torch.from_numpy(np.linalg.inv(self.grid.affine) @ native.affine).float()
        out = np.empty(native.shape, np.float32)
        rest = [torch.arange(n, dtype=torch.float32) for n in native.shape[1:]]
        depth = max(1, SLAB_VOXELS // int(np.prod(native.shape[1:])))
        for start in range(0, native.shape[0], depth):
            stop = min(start + depth, native.shape[0])
            first = torch.arange(start, stop, dtype=torch.float32)
            index = torch.stack(torch.meshgrid(first, *rest, indexing="ij"), -1)
            points = index @ matrix[:3, :3].T + matrix[:3, 3]
            out[start:stop] = sample(self.log_bias[None], points)[0].exp().numpy()
        return out


def tissue_levels(scan: Volume, posteriors: Posteriors) -> Levels:
    """Raises ImageError where a tissue has no sure voxel, or the three are not told apart."""
    image = torch.from_numpy(resample(levelled(scan.data), scan.grid, posteriors.grid))
    # Of white matter the least among the neighbours, of the thin cortex the voxel's own.
    white = -F.max_pool3d(-probability(posteriors, "white")[None, None], 3, 1, 1)[0, 0]
    sure = {"white": white > SURE, "grey": probability(posteriors, "grey") > SURE}
    ventricle = probability(posteriors, "fluid", ("lateral_ventricle",)) > SURE
    for tissue, where in (*sure.items(), ("fluid", ventricle)):
        if int((where & (image > 0)).sum()) < LEAST_VOXELS:
            raise ImageError(
                scan.path or "scan",
                f"its {tissue} has too few voxels to tell how bright it is",
                f"{LEAST_VOXELS} voxels or more of 2 mm",
            )
    terms = _monomials(posteriors)
    coefficients = _fitted(image, sure, terms)
    log_bias = torch.einsum("t,tdhw->dhw", coefficients[2:], terms)
    # In the corners of the brain's box nothing holds a polynomial.
    seen = log_bias[sure["white"] | sure["grey"]]
    log_bias = log_bias.clamp(seen.min(), seen.max()) - log_bias[sure["white"]].mean()
    flat = image / log_bias.exp()
    levels = {t: float(flat[where & (flat > 0)].median()) for t, where in sure.items()}
    # At the rim of a ventricle there is some brain in every voxel: its darker half is fluid.
    values = flat[ventricle & (image > 0)]
    levels["fluid"] = float(values[values <= values.median()].median())
    if not levels["fluid"] < levels["grey"] < levels["white"]:
        said = ", ".join(f"{t} {v:.4g}" for t, v in levels.items())
        raise ImageError(
            scan.path or "scan", f"brightness of {said}", "a T1w scan: fluid < grey < white"
        )
    return Levels(**levels, log_bias=log_bias, grid=posteriors.grid)


def probability(found: Posteriors, tissue: str, names: tuple[str, ...] = ()) -> Tensor:
    """That a voxel is of a tissue; of grey matter the cortex alone, since nuclei are brighter."""
    own = TISSUES.index(tissue)
    numbers = [n for n, s in enumerate(STRUCTURES) if s.name in names]
    if not names:
        numbers = [n for n in range(1, len(STRUCTURES)) if tissue_of(n) == own]
    return found.classes[numbers].sum(0)


def _monomials(found: Posteriors) -> Tensor:
    """(terms, D, H, W): over the brain's box from -1 to 1, and constant beyond it."""
    box = crop_box((found.brain > 0.5).numpy())
    axes = []
    for part, n in zip(box, found.left.shape, strict=True):
        half = max((part.stop - 1 - part.start) / 2, 1.0)
        middle = (part.stop - 1 + part.start) / 2
        axes.append(((torch.arange(n) - middle) / half).clamp(-1, 1))
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x**i * y**j * z**k for i, j, k in powers(ORDER)])


def powers(order: int) -> list[tuple[int, int, int]]:
    """Of the terms of a polynomial of three coordinates, without the constant."""
    each = range(order + 1)
    return [(i, j, k) for i in each for j in each for k in each if 0 < i + j + k <= order]


def _fitted(image: Tensor, sure: dict[str, Tensor], terms: Tensor) -> Tensor:
    """Log levels of white and grey, then the field's coefficients."""
    rows, values, weights = [], [], []
    for place, where in enumerate(sure.values()):
        here = where & (image > 0)
        own = torch.zeros(int(here.sum()), 2, dtype=torch.float64)
        own[:, place] = 1
        rows.append(torch.cat([own, terms[:, here].T.double()], 1))
        values.append(image[here].log().double())
        # Both tissues have the same say.
        weights.append(torch.full((len(own),), 1 / max(len(own), 1), dtype=torch.float64))
    design, wanted, weight = torch.cat(rows), torch.cat(values), torch.cat(weights)
    kept = torch.ones(len(wanted), dtype=torch.bool)
    for _ in range(ROUNDS):
        scaled = design[kept] * weight[kept, None]
        gram = design[kept].T @ scaled + 1e-9 * torch.eye(design.shape[1], dtype=torch.float64)
        coefficients = torch.linalg.solve(gram, scaled.T @ wanted[kept])
        residual = wanted - design @ coefficients
        spread = 1.4826 * residual.abs().median()
        kept = (residual > -DARKER_SD * spread) & (residual < BRIGHTER_SD * spread)
    return coefficients.float()
