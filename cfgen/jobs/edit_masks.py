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
from cfgen.causal.masks import EditedMasks, parts_of, whole_targets
from cfgen.causal.partners import PARTNERS, region_text
from cfgen.data.manifest import unique_key
from cfgen.data.names import check_outputs
from cfgen.data.parcellation import SidedStructure as Region
from cfgen.data.record import Software, Source, key, this_software, write_record
from cfgen.data.region_volumes import VolumeChange, VolumeTable
from cfgen.data.table import Row
from cfgen.data.volume import (
    SYNTHETIC,
    Volume,
    file_sha256,
    header_notices,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_like,
    write_new,
)
from cfgen.errors import ImageError, Notice, UsageError
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
class Outputs:
    """The files of one scan; None where one is not wanted."""

    labels: Path
    posteriors: Path | None = None
    picture: bool = True

    @property
    def sidecar(self) -> Path:
        return self.labels.with_name(strip_suffix(self.labels) + ".json")

    def paths(self) -> list[Path]:
        paths = [self.labels, self.sidecar]
        paths += [self.sidecar.with_suffix(".png")] if self.picture else []
        return paths + ([] if self.posteriors is None else [self.posteriors])


@dataclass(frozen=True)
class Wish:
    """What regions are to become: volumes of a table, or changes; and how."""

    table: VolumeTable | None = None
    changes: tuple[VolumeChange, ...] = ()
    partners: Mapping[str, Sequence[str]] = field(default_factory=dict)
    best_effort: bool = False

    def targets(self, row: Row, volumes: Mapping[Region, float]) -> dict[Region, float]:
        """Target (mm3) of each region of a map whose `volumes` (mm3) are given. Raises UsageError
        or ManifestError."""
        if self.table is not None:
            return whole_targets(self.table.of(row.subject, row.session), volumes)
        wanted: dict[Region, float] = {}
        for change in self.changes:
            if change.region in wanted:
                raise UsageError("--set", f"{region_text(change.region)} twice", "it once")
            now = sum(volumes[part] for part in parts_of(change.region, volumes))
            wanted[change.region] = change.apply(now)
        return whole_targets(wanted, volumes)

    def notices(self) -> list[Notice]:
        if self.table is None or not self.table.left_out:
            return []
        names = ", ".join(self.table.left_out)
        return [Notice("no-targets", f"{names} of {self.table.path.name} follow from the others")]

    def recipe(self) -> list[object]:
        """What decides whether finished work can be kept."""
        table = digests(self.table.path) if self.table else []
        changes = [[*c.region, c.value, c.relative, c.percent] for c in self.changes]
        partners = {name: list(others) for name, others in self.partners.items()}
        return [table, changes, partners, self.best_effort]


@dataclass(frozen=True)
class RegionRecord:
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
    sources: list[Source]
    table: str
    targets: str
    posteriors: str
    regions: list[RegionRecord]
    warnings: list[Notice]
    fingerprint: str = ""


def name_outputs(
    rows: Sequence[Row], out: Path, posteriors: Path | None, picture: bool, single: bool
) -> list[Outputs]:
    """A name for every file: as given for a `single` scan, else in folders, by subject.

    Raises UsageError for names that no file system takes, ImageError for a folder that cannot be
    written.
    """
    named = [Outputs(out, posteriors, picture)]
    if not single:
        named = [
            Outputs(
                out / f"{unique_key(row)}_dseg.nii.gz",
                None if posteriors is None else posteriors / f"{unique_key(row)}_probseg.nii.gz",
                picture,
            )
            for row in rows
        ]
    check_outputs(path for files in named for path in files.paths())
    return named


def check_scans(
    rows: Sequence[Row], outputs: Sequence[Outputs], wish: Wish, overwrite: bool
) -> None:
    """Everything but the edit: maps are read and targets worked out. Raises CfgenError."""
    for row, files in zip(rows, outputs, strict=True):
        for path in files.paths():
            refuse_existing(path, overwrite)
        labels = read_label_map(_labels_of(row), row.posteriors)
        targets = wish.targets(row, labels.volumes_mm3())
        log.info("%s: %s", row.subject, ", ".join(map(region_text, sorted(targets))))


def edit_scans(
    rows: Sequence[Row],
    outputs: Sequence[Outputs],
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

    def work(item: tuple[Row, Outputs]) -> Made[MasksRecord]:
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
        item: tuple[Row, Outputs], result: Made[MasksRecord]
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


def _edit_one(row: Row, files: Outputs, wish: Wish, wanted: str, overwrite: bool) -> MasksRecord:
    """Write the files of one scan; the record of them. Raises CfgenError."""
    for path in files.paths():
        refuse_existing(path, overwrite)
    labels = read_label_map(_labels_of(row), row.posteriors)
    targets = wish.targets(row, labels.volumes_mm3())
    with working("editing the masks"):
        edited = edit_label_map(labels, targets, PARTNERS | dict(wish.partners), wish.best_effort)
    notices = [*header_notices(labels.path), *labels.notices, *wish.notices(), *unmet(edited)]
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
    row: Row, labels: LabelMap, edited: EditedMasks, files: Outputs, record: MasksRecord
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
            files.sidecar.with_suffix(".png"),
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
        sources=[Source(path.name, file_sha256(path)) for path in files],
        table=labels.table,
        targets=wish.table.path.name if wish.table else "changes of the command line",
        posteriors=labels.posteriors.name
        if labels.posteriors
        else f"labels smoothed by {STAND_IN_MM:g} mm",
        regions=[
            RegionRecord(
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
