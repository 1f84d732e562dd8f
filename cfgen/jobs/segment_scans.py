"""Segment scans of a manifest: label maps, masks, posteriors, tables and pictures as files."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cfgen import __version__
from cfgen.bundle import Bundle
from cfgen.data.manifest import unique_key
from cfgen.data.parcellation import BRAIN_FROM, STRUCTURES
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume, strip_suffix, write_atomically, write_new
from cfgen.errors import CfgenError, UsageError
from cfgen.jobs.pictures import segmentation_picture
from cfgen.jobs.segment import Segmentation, channel_names, channels_on, segment
from cfgen.nets.segmenter import Segmenter

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Outputs:
    """The files of one scan; None where one is not wanted."""

    labels: Path
    mask: Path | None = None
    posteriors: Path | None = None
    picture: bool = True

    def paths(self) -> list[Path]:
        stem = self.labels.with_name(strip_suffix(self.labels))
        found = [self.labels, stem.with_name(stem.name + ".json")]
        found += [stem.with_name(stem.name + ".png")] if self.picture else []
        return found + [p for p in (self.mask, self.posteriors) if p is not None]


@dataclass(frozen=True)
class Segmented:
    """Rows with their label maps, rows that failed, and the lines of the two tables."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    volumes: list[dict[str, str]] = field(default_factory=list)
    quality: list[dict[str, str]] = field(default_factory=list)


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


def segment_scans(
    net: Segmenter,
    bundle: Bundle,
    device: torch.device,
    rows: Sequence[Row],
    outputs: Sequence[Outputs],
    *,
    keep_going: bool,
    overwrite: bool,
) -> Segmented:
    """Segment every row into its files.

    With `keep_going` a scan that fails is logged and collected; otherwise its error is raised.
    """
    result = Segmented()
    for number, (row, files) in enumerate(zip(rows, outputs, strict=True), 1):
        try:
            for path in files.paths():
                if path.exists() and not overwrite:
                    raise UsageError(path, "exists already", fix="use --overwrite or another --out")
            scan = read_volume(row.image)
            found = segment(net, scan, device)
            _write(scan, found, files, bundle)
        except CfgenError as error:
            if not keep_going:
                raise
            log.error("%s: %s", row.source, error)
            said = {"error": " ".join(str(error).split())}
            result.failed.append(replace(row, extra=row.extra | said))
            continue
        if keep_going:
            log.info("%d/%d %s", number, len(rows), row.subject)
        result.done.append(replace(row, labels=files.labels, mask=files.mask or row.mask))
        who = {"subject": row.subject, "session": row.session}
        result.quality.append(who | {"confidence": f"{found.confidence:.4f}"})
        result.volumes.extend(
            who
            | {
                "structure": v.structure,
                "side": v.side,
                "volume_mm3": f"{v.hard_mm3:.1f}",
                "soft_volume_mm3": f"{v.soft_mm3:.1f}",
            }
            for v in found.volumes
        )
    return result


def write_table(path: Path, lines: Sequence[dict[str, str]]) -> None:
    """A CSV of lines that have the same columns; nothing where there is no line."""
    if not lines:
        return

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)

    write_atomically(path, write)


def _write(scan: Volume, found: Segmentation, files: Outputs, bundle: Bundle) -> None:
    said = f"cfgen {__version__} segment"
    like = scan.path
    labels, sidecar, *_ = files.paths()
    write_new(scan.like(found.labels), labels, np.int16, description=said, geometry_of=like)
    if files.mask is not None:
        write_new(scan.like(found.mask), files.mask, np.uint8, description=said, geometry_of=like)
    if files.posteriors is not None:
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
        picture = files.paths()[2]
        title = f"{name}: regions (cfgen)"
        segmentation_picture(scan.data, numbers[found.labels], scan.grid, picture, title)
    text = json.dumps(_record(scan, found, bundle), indent=2) + "\n"
    write_atomically(sidecar, lambda temporary: temporary.write_text(text))


def _record(scan: Volume, found: Segmentation, bundle: Bundle) -> dict[str, Any]:
    assert scan.path is not None
    sides = {s.name: [s.left] if s.left == s.right else [s.left, s.right] for s in STRUCTURES}
    digest = hashlib.sha256(scan.path.read_bytes()).hexdigest()
    return {
        "GeneratedBy": [{"Name": "cfgen", "Version": __version__}],
        "Sources": [{"File": scan.path.name, "SHA256": digest}],
        "Bundle": {"Name": bundle.name, "SHA256": bundle.identity},
        "Labels": {name: codes for name, codes in sides.items() if name not in ("head",)},
        "PosteriorChannels": channel_names(),
        "Confidence": round(found.confidence, 4),
    }
