"""Voxels that change hands between a region and the classes it exchanges with (PCGM, section 3.2).

    P_k(x) - sum_q P_q(x)       ranks the boundary's voxels of the partners q when region k is to
                                grow: the first d become k's
    sum_q P_q(x) - P_k(x)       ranks the boundary's voxels of k when it is to shrink

The boundary is a band of rings of voxels, each ring touching a face of the last: one ring, unless d
is more than it holds. Every voxel that changes is simple for its region (`topology.py`). All
regions of a call are edited together, so that none is first. A voxel that two of them want goes to
the one with the higher score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfgen.causal.topology import (
    CENTRE,
    FACES,
    PARITIES,
    is_simple,
    neighbour_offsets,
    pack,
    parity,
)

_FACES = [n for n in range(27) if FACES >> n & 1]
# A rank is one whole number: the score in steps of 2^-20, then the voxels of the region that is to
# gain among the 26 around, then what looks like chance and is none: where scores are equal, as in
# posteriors of 8 bits, no end of the brain comes first.
_SCORE_STEPS, _CHANCE_BITS = 1 << 20, 24


@dataclass(frozen=True)
class Exchange:
    """Region `number` gains `wanted` voxels from its `partners`, or loses them to these where it is
    negative. All are numbers of regions."""

    number: int
    partners: tuple[int, ...]
    wanted: int


@dataclass(frozen=True)
class Exchanged:
    """Voxels that a region gained (lost: negative); rings of its band, voxels of the first ring,
    and voxels that were wanted and would have changed its topology."""

    gained: int
    rings: int
    boundary: int
    guarded: int


@dataclass(frozen=True)
class Field:
    """A label map in work, flat, with one voxel more on all sides.

    `shape` (3,) has these; `region` (N,) int16 is the number of each voxel's region. `chances`
    (C, M) float32 are probabilities, flat without the margin, and `channel` the one of each
    region's number, -1 for none.
    """

    shape: tuple[int, int, int]
    region: Tensor
    chances: Tensor
    channel: tuple[int, ...]

    def chance(self, numbers: Sequence[int], voxels: Tensor) -> Tensor:
        """Probability (N,) of any of these regions at `voxels` (N,)."""
        at, total = self.without_margin(voxels), torch.zeros(len(voxels))
        for channel in sorted({self.channel[n] for n in numbers}):
            total += self.chances[channel, at]
        return total

    def without_margin(self, voxels: Tensor) -> Tensor:
        """The places of `voxels` (N,) in an array that has no margin."""
        _, J, K = self.shape
        i, j, k = voxels // (J * K) - 1, voxels // K % J - 1, voxels % K - 1
        return (i * (J - 2) + j) * (K - 2) + k


@dataclass(frozen=True)
class Band:
    """Voxels (N,) of one region's band that were not wanted yet, the best first; their `rank` (N,)
    int64; all voxels of the band, and those of its last ring."""

    voxels: Tensor
    rank: Tensor
    seen: Tensor
    last: Tensor
    rings: int
    boundary: int


def exchange(field: Field, exchanges: Sequence[Exchange], pairs: Pairs) -> list[Exchanged]:
    """Edit `field.region` in place, all exchanges at once; what became of each. `pairs` are those
    of `boundary_pairs`.

    A region that exchanges is no partner of another one here. An exchange that cannot be met goes
    as far as it can.
    """
    work = _Work(field, exchanges, pairs)
    while True:
        opened = [work.want(n) for n in range(len(exchanges))]
        flipped = work.sweep_until_still()
        if not work.missing().any() or not (any(opened) or flipped):
            break
    return work.results()


class _Work:
    """The state of one call: bands by exchange, and the rows that are wanted. A row is a voxel
    (`voxels`), the exchange that wants it (`owner`) and its `rank`."""

    def __init__(self, field: Field, exchanges: Sequence[Exchange], pairs: Pairs) -> None:
        self.field, self.exchanges = field, exchanges
        self.origin = field.region.clone()
        self.offsets = neighbour_offsets(field.shape)
        self.number = torch.tensor([e.number for e in exchanges])
        self.wanted = torch.tensor([abs(e.wanted) for e in exchanges])
        self.grows = torch.tensor([e.wanted > 0 for e in exchanges])
        # (exchanges, regions): whether a region is a partner; the last column is for -1, no region.
        self.partner = torch.zeros(len(exchanges), len(field.channel) + 1, dtype=torch.bool)
        for row, e in enumerate(exchanges):
            self.partner[row, list(e.partners)] = True
        self.done = torch.zeros(len(exchanges), dtype=torch.long)
        empty = torch.zeros(0, dtype=torch.long)
        self.voxels, self.owner, self.rank = empty, empty, empty
        self.bands = self._first_rings(pairs)

    def missing(self) -> Tensor:
        return self.wanted - self.done

    def _first_rings(self, pairs: Pairs) -> list[Band]:
        """For each exchange, the voxels that may change and touch a face of the other side."""
        inside, outside = pairs.inside, pairs.outside
        bands = []
        for row, e in enumerate(self.exchanges):
            own, other = inside == e.number, self.partner[row][outside]
            if e.wanted > 0:
                own, other = self.partner[row][inside], outside == e.number
            ring = torch.unique(pairs.here[own & other])
            empty = ring[:0]
            bands.append(self._with_ring(row, Band(empty, empty, empty, empty, 0, len(ring)), ring))
        return bands

    def _with_ring(self, row: int, band: Band, ring: Tensor) -> Band:
        e = self.exchanges[row]
        around = self.origin[ring[:, None] + self.offsets].long()
        gainer = around == e.number if e.wanted > 0 else self.partner[row][around]
        score = self.field.chance([e.number], ring) - self.field.chance(e.partners, ring)
        if e.wanted < 0:
            score = -score
        steps = ((score + 1) * _SCORE_STEPS).round().long()
        rank = ((steps << 5) + gainer.sum(1)) << _CHANCE_BITS
        rank += (ring * 2654435761 + 12345) % (1 << 32) >> (32 - _CHANCE_BITS)
        voxels, rank = torch.cat([band.voxels, ring]), torch.cat([band.rank, rank])
        order = torch.argsort(rank, descending=True, stable=True)
        seen = torch.cat([band.seen, ring])
        return Band(voxels[order], rank[order], seen, ring, band.rings + 1, band.boundary)

    def _next_ring(self, row: int, band: Band) -> Tensor:
        around = torch.unique(band.last[:, None] + self.offsets[_FACES])
        there = self.origin[around].long()
        e = self.exchanges[row]
        inside = self.partner[row][there] if e.wanted > 0 else there == e.number
        around = around[inside]
        return around[~torch.isin(around, band.seen)]

    def want(self, row: int) -> bool:
        """Take as many of the best rows of a band as are missing; whether there were any."""
        missing, band = int(self.missing()[row]), self.bands[row]
        if missing <= 0:
            return False
        while len(band.voxels) < missing and len(ring := self._next_ring(row, band)):
            band = self._with_ring(row, band, ring)
        voxels, rank = band.voxels[:missing], band.rank[:missing]
        self.bands[row] = Band(
            band.voxels[missing:],
            band.rank[missing:],
            band.seen,
            band.last,
            band.rings,
            band.boundary,
        )
        self.voxels = torch.cat([self.voxels, voxels])
        self.owner = torch.cat([self.owner, torch.full_like(voxels, row)])
        self.rank = torch.cat([self.rank, rank])
        return len(voxels) > 0

    def sweep_until_still(self) -> bool:
        """Change the wanted voxels that can be, again until none can; whether any was."""
        # By owner, and there the best first.
        order = torch.argsort(self.rank, descending=True, stable=True)
        order = order[torch.argsort(self.owner[order], stable=True)]
        self.voxels, self.owner, self.rank = (
            self.voxels[order],
            self.owner[order],
            self.rank[order],
        )
        lattice = parity(self.voxels, self.field.shape)
        any_flipped = False
        while True:
            flipped = [self._flip((lattice == p).nonzero()[:, 0]) for p in range(PARITIES)]
            if not any(flipped):
                break
            any_flipped = True
        kept = self.field.region[self.voxels] == self.origin[self.voxels]
        self.voxels, self.owner, self.rank = self.voxels[kept], self.owner[kept], self.rank[kept]
        return any_flipped

    def _flip(self, rows: Tensor) -> bool:
        """Change those of `rows`, no two of them neighbours, that can be; whether any was."""
        region = self.field.region
        voxels, owner = self.voxels[rows], self.owner[rows]
        open_ = (region[voxels] == self.origin[voxels]) & (self.missing()[owner] > 0)
        rows, voxels, owner = rows[open_], voxels[open_], owner[open_]
        if not len(rows):
            return False
        around = region[voxels[:, None] + self.offsets].long()
        own = around == self.number[owner][:, None]
        partner = self.partner[owner[:, None], around[:, _FACES]]
        touches = torch.where(self.grows[owner], own[:, _FACES].any(1), partner.any(1))
        good = touches & is_simple(pack(own))
        rows, voxels, owner = rows[good], voxels[good], owner[good]
        won = _winners(voxels, owner, self.rank[rows] >> _CHANCE_BITS)
        voxels, owner, faces = voxels[won], owner[won], around[good][won][:, _FACES]
        # The rows are by owner: the first so many of each are those that are still missing.
        count = torch.bincount(owner, minlength=len(self.wanted))
        place = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
        first = place < self.missing()[owner]
        voxels, owner, faces = voxels[first], owner[first], faces[first]
        new = self.number[owner]
        shrinks = ~self.grows[owner]
        new[shrinks] = self._receiver(voxels[shrinks], owner[shrinks], faces[shrinks])
        region[voxels] = new.to(region.dtype)
        self.done += torch.bincount(owner, minlength=len(self.wanted))
        return len(voxels) > 0

    def _receiver(self, voxels: Tensor, owner: Tensor, faces: Tensor) -> Tensor:
        """Of the partners at the faces of each voxel, the most probable one."""
        best, chance = torch.full_like(voxels, -1), torch.full((len(voxels),), -1.0)
        for number in sorted({n for e in self.exchanges for n in e.partners}):
            may = self.partner[owner, number] & (faces == number).any(1)
            here = torch.where(may, self.field.chance([number], voxels), -1.0)
            better = here > chance
            best[better], chance[better] = number, here[better]
        return best

    def results(self) -> list[Exchanged]:
        guarded = torch.bincount(self.owner, minlength=len(self.wanted))
        sign = torch.where(self.grows, 1, -1)
        return [
            Exchanged(int(gained), band.rings, band.boundary, int(kept))
            for gained, band, kept in zip(sign * self.done, self.bands, guarded, strict=True)
        ]


@dataclass(frozen=True)
class Pairs:
    """Face neighbours across the boundaries of some exchanges, both ways: `here` (M,) int64 are
    voxels, `inside` and `outside` (M,) int64 the regions of each and of its neighbour."""

    here: Tensor
    inside: Tensor
    outside: Tensor


def boundary_pairs(field: Field, exchanges: Sequence[Exchange]) -> Pairs:
    """Those between a region that exchanges and its partners."""
    block, step = field.region.reshape(field.shape), field.region.numel()
    # The last row and column are for -1, no region.
    across = torch.zeros((len(field.channel) + 1,) * 2, dtype=torch.bool)
    for e in exchanges:
        across[e.number, list(e.partners)] = True
        across[list(e.partners), e.number] = True
    parts = []
    for axis in range(3):
        step //= field.shape[axis]
        n = field.shape[axis] - 1
        differ = torch.zeros(field.shape, dtype=torch.bool)
        differ.narrow(axis, 0, n)[...] = block.narrow(axis, 0, n) != block.narrow(axis, 1, n)
        here = differ.flatten().nonzero()[:, 0]
        one, other = field.region[here].long(), field.region[here + step].long()
        kept = across[one, other]
        here, one, other = here[kept], one[kept], other[kept]
        parts += [(here, one, other), (here + step, other, one)]
    here, inside, outside = (torch.cat(list(part)) for part in zip(*parts, strict=True))
    return Pairs(here, inside, outside)


def _winners(voxels: Tensor, owner: Tensor, rank: Tensor) -> Tensor:
    """Rows (N,) bool that get their voxel: of several the best, then the one of the first owner."""
    unique, place = torch.unique(voxels, return_inverse=True)
    if len(unique) == len(voxels):
        return torch.ones(len(voxels), dtype=torch.bool)
    key = (rank << 12) - owner
    best = torch.full_like(unique, torch.iinfo(torch.long).min).scatter_reduce(
        0, place, key, "amax"
    )
    return key == best[place]


def near_boundary(
    region: Tensor, shape: tuple[int, int, int], pairs: Pairs, e: Exchange, rings: int
) -> Tensor:
    """Voxels of a region and of its partners within so many rings of the boundary between them, on
    either side. `region` (N,) and `pairs` are from before the exchange."""
    both = torch.zeros(int(region.max()) + 2, dtype=torch.bool)
    both[[e.number, *e.partners]] = True
    across = (pairs.inside == e.number) & both[pairs.outside]
    across |= (pairs.outside == e.number) & both[pairs.inside]
    band = torch.unique(pairs.here[across])
    steps = neighbour_offsets(shape)[[*_FACES, CENTRE]]
    for _ in range(rings - 1):
        band = torch.unique(band[:, None] + steps)
        band = band[both[region[band].long()]]
    return band


def recode(codes: Tensor, start: Tensor, region: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Codes (N,) for regions that were `start` and are `region` (N,), flat as in `Field`.

    A voxel that changed gets the code of its new region around it: of several (the gyri of a lobe)
    the one that most of the 26 neighbours have.
    """
    given, codes = codes, codes.clone()
    changed = (region != start).nonzero()[:, 0]
    offsets = neighbour_offsets(shape)
    offsets = torch.cat([offsets[:CENTRE], offsets[CENTRE + 1 :]])
    open_ = torch.zeros(len(codes), dtype=torch.bool)
    open_[changed] = True
    while len(changed):
        around = changed[:, None] + offsets
        fits = (region[around] == region[changed][:, None]) & ~open_[around]
        ready = fits.any(1)
        if not ready.any():
            # Alone: what it touched changed too.
            for number in region[changed].unique().tolist():
                codes[changed[region[changed] == number]] = given[start == number].mode().values
            break
        known = torch.where(fits, codes[around].long(), -1)[ready]
        codes[changed[ready]] = _most(known).to(codes.dtype)
        open_[changed[ready]] = False
        changed = changed[~ready]
    return codes


def _most(known: Tensor) -> Tensor:
    """The code (N,) that is most often in each row (N, 26), -1 for none; the lowest of several."""
    best = known.amax(1)
    several = (known != best[:, None]).logical_and_(known >= 0).any(1)
    some = known[several]
    votes = (some[:, :, None] == some[:, None, :]).sum(2)
    votes = torch.where(some < 0, 0, votes * (1 << 32) - some)
    best[several] = some.gather(1, votes.argmax(1, keepdim=True))[:, 0]
    return best
