"""Counterfactuals of one opened scan, target by target: by moved tissue, or by a latent edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cfgen import __version__
from cfgen.causal.scm import Scm
from cfgen.config import EDIT, SEED, Edit, Render
from cfgen.data.conditions import Values
from cfgen.data.volume import SYNTHETIC
from cfgen.data.volumes import RegionVolume, sums
from cfgen.edit.engine import Engine
from cfgen.edit.latent import ROUND_TRIP_LIMIT, LatentEdit, condition_of, edit_latent
from cfgen.edit.samples import sample_noise
from cfgen.edit.sidecar import CausalRecord, RegionRecord
from cfgen.edit.tissue import VOLUME_LIMIT, Moved, Tissue, move_tissue, tissue_maps
from cfgen.edit.volumes import Law, World, world
from cfgen.errors import ImageError, Notice, UsageError
from cfgen.progress import working
from cfgen.scan.field import displacement, write_field
from cfgen.scan.moved import Source, move, scaled, source_of
from cfgen.scan.open import Opened
from cfgen.scan.render import render


@dataclass(frozen=True)
class Drawing:
    """How latents are edited: the sampler, and how many samples of the abduction with which seed.

    `subject` names the scan, so that people of a cohort do not share their noise.
    """

    edit: Edit = EDIT
    samples: int = 1
    seed: int = SEED
    subject: str = ""


@dataclass(frozen=True)
class TissueEdits:
    """Targets by moved tissue. Sample 0 is the law's; others are those of laws fitted to resampled
    people. `targets` hold conditions and volumes."""

    opened: Opened
    law: Law
    factual: Values
    targets: Sequence[Values]
    samples: int = 1
    keep_noise: bool = True
    done: dict[tuple[int, int], Moved] = field(default_factory=dict)

    @property
    def round_trip(self) -> None:
        """Nothing goes through a model."""

    @property
    def notices(self) -> list[Notice]:
        """Of all targets; what is said of one is its world's."""
        return []

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

    def world(self, number: int, sample: int = 0) -> World:
        member = sample - 1 if sample else None
        return world(self.law, self.factual, self.targets[number], member)

    def moved(self, number: int, sample: int = 0) -> Moved:
        """Raises ImageError when a region can't be brought to its volume."""
        if (number, sample) not in self.done:
            # Only one target's is kept: there may be sixty.
            for key in [k for k in self.done if k[0] != number]:
                del self.done[key]
            changes = self.world(number, sample).within_head
            try:
                with working("moving the tissue"):
                    self.done[number, sample] = move_tissue(self.tissue, changes)
            except ImageError as error:
                path, found = self.opened.volume.path, f"{error.where}: {error.found}"
                raise ImageError(path, found, error.expected, error.fix) from error
        return self.done[number, sample]

    def notices_of(self, number: int) -> list[Notice]:
        """Of one target: what the causal model never saw, and a volume that was not quite met."""
        worst, notices = self.moved(number).flow.worst, self.world(number).notices
        if worst <= VOLUME_LIMIT:
            return notices
        text = f"a region's map ended {worst:.1%} from its volume (expected {VOLUME_LIMIT:.1%})"
        return [*notices, Notice("volume-missed", text)]

    def images(self, number: int) -> Iterator[np.ndarray]:
        """The counterfactual scan (I, J, K) of every sample, for target `number`."""
        for sample in range(self.samples):
            image = move(self.source, self.moved(number, sample).movement)
            scale = self.world(number, sample).head_scale
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
    latents: list[LatentEdit]
    rebuilt: list[np.ndarray]

    @property
    def round_trip(self) -> float:
        """What of the latent was lost."""
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

    def images(self, number: int) -> Iterator[np.ndarray]:
        """The counterfactual scan (I, J, K) of every sample, for target `number`."""
        for latent, factual in zip(self.latents, self.rebuilt, strict=True):
            counterfactual = decoded(self.engine, latent.counterfactuals[number])
            scan, prepared = self.opened.volume, self.opened.prepared
            yield render(scan, prepared, factual, counterfactual, self.how)

    @property
    def reconstruction(self) -> np.ndarray:
        """What the model sees of the scan, on the scan's grid."""
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
    schema, models = engine.bundle.schema, engine.models
    z0 = models.encode(torch.from_numpy(opened.prepared.image)[None, None])
    c, *others = (condition_of(schema, values, engine.device) for values in (factual, *targets))
    latents = []
    for sample in range(drawing.samples):
        noise = sample_noise(z0.shape, drawing.seed, drawing.subject, sample, z0.device)
        latents.append(edit_latent(models, z0, c, others, drawing.edit, noise))
    rebuilt = [decoded(engine, e.reconstruction) for e in latents]
    return LatentEdits(engine, opened, how, latents, rebuilt)


def decoded(engine: Engine, z0: torch.Tensor) -> np.ndarray:
    """A latent (1, C, d, h, w) as an image (D, H, W) on the model grid."""
    return np.asarray(engine.models.decode(z0)[0, 0].cpu().numpy())


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
    edits: TissueEdits, number: int, achieved: Sequence[RegionVolume]
) -> list[RegionRecord]:
    """Every region by side: measured in the scan, due, and `achieved`, measured in the image."""
    regions = edits.opened.brain.regions
    assert regions is not None
    changes, after = edits.world(number).changes, sums(achieved)
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


def causal_record(edits: TissueEdits, number: int) -> CausalRecord:
    moved, law = edits.moved(number), edits.law
    low, high = moved.jacobian
    return CausalRecord(
        rates=law.rates,
        rates_meaning=law.meaning,
        head="scaled" if law.scale_head else "kept",
        noise="left in place" if edits.keep_noise else "moved",
        steps=moved.flow.steps,
        worst_volume_error=round(moved.flow.worst, 5),
        jacobian=(round(low, 4), round(high, 4)),
        centile=edits.world(number).centile,
    )
