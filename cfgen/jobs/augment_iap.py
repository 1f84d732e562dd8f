"""Scans under other acquisition parameters, with the labels that belong to them, as files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from cfgen import __version__
from cfgen.batch.resume import digests, fingerprint, finished
from cfgen.batch.rows import Made, Outcome, failed_row, reason, run_rows
from cfgen.bundle import Bundle
from cfgen.config import SEED
from cfgen.data.acquisition import Protocol
from cfgen.data.acquisition_headers import header, known_name
from cfgen.data.manifest import unique_key
from cfgen.data.names import check_outputs
from cfgen.data.protocol_pool import Pool, pool_of
from cfgen.data.record import SourceFile, this_software, write_record
from cfgen.data.schema import number_text
from cfgen.data.table import Row
from cfgen.data.volume import (
    SYNTHETIC,
    Volume,
    file_sha256,
    open_channels,
    read_geometry,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_atomically,
    write_like,
)
from cfgen.edit.protocol_record import ProtocolRecord, TissueLevels
from cfgen.edit.protocols import Place, Target, changed, sampled
from cfgen.edit.rerender import EFFECTS, Effects, OwnNoise, Rerendered, rerender
from cfgen.edit.sidecar import BundleName
from cfgen.errors import CfgenError, ImageError, Notice
from cfgen.measure.anatomy import VolumeChange, volume_changes
from cfgen.measure.levels import Levels, probability, tissue_levels
from cfgen.measure.segmenter import Segmentation, load_segmenter, segment, soft_volumes
from cfgen.nets.segmenter import Segmenter
from cfgen.progress import working
from cfgen.scan.gate import Finding, Gate, GateRecord, cautions, judge, refuse, scan_measures
from cfgen.scan.moved import noise_sd
from cfgen.scan.open import read_scan
from cfgen.scan.pictures import counterfactual_picture
from cfgen.scan.protocol import scan_protocol
from cfgen.space.grids import describe_difference, grid_text
from cfgen.streams import Purpose, stream

log = logging.getLogger("cfgen")
# Percent: what a region's volume may change by before it is said.
MOST_CHANGE = 0.5
# What comes along with a scan, and what it is called beside the images.
CARRIED = {"labels": "dseg", "mask": "mask", "posteriors": "probseg"}


@dataclass(frozen=True)
class Asked:
    """Which protocols: `changes` of the scan's own, in words of a sidecar, or `count` drawn from a
    `pool`. `given` are words that hold before the scan's sidecar."""

    changes: dict[str, str] = field(default_factory=dict)
    pool: Pool | None = None
    count: int = 0
    given: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How scans are rendered, and which files are written."""

    effects: Effects = EFFECTS
    seed: int = SEED
    picture: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class Order:
    """What is to be made of one scan: its protocol, its targets, and what to know of them."""

    row: Row
    protocol: Protocol
    targets: tuple[Target, ...]
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Looked:
    """A scan with its regions and the brightness of its tissues."""

    volume: Volume
    segmentation: Segmentation
    levels: Levels
    findings: list[Finding]
    notices: list[Notice]
    noise_sd: float


class Augmenter:
    """What every scan of a batch shares."""

    def __init__(self, bundle: Bundle, gate: Gate, device: torch.device, options: Options) -> None:
        self.name, self.gate, self.device = BundleName.of(bundle), gate, device
        self.net: Segmenter = load_segmenter(bundle, device)
        self.options = options


def order(row: Row, asked: Asked, options: Options) -> Order:
    """All that can be told before a voxel is read. Raises CfgenError."""
    protocol, notices = scan_protocol(row, asked.given)
    grid, axis = read_geometry(row.image)
    for name in CARRIED:
        path = getattr(row, name)
        if path is None:
            continue
        other = open_channels(path)[1] if name == "posteriors" else read_geometry(path)[0]
        if not other.matches(grid):
            raise ImageError(
                path,
                f"{name} lie on another grid than the scan: {describe_difference(other, grid)}",
                grid_text(grid),
                f"resample the {name} to the scan",
            )
    place = Place(grid.spacing, axis)
    if asked.pool is None:
        targets = [changed(protocol, asked.changes, place, options.effects)]
    else:
        draws = asked.pool.draws(stream(options.seed, Purpose.PROTOCOLS, unique_key(row)))
        targets = sampled(protocol, draws, asked.count, place, options.effects)
    return Order(row, protocol, tuple(targets), tuple(notices))


def output_path(row: Row, target: Target, out: Path) -> Path:
    suffix = row.image.name.removeprefix(strip_suffix(row.image))
    return out / f"{unique_key(row)}_{target.label}{suffix}"


def files_of(image: Path, picture: bool) -> list[Path]:
    stem = image.with_name(strip_suffix(image))
    endings = (".json", ".png") if picture else (".json",)
    return [image, *(stem.with_name(stem.name + ending) for ending in endings)]


def manifest_pool(rows: Sequence[Row], about: str) -> Pool:
    """The protocols of a manifest's scans; rows whose protocol cannot be read are left out, with a
    warning. Raises UsageError when none is left."""
    named = []
    for row in rows:
        try:
            named.append((f"{about}: {unique_key(row)}", scan_protocol(row)[0]))
        except CfgenError as error:
            log.warning("%s: its protocol is not drawn: %s", row.source or row.subject, error)
    return pool_of(about, named)


def check(rows: Sequence[Row], asked: Asked, options: Options, out: Path) -> list[Row]:
    """The rows that would fail for what can be told before a voxel is read, each with its error."""
    failed = []
    for row in rows:
        try:
            for target in order(row, asked, options).targets:
                for path in files_of(output_path(row, target, out), options.picture):
                    refuse_existing(path, options.overwrite)
        except CfgenError as error:
            failed.append(failed_row(row, reason(error)))
    return failed


def augment_scans(
    augmenter: Augmenter, rows: Sequence[Row], asked: Asked, out: Path, *, keep_going: bool
) -> Outcome[list[Row]]:
    """Every row under its target protocols, in `out`: the rows of what was made.

    With `keep_going` a row that fails is collected, one that was made before of the same files and
    options is kept, and SIGTERM or SIGINT stop between two rows; otherwise errors are raised.
    """
    check_outputs([out / f"{unique_key(row)}_{'x' * 40}_posteriors.nii.gz" for row in rows])

    def work(row: Row) -> Made[list[Row]]:
        ordered = order(row, asked, augmenter.options)
        wanted = _request(augmenter, ordered)
        keep = keep_going and not augmenter.options.overwrite
        if keep and _made_before(ordered, out, augmenter.options, wanted):
            return Made(_rows(ordered, out), "is there already")
        _make(augmenter, ordered, out, wanted)
        return Made(_rows(ordered, out), "rendered")

    return run_rows(rows, lambda row: row, work, lambda _, result: result, keep_going=keep_going)


def _request(augmenter: Augmenter, ordered: Order) -> str:
    row, options = ordered.row, augmenter.options
    hashes = digests(row.image, *(getattr(row, name) for name in CARRIED))
    targets = [[t.label, dict(t.protocol), t.assumed] for t in ordered.targets]
    recipe = [dict(ordered.protocol), targets, asdict(options.effects), options.seed]
    return fingerprint(hashes, [augmenter.name.sha256, *recipe])


def _made_before(ordered: Order, out: Path, options: Options, wanted: str) -> bool:
    for target in ordered.targets:
        files = files_of(output_path(ordered.row, target, out), options.picture)
        record = finished(files, files[1], ProtocolRecord)
        if record is None or record.fingerprint != wanted:
            return False
    return all(path.exists() for _, path in _carried(ordered.row, out).values())


def _carried(row: Row, out: Path) -> dict[str, tuple[Path, Path]]:
    """By name, what comes along and where it goes: once for all targets of a scan."""
    found = {}
    for name, ending in CARRIED.items():
        path = getattr(row, name)
        if path is not None:
            suffix = path.name.removeprefix(strip_suffix(path))
            found[name] = (path, out / f"{unique_key(row)}_{ending}{suffix}")
    return found


def _make(augmenter: Augmenter, ordered: Order, out: Path, wanted: str) -> None:
    options, row = augmenter.options, ordered.row
    for target in ordered.targets:
        for path in files_of(output_path(row, target, out), options.picture):
            refuse_existing(path, options.overwrite)
    looked = _look(augmenter, ordered)
    for source, path in _carried(row, out).values():
        write_atomically(path, partial(shutil.copyfile, source))
    for number, target in enumerate(ordered.targets, 1):
        _write(augmenter, ordered, looked, target, output_path(row, target, out), number, wanted)


def _look(augmenter: Augmenter, ordered: Order) -> Looked:
    """Raises ImageError for what is no head, or no T1w scan."""
    scan, notices = read_scan(ordered.row.image)
    with working("finding the regions"):
        segmentation = segment(augmenter.net, scan, augmenter.device)
    measures = scan_measures(scan, segmentation.mask, segmentation.confidence)
    findings = judge(measures, augmenter.gate.card)
    refuse(scan, findings, augmenter.gate)
    posteriors = segmentation.posteriors
    assert posteriors is not None
    sd = 0.0
    if augmenter.options.effects.noise != "keep":
        white = probability(posteriors, "white")
        sd = noise_sd(scan, segmentation.mask, white, posteriors.grid)
    said = [*ordered.notices, *notices, *cautions(findings)]
    return Looked(scan, segmentation, tissue_levels(scan, posteriors), findings, said, sd)


def _write(
    augmenter: Augmenter,
    ordered: Order,
    looked: Looked,
    target: Target,
    image: Path,
    number: int,
    wanted: str,
) -> None:
    """The files of one target, the record last: without it nothing counts as done."""
    options, scan = augmenter.options, looked.volume
    paths = files_of(image, options.picture)
    paths[1].unlink(missing_ok=True)
    generator = stream(options.seed, Purpose.PROTOCOLS, unique_key(ordered.row), number)
    made: Rerendered | None = None
    if not target.is_null:
        noise = OwnNoise(looked.noise_sd, generator)
        made = rerender(scan, looked.levels, target.renderings, options.effects, noise)
    data = scan.data if made is None else made.image
    description = f"{SYNTHETIC} {__version__} augment-iap {target.label}"
    write_like(scan, data, image, description=description)
    changes = _changes(augmenter, looked, image, made)
    notices = [*looked.notices, *target.notices, *_warned(changes)]
    for notice in notices:
        log.warning("%s: warning: %s", image.name, notice.text)
    if options.picture:
        title = f"{scan.path.name if scan.path else 'scan'}: {target.label} (synthetic)"
        mask = looked.segmentation.mask
        counterfactual_picture(scan.data, data, scan.grid, mask, paths[2], title)
    assert scan.path is not None
    record = ProtocolRecord(
        synthetic=True,
        description="A real scan as another acquisition protocol would have shown it",
        generated_by=this_software(),
        sources=[SourceFile(scan.path.name, file_sha256(scan.path))],
        bundle=augmenter.name,
        rendered_by="physics",
        intervention=target.label,
        protocol_source=target.origin,
        factual=dict(ordered.protocol),
        target=dict(target.protocol),
        not_rendered=target.asked,
        assumed=list(target.assumed),
        effects=options.effects,
        tissue_levels=None if made is None else _levels(looked.levels, made),
        volume_changes=changes,
        gate=GateRecord.of(looked.findings),
        seed=options.seed,
        warnings=notices,
        fingerprint=wanted,
    )
    write_record(record, paths[1], header(target.protocol))


def _levels(levels: Levels, made: Rerendered) -> TissueLevels:
    t1 = {n: round(x, 1) for n, x in made.curve.t1_ms.items()}
    return TissueLevels(
        round(levels.white, 3),
        round(levels.grey, 3),
        round(levels.fluid, 3),
        t1["white"],
        t1["grey"],
        t1["fluid"],
    )


def _changes(
    augmenter: Augmenter, looked: Looked, image: Path, made: Rerendered | None
) -> list[VolumeChange]:
    """Of the image as it was written: what rounding, clipping, noise and blur did is in it."""
    before = looked.segmentation.volumes
    if made is None:
        return volume_changes(before, before)
    with working("measuring its regions"):
        written = looked.volume.like(made.undone(read_volume(image).data))
        return volume_changes(before, soft_volumes(augmenter.net, written, augmenter.device))


def _warned(changes: Sequence[VolumeChange]) -> list[Notice]:
    far = [c for c in changes if abs(c.percent) > MOST_CHANGE]
    if not far:
        return []
    worst = max(far, key=lambda c: abs(c.percent))
    return [
        Notice(
            "volume-change",
            f"{len(far)} regions changed by more than {MOST_CHANGE:g} %, most {worst.structure} "
            f"({worst.side}) by {worst.percent:+.1f} %: the labels may not fit any more",
        )
    ]


def _rows(ordered: Order, out: Path) -> list[Row]:
    """The manifest's rows of what was made: acquisition columns are those of the targets."""
    row = ordered.row
    carried = {name: path for name, (_, path) in _carried(row, out).items()}
    kept = {n: text for n, text in row.extra.items() if not (known_name(n) or n == "error")}
    return [
        replace(
            row,
            image=output_path(row, target, out),
            session="_".join(p for p in (row.session, target.label) if p),
            labels=carried.get("labels"),
            mask=carried.get("mask"),
            posteriors=carried.get("posteriors"),
            extra=kept
            | {n: v if isinstance(v, str) else number_text(v) for n, v in target.protocol.items()}
            | {
                "synthetic": "true",
                "factual_image": str(row.image.absolute()),
                "protocol_source": target.origin,
            },
        )
        for target in ordered.targets
    ]
