"""Simple points: voxels that a region may gain or lose without a change of its topology.

A region is 26-connected and what is outside it 6-connected. A voxel is simple when its region has
one 26-component among its 26 neighbours, and what is outside one 6-component among the 18 nearest
that touches a face of it (Bertrand and Malandain 1994, Pattern Recognition Letters 15: 169-175). To
change one simple voxel keeps the number of components, of cavities and of handles; so does to
change several at once of which no two are 26-neighbours: those of one `parity`.

A neighbourhood is the 27 bits of an integer: voxel (x, y, z) of 3x3x3 is bit x + 3 y + 9 z.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CENTRE = 13
PARITIES = 8


def _bits(kept: list[bool]) -> int:
    return sum(1 << n for n, keep in enumerate(kept) if keep)


_PLACES = [(n % 3 - 1, n // 3 % 3 - 1, n // 9 - 1) for n in range(27)]
_REACH = [sum(map(abs, place)) for place in _PLACES]
ALL26 = _bits([r > 0 for r in _REACH])
NEAR18 = _bits([0 < r < 3 for r in _REACH])
FACES = _bits([r == 1 for r in _REACH])
# For every axis: the shift of a step, and the voxels that have no neighbour down or up there.
_AXES = [
    (step, ~_bits([p[axis] == -1 for p in _PLACES]), ~_bits([p[axis] == 1 for p in _PLACES]))
    for axis, step in enumerate((1, 3, 9))
]


def neighbour_offsets(shape: tuple[int, ...]) -> Tensor:
    """(27,) int64: from a voxel of a flat (D, H, W) array to its neighbours, in the order of the
    bits; itself in the middle."""
    _, H, W = shape
    return torch.tensor([dx * H * W + dy * W + dz for dx, dy, dz in _PLACES])


def parity(voxels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which of the 8 lattices of every other voxel along each axis: two voxels of one parity are
    never neighbours. `voxels` (N,) int64 are places in a flat array of that shape."""
    _, H, W = shape
    x, y, z = voxels // (H * W), voxels // W % H, voxels % W
    return (x & 1) + 2 * (y & 1) + 4 * (z & 1)


def pack(inside: Tensor) -> Tensor:
    """(N, 27) bool -> (N,) int64 of 27 bits."""
    return (inside.long() << torch.arange(27, device=inside.device)).sum(1)


def is_simple(region: Tensor) -> Tensor:
    """Whether the centre of each neighbourhood is simple; whether it is in the region or not does
    not matter. `region` (N,) int64 of 27 bits; bool (N,)."""
    inside = region & ALL26
    outside = ~region & NEAR18
    doors = outside & FACES
    one_piece = _flood(_lowest(inside), inside, _spread26) == inside
    one_outside = (_flood(_lowest(doors), outside, _spread6) & FACES) == doors
    return (inside != 0) & (doors != 0) & one_piece & one_outside


def _lowest(bits: Tensor) -> Tensor:
    return bits & -bits


def _flood(seed: Tensor, allowed: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
    """All of `allowed` that is connected to the seed."""
    reached = seed
    while True:
        further = spread(reached) & allowed
        if torch.equal(further, reached):
            return reached
        reached = further


def _spread26(bits: Tensor) -> Tensor:
    for step, not_first, not_last in _AXES:
        bits = bits | ((bits & not_last) << step) | ((bits & not_first) >> step)
    return bits


def _spread6(bits: Tensor) -> Tensor:
    out = bits
    for step, not_first, not_last in _AXES:
        out = out | ((bits & not_last) << step) | ((bits & not_first) >> step)
    return out
