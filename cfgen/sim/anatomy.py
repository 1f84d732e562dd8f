"""A subject's anatomy: the reference head, deformed until every volume is the one asked for.

For a voxel x of the subject, tissue is read from the reference at

    y(x) = q + d(q),  q = A^-1 x          the subject's own shape, and size (TIV)
    z(x) = y + b w(y) + v_a(y)            white matter (b) and ventricles (a)

and in the cortex the border to the fluid then moves in depth, lobe by lobe, while the border to the
white matter stays (the rule of PCGM's masks; Jernigan 1991). Each of a, b and the depths has one
volume to meet, which grows with it: they are found by bisection or secants on the soft volume as it
is measured on the subject's own grid. A shape is the subject's noise: a counterfactual keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cfgen.data.volume import Grid
from cfgen.errors import UsageError
from cfgen.sim.graph import Exogenous as Noise
from cfgen.sim.graph import Graph, Parents, Volumes, predict
from cfgen.sim.reference import CORTEX, Reference
from cfgen.space.sampling import sample, smoothed
from cfgen.space.warp import exponential, voxels
from cfgen.streams import Purpose, stream

# The reference is a young adult's head (nilearn's template: 152 adults of 18 to 44 years).
REFERENCE_AGE = 25.0
REFERENCE_TIV_ML = 1460.0
# Shape: folds of the head at this distance and of this size (mm, root mean square), and of gyri.
SHAPE_EVERY_MM, SHAPE_MM = 26.0, 3.2
GYRI_EVERY_MM, GYRI_MM = 9.0, 0.9
ROTATION_DEGREES, LOG_SCALE = 3.0, 0.03
# The middle of the head, about which it is turned and scaled (mm, MNI).
MIDDLE_MM = (0.0, -18.0, 8.0)
VENTRICLE_SMOOTH_MM = 8.0
# Ventricle fields are made for these strengths (mm) and mixed between them.
VENTRICLE_STRENGTHS_MM = np.linspace(-6, 18, 25)
TOLERANCE = 5e-4
# Little fluid lies around these in the template to grow into: the reference volume is rendered as
# this part of the template's, with fluid for the rest (temporal horn, cingulate sulcus, fissures).
PART = {"hippocampus": 0.64, "cingulate": 0.72, "insula": 0.7}
# Of the depth of the cortex: how soft its border is.
RAMP = 0.25


@dataclass(frozen=True)
class Shape:
    """What makes a head one person's: `turn` (3, 3) without change of volume, and `own`
    (3, D, H, W) mm, the displacement d on the reference's grid."""

    turn: Tensor
    own: Tensor


@dataclass(frozen=True)
class Anatomy:
    """Soft maps (D, H, W) on the subject's grid that sum to 1 inside the skull: `white`, `grey`,
    `fluid` of the signal; `ventricles` and `cortex` (K, D, H, W) of the regions; `white_matter`
    the cerebrum's. `volumes_ml` are their soft volumes, in the order of the graph's regions."""

    white: Tensor
    grey: Tensor
    fluid: Tensor
    ventricles: Tensor
    cortex: Tensor
    lobes: Tensor
    white_matter: Tensor
    volumes_ml: np.ndarray
    tiv_ml: float


@cache
def scale_to_rendered(model: Graph, head: Reference) -> np.ndarray:
    """(K,): what one mL of the graph is in the rendered head.

    Definitions of regions differ between the literature and the reference; their ratio does not
    depend on the subject, so that logarithms, and with them every effect, are the same in both.
    """
    one = np.ones(1)
    young = Parents(one * REFERENCE_AGE, one / 2, 0 * one, 0 * one)
    size = (np.log(REFERENCE_TIV_ML) - np.log(model.tiv["female"]) - model.tiv["male"] / 2) / (
        model.tiv["spread"] + model.tiv["spread_male"] / 2
    )
    volumes = predict(model, young, Noise(one * size, np.zeros((1, len(model.regions)))))
    reference = head.volumes_ml()
    return np.array(
        [
            PART.get(name, 1.0) * reference[name] * REFERENCE_TIV_ML / reference["tiv"] / volume
            for name, volume in zip(model.regions, volumes.regions[0], strict=True)
        ]
    )


