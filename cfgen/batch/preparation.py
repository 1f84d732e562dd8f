"""Prepare scans for training and evaluation, many at a time; what is there already is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from cfgen.batch.resume import fingerprint, finished
from cfgen.batch.workers import ahead
from cfgen.config import Preprocess
from cfgen.data.manifest import unique_key, write_manifest
from cfgen.data.table import Row
from cfgen.errors import CfgenError, UsageError
from cfgen.scan.brain import BrainFinder
from cfgen.scan.gate import Gate
from cfgen.scan.prepared import Files, Found, find, write_prepared

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Prepping:
    """Manifest rows of prepared scans, and the rows that failed."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)


def prepare_scans(
    rows: Sequence[Row],
    out: Path,
    recipe: Preprocess,
    finder: BrainFinder,
    gate: Gate,
    *,
    keep_going: bool,
    overwrite: bool = False,
    workers: int = 1,
) -> Prepping:
    """Prepare every row into `out`; scans that are there already, from the same file, are kept.

    With `keep_going` a scan that fails is logged and collected; otherwise its error is raised. The
    manifest of what was done is written at the end, and failed.csv where rows failed. `workers` are
    processes, each with a scan at a time (`ahead`).
    """
    result = Prepping()

    work = partial(_work, out, recipe, finder, gate, overwrite)
    for number, (row, found) in enumerate(ahead(work, rows, workers), 1):
        files = Files.named(out, unique_key(row))
        try:
            wanted, work_done = found()
            if work_done is not None:
                write_prepared(row, files, recipe, work_done, wanted)
            done = "is there already" if work_done is None else "prepared"
            log.info("%d/%d %s %s", number, len(rows), row.subject, done)
        except CfgenError as error:
            if not keep_going:
                raise
            log.error("%s: %s", row.source, error)
            said = {"error": " ".join(str(error).split())}
            result.failed.append(replace(row, extra=row.extra | said))
            continue
        result.done.append(
            replace(
                row,
                image=files.image,
                mask=None,
                labels=files.labels if row.labels else None,
                posteriors=None,
                extra=row.extra | {"scan": str(row.image.absolute())},
            )
        )
    for name, kept in (("manifest.csv", result.done), ("failed.csv", result.failed)):
        if kept:
            write_manifest(out / name, kept)
        else:
            (out / name).unlink(missing_ok=True)
    return result


def _work(
    out: Path, recipe: Preprocess, finder: BrainFinder, gate: Gate, overwrite: bool, row: Row
) -> tuple[str, Found | None]:
    """The row's fingerprint, and what is to be written: nothing where it is there."""
    files = Files.named(out, unique_key(row))
    how = [asdict(recipe), finder.how]
    wanted = fingerprint((row.image, row.mask, row.labels), how)
    if not overwrite and _recorded(files) == wanted:
        return wanted, None
    _refuse_foreign(files, overwrite)
    return wanted, find(row, recipe, finder, gate)


def _recorded(files: Files) -> str:
    """The fingerprint of finished work; empty when a file is missing."""
    needed = [p for name, p in vars(files).items() if name != "labels"]
    return str(finished(needed, files.sidecar).get("Fingerprint", ""))


def _refuse_foreign(files: Files, overwrite: bool) -> None:
    """Another scan's or recipe's finished work is not replaced unasked."""
    if _recorded(files) and not overwrite:
        raise UsageError(
            files.image,
            "exists already, from another scan or recipe",
            fix="use --overwrite or another --out",
        )
