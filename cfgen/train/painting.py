"""Random scans for the segmenter: of label maps (SynthSeg) and of real images, in any contrast.

SynthSeg (Billot et al. 2023) trains on images that never existed: a deformed label map, a random
brightness for each tissue, bias field, blur and thick slices. What the network then knows is shape.
Real images are deformed and changed in the same ways. Everything happens at the segmenter's
spacing, on crops, and every draw comes from the generator that is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.data.parcellation import LEFT, NOT_BRAIN, RIGHT, SETS
from cfgen.measure.segmenter import scaled
from cfgen.space.sampling import smoothed
from cfgen.train.draws import chance, normal, uniform


@dataclass(frozen=True)
class Synthesis:
    """Ranges of the random changes; lengths in voxels of the segmenter's grid (2 mm)."""

    crop: tuple[int, int, int] = (80, 96, 96)
    rotation_degrees: float = 12.0
    log_scale: float = 0.1
    shear: float = 0.02
    shift_voxels: float = 6.0
    elastic_voxels: float = 1.5
    elastic_points: int = 7
    # Spread of the tissues' mean brightness is all of [0, 1]; of the noise inside one, at most:
    tissue_noise: float = 0.12
    log_gamma: float = 0.3
    log_bias: float = 0.3
    blur_voxels: float = 0.8
    image_noise: float = 0.03
    thick_probability: float = 0.25
    thickest_voxels: float = 3.5
    strip_probability: float = 0.25
    mirror_probability: float = 0.5


# For painted label maps, which teach shape whatever the contrast.
SYNTHESIS = Synthesis()
# For real scans, which are like those to come already.
GENTLE = Synthesis(
    rotation_degrees=6.0,
    log_scale=0.06,
    shear=0.01,
    elastic_voxels=1.0,
    log_gamma=0.12,
    log_bias=0.15,
    blur_voxels=0.6,
    thick_probability=0.1,
    strip_probability=0.2,
)


@dataclass(frozen=True)
class Example:
    """`image` (D, H, W) in [0, 1]; `sets` (D, H, W) uint8 into SETS; `sides` (D, H, W) uint8."""

    image: Tensor
    sets: Tensor
    sides: Tensor


def random_points(
    centre: Tensor, voxels_a_step: float, generator: torch.Generator, options: Synthesis
) -> tuple[Tensor, bool]:
    """Where each voxel of a crop is read: (*crop, 3) voxel coordinates of the source around
    `centre`, which has `voxels_a_step` voxels to one of the crop's; and whether it is mirrored."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in options.crop]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = torch.deg2rad(
        options.rotation_degrees * normal(generator, 3)
    )
    matrix = torch.linalg.matrix_exp(skew - skew.T) * torch.exp(
        options.log_scale * normal(generator, 3)
    )
    matrix = matrix + options.shear * normal(generator, 3, 3)
    mirrored = chance(generator, options.mirror_probability)
    if mirrored:
        matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0])) @ matrix
    control = options.elastic_voxels * normal(generator, 1, 3, *[options.elastic_points] * 3)
    elastic = F.interpolate(control, size=options.crop, mode="trilinear", align_corners=True)
    moved = points @ matrix.T + elastic[0].permute(1, 2, 3, 0)
    moved = moved + options.shift_voxels * normal(generator, 3).clamp(-2, 2)
    return moved * voxels_a_step + centre, mirrored


def nearest(volume: Tensor, points: Tensor) -> Tensor:
    """`volume` (I, J, K) at the nearest voxels of points (..., 3); 0 outside."""
    at = points.round().long()
    size = torch.tensor(volume.shape)
    inside = ((at >= 0) & (at < size)).all(-1)
    at = at.clamp(min=0).minimum(size - 1)
    flat = (at[..., 0] * size[1] + at[..., 1]) * size[2] + at[..., 2]
    return torch.where(inside, volume.reshape(-1)[flat], torch.zeros((), dtype=volume.dtype))


def paint(tissues: Tensor, count: int, generator: torch.Generator, options: Synthesis) -> Tensor:
    """An image of a map of tissue numbers (0 is air): a Gaussian mixture, one component each."""
    means = uniform(generator, 0.05, 1.0, count)
    spreads = uniform(generator, 0.0, options.tissue_noise, count)
    if chance(generator, 0.7):
        means[0] = spreads[0] = 0.0
    at = tissues.long()
    return means[at] + spreads[at] * normal(generator, *tissues.shape)


def swap_sides(sides: Tensor) -> Tensor:
    """LEFT for RIGHT and back."""
    return torch.tensor([0, RIGHT, LEFT], dtype=sides.dtype)[sides.long()]


def strip(image: Tensor, sets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The brain alone, as a skull-stripping tool leaves it: a rim of random width stays."""
    head = torch.tensor([set(members) <= set(NOT_BRAIN) for members in SETS])[sets.long()]
    brain = (~head).float()[None, None]
    width = int(torch.randint(0, 2, (1,), generator=generator)) * 2 + 1
    near = F.max_pool3d(brain, width, 1, width // 2)[0, 0] > 0
    # What is gone is air, and so is a label that might have been either.
    gone = torch.where(head & ~near, torch.zeros((), dtype=sets.dtype), sets)
    return torch.where(near, image, torch.zeros(())), gone


def acquire(image: Tensor, generator: torch.Generator, options: Synthesis) -> Tensor:
    """Bias, blur or thick slices, noise, gamma, and the scaling of `scaled`."""
    control = options.log_bias * normal(generator, 1, 1, 4, 4, 4)
    bias = F.interpolate(control, size=image.shape, mode="trilinear", align_corners=True)[0, 0]
    image = image * torch.exp(bias)
    if chance(generator, options.thick_probability):
        axis = int(torch.randint(3, (1,), generator=generator))
        image = _thick(image, axis, float(uniform(generator, 1.2, options.thickest_voxels, 1)))
    else:
        sigma = float(uniform(generator, 0.0, options.blur_voxels, 1))
        image = smoothed(image, sigma, 2) if sigma > 0.1 else image
    noise = float(uniform(generator, 0.0, options.image_noise, 1))
    image = image + noise * normal(generator, *image.shape)
    image = scaled(image)
    return image ** torch.exp(options.log_gamma * normal(generator, 1))


def _thick(image: Tensor, axis: int, thickness: float) -> Tensor:
    """Slices of a thickness in voxels along an axis, interpolated back."""
    size = list(image.shape)
    coarse = list(size)
    coarse[axis] = max(4, round(size[axis] / thickness))
    thick = F.interpolate(image[None, None], size=coarse, mode="area")
    return F.interpolate(thick, size=size, mode="trilinear", align_corners=False)[0, 0]