def sample_shape(head: Reference, seed: int, subject: int) -> Shape:
    """The shape of a subject, from its own stream."""
    draw = stream(seed, Purpose.SHAPE, subject)
    angles = np.deg2rad(ROTATION_DEGREES) * draw.standard_normal(3)
    skew = np.array(
        [[0, -angles[2], angles[1]], [angles[2], 0, -angles[0]], [-angles[1], angles[0], 0]]
    )
    logs = LOG_SCALE * draw.standard_normal(3)
    turn = torch.linalg.matrix_exp(torch.from_numpy(skew)) @ torch.diag(
        torch.from_numpy(np.exp(logs - logs.mean()))
    )
    velocity = smooth_noise(draw, head.grid, SHAPE_EVERY_MM, SHAPE_MM)
    displacement = exponential(velocity, head.grid.spacing[0])
    displacement = displacement + smooth_noise(draw, head.grid, GYRI_EVERY_MM, GYRI_MM)
    return Shape(turn.float(), displacement)


def smooth_noise(draw: np.random.Generator, grid: Grid, every_mm: float, rms_mm: float) -> Tensor:
    """(3, D, H, W) mm: white noise every so many mm, cubic in between; the same at any spacing."""
    extent = np.array(grid.shape) * grid.spacing[0]
    knots = np.ceil(extent / every_mm).astype(int) + 3
    noise = torch.from_numpy(draw.standard_normal((3, *knots))).float()
    # Points of the grid between the knots; a knot's margin on each side.
    for axis in range(3):
        n = grid.shape[axis]
        at = (torch.arange(n) + 0.5) * (grid.spacing[0] / every_mm) + 1.0
        noise = torch.tensordot(noise, _cubic_weights(at, int(knots[axis])), dims=([1], [1]))
    return noise * (rms_mm / float(noise.square().sum(0).mean().sqrt()))


