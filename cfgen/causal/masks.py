"""Label maps edited until regions have other volumes: PCGM's counterfactual mask generator.

A region k with n_k voxels and a target of n'_k exchanges d = n'_k - n_k voxels with the classes
around it (`partners.py`), at its boundary with them and nowhere else, in the order of their
probabilities (`exchange.py`; PCGM section 3.2). Where PCGM leaves a choice: the band is widened
ring by ring when d is more than the boundary holds; a voxel changes only where that keeps the
topology of the region; left and right are edited apart; all regions of a group at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cfgen.causal.exchange import (
    Exchange,
    Exchanged,
    Field,
    Pairs,
    boundary_pairs,
    exchange,
    near_boundary,
    recode,
)
from cfgen.causal.partners import PARTNERS, in_turn, partners_of
from cfgen.causal.tilt import Tilt, tilt
from cfgen.data.parcellation import OUTSIDE, region_text, regions_of
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.regions import FLUID
from cfgen.errors import ImageError, UsageError

# The soft maps change in a band so many rings wider than that of the masks: probabilities at the
# boundary itself are too small to hold the change.
SOFT_RINGS = 2


@dataclass(frozen=True)
class SoftMaps:
    """`values` (C, I, J, K) float32 probabilities on the grid of the labels, and the regions that
    each channel covers; one that is left out is of no interest. A channel without a side covers
    the region of both sides."""

    values: Tensor
    channels: tuple[frozenset[Region], ...]

    def of(self, region: Region) -> int:
        """The channel of a region, -1 where there is none."""
        return next((c for c, covered in enumerate(self.channels) if region in covered), -1)


@dataclass(frozen=True)
class Edit:
    """What became of one target, in voxels: `before`, `target` (the volume that was asked for, not
    rounded), `after`; `rings` of the band, voxels of its `boundary`, and how many were `guarded`,
    since they would have changed the region's topology. `soft_change` is what its soft map gained,
    in voxels; a map without sides is that of both."""

    region: Region
    partners: tuple[Region, ...]
    before: int
    target: float
    after: int
    rings: int
    boundary: int
    guarded: int
    soft_change: float

    @property
    def error(self) -> float:
        return self.after - self.target


@dataclass(frozen=True)
class EditedMasks:
    """`labels` (I, J, K) with the codes and dtype of the input, the soft maps in the channels of
    the input, and an `Edit` of each target."""

    labels: Tensor
    posteriors: SoftMaps
    edits: tuple[Edit, ...]


def edit_masks(
    labels: Tensor,
    posteriors: SoftMaps,
    targets: Mapping[Region, float],
    *,
    table_name: str,
    voxel_mm3: float,
    partners: Mapping[str, Sequence[str]] = PARTNERS,
    best_effort: bool = False,
) -> EditedMasks:
    """Labels (I, J, K) in a table's codes, edited until regions have volumes of so many mm3.

    `targets` are (structure, side) -> mm3, of regions that the map has (`whole_targets` takes those
    of both sides apart). Raises ImageError for labels without a partner beside a target or
    posteriors without its channel; UsageError for targets that cannot be, that do not fit in the
    skull, or that cannot be met: with `best_effort` these go as far as they can.
    """
    places = regions_of(table_name)
    volumes = region_voxels(labels, table_name)
    regions = sorted(set(volumes) | {r for r in places.values() if r[0] in OUTSIDE})
    wanted = {r: _voxels(r, mm3 / voxel_mm3, volumes) for r, mm3 in targets.items()}
    chosen = partners_of(targets, [r for r in volumes if r[0] not in OUTSIDE], partners)
    _require_partners(chosen)
    _require_channels(chosen, posteriors)
    _require_room(wanted, chosen, volumes, voxel_mm3)
    field, codes = _field(labels, posteriors, places, regions)
    start = field.region.clone()
    results: dict[Region, Exchanged] = {}
    for group in in_turn(chosen):
        results |= _edit_group(field, group, regions, chosen, wanted)
    maps = SoftMaps(field.chances.reshape(posteriors.values.shape), posteriors.channels)
    edited = _inner(recode(codes, start, field.region, field.shape), field.shape)
    after = region_voxels(edited, table_name)
    edits = tuple(
        Edit(
            r,
            chosen[r],
            volumes[r],
            wanted[r],
            after.get(r, 0),
            results[r].rings,
            results[r].boundary,
            results[r].guarded,
            _soft_change(r, posteriors, maps),
        )
        for r in sorted(targets)
    )
    if not best_effort:
        _require_met(edits, voxel_mm3)
    return EditedMasks(edited, maps, edits)


def _edit_group(
    field: Field,
    group: Sequence[Region],
    regions: Sequence[Region],
    partners: Mapping[Region, Sequence[Region]],
    wanted: Mapping[Region, float],
) -> dict[Region, Exchanged]:
    """Edit masks and soft maps of a group of regions, in place."""
    numbers = {r: n for n, r in enumerate(regions)}
    count = torch.bincount(field.region[field.region >= 0].long(), minlength=len(regions))
    exchanges = [
        Exchange(
            numbers[r],
            tuple(numbers[p] for p in partners[r]),
            round(wanted[r]) - int(count[numbers[r]]),
        )
        for r in group
    ]
    before, pairs = field.region.clone(), boundary_pairs(field, exchanges)
    done = exchange(field, exchanges, pairs)
    _follow(field, before, pairs, exchanges, done)
    return dict(zip(group, done, strict=True))


def _follow(
    field: Field,
    before: Tensor,
    pairs: Pairs,
    exchanges: Sequence[Exchange],
    done: Sequence[Exchanged],
) -> None:
    """Take the soft maps along, in place, in a band that is wider than that of the masks. A map
    that a region shares with its partner stays."""
    tilts = []
    for e, result in zip(exchanges, done, strict=True):
        channels = tuple(sorted({field.channel[p] for p in e.partners}))
        if result.gained and field.channel[e.number] not in channels:
            rings = result.rings + SOFT_RINGS
            band = near_boundary(before, field.shape, pairs, e, rings)
            at = field.without_margin(band)
            tilts.append(Tilt(field.channel[e.number], channels, result.gained, at))
    if tilts:
        tilt(field.chances, tilts)


def _soft_change(region: Region, before: SoftMaps, after: SoftMaps) -> float:
    """Of the channel, which may be that of both sides."""
    channel = before.of(region)
    return float((after.values[channel] - before.values[channel]).sum())


def region_voxels(labels: Tensor, table_name: str) -> dict[Region, int]:
    """Voxels of every region that a map (I, J, K) has."""
    places = regions_of(table_name)
    counts = torch.bincount(labels.flatten().long())
    out: dict[Region, int] = {}
    for code in counts.nonzero()[:, 0].tolist():
        out[places[code]] = out.get(places[code], 0) + int(counts[code])
    return out


def whole_targets(
    targets: Mapping[Region, float], volumes: Mapping[Region, float]
) -> dict[Region, float]:
    """Targets (mm3) of the regions that a map has, whose `volumes` (mm3) are given.

    One of 'both' sides, or of 'cortex' where there are lobes, is shared out: each part changes by
    the same factor. Raises UsageError for a region that the map lacks, or that is meant twice.
    """
    out: dict[Region, float] = {}
    for region, mm3 in targets.items():
        parts = parts_of(region, volumes)
        factor = mm3 / sum(volumes[p] for p in parts)
        for part in parts:
            if part in out:
                raise UsageError("targets", f"{region_text(part)} twice", "one volume for it")
            out[part] = factor * volumes[part]
    return out


def parts_of(region: Region, present: Mapping[Region, float]) -> list[Region]:
    """The regions of a map that a name stands for. Raises UsageError when there is none."""
    structure, side = region
    parts = sorted(
        r
        for r in present
        if (r[0] == structure or (structure == "cortex" and r[0].startswith("cortex_")))
        and (r[1] == side or side == "both")
        and r[0] not in OUTSIDE
    )
    if not parts:
        raise _absent(region, present)
    return parts


def _absent(region: Region, present: Mapping[Region, float]) -> UsageError:
    names = ", ".join(region_text(r) for r in sorted(present) if r[0] not in OUTSIDE)
    return UsageError("targets", f"the labels have no {region_text(region)}", f"one of {names}")


def _voxels(region: Region, voxels: float, volumes: Mapping[Region, int]) -> float:
    if region not in volumes:
        raise _absent(region, volumes)
    if not 0 < voxels < float("inf") or round(voxels) < 1:
        raise UsageError(
            region_text(region), f"a target of {voxels:g} voxels", "at least one: it cannot vanish"
        )
    return voxels


def _require_partners(chosen: Mapping[Region, Sequence[Region]]) -> None:
    for region, partners in chosen.items():
        if not partners:
            names = " or ".join(PARTNERS.get(region[0], ()))
            raise ImageError(
                "labels",
                f"nothing that {region_text(region)} could exchange voxels with",
                f"{names} of its side, which is no target itself",
                "segment the fluid too (cfgen segment), or name a neighbour with --pair",
            )


def _require_channels(chosen: Mapping[Region, Sequence[Region]], posteriors: SoftMaps) -> None:
    for region in sorted({*chosen, *(p for theirs in chosen.values() for p in theirs)}):
        if posteriors.of(region) < 0:
            raise ImageError(
                "posteriors",
                f"no channel of {region_text(region)}",
                "those that were written with these labels",
            )


def _require_room(
    wanted: Mapping[Region, float],
    chosen: Mapping[Region, Sequence[Region]],
    volumes: Mapping[Region, int],
    voxel_mm3: float,
) -> None:
    """Growth into the fluid takes no more than there is inside the skull."""
    growing = {
        r: wanted[r] - volumes[r]
        for r, partners in chosen.items()
        if wanted[r] > volumes[r] and all(p[0] in FLUID for p in partners)
    }
    fluid = sum(volumes[p] for p in {p for r in growing for p in chosen[r]})
    needed = sum(growing.values())
    if needed > fluid:
        names = ", ".join(region_text(r) for r in sorted(growing))
        raise UsageError(
            "targets",
            f"{names} would grow by {needed * voxel_mm3:.0f} mm3 and do not fit in the skull",
            f"at most the {fluid * voxel_mm3:.0f} mm3 of fluid beside them",
        )


def _require_met(edits: Sequence[Edit], voxel_mm3: float) -> None:
    short = [e for e in edits if abs(e.error) > 1]
    if not short:
        return
    beside = [e for e in short if not e.boundary]
    if beside:
        e = beside[0]
        raise ImageError(
            "labels",
            f"no {' or '.join(map(region_text, e.partners))} beside {region_text(e.region)}",
            "a neighbour to exchange voxels with",
            "segment the fluid too (cfgen segment), or name a neighbour with --pair",
        )
    reached = "; ".join(
        f"{region_text(e.region)} came from {e.before * voxel_mm3:.0f} to "
        f"{e.after * voxel_mm3:.0f} mm3 of {e.target * voxel_mm3:.0f} "
        f"({(e.after - e.before) / (e.target - e.before):.0%} of the way)"
        for e in short
    )
    raise UsageError(
        "targets",
        f"{len(short)} cannot be met: {reached}",
        "volumes that can be reached without a change of topology",
        "ask for less, or take what can be had with --best-effort",
    )


def _field(
    labels: Tensor,
    posteriors: SoftMaps,
    places: Mapping[int, Region],
    regions: Sequence[Region],
) -> tuple[Field, Tensor]:
    """The map in work, and its codes, flat as it is."""
    numbers = {r: n for n, r in enumerate(regions)}
    lookup = torch.full((max(places) + 1,), -1, dtype=torch.int16)
    for code, region in places.items():
        lookup[code] = numbers.get(region, -1)
    padded = F.pad(lookup[labels.long()], (1,) * 6, value=-1)
    codes = F.pad(labels, (1,) * 6)
    I, J, K = padded.shape
    chances = posteriors.values.flatten(1).clone()
    channel = tuple(posteriors.of(r) for r in regions)
    return Field((I, J, K), padded.flatten(), chances, channel), codes.flatten()


def _inner(flat: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return flat.reshape(shape)[1:-1, 1:-1, 1:-1].contiguous()
