"""`cfgen preprocess`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
    Bundle,
    Config,
    Device,
    Force,
    Grid,
    In,
    Manifest,
    Mask,
    Overwrite,
    Quiet,
    Strip,
    Threads,
    Verbose,
    one_source,
)
from cfgen.cli.options import skull_strip as skull_strip_of
from cfgen.cli.show import end_batch, is_live, print_paths, print_rich, setup
from cfgen.errors import EXIT_SOME_FAILED, EXIT_UNUSABLE_INPUT, UsageError

if TYPE_CHECKING:
    from cfgen.jobs.check import Checked


def preprocess(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for prepared scans, or with --check for check.csv."
        ),
    ] = None,
    image: In = None,
    manifest: Manifest = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the scans can be used, and why not.")
    ] = False,
    mask: Mask = None,
    skull_strip: Strip = cfg.SKULL_STRIP,
    grid: Grid = cfg.DEFAULT_GRID,
    bundle: Bundle = DEFAULT_BUNDLE,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Bring scans to the model grid: brain, bias field, affine to the template, intensity.

    Writes the prepared image, the brain mask, a picture to check and the way back (see 'undo') for
    each scan, and a manifest for training. Scans that are prepared already are kept. The bundle
    finds the brain in scans without a mask, and its training card is what scans are checked by.

    Examples:

      cfgen preprocess --manifest cohort.csv --out prepared/

      cfgen preprocess --check --in sub01.nii.gz
    """
    setup(threads, verbose, quiet)
    from cfgen.batch.preparation import prepare_scans as job
    from cfgen.batch.workers import worker_count
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest
    from cfgen.device import pick_device
    from cfgen.jobs.check import check_scans
    from cfgen.jobs.counterfactuals import single_row
    from cfgen.scan.brain import BrainFinder, brain_finder
    from cfgen.scan.gate import Gate

    one_source("preprocess", image, manifest)
    method, mask = skull_strip_of(skull_strip, mask)
    if image is not None:
        rows = [single_row(image, mask)]
    else:
        assert manifest is not None
        rows = read_manifest(manifest, default_schema(), keep_missing=True)
    model = read_bundle(bundle)
    finder = BrainFinder(method)
    if any(row.mask is None and row.labels is None for row in rows):
        finder = brain_finder(model, method, pick_device(device))
    recipe = cfg.Preprocess(grid=grid)
    if check:
        checked = check_scans(rows, recipe, finder, model.card)
        _check(checked, out, overwrite, as_json, image is not None)
        return
    if out is None:
        raise UsageError("--out", "missing", "a folder for the prepared scans")
    keep_going = manifest is not None
    gate = Gate(model.card, force)
    outcome = job(
        rows,
        out,
        recipe,
        finder,
        gate,
        keep_going=keep_going,
        overwrite=overwrite,
        workers=worker_count(finder.device, len(rows)),
    )
    print_paths([str(row.image) for row in outcome.done], as_json)
    end_batch(len(outcome.failed), len(outcome.left), manifest)


def _check(
    scans: Iterable[Checked], out: Path | None, overwrite: bool, as_json: bool, single: bool
) -> None:
    """Print a verdict a scan; exit 3 when the one scan, 1 when some scan is refused."""
    from cfgen.data.table import write_table
    from cfgen.data.volume import refuse_existing

    table = out / "check.csv" if out is not None else None
    if table is not None:
        refuse_existing(table, overwrite)
    checked = []
    as_table = not as_json and is_live(sys.stdout)
    for result in scans:
        checked.append(result)
        if not (as_json or as_table):
            print(result.line(), flush=True)
    lines = [result.table_row() for result in checked]
    if as_json:
        print(json.dumps({"scans": lines}, indent=2))
    elif as_table:
        from cfgen.cli.tables import verdicts

        print_rich(verdicts(checked))
    if table is not None:
        write_table(table, lines)
    if any(result.verdict == "refuse" for result in checked):
        raise typer.Exit(EXIT_UNUSABLE_INPUT if single else EXIT_SOME_FAILED)
