"""Prepare scans for training and evaluation, many at a time; what is there already is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from cfgen.batch.lists import write_lists
from cfgen.batch.resume import digests, fingerprint, finished
from cfgen.batch.rows import Made, Outcome, run_rows
from cfgen.config import Preprocess
from cfgen.data.manifest import unique_key
from cfgen.data.names import check_outputs
from cfgen.data.table import Row
from cfgen.errors import UsageError
from cfgen.scan.brain import BrainFinder
from cfgen.scan.gate import Gate
from cfgen.scan.open import Opened, open_scan
from cfgen.scan.prepared import Files, Preparation, write_prepared


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
) -> Outcome[Row]:
    """Prepare every row into `out`; scans that are there already, from the same file, are kept.

    With `keep_going` a scan that fails is logged and collected; otherwise its error is raised. The
    manifest of what was done is written at the end, and failed.csv where rows failed. `workers` are
    processes, each with a scan at a time (`ahead`).
    """

    def finish(row: Row, result: tuple[str, Opened | None]) -> Made[Row]:
        wanted, opened = result
        files = Files.named(out, unique_key(row))
        if opened is not None:
            write_prepared(row, files, recipe, opened, wanted)
        done = replace(
            row,
            image=files.image,
            mask=None,
            labels=files.labels if row.labels else None,
            posteriors=None,
            extra=row.extra | {"scan": str(row.image.absolute())},
        )
        return Made(done, "is there already" if opened is None else "prepared")

    check_outputs(p for row in rows for p in vars(Files.named(out, unique_key(row))).values())
    work = partial(_work, out, recipe, finder, gate, overwrite)
    outcome = run_rows(rows, lambda row: row, work, finish, workers=workers, keep_going=keep_going)
    write_lists(out, outcome.done, outcome.failed, rows)
    return outcome


def _work(
    out: Path, recipe: Preprocess, finder: BrainFinder, gate: Gate, overwrite: bool, row: Row
) -> tuple[str, Opened | None]:
    """The row's fingerprint, and what is to be written: nothing where it is there."""
    files = Files.named(out, unique_key(row))
    how = [asdict(recipe), finder.how]
    wanted = fingerprint(digests(row.image, row.mask, row.labels), how)
    if not overwrite:
        needed = [p for name, p in vars(files).items() if name != "labels"]
        record = finished(needed, files.sidecar, Preparation)
        if record is not None and record.fingerprint == wanted:
            return wanted, None
        if record is not None:
            raise UsageError(
                files.image,
                "exists already, from another scan or recipe",
                fix="use --overwrite or another --out",
            )
    opened = open_scan(row.image, row.mask or row.labels, finder, recipe, gate)
    # The segmenter and its maps are not sent from process to process: nothing here needs them.
    return wanted, replace(opened, brain=replace(opened.brain, regions=None))
