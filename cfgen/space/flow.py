"""Tissue that moves: every region of a brain grows or shrinks to a volume that is asked for.

A velocity v = grad u carries the tissue, and its divergence is the growth of what is there,

    div v = sum_r p_r g_r + k p_fluid u ,

g_r the rate of region r and p_r its map; fluid takes the slack where the flow meets it, so that a
change stays near its cause (after Simul@trophy, Khanal et al. 2016, in one scalar equation).
Nothing flows through the border of the cavity. The maps are carried along and never reread from
themselves, so that nothing blurs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfgen.space.poisson import at_centres, gradient, solve_potential
from cfgen.space.sampling import sample, sample_rows
from cfgen.space.warp import jacobian, voxels


@dataclass(frozen=True)
class FlowConfig:
    """`reach_mm` is how far a pull goes through fluid before the fluid has taken it up."""

    steps: int = 5
    corrections: int = 6
    # Of log volumes: white matter is due a percent in ten years.
    tolerance: float = 0.001
    reach_mm: float = 3.0
    # A substep moves no voxel further than this, in voxels.
    stride: float = 0.7
    # Log growth of one step at most.
    most_growth: float = 0.5
    # Keeps the rates of regions that share all their voxels apart.
    ridge: float = 0.03


FLOW = FlowConfig()
# In voxels: of a horn of two voxels nothing finer is known.
SPECK = 0.05
# Everywhere in the cavity: so that the potential has a solution where growth does not add up to 0.
LEAST_ABSORPTION = 1e-7
# What came from so small a part of its volume grows no further, and from twice it less readily.
LEAST_LEFT = 0.2


@dataclass(frozen=True)
class Flow:
    """`displacement` (3, D, H, W) in voxels: what is at x afterwards was at x + displacement.
    `reached` (C,) are the volumes of the maps carried by it, in voxels."""

    displacement: Tensor
    reached: np.ndarray
    worst: float
    steps: int


def grow(
    maps: Tensor,
    fluid: Tensor,
    targets: np.ndarray,
    cavity: Tensor,
    spacing_mm: float,
    config: FlowConfig = FLOW,
) -> Flow:
    """Move tissue until every map (C, D, H, W) has its target volume (C,), in voxels.

    `maps` and `fluid` (D, H, W) add up to 1 in the `cavity` (D, H, W) bool, and are 0 outside;
    the fluid has no target. The cells at the border neither grow nor shrink. `worst` says how far
    it got, as a logarithm; less than a speck of a voxel does not count.
    """
    inside = cavity.flatten().nonzero()[:, 0]
    whole = cavity.float()
    core = _eroded(cavity).flatten()[inside].float()
    at = voxels(cavity.shape, maps.device).reshape(-1, 3)[inside]
    all_maps = torch.cat([maps, fluid[None]]).permute(1, 2, 3, 0).contiguous()
    now = all_maps.flatten(0, 2)[inside]
    displacement = maps.new_zeros(3, *cavity.shape)
    u: Tensor | None = None
    control = _Control(targets, config)
    k = (spacing_mm / config.reach_mm) ** 2
    steps = 0
    while True:
        volumes = _sums(now)
        if control.done(volumes, steps):
            break
        growing = core * _room(displacement).flatten()[inside]
        shared = ((now.T * growing) @ now)[:-1, :-1].cpu().double().numpy()
        rates = torch.from_numpy(control.rates(volumes, shared, steps)).float().to(now.device)
        source = _put(growing * (now[:, :-1] @ rates), inside, cavity.shape)
        absorption = _put(k * growing * now[:, -1] + LEAST_ABSORPTION, inside, cavity.shape)
        u, _ = solve_potential(source, absorption, whole, u)
        # What the fluid's own growth does to mixed voxels: the next step makes up for it.
        slack = (absorption * u).flatten()[inside]
        control.saw(volumes, (slack @ now)[:-1].cpu().double().numpy())
        velocity = at_centres(gradient(u, whole))
        displacement = _carried(displacement, velocity, inside, at, config.stride)
        now = sample_rows(all_maps, at + displacement.flatten(1)[:, inside].T)
        steps += 1
    return Flow(displacement, volumes, control.worst, steps)


def missed(volumes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """|ln(volume / target)| (C,) of volumes in voxels; less than a speck of a voxel is nothing."""
    off = np.abs(np.log(volumes / targets))
    return np.where(np.abs(volumes - targets) < SPECK, 0.0, off)


class _Control:
    """Which rates bring the volumes to their targets: Newton's steps on log volumes."""

    def __init__(self, targets: np.ndarray, config: FlowConfig) -> None:
        self.targets, self.config = targets, config
        self.gain = np.ones(len(targets))
        self.asked: np.ndarray | None = None
        self.before = self.drift = np.zeros(len(targets))
        self.worst = math.inf

    def done(self, volumes: np.ndarray, steps: int) -> bool:
        self.worst = worst = float(missed(volumes, self.targets).max(initial=0.0))
        return worst < self.config.tolerance or steps >= self.config.steps + self.config.corrections

    def rates(self, volumes: np.ndarray, shared: np.ndarray, steps: int) -> np.ndarray:
        """Rates (C,) of this step; `shared` (C, C) are the voxels that maps share."""
        config = self.config
        due = np.log(self.targets / volumes)
        rate = np.clip(due / max(config.steps - steps, 1), -config.most_growth, config.most_growth)
        lag = np.zeros_like(rate)
        if self.asked is not None:
            got, used = np.log(volumes / self.before), np.abs(self.asked) > 0.002
            got = np.where(np.abs(got) > 1e-5, got, 1e-5)
            self.gain[used] *= np.clip(self.asked[used] / got[used], 0.8, 1.25)
            self.gain = np.clip(self.gain, 0.5, 2.5)
            along = float((rate * self.asked).sum() / max((self.asked**2).sum(), 1e-12))
            lag = self.drift * along
        self.asked = rate
        mixing = shared / volumes[:, None] + config.ridge * np.eye(len(rate))
        most = 3 * config.most_growth
        return np.clip(np.linalg.solve(mixing, rate * self.gain - lag), -most, most)

    def saw(self, volumes: np.ndarray, slack: np.ndarray) -> None:
        """`slack` (C,): what fluid gave to each map in this step, in voxels."""
        self.before, self.drift = volumes, slack / volumes


