"""Counterfactuals of one opened scan, target by target: by moved tissue, or by a latent edit.

What goes by edited masks is in `masked.py`, and what fills moved tissue in `filled.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from cfgen import __version__
from cfgen.causal.scm import Scm
from cfgen.config import EDIT, SEED, DecoderKind, Edit, Render
from cfgen.data.conditions import Values
from cfgen.data.volume import SYNTHETIC
from cfgen.data.volumes import RegionVolume, sums
from cfgen.edit.engine import Engine
from cfgen.edit.latent import ROUND_TRIP_LIMIT, LatentEdit, condition_of, edit_latent
from cfgen.edit.samples import sample_noise
from cfgen.edit.sidecar import CausalRecord, MasksRecord, RegionRecord
from cfgen.edit.tissue import VOLUME_LIMIT, Moved, Tissue, move_tissue, tissue_maps
from cfgen.edit.volumes import Law, World, world
from cfgen.errors import ImageError, Notice, UsageError
from cfgen.nets.condition import Condition
from cfgen.progress import working
from cfgen.scan.field import displacement, write_field
from cfgen.scan.moved import Source, move, scaled, source_of
from cfgen.scan.open import Opened
from cfgen.scan.render import render

# Movements of a scan that are kept: each is 20 MB, and there may be sixty targets.
KEPT = 8


@dataclass(frozen=True)
class Drawing:
    """How latents are edited: the sampler, how many samples of the abduction with which seed, and
    what decodes them.

    `subject` names the scan, so that people of a cohort do not share their noise.
    """

    edit: Edit = EDIT
    samples: int = 1
    seed: int = SEED
    subject: str = ""
    decoder: DecoderKind = "kl"


@dataclass(frozen=True)
class Account:
    """What a causal model asked of a target: `changes` are logarithms of volumes by structure."""

    changes: Mapping[str, float]
    causal: CausalRecord
    masks: MasksRecord | None = None


class Edits(Protocol):
    """What all ways to a counterfactual have; targets are asked for by number."""

    @property
    def round_trip(self) -> float | None:
        """What of the latent was lost, where there is one."""

    @property
    def notices(self) -> list[Notice]:
        """Of all targets."""

    @property
    def reconstruction(self) -> np.ndarray | None:
        """What a model sees of the scan, on the scan's grid."""

    def notices_of(self, number: int) -> list[Notice]:
        """Of one target."""

    def account(self, number: int) -> Account | None:
        """Of one target; None where no causal model was asked."""

    def images(self, number: int) -> Iterator[np.ndarray]:
        """The counterfactual scan (I, J, K) of every sample of one target."""


@dataclass(frozen=True)
class Question:
    """What is asked of a scan, and the law that answers with volumes: `factual` and `targets` hold
    conditions and volumes (mm3)."""

    opened: Opened
    law: Law
    factual: Values
    targets: Sequence[Values]

    def world(self, number: int, sample: int = 0) -> World:
        """Sample 0 is the law's, others are of laws fitted to resampled people."""
        member = sample - 1 if sample else None
        return world(self.law, self.factual, self.targets[number], member)

    def causal_record(self, number: int) -> CausalRecord:
        return CausalRecord(
            rates=self.law.rates,
            rates_meaning=self.law.meaning,
            head="scaled" if self.law.scale_head else "kept",
            noise="left in place",
            centile=self.world(number).centile,
        )


@dataclass(frozen=True)
class TissueEdits:
    """Targets by moved tissue."""

    question: Question
    samples: int = 1
    keep_noise: bool = True
    done: dict[tuple[int, int], Moved] = field(default_factory=dict)

    @property
    def opened(self) -> Opened:
        return self.question.opened

    @property
    def round_trip(self) -> None:
        """Nothing goes through a model."""

    @property
    def notices(self) -> list[Notice]:
        """What is said of a target is its world's."""
        return []

    @property
    def reconstruction(self) -> None:
        """No model sees the scan."""

    @cached_property
    def tissue(self) -> Tissue:
        posteriors = self.opened.posteriors
        assert posteriors is not None
        brain = self.opened.brain
        with working("reading the tissue"):
            return tissue_maps(
                self.opened.volume, posteriors, brain.mask, stripped=brain.source == "stripped"
            )

    @cached_property
    def source(self) -> Source:
        scan, mask, tissue = self.opened.volume, self.opened.brain.mask, self.tissue
        most_noise = tissue.most_noise if self.keep_noise else 0.0
        return source_of(scan, mask, tissue.of("white"), tissue.grid, most_noise)

    def moved(self, number: int, sample: int = 0) -> Moved:
        """Raises ImageError when a region can't be brought to its volume."""
        if (number, sample) not in self.done:
            old = [key for key in self.done if key != (number, 0)]
            for key in old[: max(0, len(old) + 1 - KEPT)]:
                del self.done[key]
            changes = self.question.world(number, sample).within_head
            try:
                with working("moving the tissue"):
                    self.done[number, sample] = move_tissue(self.tissue, changes)
            except ImageError as error:
                path, found = self.opened.volume.path, f"{error.where}: {error.found}"
                raise ImageError(path, found, error.expected, error.fix) from error
        return self.done[number, sample]

    def notices_of(self, number: int) -> list[Notice]:
        """What the causal model never saw, and a volume that was not quite met."""
        worst, notices = self.moved(number).flow.worst, self.question.world(number).notices
        if worst <= VOLUME_LIMIT:
            return notices
        text = f"a region's map ended {worst:.1%} from its volume (expected {VOLUME_LIMIT:.1%})"
        return [*notices, Notice("volume-missed", text)]

    def account(self, number: int) -> Account:
        moved = self.moved(number)
        low, high = moved.jacobian
        causal = replace(
            self.question.causal_record(number),
            noise="left in place" if self.keep_noise else "moved",
            steps=moved.flow.steps,
            worst_volume_error=round(moved.flow.worst, 5),
            jacobian=(round(low, 4), round(high, 4)),
        )
        return Account(self.question.world(number).changes, causal)

    def images(self, number: int) -> Iterator[np.ndarray]:
        for sample in range(self.samples):
            image = move(self.source, self.moved(number, sample).movement)
            scale = self.question.world(number, sample).head_scale
            yield image if scale == 1 else scaled(image, self.opened.brain.mask, scale)

    def write_field(self, number: int, path: Path, jacobian: Path) -> None:
        """The displacement of a target, sample 0, and its log-Jacobian."""
        scan, mask = self.opened.volume, self.opened.brain.mask
        field_mm = displacement(scan, mask, self.moved(number).movement)
        write_field(scan, field_mm, path, jacobian, f"{SYNTHETIC} {__version__} displacement")


