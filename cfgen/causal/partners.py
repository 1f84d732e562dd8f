"""Which classes a region exchanges voxels with when its volume changes.

The cortex gives to the fluid around it and takes from it, never to white matter: the white surface
stays (PCGM section 3.2; Jernigan 1991). The others follow the same thought at their own borders:
tissue against the fluid that it touches, ventricles against the tissue that they press on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.parcellation import region_text
from cfgen.data.regions import FLUID, LOBES
from cfgen.data.volume_targets import STRUCTURES
from cfgen.errors import UsageError

_CORTEX = ("cortex", *(f"cortex_{lobe}" for lobe in LOBES))
PARTNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_CORTEX, ("csf",)),
    "hippocampus": ("inferior_lateral_ventricle", "lateral_ventricle", "csf"),
    "amygdala": ("inferior_lateral_ventricle", "csf"),
    "thalamus": ("third_ventricle", "lateral_ventricle", "csf"),
    "caudate": ("lateral_ventricle",),
    "putamen": ("cerebral_wm",),
    "pallidum": ("cerebral_wm",),
    "accumbens": ("cerebral_wm",),
    "other_brain": ("third_ventricle", "csf"),
    "brainstem": ("csf", "fourth_ventricle"),
    "cerebellum_gm": ("csf", "fourth_ventricle"),
    "cerebellum_wm": ("cerebellum_gm",),
    "cerebral_wm": ("lateral_ventricle",),
    "lateral_ventricle": ("cerebral_wm",),
    "inferior_lateral_ventricle": ("cerebral_wm", "hippocampus", "amygdala"),
    "third_ventricle": ("thalamus", "other_brain"),
    "fourth_ventricle": ("brainstem", "cerebellum_gm", "cerebellum_wm"),
}

# What a causal model edits: each has a neighbour left that is none of them.
EDITED = (
    *(f"cortex_{lobe}" for lobe in LOBES),
    *("hippocampus", "amygdala", "thalamus", "lateral_ventricle", "third_ventricle"),
)


def parse_partners(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """'lateral_ventricle=cerebral_wm,caudate' -> the structures that one exchanges voxels with.
    Raises UsageError."""
    out = {}
    for text in texts:
        where = f"--pair {text}"
        name, _, others = text.partition("=")
        partners = tuple(part.strip() for part in others.split(",") if part.strip())
        known = (*STRUCTURES, "csf")
        strange = [n for n in (name.strip(), *partners) if n not in known]
        if strange or not partners:
            found = f"no structure '{strange[0]}'" if strange else "no neighbour"
            raise UsageError(where, found, "STRUCTURE=NEIGHBOUR[,...] of " + ", ".join(known))
        out[name.strip()] = partners
    return out


def partners_of(
    targets: Collection[Region],
    present: Collection[Region],
    partners: Mapping[str, Sequence[str]] = PARTNERS,
) -> dict[Region, tuple[Region, ...]]:
    """The regions of a map that each target exchanges with: those of its own side, and of both.

    Where a fluid and the tissue beside it are both targets, the tissue exchanges with the fluid and
    not the fluid with the tissue. Raises UsageError for a structure that exchanges with nothing,
    and for one whose every partner exchanges with it.
    """
    unknown = sorted({structure for structure, _ in targets} - set(partners))
    if unknown:
        raise UsageError(
            "targets",
            f"{unknown[0]} exchanges with nothing",
            "one of " + ", ".join(partners),
            "name its neighbour with --pair",
        )
    chosen = {
        target: tuple(
            region
            for region in sorted(present)
            if region[0] in partners[target[0]]
            and region != target
            and (region[1] == target[1] or "both" in (region[1], target[1]))
        )
        for target in sorted(targets)
    }
    return {
        target: tuple(r for r in theirs if not _is_taken(target, r, chosen))
        for target, theirs in chosen.items()
    }


def _is_taken(target: Region, partner: Region, chosen: Mapping[Region, Sequence[Region]]) -> bool:
    return target[0] in FLUID and target in chosen.get(partner, ())


def in_turn(partners: Mapping[Region, Sequence[Region]]) -> list[list[Region]]:
    """Targets in groups, one after the other: a region comes after all that exchange with it, so
    that it can make up for what they gave it or took. No region of a group is a partner of another.

    Raises UsageError where regions exchange in a circle.
    """
    left, groups = dict(partners), []
    while left:
        group = sorted(r for r in left if not any(r in theirs for theirs in left.values()))
        if not group:
            names = " and ".join(region_text(r) for r in sorted(left))
            raise UsageError(
                "targets",
                f"{names} exchange with each other, so that only one of them is free",
                "one of them, or another neighbour for one of them",
                "leave one out, or say --pair STRUCTURE=NEIGHBOUR",
            )
        groups.append(group)
        for region in group:
            del left[region]
    return groups
