"""Edit the label maps of scans until regions have other volumes: label maps, soft maps, records."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cfgen import __version__
from cfgen.batch.resume import digests, fingerprint, finished
from cfgen.batch.rows import Made, Outcome, run_rows
from cfgen.bundle import Bundle, read_bundle
from cfgen.causal.masks import EditedMasks, parts_of, whole_targets
from cfgen.causal.partners import EDITED, PARTNERS
from cfgen.causal.scm import load_scm
from cfgen.causal.worlds import settable
from cfgen.config import Rates
from cfgen.data.conditions import (
    Change,
    Intervention,
    Values,
    parse_interventions,
    parse_values,
)
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.parcellation import region_text
from cfgen.data.record import Software, SourceFile, key, this_software, write_record
from cfgen.data.table import Row
from cfgen.data.volume import (
    SYNTHETIC,
    Volume,
    file_sha256,
    header_notices,
    read_volume,
    refuse_existing,
    write_like,
    write_new,
)
from cfgen.data.volume_targets import VolumeTable, refuse_ml
from cfgen.edit.engine import conditions_of
from cfgen.edit.volumes import Law, both_sides, world
from cfgen.errors import ImageError, Notice, UsageError
from cfgen.jobs.label_files import LabelFiles
from cfgen.progress import working
from cfgen.scan.label_map import (
    STAND_IN_MM,
    LabelMap,
    edit_label_map,
    edited_labels,
    edited_posteriors,
    read_label_map,
)
from cfgen.scan.pictures import masks_picture
from cfgen.space.grids import require_grid

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class CausalWish:
    """Volumes as the causal model of a bundle has them after an intervention. `given` are factual
    conditions of a scan; those of its row come first."""

    law: Law
    intervention: Intervention
    given: Values
    bundle: Bundle

    def targets(self, row: Row, volumes: Mapping[Region, float]) -> dict[Region, float]:
        """Target (mm3) of the regions in `EDITED`. Raises UsageError where a condition is not
        known."""
        conditions = dict(self.given) | row.values
        unknown = self.bundle.schema.missing(conditions)
        if unknown:
            fix = f"--from {unknown[0]}=..., or a column of it"
            raise UsageError("factual", f"{' and '.join(unknown)} unknown", "both", fix)
        factual = conditions | both_sides(volumes)
        changes = world(self.law, factual, self.intervention.apply(factual)).changes
        return {
            region: mm3 * float(np.exp(changes[region[0]]))
            for region, mm3 in volumes.items()
            if region[0] in changes and region[0] in EDITED
        }

    def notices(self, row: Row) -> list[Notice]:
        """What of the person and of the intervention the causal model never saw the like of."""
        schema = conditions_of(settable(self.law.scm.graph, self.bundle.schema))
        conditions = dict(self.given) | row.values
        return schema.extrapolations(conditions, self.intervention.apply(conditions))

    def recipe(self) -> list[object]:
        law = self.law
        label = self.intervention.label()
        return [self.bundle.identity, label, law.rates, dict(self.given)]


def causal_wish(
    bundle: Path, age: str | None, sex: str | None, factual: str, rates: Rates
) -> CausalWish:
    """From the words of the options. Raises UsageError, and BundleError without a causal model."""
    model = read_bundle(bundle)
    law = Law(load_scm(model), rates)
    intervention = parse_interventions(model.schema, [age] if age else [], sex)
    if len(intervention) > 1:
        raise UsageError("--age", f"{len(intervention)} ages", "one: a map has one outcome")
    given = parse_values(model.schema, factual, "--from") if factual else {}
    return CausalWish(law, intervention[0], given, model)


@dataclass(frozen=True)
class Wish:
    """What regions are to become: volumes of a table, changes, or by a causal model; and how."""

    table: VolumeTable | None = None
    changes: Mapping[Region, Change] = field(default_factory=dict)
    causal: CausalWish | None = None
    partners: Mapping[str, Sequence[str]] = field(default_factory=dict)
    best_effort: bool = False

    def targets(self, row: Row, volumes: Mapping[Region, float]) -> dict[Region, float]:
        """Target (mm3) of each region of a map whose `volumes` (mm3) are given. Raises UsageError
        or ManifestError."""
        if self.causal is not None:
            return self.causal.targets(row, volumes)
        if self.table is not None:
            asked = whole_targets(self.table.of(row.subject, row.session), volumes)
            refuse_ml(self.table.path, asked, volumes)
            return asked
        wanted: dict[Region, float] = {}
        for region, change in self.changes.items():
            now = sum(volumes[part] for part in parts_of(region, volumes))
            wanted[region] = float(change.apply({change.name: now}))
        asked = whole_targets(wanted, volumes)
        refuse_ml("--set", asked, volumes)
        return asked

    def notices(self, row: Row) -> list[Notice]:
        if self.causal is not None:
            return self.causal.notices(row)
        if self.table is None or not self.table.left_out:
            return []
        names = ", ".join(self.table.left_out)
        return [Notice("no-targets", f"{names} of {self.table.path.name} follow from the others")]

    def recipe(self) -> list[object]:
        """What decides whether finished work can be kept."""
        table = digests(self.table.path) if self.table else []
        changes = [[*r, c.value, c.relative, c.percent] for r, c in self.changes.items()]
        partners = {name: list(others) for name, others in self.partners.items()}
        causal = self.causal.recipe() if self.causal else []
        return [table, changes, causal, partners, self.best_effort]

    def source(self) -> str:
        """Where the targets come from, in words."""
        if self.causal is not None:
            label, law = self.causal.intervention.label(), self.causal.law
            return f"{label} by the causal model of {self.causal.bundle.name}, {law.meaning}"
        return self.table.path.name if self.table else "changes of the command line"


@dataclass(frozen=True)
class EditedRegion:
    """Volumes in mm3, the error in voxels; `rings` of the band at the boundary that were opened,
    of one voxel each; `guarded` voxels would have changed the topology."""

    structure: str
    side: str
    partners: list[str]
    error_voxels: float
    boundary_voxels: int
    rings: int
    guarded_voxels: int
    factual_mm3: float = key("Factual_mm3")
    target_mm3: float = key("Target_mm3")
    achieved_mm3: float = key("Achieved_mm3")
    soft_change_mm3: float = key("SoftChange_mm3")


@dataclass(frozen=True)
class MasksRecord:
    """The record of an edited label map."""

    synthetic: bool
    generated_by: list[Software]
    sources: list[SourceFile]
    table: str
    targets: str
    posteriors: str
    regions: list[EditedRegion]
    warnings: list[Notice]
    fingerprint: str = ""


def check_scans(
    rows: Sequence[Row],
    outputs: Sequence[LabelFiles],
    wish: Wish,
    *,
    keep_going: bool,
    overwrite: bool,
) -> Outcome[LabelFiles]:
    """Everything but the edit: maps are read and targets worked out. The files that are due;
    `keep_going` as in `edit_scans`."""

    def work(item: tuple[Row, LabelFiles]) -> Made[LabelFiles]:
        row, files = item
        for path in files.paths():
            refuse_existing(path, overwrite)
        labels = read_label_map(_labels_of(row), row.posteriors)
        targets = wish.targets(row, labels.volumes_mm3())
        return Made(files, f"can be edited: {', '.join(map(region_text, sorted(targets)))}")

    items = list(zip(rows, outputs, strict=True))
    return run_rows(items, lambda item: item[0], work, lambda _, made: made, keep_going=keep_going)


def edit_scans(
    rows: Sequence[Row],
    outputs: Sequence[LabelFiles],
    wish: Wish,
    *,
    keep_going: bool,
    overwrite: bool,
) -> Outcome[tuple[Row, MasksRecord]]:
    """Edit the label map of every row and write its files; rows with the new maps.

    With `keep_going` a row that fails is logged and collected, one whose files are there from the
    same maps and wish is kept, and SIGTERM or SIGINT stop between two; otherwise an error is
    raised.
    """

    def work(item: tuple[Row, LabelFiles]) -> Made[MasksRecord]:
        row, files = item
        wanted = ""
        if keep_going:
            wanted = fingerprint(digests(_labels_of(row), row.posteriors), wish.recipe())
        if wanted and not overwrite:
            record = finished(files.paths(), files.sidecar, MasksRecord)
            if record is not None and record.fingerprint == wanted:
                return Made(record, "is there already")
        return Made(_edit_one(row, files, wish, wanted, overwrite), "edited")

    def finish(
        item: tuple[Row, LabelFiles], result: Made[MasksRecord]
    ) -> Made[tuple[Row, MasksRecord]]:
        row, files = item
        edited = replace(row, labels=files.labels, posteriors=files.posteriors)
        return Made((edited, result.value), result.status)

    items = list(zip(rows, outputs, strict=True))
    return run_rows(items, lambda item: item[0], work, finish, keep_going=keep_going)


def _labels_of(row: Row) -> Path:
    if row.labels is None:
        raise ImageError(row.source or row.subject, "no label map", "a column labels")
    return row.labels


def _edit_one(row: Row, files: LabelFiles, wish: Wish, wanted: str, overwrite: bool) -> MasksRecord:
    """Write the files of one scan; the record of them. Raises CfgenError."""
    for path in files.paths():
        refuse_existing(path, overwrite)
    labels = read_label_map(_labels_of(row), row.posteriors)
    targets = wish.targets(row, labels.volumes_mm3())
    with working("editing the masks"):
        edited = edit_label_map(labels, targets, PARTNERS | dict(wish.partners), wish.best_effort)
    notices = [*header_notices(labels.path), *labels.notices, *wish.notices(row), *unmet(edited)]
    for notice in notices:
        log.warning("%s: warning: %s", labels.path.name, notice.text)
    record = _record(labels, edited, wish, notices, wanted)
    _write(row, labels, edited, files, record)
    return record


def unmet(edited: EditedMasks) -> list[Notice]:
    """A notice of each target that was missed by more than a voxel."""
    return [
        Notice(
            "target-not-met",
            f"{region_text(e.region)}: {e.after} voxels of {e.target:.0f}, from {e.before}",
        )
        for e in edited.edits
        if abs(e.error) > 1
    ]


def _write(
    row: Row, labels: LabelMap, edited: EditedMasks, files: LabelFiles, record: MasksRecord
) -> None:
    """All files of a scan, the record last: without it nothing counts as done."""
    after, scan = edited_labels(labels, edited), None
    if files.picture and row.image != labels.path:
        image = read_volume(row.image)
        require_grid(image, labels.grid, "image")
        scan = image.data
    # A run that is killed now must not leave an old record beside new files.
    files.sidecar.unlink(missing_ok=True)
    description = f"{SYNTHETIC} {__version__} edit-masks"
    write_like(labels.volume, after, files.labels, description=description)
    if files.posteriors is not None:
        channels = Volume(edited_posteriors(labels, edited), labels.volume.affine)
        write_new(
            channels,
            files.posteriors,
            np.uint8,
            description=description,
            slope=1 / 255,
            geometry_of=labels.path,
        )
    if files.picture:
        masks_picture(
            labels.regions_as_numbers(labels.volume.data),
            labels.regions_as_numbers(after),
            labels.grid,
            scan,
            files.png,
            f"{labels.path.name}: edited masks (cfgen, synthetic)",
        )
    write_record(record, files.sidecar)


def _record(
    labels: LabelMap, edited: EditedMasks, wish: Wish, notices: list[Notice], wanted: str
) -> MasksRecord:
    voxel_mm3 = labels.grid.voxel_mm3
    files = [labels.path, *([labels.posteriors] if labels.posteriors else [])]
    return MasksRecord(
        synthetic=True,
        generated_by=this_software(),
        sources=[SourceFile(path.name, file_sha256(path)) for path in files],
        table=labels.table,
        targets=wish.source(),
        posteriors=labels.posteriors.name
        if labels.posteriors
        else f"labels smoothed by {STAND_IN_MM:g} mm",
        regions=[
            EditedRegion(
                *e.region,
                [region_text(p) for p in e.partners],
                factual_mm3=round(e.before * voxel_mm3, 1),
                target_mm3=round(e.target * voxel_mm3, 1),
                achieved_mm3=round(e.after * voxel_mm3, 1),
                error_voxels=round(e.error, 2),
                boundary_voxels=e.boundary,
                rings=e.rings,
                guarded_voxels=e.guarded,
                soft_change_mm3=round(e.soft_change * voxel_mm3, 1),
            )
            for e in edited.edits
        ],
        warnings=notices,
        fingerprint=wanted,
    )
