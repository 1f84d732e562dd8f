"""Prepare and measure the scans of an evaluation, and its counterfactuals as their scans were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cfgen.batch.preparation import prepare_scans
from cfgen.batch.workers import ahead
from cfgen.data.table import Row
from cfgen.data.volume import read_volume
from cfgen.errors import UsageError
from cfgen.evaluate.pairs import check_grid, label_of, pair
from cfgen.evaluate.scans import Instruments, Made, Real, Seen, see
from cfgen.progress import each
from cfgen.scan.brain import brain_finder
from cfgen.scan.gate import Gate
from cfgen.scan.prepared import load_prepared


def read_real(
    tools: Instruments, rows: Sequence[Row], work: Path, gate: Gate, overwrite: bool, workers: int
) -> list[Real]:
    """Prepare and measure scans; what the gate refuses is left out and named in work/failed.csv.

    `workers` are processes (`ahead`). Raises UsageError when nothing is left.
    """
    finder = brain_finder(tools.bundle, "auto", tools.device)
    done = prepare_scans(
        rows,
        work,
        tools.bundle.preprocess,
        finder,
        gate,
        keep_going=True,
        overwrite=overwrite,
        workers=workers,
    ).done
    if not done:
        raise UsageError(work / "failed.csv", "no scan could be used", "one or more")
    row_of = {str(row.image.absolute()): row for row in rows}
    seen = ahead(partial(_see_real, tools), done, workers)
    return [
        replace(result(), row=row_of[row.extra["scan"]])
        for row, result in each(seen, len(done), "scans measured")
    ]


def _see_real(tools: Instruments, done: Row) -> Real:
    prepared = load_prepared(done.image)
    seen = see(tools, prepared.image, prepared)
    return Real(done, done.image, prepared.mask, prepared.grid, prepared.native, seen)


def read_made(
    tools: Instruments,
    methods: Mapping[str, Sequence[Row]],
    real: Sequence[Real],
    workers: int,
) -> dict[str, list[Made]]:
    """Counterfactuals of the real scans by method, measured.

    Raises ManifestError with all rows that have no factual scan among the real ones, ImageError
    when one is on another grid than its factual.
    """
    pairs = [(name, p) for name, rows in methods.items() for p in pair(rows, real, name)]
    seen = ahead(partial(_see_made, tools), [p for _, p in pairs], workers)
    counterfactuals: dict[str, list[Made]] = {name: [] for name in methods}
    measured = each(zip(pairs, seen, strict=True), len(pairs), "counterfactuals measured")
    for (name, _), ((row, factual), result) in measured:
        counterfactuals[name].append(make(row, factual, result()))
    return counterfactuals


def _see_made(tools: Instruments, matched: tuple[Row, Real]) -> Seen:
    row, factual = matched
    scan = read_volume(row.image)
    check_grid(scan, factual)
    prepared = factual.prepared()
    image = prepared.again(scan.data, tools.bundle.preprocess.intensity_cap)
    return see(tools, image, prepared)


def make(row: Row, real: Real, seen: Seen) -> Made:
    before = real.row.values
    changed = tuple(n for n, v in row.values.items() if n in before and before[n] != v)
    label = row.extra.get("intervention") or label_of(row.session, real.row.session)
    return Made(row, real, label, dict(row.values), changed, seen)
