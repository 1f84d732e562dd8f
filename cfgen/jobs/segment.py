"""Segment scans of a manifest: label maps, masks, posteriors, tables and pictures as files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfgen import __version__
from cfgen.batch.resume import fingerprint, finished, stop_signal
from cfgen.bundle import Bundle
from cfgen.data.manifest import unique_key
from cfgen.data.parcellation import BRAIN_FROM, STRUCTURES
from cfgen.data.table import Row
from cfgen.data.volume import (
    Volume,
    file_sha256,
    header_warnings,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_atomically,
    write_new,
)
from cfgen.errors import CfgenError
from cfgen.measure.other_tools import OtherTool, find_labels, read_segmentation
from cfgen.measure.segmenter import (
    Segmentation,
    channel_names,
    channels_on,
    load_segmenter,
    segment,
)
from cfgen.scan.gate import Gate, cautions, judge, refuse, scan_measures
from cfgen.scan.gate import record as gate_record
from cfgen.scan.pictures import segmentation_picture

log = logging.getLogger("cfgen")
FindRegions = Callable[[Volume, Row], Segmentation]


@dataclass(frozen=True)
class Outputs:
    """The files of one scan; None where one is not wanted."""

    labels: Path
    mask: Path | None = None
    posteriors: Path | None = None
    picture: bool = True

    @property
    def sidecar(self) -> Path:
        return self.labels.with_name(strip_suffix(self.labels) + ".json")

    def paths(self) -> list[Path]:
        found = [self.labels, self.sidecar]
        found += [self.sidecar.with_suffix(".png")] if self.picture else []
        return found + [p for p in (self.mask, self.posteriors) if p is not None]


@dataclass(frozen=True)
class Segmented:
    """Rows with their label maps, rows that failed, and the lines of the two tables."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    volumes: list[dict[str, str]] = field(default_factory=list)
    quality: list[dict[str, str]] = field(default_factory=list)
    # Not reached before a signal.
    left: list[Row] = field(default_factory=list)

    def add(self, row: Row, files: Outputs, record: Mapping[str, Any]) -> None:
        """A row that was done, by the record of it."""
        self.done.append(replace(row, labels=files.labels, mask=files.mask or row.mask))
        who = {"subject": row.subject, "session": row.session}
        score = record["Confidence"]
        score = "" if score is None else f"{score:.4f}"
        self.quality.append(who | {"verdict": record["Gate"]["Verdict"], "confidence": score})
        for v in record["Volumes"]:
            soft = "" if v["Soft_mm3"] is None else f"{v['Soft_mm3']:.1f}"
            names = {"structure": v["Structure"], "side": v["Side"]}
            values = {"volume_mm3": f"{v['Hard_mm3']:.1f}", "soft_volume_mm3": soft}
            self.volumes.append(who | names | values)


def name_outputs(
    rows: Sequence[Row],
    out: Path,
    mask: Path | None,
    posteriors: Path | None,
    picture: bool,
    single: bool,
) -> list[Outputs]:
    """A name for every file: as given for a `single` scan, else in folders, by subject."""
    if single:
        return [Outputs(out, mask, posteriors, picture)]

    def inside(folder: Path | None, row: Row, ending: str) -> Path | None:
        return None if folder is None else folder / f"{unique_key(row)}_{ending}.nii.gz"

    return [
        Outputs(
            out / f"{unique_key(row)}_dseg.nii.gz",
            inside(mask, row, "mask"),
            inside(posteriors, row, "probseg"),
            picture,
        )
        for row in rows
    ]


def by_segmenter(bundle: Bundle, device: torch.device) -> FindRegions:
    """Regions by the bundle's own segmenter. Raises BundleError when it has none."""
    net = load_segmenter(bundle, device)
    said = f"bundle {bundle.name}, SHA-256 {bundle.identity}"
    return lambda scan, row: replace(segment(net, scan, device), source=said)


def by_other_tool(
    labels: Path, posteriors: Path | None, volumes: Path | None, qc: Path | None
) -> FindRegions:
    """Regions from another tool's files: one scan's, or folders with those of all scans."""

    def find(scan: Volume, row: Row) -> Segmentation:
        own, soft = labels, posteriors
        if labels.is_dir():
            own = find_labels(labels, row.image, row.subject)
        if posteriors is not None and posteriors.is_dir():
            soft = posteriors / f"{strip_suffix(row.image)}_posteriors.nii.gz"
        return read_segmentation(scan, OtherTool(own, soft, volumes, qc))

    return find


