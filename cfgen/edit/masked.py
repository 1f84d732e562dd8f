"""Counterfactuals by a diffusion model under moved masks of regions (PCGM section 3.3).

The causal model says how large regions are to be, and the scan's tissue is moved until they are
(`tissue.py`). How much of each voxel a region fills is carried along; the latent is inverted under
the factual conditions and masks, and denoised under the new ones. Masks are told of the whole
brain, so that what does not move is told to stay, and all targets share one inversion.

PCGM edits label maps at their borders (section 3.2; `cfgen edit-masks`). That a border moves by a
tenth of a millimetre no label map says, and which voxels flip there is chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from cfgen.config import Render
from cfgen.data.conditions import Values
from cfgen.edit.anatomy import anatomy_of, moved_maps
from cfgen.edit.control import Control
from cfgen.edit.edits import Account, Drawing, LatentEdits, TissueEdits, edit_under
from cfgen.edit.engine import Engine
from cfgen.edit.latent import condition_of
from cfgen.edit.sidecar import MaskRecord, MasksRecord
from cfgen.errors import ImageError, Notice
from cfgen.measure.region_masks import require_known
from cfgen.nets.condition import Condition
from cfgen.scan.open import Opened

# Changes of log volumes below this are those of rounding.
ROUNDING = 1e-9
# A map of less than this, in voxels, is of nothing.
EMPTY = 1.0


@dataclass(frozen=True)
class MaskedEdits:
    """Targets by the masks of `records`, one a target, which moved as `tissue` did."""

    tissue: TissueEdits
    latents: LatentEdits
    records: list[MasksRecord]

    @property
    def round_trip(self) -> float:
        return self.latents.round_trip

    @property
    def notices(self) -> list[Notice]:
        return self.latents.notices

    @property
    def reconstruction(self) -> np.ndarray:
        return self.latents.reconstruction

    def notices_of(self, number: int) -> list[Notice]:
        """Those of moved tissue, and regions that the network is not told."""
        notices, unknown = self.tissue.notices_of(number), self.records[number].not_told
        if not unknown:
            return notices
        text = f"the network was not trained with masks of {', '.join(unknown)}"
        return [*notices, Notice("regions-not-told", f"{text}: it is told nothing of them")]

    def account(self, number: int) -> Account:
        return replace(self.tissue.account(number), masks=self.records[number])

    def images(self, number: int) -> Iterator[np.ndarray]:
        return self.latents.images(number)


def edit_by_masks(
    engine: Engine, tissue: TissueEdits, drawing: Drawing, how: Render = "residual"
) -> MaskedEdits:
    """Every target of the question that moved `tissue` answers.

    Raises UsageError for a volume that is set of a region that the network was not trained with,
    and ImageError for a region that the scan has nothing of, or that can't be brought to its
    volume.
    """
    control, question = engine.masked.control, tissue.question
    assert control is not None
    changes = [moving(question.world(n).within_head) for n in range(len(question.targets))]
    asked = [
        [n for n in due if target[n] != question.factual[n]]
        for due, target in zip(changes, question.targets, strict=True)
    ]
    for names in asked:
        require_known(names, control.regions)
    before = anatomy_of(engine, question.opened, control.regions)
    moved, records = [], []
    for number, (names, due) in enumerate(zip(asked, changes, strict=True)):
        _require_there(names, before, control, question.opened)
        # What does not move stays the same to the bit.
        moved.append(_moved(before, control, tissue, number) if due else before)
        records.append(_record(engine, control, before, moved[-1], due))

    pairs = zip(question.targets, moved, strict=True)
    targets = [
        told(engine, control, heard(engine, question.factual, values), maps)
        for values, maps in pairs
    ]
    c = told(engine, control, question.factual, before)
    latents = edit_under(engine, question.opened, c, targets, drawing, how)
    return MaskedEdits(tissue, latents, records)


def masks_alone(engine: Engine) -> bool:
    """Whether an edit tells new masks and leaves the conditions those of the scan.

    Where the latent mean follows conditions it moves what is moved in the average person, where the
    average person has it. Masks say what is moved in this one: with both it is moved twice
    (docs/by.md).
    """
    return bool(engine.bundle.part("latent_mean").config.get("conditional", True))


def heard(engine: Engine, factual: Values, target: Values) -> Values:
    """The conditions that the network is told with the masks of a target."""
    return factual if masks_alone(engine) else target


def told(engine: Engine, control: Control, values: Values, maps: Tensor) -> Condition:
    """What the network is told of a person: `values`, and maps (K, D, H, W) of its regions."""
    c = condition_of(engine.bundle.schema, values, engine.device)
    return Condition(c.vector, control.masks(maps).to(engine.device))


def _moved(maps: Tensor, control: Control, tissue: TissueEdits, number: int) -> Tensor:
    movement = tissue.moved(number).movement
    return moved_maps(maps, control.regions, tissue.opened.prepared, movement)


def moving(changes: Mapping[str, float]) -> dict[str, float]:
    """Those of the logarithms of volumes by structure that are more than rounding."""
    return {name: change for name, change in changes.items() if abs(change) > ROUNDING}


def _require_there(names: Sequence[str], maps: Tensor, control: Control, opened: Opened) -> None:
    """Volumes that are set need something to grow or shrink."""
    for name in names:
        if maps[control.regions.index(name)].sum() < EMPTY:
            where = opened.volume.path or "scan"
            raise ImageError(where, f"its mask of {name} is empty", "a voxel of it at least")


def _record(
    engine: Engine, control: Control, before: Tensor, after: Tensor, changes: Mapping[str, float]
) -> MasksRecord:
    """Every region that is due to change, and that the network knows of or does not."""
    edited = []
    for region, *maps in zip(control.regions, before, after, strict=True):
        if region in changes:
            was, told = (float(m.sum()) for m in maps)
            due = was * float(np.exp(changes[region]))
            edited.append(MaskRecord(region, round(was, 1), round(due, 1), round(told, 1)))
    unknown = [name for name in changes if name not in control.regions]
    conditions: Literal["factual", "target"] = "factual" if masks_alone(engine) else "target"
    return MasksRecord(control.kind, edited, unknown, conditions)