def _sums(now: Tensor) -> np.ndarray:
    """Volumes (C,) of the maps among `now` (N, C + 1), which has the fluid last."""
    # A region that is gone has a logarithm too.
    return np.asarray(now.sum(0).cpu().double().numpy()[:-1]).clip(1e-6)


def _room(displacement: Tensor) -> Tensor:
    """How readily voxels grow further (D, H, W), 1 at first: what has grown a lot leaves it to its
    neighbours, so that no sliver is stretched over a whole gap."""
    at = voxels(displacement.shape[1:], displacement.device) + displacement.permute(1, 2, 3, 0)
    return ((jacobian(at) - LEAST_LEFT) / LEAST_LEFT).clamp(0, 1)


def _put(values: Tensor, inside: Tensor, shape: torch.Size) -> Tensor:
    """Values (..., N) of the cavity's voxels in the whole volume, 0 elsewhere."""
    whole = values.new_zeros(*values.shape[:-1], math.prod(shape[-3:]))
    whole[..., inside] = values
    return whole.reshape(shape)


def _eroded(mask: Tensor) -> Tensor:
    """Voxels all of whose face neighbours are in the mask too."""
    out = mask.clone()
    for axis in range(3):
        n = mask.shape[axis] - 1
        out.narrow(axis, 0, n).logical_and_(mask.narrow(axis, 1, n))
        out.narrow(axis, 1, n).logical_and_(mask.narrow(axis, 0, n))
    return out


def _carried(
    displacement: Tensor, velocity: Tensor, inside: Tensor, at: Tensor, stride: float
) -> Tensor:
    """The displacement after a unit of time under a velocity, both (3, D, H, W) in voxels.

    Points are traced back by the midpoint rule.
    """
    substeps = max(1, math.ceil(float(velocity.abs().max()) / stride))
    here = velocity.flatten(1)[:, inside].T
    half = sample(velocity, at - 0.5 / substeps * here).T
    for _ in range(substeps):
        back = -half / substeps
        displacement = _put(sample(displacement, at + back) + back.T, inside, displacement.shape)
    return displacement