def _cubic_weights(at: Tensor, knots: int) -> Tensor:
    """(points, knots): the cubic B-spline at each point."""
    distance = (at[:, None] - torch.arange(knots)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


@dataclass(frozen=True)
class Fields:
    """Where tissue can move in the reference: `outward` (strengths, 3, D, H, W) mm in the box
    `corner`, for the ventricles; `white` (3, D, H, W), a unit direction off the white matter."""

    outward: Tensor
    corner: tuple[int, int, int]
    white: Tensor


def _gradient(volume: Tensor) -> Tensor:
    return torch.stack(torch.gradient(volume))


@cache
def fields(head: Reference) -> Fields:
    """The reference's fields, made once for each head."""
    spacing = head.grid.spacing[0]
    sigma = VENTRICLE_SMOOTH_MM / spacing
    # Cortex does not move with the ventricles: the field is gone where grey matter begins.
    cortex = smoothed((head.grey > 0.3).float(), 3.0 / spacing)
    free = (1 - 2.5 * cortex).clamp(min=0)
    towards = _gradient(smoothed(head.ventricles, sigma))
    direction = towards / towards.square().sum(0).sqrt().max()
    # A root makes the field reach further: large ventricles push what is far from the small ones.
    strength = direction.square().sum(0).sqrt()
    direction = direction * (strength + 1e-6).pow(-0.5) * free
    moved = direction.square().sum(0) > 1e-6
    corner = [max(int(moved.any(dim=_others(a)).nonzero()[0]) - 1, 0) for a in range(3)]
    end = [min(int(moved.any(dim=_others(a)).nonzero()[-1]) + 2, moved.shape[a]) for a in range(3)]
    box = tuple(slice(a, b) for a, b in zip(corner, end, strict=True))
    inside = direction[(slice(None), *box)]
    outward = torch.stack([exponential(inside * s, spacing) for s in VENTRICLE_STRENGTHS_MM])
    # White matter: across its border to the cortex, away from the ventricles' field and from the
    # occipital lobe, whose cortex alcohol leaves alone.
    border = _gradient(smoothed(head.white, 2.0 / spacing))
    border = border / border.square().sum(0).sqrt().max()
    occipital = head.lobes == CORTEX.index("occipital") + 1
    still = smoothed(occipital.float(), 4.0 / spacing)
    near = smoothed(moved.float() * (free > 0.5), 2.0 / spacing)
    white = border * (1 - 2 * still).clamp(min=0) * (1 - near).clamp(min=0)
    return Fields(outward, (corner[0], corner[1], corner[2]), white)


def _others(axis: int) -> tuple[int, int]:
    first, second = (a for a in range(3) if a != axis)
    return first, second


def make_anatomy(model: Graph, head: Reference, shape: Shape, volumes: Volumes) -> Anatomy:
    """The anatomy of one subject's `volumes` (arrays of length 1) with a shape, every volume met.

    Raises UsageError when a volume cannot be reached by this head.
    """
    ml = head.grid.voxel_mm3 / 1000
    target = volumes.regions[0] * scale_to_rendered(model, head)
    wanted = dict(zip(model.regions, target, strict=True))
    y = _own_points(head, shape, float(volumes.tiv[0]))
    moving = fields(head)
    # The two fields overlap a little: a second round settles both.
    ventricles_push = _ventricle_push(head, moving, y, torch.zeros(()), wanted["ventricles"])
    white_push = _white_push(head, moving, y, ventricles_push, wanted["white_matter"])
    ventricles_push = _ventricle_push(head, moving, y, white_push, wanted["ventricles"])
    white_push = _white_push(head, moving, y, ventricles_push, wanted["white_matter"])
    z = y + ventricles_push + white_push
    maps = torch.stack(
        [
            head.white,
            head.grey,
            head.ventricles,
            head.fixed_white,
            head.fixed_grey,
            head.skull,
            head.depth,
        ]
    )
    white, grey, ventricles, fixed_white, fixed_grey, skull, depth = sample(maps, z)
    lobes = sample(head.lobes[None].float(), z, mode="nearest")[0].to(torch.uint8)
    outer = (skull - white - grey - ventricles - fixed_white - fixed_grey).clamp(min=0)
    grey = _shift_cortex(grey, outer, depth, lobes, [wanted[name] for name in CORTEX], ml)
    fluid = (skull - white - grey - fixed_white - fixed_grey).clamp(min=0)
    cortex = torch.stack([grey * (lobes == n) for n in range(1, len(CORTEX) + 1)])
    measured = {"ventricles": ventricles, "white_matter": white}
    measured |= dict(zip(CORTEX, cortex, strict=True))
    volumes_ml = np.array([float(measured[name].double().sum()) * ml for name in model.regions])
    return Anatomy(
        white=white + fixed_white,
        grey=grey + fixed_grey,
        fluid=fluid,
        ventricles=ventricles,
        cortex=cortex,
        lobes=lobes,
        white_matter=white,
        volumes_ml=volumes_ml,
        tiv_ml=float(skull.double().sum()) * ml,
    )


def _own_points(head: Reference, shape: Shape, tiv_ml: float) -> Tensor:
    """y(x): voxel coordinates (D, H, W, 3) in the reference, with the skull's volume right."""
    grid = head.grid
    spacing = grid.spacing[0]
    middle = torch.from_numpy(np.linalg.solve(grid.affine, [*MIDDLE_MM, 1.0])[:3]).float()
    centred = voxels(grid.shape) - middle
    inverse = torch.linalg.inv(shape.turn)
    ml = grid.voxel_mm3 / 1000
    scale = (tiv_ml / head.volumes_ml()["tiv"]) ** (1 / 3)
    y = centred
    for _ in range(3):
        q = (centred / scale) @ inverse.T + middle
        y = q + sample(shape.own, q).permute(1, 2, 3, 0) / spacing
        volume_ml = float(sample(head.skull[None], y).double().sum()) * ml
        if abs(volume_ml / tiv_ml - 1) < TOLERANCE:
            break
        scale *= (tiv_ml / volume_ml) ** (1 / 3)
    return y


def _ventricle_push(
    head: Reference, moving: Fields, y: Tensor, other: Tensor, wanted_ml: float
) -> Tensor:
    """v_a(y) in voxels, with the ventricles' volume as wanted beside another push."""
    ml, spacing = head.grid.voxel_mm3 / 1000, head.grid.spacing[0]
    corner = torch.tensor(moving.corner, dtype=torch.float32)
    size = torch.tensor(moving.outward.shape[2:], dtype=torch.float32)
    local = y - corner
    inside = ((local > 0) & (local < size - 1)).all(-1)
    points, local = (y + other)[inside], local[inside]
    knots = VENTRICLE_STRENGTHS_MM

    def push(strength: float) -> Tensor:
        place = float(np.clip((strength - knots[0]) / (knots[1] - knots[0]), 0, len(knots) - 1.001))
        n, part = int(place), place - int(place)
        field = (1 - part) * moving.outward[n] + part * moving.outward[n + 1]
        return sample(field, local).T / spacing

    def volume(strength: float) -> float:
        return float(sample(head.ventricles[None], points + push(strength)).double().sum()) * ml

    strength = solve(volume, wanted_ml, float(knots[0]), float(knots[-1]), "ventricles")
    displacement = torch.zeros_like(y)
    displacement[inside] = push(strength)
    return displacement


def _white_push(
    head: Reference, moving: Fields, y: Tensor, other: Tensor, wanted_ml: float
) -> Tensor:
    """b w(y) in voxels, with the cerebral white matter's volume as wanted beside another push."""
    ml, spacing = head.grid.voxel_mm3 / 1000, head.grid.spacing[0]
    direction = sample(moving.white, y).permute(1, 2, 3, 0)
    there = direction.square().sum(-1) > 1e-8
    z = y + other
    points, along = z[there], direction[there]
    rest = float(sample(head.white[None], z[~there]).double().sum()) * ml

    def volume(mm: float) -> float:
        moved = sample(head.white[None], points + along * (mm / spacing))
        return rest + float(moved.double().sum()) * ml

    mm = solve(volume, wanted_ml, -5.0, 5.0, "white matter")
    return direction * (mm / spacing)


def solve(
    volume: Callable[[float], float], wanted: float, low: float, high: float, name: str
) -> float:
    """Where a growing function has the wanted value: regula falsi (Illinois)."""
    at_low, at_high = volume(low) - wanted, volume(high) - wanted
    if at_low > 0 or at_high < 0:
        raise UsageError(
            name,
            f"{wanted:.1f} mL cannot be reached by this head",
            f"{at_low + wanted:.1f} to {at_high + wanted:.1f} mL",
        )
    middle = low
    for _ in range(40):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        excess = volume(middle) - wanted
        if abs(excess) < TOLERANCE * wanted:
            break
        if excess > 0:
            high, at_high, at_low = middle, excess, at_low / 2
        else:
            low, at_low, at_high = middle, excess, at_high / 2
    return middle


def _shift_cortex(
    grey: Tensor, outer: Tensor, depth: Tensor, lobes: Tensor, wanted_ml: list[float], ml: float
) -> Tensor:
    """Grey matter whose border to the fluid has moved in depth, each lobe's volume as wanted."""
    shifted = grey.clone()
    for number, wanted in enumerate(wanted_ml, 1):
        here = lobes == number
        shifted[here] = _move_border(
            grey[here], outer[here], depth[here], wanted / ml, CORTEX[number - 1]
        )
    return shifted


def _move_border(grey: Tensor, outer: Tensor, depth: Tensor, wanted: float, name: str) -> Tensor:
    """(N,) grey matter of one lobe, `wanted` voxels of it, by bisection on the border's depth.

    At depth 1 nothing changes; below, grey matter outside the border becomes fluid, above, fluid
    inside it becomes grey. Raises UsageError when the lobe would vanish or fill the fluid.
    """
    shallow, deep = depth.clamp(max=1), depth.clamp(min=1)

    def moved(border: float) -> Tensor:
        kept = ((border - shallow) / RAMP + 1).clamp(0, 1)
        grown = ((border - deep) / RAMP).clamp(0, 1)
        return grey * kept + outer * grown

    low, high = -RAMP, 2 + RAMP
    most = float(moved(high).double().sum())
    if not 0 < wanted < most:
        raise UsageError(name, f"{wanted:.0f} voxels of it", f"at most {most:.0f} in this head")
    for _ in range(40):
        middle = (low + high) / 2
        if float(moved(middle).double().sum()) < wanted:
            low = middle
        else:
            high = middle
    return moved((low + high) / 2)