@dataclass(frozen=True)
class LatentEdits:
    """The latent edits of every sample, the deterministic one first, and their reconstructions
    (D, H, W) on the model grid."""

    engine: Engine
    opened: Opened
    how: Render
    drawing: Drawing
    latents: list[LatentEdit]
    rebuilt: list[np.ndarray]

    @property
    def round_trip(self) -> float:
        return self.latents[0].round_trip

    @property
    def notices(self) -> list[Notice]:
        if self.round_trip <= ROUND_TRIP_LIMIT:
            return []
        text = (
            f"the round trip lost {self.round_trip:.1%} of the latent "
            f"(expected at most {ROUND_TRIP_LIMIT:.0%}); more --steps bring it down"
        )
        return [Notice("round-trip", text)]

    def notices_of(self, number: int) -> list[Notice]:
        return []

    def account(self, number: int) -> None:
        return None

    def decoded(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Reconstruction and counterfactual (D, H, W) on the model grid, of every sample."""
        for latent, factual in zip(self.latents, self.rebuilt, strict=True):
            yield factual, decoded(self.engine, latent.counterfactuals[number], self.drawing)

    def images(self, number: int) -> Iterator[np.ndarray]:
        scan, prepared = self.opened.volume, self.opened.prepared
        for factual, counterfactual in self.decoded(number):
            yield render(scan, prepared, factual, counterfactual, self.how)

    @property
    def reconstruction(self) -> np.ndarray:
        rebuilt = self.rebuilt[0]
        return render(self.opened.volume, self.opened.prepared, rebuilt, rebuilt, "latent")


def edit_latents(
    engine: Engine,
    opened: Opened,
    factual: Values,
    targets: Sequence[Values],
    drawing: Drawing,
    how: Render = "residual",
) -> LatentEdits:
    """Abduct under the factual conditions; act and predict for every target."""
    schema = engine.bundle.schema
    c, *others = (condition_of(schema, values, engine.device) for values in (factual, *targets))
    return edit_under(engine, opened, c, others, drawing, how)


def edit_under(
    engine: Engine,
    opened: Opened,
    c: Condition,
    targets: Sequence[Condition],
    drawing: Drawing,
    how: Render = "residual",
) -> LatentEdits:
    """The same for conditions that may have masks, all of them or none."""
    models = engine.models if c.masks is None else engine.masked
    z0 = models.encode(torch.from_numpy(opened.prepared.image)[None, None])
    latents = []
    for sample in range(drawing.samples):
        noise = sample_noise(z0.shape, drawing.seed, drawing.subject, sample, z0.device)
        latents.append(edit_latent(models, z0, c, targets, drawing.edit, noise))
    rebuilt = [decoded(engine, e.reconstruction, drawing) for e in latents]
    return LatentEdits(engine, opened, how, drawing, latents, rebuilt)


def decoded(engine: Engine, z0: torch.Tensor, drawing: Drawing = Drawing()) -> np.ndarray:
    """A latent (1, C, d, h, w) as an image (D, H, W) on the model grid. The noise of a diffusion
    decoder is the same for each, so that it cancels in a difference."""
    models = engine.sharp if drawing.decoder == "diffusion" else engine.models
    return np.asarray(models.decode(z0, drawing.seed)[0, 0].cpu().numpy())


def check_law(scm: Scm, samples: int) -> None:
    """Raises UsageError when there are fewer fitted laws than samples."""
    most = 1 + len(scm.members)
    if samples > most:
        raise UsageError(
            "--samples",
            f"{samples}; the bundle's causal model was fitted {most} times",
            f"at most {most} of moved tissue",
        )


def region_records(
    opened: Opened, changes: Mapping[str, float], achieved: Sequence[RegionVolume]
) -> list[RegionRecord]:
    """Every region by side: measured in the scan, due by `changes`, logarithms of volumes by
    structure, and `achieved`, measured in the image."""
    regions = opened.brain.regions
    assert regions is not None
    after = sums(achieved)
    records = []
    for volume in regions.result.volumes:
        if volume.soft_mm3 is None or volume.structure not in changes:
            continue
        before = volume.soft_mm3
        due = before * float(np.exp(changes[volume.structure]))
        found = after.get((volume.structure, volume.side))
        records.append(
            RegionRecord(
                volume.structure,
                volume.side,
                round(before, 1),
                round(due, 1),
                None if found is None else round(found, 1),
            )
        )
    return records
