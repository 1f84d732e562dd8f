"""The affine between two brains, by Gauss-Newton on outline and brightness.

With M the affine from fixed to moving mm, x the voxels in and around the fixed brain, m the masks
and u the images, at mean 0 and SD 1 in the mask and 0 outside, it makes smallest

    sum_x (m_moving(M x) - m_fixed(x))^2 + w (m_fixed m_moving)^2 (a u_moving(M x) - u_fixed(x))^2.

With a the best factor, of either sign, the second term is 1 - their squared correlation: a scan of
another contrast is placed too, and the gate can say what is wrong with it. From coarse to fine; the
start is the brains' centres, upright by the headers, so that left and right are the headers' too.
Nothing is drawn at random, and sums are of one thread: the same images give the same matrix, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cfgen.data.grid import Grid
from cfgen.space.grids import crop_box, crop_grid, resample, upright_grid
from cfgen.space.sampling import sample

# Spacings (mm), from coarse to fine. The first sees a head that is turned by 35 degrees.
LEVELS_MM = (8.0, 4.0, 3.0)
MOST_STEPS = 20
# Steps go on until no voxel moves by more than this share of the level's spacing.
TOLERANCE = 0.01
# w: how much a voxel's brightness, in SD, counts beside its being brain.
BRIGHTNESS_WEIGHT = 0.75
# Template voxels this far (voxels of a level) around the brain have a say: brain that is too large
# is seen there.
REACH = 2
# Of the normal equations' diagonal: nothing to see moves nothing.
DAMPING = 1e-4
# Places in mm and a shift of 1 mm differ in size: turns and stretches are counted at this radius.
RADIUS_MM = 50.0


@dataclass(frozen=True)
class MaskedImage:
    """A brain: `data` (I, J, K) float32 and its `mask` (I, J, K) bool on a `grid`."""

    data: np.ndarray
    mask: np.ndarray
    grid: Grid

    @property
    def centre(self) -> np.ndarray:
        """The middle (3,) of the mask's mass in mm."""
        voxel = np.array(ndimage.center_of_mass(self.mask))
        return np.asarray(self.grid.affine[:3, :3] @ voxel + self.grid.affine[:3, 3])

    def cropped(self, margin_mm: float) -> MaskedImage:
        box = crop_box(self.mask, margin=round(margin_mm / min(self.grid.spacing)))
        return MaskedImage(self.data[box], self.mask[box], crop_grid(self.grid, box))


@dataclass(frozen=True)
class _Level:
    """Mask and image, at mean 0 and SD 1 in it, (2, D, H, W) on an upright grid."""

    channels: Tensor
    grid: Grid

    @staticmethod
    def of(brain: MaskedImage, spacing_mm: float) -> _Level:
        grid = upright_grid(brain.grid, spacing_mm)
        # Outside is the mean: a step at the outline would be the mask's business twice.
        image = np.where(brain.mask, brain.data - brain.data[brain.mask].mean(), 0)
        outline = brain.mask.astype(np.float32)
        mask, image = (resample(channel, brain.grid, grid) for channel in (outline, image))
        sd = float(np.sqrt((image**2).sum() / mask.sum()))
        return _Level(torch.from_numpy(np.stack([mask, image / max(sd, 1e-6)])), grid)

    def with_slopes(self) -> Tensor:
        """(8, D, H, W): the channels, then their slopes per mm along R, A and S."""
        slopes = torch.stack(torch.gradient(self.channels, dim=(1, 2, 3)), 1).flatten(0, 1)
        return torch.cat([self.channels, slopes / self.grid.spacing[0]])


def affine_between(fixed: MaskedImage, moving: MaskedImage) -> np.ndarray:
    """The affine (4, 4) that takes the fixed brain's world to the moving brain's, RAS+ mm.

    Both masks hold something.
    """
    fixed, moving = (brain.cropped(4 * LEVELS_MM[0]) for brain in (fixed, moving))
    matrix = np.eye(4)
    matrix[:3, 3] = moving.centre - fixed.centre
    with _one_thread():
        for spacing_mm in LEVELS_MM:
            matrix = _fitted(matrix, _Level.of(fixed, spacing_mm), _Level.of(moving, spacing_mm))
    return matrix


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fitted(start: np.ndarray, fixed: _Level, moving: _Level) -> np.ndarray:
    """The best matrix of a level."""
    matrix = start.copy()
    near = ndimage.binary_dilation(fixed.channels[0].numpy() > 0.05, iterations=REACH)
    target = fixed.channels[:, torch.from_numpy(near)]
    place = np.stack(np.nonzero(near), -1) @ fixed.grid.affine[:3, :3].T + fixed.grid.affine[:3, 3]
    points = torch.from_numpy(np.pad(place / RADIUS_MM, ((0, 0), (0, 1)), constant_values=1))
    volume, to_voxels = moving.with_slopes(), np.linalg.inv(moving.grid.affine)
    for _ in range(MOST_STEPS):
        voxels = torch.from_numpy(place @ (to_voxels @ matrix)[:3, :3].T)
        voxels += torch.from_numpy((to_voxels @ matrix)[:3, 3])
        step = _step(sample(volume, voxels.float(), "zeros"), target, points.float())
        matrix[:3, :3] += step[:, :3].numpy() / RADIUS_MM
        matrix[:3, 3] += step[:, 3].numpy()
        if float((points @ step.T).norm(dim=1).max()) < TOLERANCE * moving.grid.spacing[0]:
            break
    return matrix


def _step(moved: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """The Gauss-Newton step (3, 4), float64, of the affine at `points` (N, 4) for what the moving
    level with its slopes is there (8, N) and what the fixed one is (2, N)."""
    both = moved[0] * target[0]
    image, aim = both * moved[1], both * target[1]
    factor = float((image * aim).sum() / (image**2).sum().clamp(min=1e-6))
    weight = BRIGHTNESS_WEIGHT**0.5
    residuals = torch.stack([moved[0] - target[0], weight * (factor * image - aim)])
    slopes = torch.stack([moved[2:5], weight * factor * both * moved[5:]])
    # (2 N, 12): the change of every residual with every entry of the matrix.
    jacobian = (slopes[:, :, None] * points.T).flatten(1, 2).transpose(1, 2).flatten(0, 1)
    normal = (jacobian.T @ jacobian).double()
    slope = (jacobian.T @ residuals.flatten()).double()
    damping = DAMPING * normal.diagonal().mean() + 1e-12
    return -torch.linalg.solve(normal + damping * torch.eye(12), slope).reshape(3, 4)
