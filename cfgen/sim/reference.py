"""The reference head of the simulator: soft tissue maps of MNI152NLin2009aSym, with regions.

nilearn brings the template with its maps of grey and white matter; fluid is what is left inside the
skull. The lateral ventricles are the fluid that hangs together around their middle; lobes are named
by the nearest of a few points (`seeds.toml`): approximate, and the simulator's own.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from cfgen.data.volume import Grid
from cfgen.space.grids import model_grid, resample
from cfgen.space.template import mni152

# Cortical regions, named as in graph.toml, and what has no noise of its own.
CORTEX = ("frontal", "parietal", "temporal", "occipital", "insula", "cingulate", "hippocampus")
DEEP = ("thalamus", "caudate", "putamen", "pallidum")
FIXED = (*DEEP, "cerebellum", "brainstem")
# The template's mask hugs the brain: this shell (mm) of fluid is added around it.
SHELL_MM = 2
VENTRICLE_SEEDS_MM = ((6, 8, 18), (-6, 8, 18), (20, -38, 14), (-20, -38, 14))
# Depth in the cortex: 0 at the white matter, 1 at the fluid, 2 this far (mm) out in the fluid.
FLUID_DEPTH_MM = 3.0


# Compared and hashed by identity: there is one a grid.
@dataclass(frozen=True, eq=False)
class Reference:
    """Maps (D, H, W) float32 in [0, 1] on `grid`: `white`, `grey` (cortex and hippocampus),
    `ventricles`, `fixed_white`, `fixed_grey` (deep nuclei, cerebellum, brainstem), `skull` (all
    inside it), `t1` the template; `depth` in [0, 2]; `lobes` (D, H, W) uint8: 0 outside, or the
    number of one of CORTEX, then FIXED, counted from 1."""

    grid: Grid
    white: Tensor
    grey: Tensor
    ventricles: Tensor
    fixed_white: Tensor
    fixed_grey: Tensor
    skull: Tensor
    depth: Tensor
    lobes: Tensor
    t1: Tensor

    def volumes_ml(self) -> dict[str, float]:
        """Soft volumes of the reference head itself, by the names of graph.toml; and its TIV."""
        ml = self.grid.voxel_mm3 / 1000
        volumes = {"ventricles": float(self.ventricles.sum()) * ml}
        for number, name in enumerate(CORTEX, 1):
            volumes[name] = float(self.grey[self.lobes == number].sum()) * ml
        volumes["white_matter"] = float(self.white.sum()) * ml
        volumes["fixed"] = float((self.fixed_white + self.fixed_grey).sum()) * ml
        volumes["tiv"] = float(self.skull.sum()) * ml
        return volumes


@cache
def reference(grid_name: str) -> Reference:
    """The reference head on a model grid (config.GRIDS); made at 1 mm, in some ten seconds."""
    fine, coarse = model_grid("cdm-1mm"), model_grid(grid_name)
    maps, lobes = _at_1mm(fine)
    factor = round(coarse.spacing[0] / fine.spacing[0])
    if factor > 1:
        maps = {name: _block_mean(m, factor) for name, m in maps.items()}
        lobes = lobes[tuple(slice(factor // 2, None, factor) for _ in range(3))]
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in maps.items()}
    return Reference(grid=coarse, lobes=torch.from_numpy(np.ascontiguousarray(lobes)), **tensors)


def _block_mean(data: np.ndarray, factor: int) -> np.ndarray:
    d, h, w = (n // factor for n in data.shape)
    return data.reshape(d, factor, h, factor, w, factor).mean((1, 3, 5))


def _at_1mm(grid: Grid) -> tuple[dict[str, np.ndarray], np.ndarray]:
    t1 = resample(*mni152("t1", 1), grid)
    inside = ndimage.binary_fill_holes(t1 > 0.02)
    skull = ndimage.distance_transform_edt(~inside) <= SHELL_MM
    grey = resample(*mni152("gm", 1), grid) * skull
    white = resample(*mni152("wm", 1), grid) * skull
    total = np.maximum(grey + white, 1)
    grey, white = grey / total, white / total
    fluid = skull - grey - white
    ventricles = _ventricles(fluid, grid)
    names = _nearest_seed(skull, fluid, grid)
    fixed = names > len(CORTEX)
    # Deep grey matter is fixed; white matter near it is the cerebrum's.
    deep = fixed & (names <= len(CORTEX) + len(DEEP))
    fixed_white, fixed_grey = white * (fixed & ~deep), grey * fixed
    cortex = grey * ~fixed
    maps = {
        "t1": t1,
        "white": white - fixed_white,
        "grey": cortex,
        "ventricles": ventricles,
        "fixed_white": fixed_white,
        "fixed_grey": fixed_grey,
        "skull": skull.astype(np.float32),
        "depth": _depth(white, cortex, fluid),
    }
    return maps, names


def _voxel(point_mm: tuple[float, float, float], grid: Grid) -> tuple[int, int, int]:
    i, j, k = np.rint(np.linalg.solve(grid.affine, [*point_mm, 1])[:3]).astype(int)
    return int(i), int(j), int(k)


def _ventricles(fluid: np.ndarray, grid: Grid) -> np.ndarray:
    """The soft map of the lateral ventricles: one piece of fluid, with its edge."""
    pieces, _ = ndimage.label(fluid > 0.5)
    labels = {pieces[_voxel(seed, grid)] for seed in VENTRICLE_SEEDS_MM} - {0}
    piece = ndimage.binary_dilation(np.isin(pieces, list(labels)))
    return np.asarray(fluid * piece)


def _nearest_seed(skull: np.ndarray, fluid: np.ndarray, grid: Grid) -> np.ndarray:
    """The number of the nearest region, of CORTEX and FIXED, from 1; 0 outside the skull."""
    table = tomllib.loads(resources.files("cfgen.sim").joinpath("seeds.toml").read_text("utf-8"))
    points, numbers = [], []
    for number, name in enumerate((*CORTEX, *FIXED), 1):
        for x, y, z in table[name]:
            points += [(x, y, z), (-x, y, z)]
            numbers += [number, number]
    voxels = np.argwhere(skull)
    world = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    _, nearest = cKDTree(np.array(points, float)).query(world)
    regions = np.array(numbers, np.uint8)[nearest]
    regions = _corrected(regions, fluid[skull] > 0.3, world)
    names = np.zeros(skull.shape, np.uint8)
    names[skull] = regions
    return names


def _corrected(regions: np.ndarray, fluid: np.ndarray, world: np.ndarray) -> np.ndarray:
    """Insula and cingulate stay where they are; the hippocampus is an ellipsoid, and owns the fluid
    around it, to grow into."""
    x, y, z = np.abs(world[:, 0]), world[:, 1], world[:, 2]
    number = {name: n for n, name in enumerate((*CORTEX, *FIXED), 1)}
    corrected = regions.copy()
    corrected[(regions == number["insula"]) & ((x < 30) | (x > 46))] = number["frontal"]
    corrected[(regions == number["insula"]) & (x < 30)] = number["putamen"]
    corrected[(regions == number["cingulate"]) & (x > 14)] = number["frontal"]
    # Along its axis, from front below to back above.
    along = ((y + 24) / 17) ** 2
    across = ((x - 27 - 0.12 * (y + 24)) / 8.5) ** 2 + ((z + 12 + 0.55 * (y + 24)) / 8) ** 2
    inside = along + across <= np.where(fluid, 2.5, 1.0)
    corrected[(regions == number["hippocampus"]) & ~inside] = number["temporal"]
    near = np.isin(regions, [number["temporal"], number["hippocampus"]]) | (fluid & inside)
    corrected[inside & near] = number["hippocampus"]
    return corrected


def _depth(white: np.ndarray, grey: np.ndarray, fluid: np.ndarray) -> np.ndarray:
    """0 at the white matter, 1 at the fluid, up to 2 in it."""
    to_white = ndimage.distance_transform_edt(white < 0.5)
    to_fluid = ndimage.distance_transform_edt(fluid < 0.5)
    to_grey = ndimage.distance_transform_edt(grey < 0.5)
    within = to_white / np.maximum(to_white + to_fluid, 1e-6)
    beyond = 1 + np.minimum(to_grey / FLUID_DEPTH_MM, 1)
    return np.where(fluid >= 0.5, beyond, within)
