"""Random changes of training images: anatomy (mirror, affine, elastic) and acquisition.

Each draws from the generator it is given, so that (seed, step) fixes the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.space.sampling import sample
from cfgen.train.draws import chance, normal


@dataclass(frozen=True)
class Augmentation:
    """Standard deviations, but for the probabilities. Lengths in voxels of the model grid."""

    mirror_probability: float = 0.5
    warp_probability: float = 0.5
    rotation_degrees: float = 3.0
    log_scale: float = 0.03
    shift_voxels: float = 1.0
    elastic_voxels: float = 0.7
    elastic_points: int = 7
    log_gamma: float = 0.08
    log_brightness: float = 0.05
    log_bias: float = 0.06
    noise_probability: float = 0.2
    noise: float = 0.01


AUGMENTATION = Augmentation()


def mirror(image: Tensor) -> Tensor:
    """Left and right exchanged: axis 0 of a model grid, which is RAS and centred on x = 0."""
    return image.flip(-3)


def crop_start(
    shape: tuple[int, ...], crop: tuple[int, ...], generator: torch.Generator
) -> list[int]:
    return [
        int(torch.randint(n - c + 1, (1,), generator=generator))
        for n, c in zip(shape, crop, strict=True)
    ]


def random_view(
    image: Tensor, crop: tuple[int, int, int], generator: torch.Generator, options: Augmentation
) -> Tensor:
    """A crop of a mirrored and warped (..., D, H, W) image; trilinear where it is warped. What is
    drawn does not depend on the channels."""
    if chance(generator, options.mirror_probability):
        image = mirror(image)
    shape = tuple(image.shape[-3:])
    start = crop_start(shape, crop, generator)
    if not chance(generator, options.warp_probability):
        i, j, k = start
        return image[..., i : i + crop[0], j : j + crop[1], k : k + crop[2]]
    points = _warped_points(shape, start, crop, generator, options)
    channels = image.shape[:-3]
    return sample(image.reshape(-1, *shape), points, "zeros").reshape(*channels, *crop)


def _warped_points(
    shape: tuple[int, ...],
    start: list[int],
    crop: tuple[int, int, int],
    generator: torch.Generator,
    options: Augmentation,
) -> Tensor:
    """Voxel coordinates (*crop, 3) in the image from which a warped crop is read."""
    axes = [torch.arange(c, dtype=torch.float32) + s for c, s in zip(crop, start, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    centre = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    angles = torch.deg2rad(options.rotation_degrees * normal(generator, 3))
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = angles
    rotation = torch.linalg.matrix_exp(skew - skew.T)
    scales = torch.exp(options.log_scale * normal(generator, 3))
    moved = (points - centre) @ (rotation * scales) + centre
    moved = moved + options.shift_voxels * normal(generator, 3)
    control = options.elastic_voxels * normal(generator, 1, 3, *[options.elastic_points] * 3)
    elastic = F.interpolate(control, size=crop, mode="trilinear", align_corners=True)
    return moved + elastic[0].permute(1, 2, 3, 0)


def random_acquisition(image: Tensor, generator: torch.Generator, options: Augmentation) -> Tensor:
    """Contrast, brightness, bias field and noise; background (0) stays 0."""
    bright = torch.exp(options.log_brightness * normal(generator, 1))
    gamma = torch.exp(options.log_gamma * normal(generator, 1))
    control = options.log_bias * normal(generator, 1, 1, 4, 4, 4)
    bias = F.interpolate(control, size=image.shape[-3:], mode="trilinear", align_corners=True)
    out = image.clamp(min=0) ** gamma * bright * torch.exp(bias[0, 0])
    if chance(generator, options.noise_probability):
        level = options.noise * torch.rand(1, generator=generator) * 2
        out = out + level * normal(generator, *image.shape) * (image > 0)
    return out
