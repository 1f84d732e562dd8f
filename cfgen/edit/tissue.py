"""Moved tissue: regions of the subject's own brain brought to their counterfactual volumes.

PCGM's causal half says how large each region is to be (`causal/scm.py`); here the segmenter's maps,
sharpened by the scan's intensities, are grown and shrunk to that (`space/flow.py`), and one field
moves the image, the maps and whatever else lies on the scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from cfgen.data.grid import Grid
from cfgen.data.parcellation import BRAIN_FROM, STRUCTURES
from cfgen.data.regions import FLUID
from cfgen.data.volume import Volume
from cfgen.errors import ImageError
from cfgen.measure.background import levelled
from cfgen.measure.fractions import TISSUES, brightness, mean_around, refined, sharpened, tissue_of
from cfgen.measure.segmenter import Posteriors
from cfgen.scan.moved import Movement
from cfgen.space.flow import Flow, grow, missed
from cfgen.space.grids import crop_box, crop_grid, largest_component, resample
from cfgen.space.sampling import sample, smoothed
from cfgen.space.warp import jacobian, voxels

# A stripped brain has no fluid around it: this many voxels outside its mask stand for it.
SHELL_VOXELS = 2
# Fluid that grows is shared out by contact with grey matter, within this distance and by this part.
SHARED_WITHIN_MM = 16.0
SHARED = 0.5
# Of the contrast of white matter to fluid: in a noisy scan a thin sulcus is as faint as noise, and
# would stay where it was.
MOST_NOISE = 0.08
# A ventricle grows by fluid as bright as its own within this SD, where it is surely ventricle: the
# power of its map. The darkest fluid of a head, cisterns that flow, is too dark for it.
OWN_FLUID_MM, SURELY = 5.0, 8
# A region that stays further than this from its volume, as a logarithm, can't be moved there.
MISSED = 0.02
# What stays further than this from it is said.
VOLUME_LIMIT = 0.005
# Numbers of the brain's structures.
_BRAIN = range(BRAIN_FROM, len(STRUCTURES))


@dataclass(frozen=True)
class Tissue:
    """A brain as maps: `maps` (C, D, H, W) of the regions `keys`, each a structure and a side, and
    `fluid` (D, H, W) around the brain; they add up to 1 in the `cavity` (D, H, W) bool. `image`
    (D, H, W) is the scan on their grid. The cavity of a brain that was stripped has a shell around
    it, `shell_mm` wide."""

    maps: Tensor
    keys: tuple[tuple[str, str], ...]
    fluid: Tensor
    cavity: Tensor
    image: Tensor
    grid: Grid
    shell_mm: float = 0.0

    def of(self, tissue: str) -> Tensor:
        """The fraction (D, H, W) of one of `TISSUES`, ventricles being fluid."""
        names = [STRUCTURES[n].name for n in _BRAIN if TISSUES[tissue_of(n)] == tissue]
        part = self.maps[[i for i, (name, _) in enumerate(self.keys) if name in names]].sum(0)
        return part + self.fluid if tissue == "fluid" else part

    @cached_property
    def means(self) -> Tensor:
        """The brightness of each of `TISSUES` around every voxel: (4, D, H, W)."""
        fractions = torch.stack([self.of(tissue) for tissue in TISSUES])
        return brightness(fractions, self.image, self.cavity, self.grid.spacing[0])

    @cached_property
    def ventricles(self) -> Tensor:
        """The map (D, H, W) of the ventricles."""
        return self.maps[[i for i, (name, _) in enumerate(self.keys) if name in FLUID]].sum(0)

    @cached_property
    def ventricles_brightness(self) -> Tensor:
        """Around every voxel, of their fluid: (D, H, W)."""
        weight = self.ventricles**SURELY * self.cavity
        values = self.image[weight > 0.6]
        if len(values):
            # Noise goes both ways, choroid plexus and partial volumes are brighter.
            low, middle = values.quantile(torch.tensor([0.1, 0.5])).tolist()
            weight = weight * (self.image <= 2 * middle - low)
        return mean_around(self.image, weight, OWN_FLUID_MM / self.grid.spacing[0])

    @property
    def most_noise(self) -> float:
        """Brightness of the strongest structure that may be taken for noise."""
        fluid, white = (self.means[TISSUES.index(t)][self.cavity] for t in ("fluid", "white"))
        return MOST_NOISE * float((white - fluid).mean())


def tissue_maps(
    scan: Volume, posteriors: Posteriors, mask: np.ndarray, *, stripped: bool
) -> Tissue:
    """The maps of a scan with its brain `mask` (I, J, K); a shell of fluid lies around one that is
    `stripped`."""
    native = resample(mask.astype(np.float32), scan.grid, posteriors.grid) > 0.5
    skull = np.asarray(ndimage.binary_fill_holes(largest_component(native)))
    shell = ndimage.binary_dilation(skull, iterations=SHELL_VOXELS) if stripped else skull
    box = crop_box(shell, margin=2)
    grid = crop_grid(posteriors.grid, box)
    image = torch.from_numpy(resample(levelled(scan.data), scan.grid, grid))
    inside = torch.from_numpy(np.ascontiguousarray(skull[box]))
    cavity = torch.from_numpy(np.ascontiguousarray(shell[box]))
    left = posteriors.left[(..., *box)].contiguous()
    classes = posteriors.classes[(..., *box)].contiguous()
    p = sharpened(refined(classes, image, inside, grid.spacing[0])) * inside
    maps: list[Tensor] = []
    keys: list[tuple[str, str]] = []
    for n, part in zip(_BRAIN, p, strict=True):
        structure = STRUCTURES[n]
        if structure.name == "csf":
            continue
        sides = {"both": part}
        if structure.left != structure.right:
            sides = {"left": part * left, "right": part * (1 - left)}
        maps += sides.values()
        keys += [(structure.name, side) for side in sides]
    stacked = torch.stack(maps)
    # What no map claims inside the mask is fluid, and so is the shell.
    fluid = (1 - stacked.sum(0)).clamp(min=0) * cavity
    shell_mm = SHELL_VOXELS * grid.spacing[0] if stripped else 0.0
    return Tissue(stacked, tuple(keys), fluid, cavity, image, grid, shell_mm)


def move_tissue(tissue: Tissue, changes: Mapping[str, float]) -> Moved:
    """Every region grown by `changes`, logarithms of volumes by structure; what is not named keeps
    its volume, and the fluid around the brain makes room.

    Raises ImageError when a region can't be brought to its volume: how far it got is said.
    """
    volumes = tissue.maps.sum((1, 2, 3), dtype=torch.float64).numpy()
    due = np.array([changes.get(name, 0.0) for name, _ in tissue.keys])
    targets = volumes * np.exp(due)
    flow = grow(tissue.maps, tissue.fluid, targets, tissue.cavity, tissue.grid.spacing[0])
    off = missed(flow.reached, targets)
    if off.max(initial=0.0) > MISSED:
        raise _missed(tissue, due, np.log(flow.reached / volumes), int(off.argmax()))
    at = voxels(tissue.cavity.shape) + flow.displacement.permute(1, 2, 3, 0)
    shrunk = jacobian(at)
    low, high = shrunk[tissue.cavity].aminmax()
    # The flow's steps are short enough for this never to be; a fold would be torn tissue.
    assert low > 0, "the flow folded"
    return Moved(flow, _movement(tissue, at, shrunk), (float(low), float(high)))


@dataclass(frozen=True)
class Moved:
    """The `flow` of the maps, in voxels of the tissue's grid, and what it does to the scan;
    `jacobian` is the lowest and highest local volume of scan over counterfactual."""

    flow: Flow
    movement: Movement
    jacobian: tuple[float, float]


def _movement(tissue: Tissue, at: Tensor, shrunk: Tensor) -> Movement:
    """`at` (D, H, W, 3) is where voxels come from, `shrunk` (D, H, W) how far they shrank."""
    means = tissue.means
    darker = means[TISSUES.index("fluid")] - means[TISSUES.index("grey")]
    return Movement(
        (at - voxels(tissue.cavity.shape)).permute(3, 0, 1, 2) * tissue.grid.spacing[0],
        _shared_out(tissue, at),
        darker,
        _purified(tissue, at, shrunk),
        tissue.ventricles_brightness,
        tissue.grid,
        tissue.shell_mm,
    )


def _purified(tissue: Tissue, at: Tensor, shrunk: Tensor) -> Tensor:
    """The part (D, H, W) of the moved brightness that gives way to fluid in ventricles.

    Tissue in a voxel that is mostly fluid does not grow with it: where a voxel grew by G, what sets
    it apart from fluid is a G-th of what it was.
    """
    there = sample(tissue.ventricles[None], at)[0]
    return there * (1 - shrunk.clamp(max=1)) * tissue.cavity


def _missed(tissue: Tissue, due: np.ndarray, got: np.ndarray, worst: int) -> ImageError:
    name, side = tissue.keys[worst]
    where = name if side == "both" else f"{side} {name}"
    return ImageError(
        where,
        f"its volume came to {100 * np.expm1(got[worst]):+.1f} %",
        f"{100 * np.expm1(due[worst]):+.1f} %, which does not fit beside what surrounds it",
        "ask for a smaller change",
    )


def _shared_out(tissue: Tissue, at: Tensor) -> Tensor:
    """The fraction of fluid (D, H, W) to add where sulci open and to take elsewhere: what the flow
    gave to fluid around the brain, shared out in a neighbourhood by how much it touches grey
    matter. `at` (D, H, W, 3) is where voxels come from.

    The flow opens the outer border first, and a sulcus that fills less than a voxel only stretches.
    """
    sd = SHARED_WITHIN_MM / tissue.grid.spacing[0]
    inside, grey = tissue.cavity.float(), tissue.of("grey")
    moved_grey, moved_fluid = sample(torch.stack([grey, tissue.fluid]), at) * inside
    given = (moved_fluid - tissue.fluid) * inside
    touch = moved_grey * (moved_fluid + _neighbours(moved_fluid))
    share = smoothed(given, sd) / smoothed(touch, sd).clamp(min=1e-3)
    due = torch.minimum(torch.maximum(touch * share, -moved_fluid), moved_grey)
    return SHARED * (due - given) * (smoothed(grey, 1.0) > 0.05)


def _neighbours(volume: Tensor) -> Tensor:
    """The mean (D, H, W) of the six face neighbours, nothing being outside."""
    kernel = torch.zeros(1, 1, 3, 3, 3)
    for axis in range(3):
        for step in (0, 2):
            place = [1, 1, 1]
            place[axis] = step
            kernel[(0, 0, *place)] = 1 / 6
    return F.conv3d(volume[None, None], kernel.to(volume), padding=1)[0, 0]
