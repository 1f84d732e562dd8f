"""Segment scans of a manifest: label maps, masks, posteriors, tables and pictures as files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cfgen import __version__
from cfgen.batch.resume import digests, fingerprint, finished
from cfgen.batch.rows import Made, Outcome, run_rows
from cfgen.bundle import Bundle
from cfgen.data.parcellation import BRAIN_FROM, SIDED, STRUCTURES, region_text
from cfgen.data.record import Software, SourceFile, key, this_software, write_record
from cfgen.data.table import Row
from cfgen.data.volume import (
    Volume,
    file_sha256,
    header_notices,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_new,
)
from cfgen.errors import Notice
from cfgen.jobs.label_files import LabelFiles
from cfgen.measure.other_tools import OtherTool, find_labels, read_segmentation
from cfgen.measure.segmenter import (
    Segmentation,
    channels_on,
    load_segmenter,
    segment,
)
from cfgen.progress import working
from cfgen.scan.gate import Finding, Gate, GateRecord, cautions, judge, refuse, scan_measures
from cfgen.scan.pictures import segmentation_picture

log = logging.getLogger("cfgen")
FindRegions = Callable[[Volume, Row], Segmentation]


@dataclass(frozen=True)
class VolumeRecord:
    structure: str
    side: str
    hard: float = key("Hard_mm3")
    soft: float | None = key("Soft_mm3")


@dataclass(frozen=True)
class SegmentationRecord:
    """The record of a segmented scan."""

    generated_by: list[Software]
    sources: list[SourceFile]
    segmenter: str
    labels: dict[str, list[int]]
    posterior_channels: list[str]
    confidence: float | None
    volumes: list[VolumeRecord]
    gate: GateRecord
    warnings: list[Notice]
    fingerprint: str = ""


@dataclass(frozen=True)
class Segmented:
    """A row with its label map, and its lines of the two tables."""

    row: Row
    volumes: list[dict[str, str]]
    quality: dict[str, str]

    @staticmethod
    def of(row: Row, files: LabelFiles, record: SegmentationRecord) -> Segmented:
        ids = {"subject": row.subject, "session": row.session}
        score = "" if record.confidence is None else f"{record.confidence:.4f}"
        volumes = [
            ids
            | {"structure": v.structure, "side": v.side, "volume_mm3": f"{v.hard:.1f}"}
            | {"soft_volume_mm3": "" if v.soft is None else f"{v.soft:.1f}"}
            for v in record.volumes
        ]
        return Segmented(
            replace(row, labels=files.labels, mask=files.mask or row.mask),
            volumes,
            ids | {"verdict": record.gate.verdict, "confidence": score},
        )


def by_segmenter(bundle: Bundle, device: torch.device) -> FindRegions:
    """Regions by the bundle's own segmenter. Raises BundleError when it has none."""
    net = load_segmenter(bundle, device)
    source = f"bundle {bundle.name}, SHA-256 {bundle.identity}"
    return lambda scan, row: replace(segment(net, scan, device), source=source)


def by_other_tool(
    labels: Path, posteriors: Path | None, volumes: Path | None, qc: Path | None
) -> FindRegions:
    """Regions from another tool's files: one scan's, or folders with those of all scans."""

    def find(scan: Volume, row: Row) -> Segmentation:
        label_map, scan_posteriors = labels, posteriors
        if labels.is_dir():
            label_map = find_labels(labels, row.image, row.subject)
        if posteriors is not None and posteriors.is_dir():
            scan_posteriors = posteriors / f"{strip_suffix(row.image)}_posteriors.nii.gz"
        return read_segmentation(scan, OtherTool(label_map, scan_posteriors, volumes, qc))

    return find


