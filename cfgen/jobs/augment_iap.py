"""Scans under other acquisition parameters, with the labels that belong to them, as files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    file_sha256,
    open_channels,
    read_geometry,
    read_volume,
    refuse_existing,
    strip_suffix,
    write_atomically,
    write_like,
)
from cfgen.edit.acquired import Diffusion
from cfgen.edit.protocol_record import ProtocolRecord
from cfgen.edit.protocols import Place, Target, changed, sampled
from cfgen.edit.rerender import EFFECTS
from cfgen.edit.sidecar import BundleName
from cfgen.errors import CfgenError, ImageError, Notice, UsageError
from cfgen.jobs.augment_scan import (
    Looked,
    Tools,
    Way,
    aim_of,
    changes_of,
    diffusion_record,
    factual_scales,
    levels_record,
    look,
    made_of,
    recipe_of,
    warned,
)
from cfgen.measure.segmenter import load_segmenter
from cfgen.scan.gate import Gate, GateRecord
from cfgen.scan.pictures import counterfactual_picture
from cfgen.scan.protocol import scan_protocol
from cfgen.space.grids import describe_difference, grid_text
from cfgen.streams import Purpose, stream

log = logging.getLogger("cfgen")
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

    way: Way = EFFECTS
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


class Augmenter:
    """What every scan of a batch shares."""

    def __init__(self, bundle: Bundle, gate: Gate, device: torch.device, options: Options) -> None:
        self.name, self.options = BundleName.of(bundle), options
        self.tools = Tools(load_segmenter(bundle, device), gate, device)


def order(row: Row, asked: Asked, options: Options) -> Order:
    """All that can be told before a voxel is read. Raises CfgenError."""
    grid, axis = read_geometry(row.image)
    protocol, notices = scan_protocol(row, asked.given)
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
    aim = aim_of(options.way, Place(grid.spacing, axis))
    if asked.pool is None:
        targets = [changed(protocol, asked.changes, aim)]
    else:
        draws = asked.pool.draws(stream(options.seed, Purpose.PROTOCOLS, unique_key(row)))
        targets = sampled(protocol, draws, asked.count, aim)
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
    if not named:
        raise UsageError("--sample", f"no protocol in {about}", "scans with sidecars or columns")
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
    targets = [[t.label, {**t.protocol, **t.scales}, t.assumed] for t in ordered.targets]
    recipe = [dict(ordered.protocol), targets, *recipe_of(options.way), options.seed]
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
    looked = look(augmenter.tools, row, options.way)
    for source, path in _carried(row, out).values():
        write_atomically(path, partial(shutil.copyfile, source))
    said: set[Notice] = set()
    for number, target in enumerate(ordered.targets, 1):
        image = output_path(row, target, out)
        notices = _write(augmenter, ordered, looked, target, image, number, wanted)
        for notice in notices:
            if notice not in said:
                log.warning("%s: warning: %s", image.name, notice.text)
        # What holds for several targets of a scan is said once.
        said.update(notices)


def _write(
    augmenter: Augmenter,
    ordered: Order,
    looked: Looked,
    target: Target,
    image: Path,
    number: int,
    wanted: str,
) -> list[Notice]:
    """The files of one target, the record last: without it nothing counts as done; what to say of
    it."""
    options, scan = augmenter.options, looked.volume
    paths = files_of(image, options.picture)
    paths[1].unlink(missing_ok=True)
    way = options.way
    made = made_of(looked, target, way, options.seed, (ordered.row, number))
    data = scan.data if made is None else made.image
    description = f"{SYNTHETIC} {__version__} augment-iap {target.label}"
    write_like(scan, data, image, description=description)
    changes = changes_of(augmenter.tools, looked, read_volume(image), made)
    notices = [*ordered.notices, *looked.notices, *target.notices, *warned(changes)]
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
        rendered_by="diffusion" if isinstance(way, Diffusion) else "physics",
        intervention=target.label,
        protocol_source=target.origin,
        factual={**ordered.protocol, **factual_scales(looked, target)},
        target={**target.protocol, **target.scales},
        not_rendered=target.asked,
        assumed=list(target.assumed),
        effects=None if isinstance(way, Diffusion) else way,
        tissue_levels=levels_record(looked, made),
        volume_changes=changes,
        gate=GateRecord.of(looked.findings),
        seed=options.seed,
        warnings=notices,
        fingerprint=wanted,
        diffusion=diffusion_record(way, made),
    )
    write_record(record, paths[1], header(target.protocol))
    return notices


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
