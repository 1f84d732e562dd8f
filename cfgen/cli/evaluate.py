"""`cfgen evaluate`."""

from __future__ import annotations

import logging
import sys
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
    Overwrite,
    Quiet,
    Seed,
    Threads,
    Verbose,
)
from cfgen.cli.show import is_live, print_markdown, print_paths, setup
from cfgen.errors import UsageError

if TYPE_CHECKING:
    from cfgen.data.table import Row

log = logging.getLogger("cfgen")


def evaluate(
    real: Annotated[
        Path, typer.Option("--real", help="Manifest of real scans, with their age and sex.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and figures.")],
    counterfactuals: Annotated[
        list[str] | None,
        typer.Option(
            "--counterfactuals",
            help="[NAME=]MANIFEST that 'cfgen counterfactual' wrote; repeat it to compare.",
        ),
    ] = None,
    generated: Annotated[
        list[str] | None,
        typer.Option("--generated", help="[NAME=]MANIFEST of scans that were made of nobody."),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", help="truth.csv of 'cfgen simulate --truth'."),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="quick, standard, full or paper; see README.")
    ] = "standard",
    negative_controls: Annotated[
        bool,
        typer.Option(
            "--negative-controls",
            help="Also what must not move: head and brainstem with age, depression.",
        ),
    ] = False,
    split: Annotated[
        str, typer.Option("--split", help="Only real scans of this split, for example val.")
    ] = "",
    medicalnet: Annotated[
        Path | None,
        typer.Option("--medicalnet", help="resnet_10.pth, 50 or 101 of Tencent/MedicalNet."),
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Measure counterfactuals: reached, kept, like real brains, and near the truth where known.

    Writes metrics.csv and .json (each figure with its n, interval, extractor and direction), tables
    as in the papers, figures, a methods paragraph and BibTeX. Leaving every scan as it is ('copy')
    is always measured beside. The bundle's judge and segmenter measure; prepared scans are kept in
    OUT/work.

    Examples:

      cfgen evaluate --real cohort.csv --counterfactuals edits/manifest.csv --out evaluation/

      cfgen evaluate --real sim/manifest.csv --truth sim/truth.csv --suite quick \\
        --counterfactuals ours=a/manifest.csv --counterfactuals theirs=b/manifest.csv --out e/
    """
    setup(threads, verbose, quiet)
    from cfgen.batch.workers import worker_count
    from cfgen.bundle import read_bundle
    from cfgen.data.acquisition_columns import with_acquisition
    from cfgen.data.manifest import read_manifest
    from cfgen.data.names import check_folder
    from cfgen.data.volume import refuse_existing
    from cfgen.device import pick_device
    from cfgen.evaluate.files import write_evaluation
    from cfgen.evaluate.scans import conditions_of
    from cfgen.evaluate.suite import SUITES, Asked
    from cfgen.evaluate.suite import evaluate as job
    from cfgen.evaluate.tables import tables

    if suite not in SUITES:
        raise UsageError("--suite", f"'{suite}'", ", ".join(SUITES))
    if suite == "paper" and medicalnet is None:
        raise UsageError("--suite", "paper without --medicalnet", "the weights of the papers' FID")
    check_folder(out)
    refuse_existing(out / "metrics.csv", overwrite)
    schema = conditions_of(read_bundle(bundle))

    def read(path: Path, *, keep_missing: bool = False) -> list[Row]:
        read_rows = read_manifest(path, schema, keep_missing=keep_missing)
        return [with_acquisition(row, schema) for row in read_rows]

    rows = [r for r in read(real, keep_missing=True) if split in ("", r.split)]
    if not rows:
        raise UsageError("--split", f"no row of {real} is '{split}'", "a split that it has")
    asked = Asked(
        rows,
        {name: read(path) for name, path in _named(counterfactuals, "--counterfactuals")},
        {name: read(path) for name, path in _named(generated, "--generated")},
        read(truth) if truth else [],
        bundle,
        suite,
        medicalnet,
        seed,
        force,
        overwrite,
        negative_controls,
        worker_count(pick_device(device), len(rows)),
    )
    evaluation = job(asked, out / "work", device)
    written = write_evaluation(evaluation, suite, seed, out)
    if as_json:
        print((out / "metrics.json").read_text())
        return
    methods = list(dict.fromkeys(r.method for r in evaluation.results if r.method != "real"))
    text = tables(evaluation.results, methods)
    if is_live(sys.stderr):
        print_markdown(text)
    else:
        log.info("%s", text)
    print_paths([str(path) for path in written], False)


def _named(given: list[str] | None, option: str) -> list[tuple[str, Path]]:
    """'ours=a.csv' -> its name and path; a bare path is named by its folder."""
    manifests = []
    for text in given or []:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).absolute().parent.name, text
        manifests.append((name, Path(path)))
    names = [name for name, _ in manifests]
    if len(set(names)) < len(names) or {"copy", "real", "oracle"} & set(names):
        raise UsageError(
            option,
            f"names {', '.join(names)}",
            "different NAME=MANIFEST, none of them copy, real or oracle",
        )
    return manifests