def segment_scans(
    find: FindRegions,
    rows: Sequence[Row],
    outputs: Sequence[LabelFiles],
    gate: Gate,
    *,
    source: str = "",
    keep_going: bool,
    overwrite: bool,
) -> Outcome[Segmented]:
    """Find the regions of every row and write its files.

    With `keep_going` a scan that fails is logged and collected, one whose files are there from the
    same scan and `source` is kept, and SIGTERM or SIGINT stop between two scans; otherwise an error
    is raised.
    """

    def work(item: tuple[Row, LabelFiles]) -> Made[SegmentationRecord]:
        row, files = item
        wanted = fingerprint(digests(row.image), source) if source and keep_going else ""
        if wanted and not overwrite:
            record = finished(files.paths(), files.sidecar, SegmentationRecord)
            if record is not None and record.fingerprint == wanted:
                return Made(record, "is there already")
        return Made(_segment_one(find, row, files, gate, wanted, overwrite), "segmented")

    def finish(item: tuple[Row, LabelFiles], result: Made[SegmentationRecord]) -> Made[Segmented]:
        return Made(Segmented.of(*item, result.value), result.status)

    items = list(zip(rows, outputs, strict=True))
    return run_rows(items, lambda item: item[0], work, finish, keep_going=keep_going)


def _segment_one(
    find: FindRegions, row: Row, files: LabelFiles, gate: Gate, wanted: str, overwrite: bool
) -> SegmentationRecord:
    """Write the files of one scan; the record of them. Raises CfgenError."""
    for path in files.paths():
        refuse_existing(path, overwrite)
    scan = read_volume(row.image)
    with working("finding the regions"):
        segmentation = find(scan, row)
    findings = judge(scan_measures(scan, segmentation.mask, segmentation.confidence), gate.card)
    refuse(scan, findings, gate)
    notices = [*header_notices(row.image), *cautions(findings)]
    for notice in notices:
        log.warning("%s: warning: %s", row.image.name, notice.text)
    record = _record(scan, segmentation, findings, notices, wanted)
    _write(scan, segmentation, files, record)
    return record


def _write(
    scan: Volume, segmentation: Segmentation, files: LabelFiles, record: SegmentationRecord
) -> None:
    """All files of a scan, the record last: without it nothing counts as done."""
    # A run that is killed now must not leave an old record beside new files.
    files.sidecar.unlink(missing_ok=True)
    description = f"cfgen {__version__} segment"
    write = partial(write_new, description=description, geometry_of=scan.path)
    write(scan.like(segmentation.labels), files.labels, np.int16)
    if files.mask is not None:
        write(scan.like(segmentation.mask), files.mask, np.uint8)
    if files.posteriors is not None:
        assert segmentation.posteriors is not None
        channels = Volume(channels_on(segmentation.posteriors, scan.grid), scan.affine)
        write(channels, files.posteriors, np.uint8, slope=1 / 255)
    if files.picture:
        numbers = np.zeros(int(segmentation.labels.max()) + 1, np.int16)
        for index, s in enumerate(STRUCTURES[BRAIN_FROM:], 1):
            for code in (s.left, s.right):
                if code < len(numbers):
                    numbers[code] = index
        name = scan.path.name if scan.path else "scan"
        picture = files.png
        title = f"{name}: regions (cfgen)"
        segmentation_picture(scan.data, numbers[segmentation.labels], scan.grid, picture, title)
    write_record(record, files.sidecar)


def _record(
    scan: Volume,
    segmentation: Segmentation,
    findings: list[Finding],
    notices: list[Notice],
    wanted: str,
) -> SegmentationRecord:
    assert scan.path is not None
    sides = {s.name: [s.left] if s.left == s.right else [s.left, s.right] for s in STRUCTURES}
    return SegmentationRecord(
        generated_by=this_software(),
        sources=[SourceFile(scan.path.name, file_sha256(scan.path))],
        segmenter=segmentation.source,
        labels={name: codes for name, codes in sides.items() if name != "head"},
        posterior_channels=[region_text(region) for region in SIDED],
        confidence=segmentation.confidence and round(segmentation.confidence, 4),
        volumes=[
            VolumeRecord(
                v.structure,
                v.side,
                hard=round(v.hard_mm3, 1),
                soft=None if v.soft_mm3 is None else round(v.soft_mm3, 1),
            )
            for v in segmentation.volumes
        ],
        gate=GateRecord.of(findings),
        warnings=notices,
        fingerprint=wanted,
    )
