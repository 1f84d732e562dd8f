"""Did an edit of the contrast leave the anatomy alone? Region volumes, measured under one contrast.

A segmenter reads other volumes of the same brain under another contrast: under the simulator's true
counterfactual protocols, in which nothing moves, those of fluid differ by up to 18 %. So a written
image is brought back to the contrast of its scan before it is measured: what is left is what moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfgen.data.record import key
from cfgen.data.volumes import RegionVolume

# Regions smaller than this (mm3) are a few voxels of the segmenter, whose rounding alone is more.
LEAST_MM3 = 300.0


@dataclass(frozen=True)
class VolumeChange:
    """A region's summed probabilities before and after, mm3; `side` is left, right or both."""

    structure: str
    side: str
    before: float = key("Before_mm3")
    after: float = key("After_mm3")

    @property
    def percent(self) -> float:
        return 100 * (self.after / self.before - 1)


def volume_changes(
    before: Sequence[RegionVolume], after: Sequence[RegionVolume]
) -> list[VolumeChange]:
    """Of every region that has a volume before."""
    now = {(v.structure, v.side): v.soft_mm3 or 0.0 for v in after}
    return [
        VolumeChange(v.structure, v.side, round(v.soft_mm3, 1), round(now[v.structure, v.side], 1))
        for v in before
        if v.soft_mm3 is not None and v.soft_mm3 >= LEAST_MM3
    ]