def segment_scans(
    find: FindRegions,
    rows: Sequence[Row],
    outputs: Sequence[Outputs],
    gate: Gate,
    *,
    source: str = "",
    keep_going: bool,
    overwrite: bool,
) -> Segmented:
    """Find the regions of every row and write its files.

    With `keep_going` a scan that fails is logged and collected, one whose files are there from the
    same scan and `source` is kept, and SIGTERM or SIGINT stop between two scans; otherwise an error
    is raised.
    """
    result = Segmented()
    if not keep_going:
        for row, files in zip(rows, outputs, strict=True):
            result.add(row, files, _segment_one(find, row, files, gate, "", overwrite))
        return result
    with stop_signal() as stopped:
        for number, (row, files) in enumerate(zip(rows, outputs, strict=True), 1):
            if stopped():
                result.left.extend(rows[number - 1 :])
                break
            try:
                wanted = fingerprint((row.image,), source) if source else ""
                record = {} if overwrite else finished(files.paths(), files.sidecar)
                there = bool(wanted) and record.get("Fingerprint") == wanted
                if not there:
                    record = _segment_one(find, row, files, gate, wanted, overwrite)
            except CfgenError as error:
                log.error("%s: %s", row.source, error)
                said = {"error": " ".join(str(error).split())}
                result.failed.append(replace(row, extra=row.extra | said))
                continue
            result.add(row, files, record)
            done = "is there already" if there else "segmented"
            log.info("%d/%d %s %s", number, len(rows), row.subject, done)
    return result


def _segment_one(
    find: FindRegions, row: Row, files: Outputs, gate: Gate, wanted: str, overwrite: bool
) -> dict[str, Any]:
    """Write the files of one scan; the record of them. Raises CfgenError."""
    for path in files.paths():
        refuse_existing(path, overwrite)
    scan = read_volume(row.image)
    found = find(scan, row)
    findings = judge(scan_measures(scan, found.mask, found.confidence), gate.card)
    refuse(scan, findings, gate)
    warnings = [*header_warnings(row.image), *cautions(findings)]
    for warning in warnings:
        log.warning("%s: warning: %s", row.image.name, warning)
    record = _record(scan, found) | {
        "Gate": gate_record(findings),
        "Warnings": warnings,
        "Fingerprint": wanted,
    }
    _write(scan, found, files, record)
    return record


def _write(scan: Volume, found: Segmentation, files: Outputs, record: dict[str, Any]) -> None:
    """All files of a scan, the record last: without it nothing counts as done."""
    said = f"cfgen {__version__} segment"
    like = scan.path
    labels = files.labels
    write_new(scan.like(found.labels), labels, np.int16, description=said, geometry_of=like)
    if files.mask is not None:
        write_new(scan.like(found.mask), files.mask, np.uint8, description=said, geometry_of=like)
    if files.posteriors is not None:
        assert found.posteriors is not None
        channels = Volume(channels_on(found.posteriors, scan.grid), scan.affine)
        write_new(
            channels,
            files.posteriors,
            np.uint8,
            description=said,
            slope=1 / 255,
            geometry_of=like,
        )
    if files.picture:
        numbers = np.zeros(int(found.labels.max()) + 1, np.int16)
        for index, s in enumerate(STRUCTURES[BRAIN_FROM:], 1):
            for code in (s.left, s.right):
                if code < len(numbers):
                    numbers[code] = index
        name = scan.path.name if scan.path else "scan"
        picture = files.sidecar.with_suffix(".png")
        title = f"{name}: regions (cfgen)"
        segmentation_picture(scan.data, numbers[found.labels], scan.grid, picture, title)
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(files.sidecar, lambda temporary: temporary.write_text(text))


def _record(scan: Volume, found: Segmentation) -> dict[str, Any]:
    assert scan.path is not None
    sides = {s.name: [s.left] if s.left == s.right else [s.left, s.right] for s in STRUCTURES}
    digest = file_sha256(scan.path)
    return {
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Sources": [{"File": scan.path.name, "SHA256": digest}],
        "Segmenter": found.source,
        "Labels": {name: codes for name, codes in sides.items() if name not in ("head",)},
        "PosteriorChannels": channel_names(),
        "Confidence": found.confidence and round(found.confidence, 4),
        "Volumes": [
            {
                "Structure": v.structure,
                "Side": v.side,
                "Hard_mm3": round(v.hard_mm3, 1),
                "Soft_mm3": None if v.soft_mm3 is None else round(v.soft_mm3, 1),
            }
            for v in found.volumes
        ],
    }
