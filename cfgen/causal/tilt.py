"""Soft maps that follow edited masks: PCGM's "increasing the probabilities by a scalar alpha".

Near the boundary of a region k with its partners, within the mass T that they have together,

    P'_k = T alpha_k P_k / S,   P'_q = T P_q / S,   S = sum_k alpha_k P_k + sum_q P_q,

so that sums stay one and no other class is touched; alpha_k is such that k gains as many voxels in
sum as its mask did. Regions whose bands overlap share one S, and all alphas are found together
(Newton in log alpha, for each alone, until all fit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ITERATIONS = 30
# A region's soft volume is met to this share of a voxel.
TOLERANCE = 0.02
_STEEPEST = 12.0
# Half a step of 8 bits: what is stored as nothing is as much, or no alpha could raise it.
LEAST = 1 / 510


@dataclass(frozen=True)
class Tilt:
    """Channel `channel` is to gain `gain` voxels from the channels `partners` in `band` (N,)."""

    channel: int
    partners: tuple[int, ...]
    gain: int
    band: Tensor


def tilt(maps: Tensor, tilts: Sequence[Tilt]) -> list[float]:
    """Change `maps` (C, M) in place, all tilts at once; what each gained, in voxels.

    No channel is at once tilted and a partner. Where a band holds too little, a tilt goes as far
    as it can.
    """
    band = torch.cat([t.band for t in tilts])
    owner = torch.cat([torch.full_like(t.band, n) for n, t in enumerate(tilts)])
    voxels, place = torch.unique(band, return_inverse=True)
    channel = torch.tensor([t.channel for t in tilts])[owner]
    share = _share(place, channel, len(maps))
    old = maps[channel, band] * share
    total = torch.zeros(len(voxels)).index_add(0, place, old)
    rest, flags = torch.zeros(len(voxels)), {}
    for number in sorted({q for t in tilts for q in t.partners}):
        gives = torch.tensor([number in t.partners for t in tilts])[owner]
        flag = torch.zeros(len(voxels), dtype=torch.bool)
        flag[place[gives]] = True
        total += maps[number, voxels] * flag
        rest += maps[number, voxels].clamp(min=LEAST) * flag
        flags[number] = flag
    p = old.clamp(min=LEAST)
    wanted = torch.tensor([float(t.gain) for t in tilts])
    log_alpha = torch.zeros(len(tilts))
    for _ in range(ITERATIONS):
        weighted = p * log_alpha.exp()[owner]
        scale = total / rest.index_add(0, place, weighted).clamp(min=1e-12)
        new = weighted * scale[place]
        gained = torch.zeros(len(tilts)).index_add(0, owner, new - old)
        if bool(((wanted - gained).abs() < TOLERANCE).all()):
            break
        slope = new * (1 - new / total[place].clamp(min=1e-12))
        slope = torch.zeros(len(tilts)).index_add(0, owner, slope).clamp(min=1e-6)
        step = ((wanted - gained) / slope).clamp(-1, 1)
        log_alpha = (log_alpha + step).clamp(-_STEEPEST, _STEEPEST)
    for number, flag in flags.items():
        maps[number, voxels[flag]] = maps[number, voxels[flag]].clamp(min=LEAST) * scale[flag]
    # What two regions of one channel have of it adds up.
    maps.view(-1).index_add_(0, channel * maps.shape[1] + band, new - old)
    return [float(g) for g in gained]


def _share(place: Tensor, channel: Tensor, channels: int) -> Tensor:
    """1, or a half where two regions of one channel (left and right) have the same voxel."""
    key = place * channels + channel
    _, again, count = torch.unique(key, return_inverse=True, return_counts=True)
    return 1.0 / count[again]
