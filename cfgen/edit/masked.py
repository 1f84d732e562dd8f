"""Counterfactuals by a diffusion model under edited masks of regions (PCGM sections 3.2 and 3.3).

The causal model says how large regions are to be; on the model grid the scan's label map is edited
until its regions are (`anatomy.py`), or moved as its tissue was; the latent is inverted under the
factual conditions and masks, and denoised under the new ones. Masks are told of the whole brain, so
that what is not edited is told to stay, and all targets share one inversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfgen.causal.partners import EDITED
from cfgen.config import Render
from cfgen.data.conditions import Values
from cfgen.data.parcellation import region_text
from cfgen.data.volume import Volume
from cfgen.edit.anatomy import anatomy_of, edited, voxels_of
from cfgen.edit.control import Control
from cfgen.edit.edits import Account, Drawing, LatentEdits, Question, TissueEdits, edit_under
from cfgen.edit.engine import Engine
from cfgen.edit.latent import condition_of
from cfgen.edit.sidecar import MaskRecord, MasksRecord
from cfgen.errors import Notice
from cfgen.measure.region_masks import region_masks, require_known, require_there
from cfgen.nets.condition import Condition
from cfgen.progress import working
from cfgen.space.grids import model_grid

# Changes of log volumes below this are those of rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class MaskedEdits:
    """Targets by the masks of `records`, one a target. `moved` says that tissue was moved to make
    them."""

    question: Question
    latents: LatentEdits
    records: list[MasksRecord]
    moved: bool

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
        """What the causal model never saw, what the network is not told, and masks that could not
        be edited as far as they should."""
        record = self.records[number]
        notices = [] if self.moved else list(self.question.world(number).notices)
        if record.not_told:
            names = ", ".join(record.not_told)
            text = f"the network was not trained with masks of {names}: it is told nothing of them"
            notices.append(Notice("regions-not-told", text))
        if not self.moved:
            notices += [_unmet(r) for r in record.edited if abs(r.told - r.due) > 1]
        return notices

    def account(self, number: int) -> Account:
        changes = self.question.world(number).changes
        return Account(changes, self.question.causal_record(number), self.records[number])

    def images(self, number: int) -> Iterator[np.ndarray]:
        return self.latents.images(number)


def _unmet(record: MaskRecord) -> Notice:
    region = region_text((record.structure, record.side))
    text = f"{region}: a mask of {record.told} voxels of {record.due:.0f}, from {record.factual}"
    return Notice("target-not-met", text)


def edit_by_masks(
    engine: Engine,
    question: Question,
    drawing: Drawing,
    how: Render = "residual",
    tissue: TissueEdits | None = None,
) -> MaskedEdits:
    """Every target of a question. With `tissue` the masks are moved as it was, else edited at their
    borders.

    Raises UsageError for a volume that is set of a region that the network was not trained with,
    and as `anatomy.edited`; ImageError for a region that the scan has nothing of.
    """
    control = engine.masked.control
    assert control is not None
    before = anatomy_of(question.opened)
    maps, records = [], []
    with working("editing the masks", len(question.targets)) as step:
        for number, target in enumerate(question.targets):
            changes = moving(question.world(number).changes)
            asked = [n for n in changes if target[n] != question.factual[n]]
            editable = set(EDITED) | set(asked)
            not_told = [n for n in changes if n in editable and n not in control.regions]
            changes = {n: c for n, c in changes.items() if n in control.regions}
            if tissue is None:
                _require(asked, before.labels, control)
                changes = {n: c for n, c in changes.items() if n in editable}
                after = edited(before, changes)
            else:
                after = anatomy_of(question.opened, tissue.moved(number).movement).labels
            maps.append(after)
            records.append(
                MasksRecord(control.kind, mask_records(before.labels, after, changes), not_told)
            )
            step()

    def told(values: Values, labels: Volume) -> Condition:
        c = condition_of(engine.bundle.schema, values, engine.device)
        return Condition(c.vector, control.masks(labels).to(engine.device))

    targets = [told(values, labels) for values, labels in zip(question.targets, maps, strict=True)]
    c = told(question.factual, before.labels)
    latents = edit_under(engine, question.opened, c, targets, drawing, how)
    return MaskedEdits(question, latents, records, tissue is not None)


def moving(changes: Mapping[str, float]) -> dict[str, float]:
    """Those of the logarithms of volumes by structure that are more than rounding."""
    return {name: change for name, change in changes.items() if abs(change) > ROUNDING}


def _require(asked: Sequence[str], labels: Volume, control: Control) -> None:
    """Volumes that are set need a mask."""
    require_known(asked, control.regions)
    masks = region_masks(labels, control.regions, model_grid(control.grid))
    require_there(asked, masks, control.regions, labels.path or "scan")


def mask_records(before: Volume, after: Volume, changes: Mapping[str, float]) -> list[MaskRecord]:
    """Of every region by side that the scan has and that is due to change."""
    factual, told = voxels_of(before), voxels_of(after)
    return [
        MaskRecord(*region, n, round(n * float(np.exp(changes[region[0]])), 1), told.get(region, 0))
        for region, n in factual.items()
        if region[0] in changes
    ]
