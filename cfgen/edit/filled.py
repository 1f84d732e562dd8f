"""Moved tissue in which a diffusion model fills what moving cannot know, within an anatomy lock.

Moving knows where tissue goes and not what is new. Where tissue was stretched, a part of each voxel
holds what was not there before, a sulcus that opened; and no movement changes how bright white
matter is. With M the moved scan and G what the model makes of the scan under the same masks, moved
as the tissue was (`masked.py`), the image is

    (1 - n) (M + w s) + n G ,    n = (1 - J)+ o .

n is the new share of a voxel: J is the local volume of scan over counterfactual, so that 1 - J of
the voxel did not come from the scan, and o the part of it that is cortex or the fluid around it
(ventricles are filled with fluid already). w is the fraction of white matter there and s the change
of its brightness,

    s = G_sd * (q d) / G_sd * q ,    q = (w0 w)^4 ,

d being counterfactual less reconstruction, averaged over centimetres where there is nothing but
white matter before (w0) and after.

That is the lock: borders lie where moved tissue has them, since w s has the shape of the tissue
itself and is smooth otherwise, and the model's own picture of the anatomy comes in by the share of
what is new, and nowhere else. Where the model changes nothing and nothing is new the image is moved
tissue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfgen.edit.edits import Account, TissueEdits
from cfgen.edit.masked import MaskedEdits
from cfgen.edit.tissue import Tissue
from cfgen.errors import Notice
from cfgen.measure.fractions import AROUND_MM
from cfgen.scan.moved import Movement
from cfgen.scan.open import Opened
from cfgen.scan.prepare import Prepared
from cfgen.scan.render import bounded, render
from cfgen.space.grids import crop_box, crop_grid, resample
from cfgen.space.sampling import sample, smoothed
from cfgen.space.warp import jacobian, voxels

# White matter further away than a few SD of it says nothing: there s fades to 0.
LEAST_WHITE = 1e-3


@dataclass(frozen=True)
class FilledEdits:
    """Targets by moved tissue, filled by a model that was told how it moved."""

    masked: MaskedEdits

    @property
    def tissue(self) -> TissueEdits:
        return self.masked.tissue

    @property
    def round_trip(self) -> float:
        return self.masked.round_trip

    @property
    def notices(self) -> list[Notice]:
        return self.masked.notices

    @property
    def reconstruction(self) -> np.ndarray:
        return self.masked.reconstruction

    def notices_of(self, number: int) -> list[Notice]:
        return self.masked.notices_of(number)

    def account(self, number: int) -> Account:
        return self.masked.account(number)

    def write_field(self, number: int, path: Path, jacobian: Path) -> None:
        """How the tissue moved."""
        self.tissue.write_field(number, path, jacobian)

    def images(self, number: int) -> Iterator[np.ndarray]:
        """The law of a sample moves the tissue, its noise is the model's."""
        generated = self.masked.latents.decoded(number)
        moved = self.tissue.images(number)
        for sample_number, (image, pair) in enumerate(zip(moved, generated, strict=True)):
            movement = self.tissue.moved(number, sample_number).movement
            yield filled(self.tissue.opened, self.tissue.tissue, movement, image, pair)


@dataclass(frozen=True)
class Lock:
    """What a model may change of moved tissue, (D, H, W) on the tissue's grid: the share `new` of a
    voxel, and `white`, the fraction of white matter, before and after."""

    new: Tensor
    white: tuple[Tensor, Tensor]


def lock_of(tissue: Tissue, movement: Movement) -> Lock:
    spacing = tissue.grid.spacing[0]
    at = voxels(tissue.cavity.shape) + movement.displacement.permute(1, 2, 3, 0) / spacing
    maps = torch.stack([tissue.of("grey"), tissue.fluid, tissue.of("white")])
    grey, fluid, white = sample(maps, at)
    new = (1 - jacobian(at)).clamp(min=0) * (grey + fluid).clamp(max=1) * tissue.cavity
    return Lock(new, (maps[2], white))


def white_change(lock: Lock, change: Tensor, spacing_mm: float) -> Tensor:
    """w s (D, H, W) of a `change` d (D, H, W) on the tissue's grid."""
    before, after = lock.white
    both = (before * after) ** 4
    sd = AROUND_MM / spacing_mm
    return after * smoothed(both * change, sd) / (smoothed(both, sd) + LEAST_WHITE)


def filled(
    opened: Opened,
    tissue: Tissue,
    movement: Movement,
    moved: np.ndarray,
    generated: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The scan `moved` (I, J, K) with what is `generated`, reconstruction and counterfactual
    (D, H, W) on the model grid: (I, J, K) float32, `moved` outside the brain mask."""
    scan, prepared = opened.volume, opened.prepared
    lock = lock_of(tissue, movement)
    rebuilt, counterfactual = generated
    to_model = np.linalg.inv(prepared.to_native)
    change = resample(counterfactual - rebuilt, prepared.grid, tissue.grid, to_model)
    white = white_change(lock, torch.from_numpy(change), tissue.grid.spacing[0])
    whole = render(scan, prepared, rebuilt, counterfactual, "residual")
    box = crop_box(prepared.native_mask)
    grid = crop_grid(scan.grid, box)
    new = resample(lock.new.numpy(), tissue.grid, grid)
    brighter = resample(white.numpy(), tissue.grid, grid) * _units(prepared, box)
    out = moved.copy()
    out[box] = (1 - new) * (moved[box] + brighter) + new * whole[box]
    return bounded(scan, prepared.native_mask, out, moved)


def _units(prepared: Prepared, box: tuple[slice, slice, slice]) -> np.ndarray:
    """What a unit of the model's brightness is in the scan, in a box of it."""
    return prepared.native_bias(box) * prepared.scale
