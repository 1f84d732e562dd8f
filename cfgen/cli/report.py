"""`cfgen report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
    Bundle,
    Config,
    Device,
    Overwrite,
    Quiet,
    Threads,
    Verbose,
    one_source,
)
from cfgen.cli.show import end_batch, print_paths, setup
from cfgen.errors import UsageError


def report(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Page to write, or a folder for a manifest.")
    ],
    image: Annotated[
        Path | None,
        typer.Option("--in", "-i", help="A counterfactual, with its sidecar beside it."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="What 'counterfactual --manifest' wrote.")
    ] = None,
    factual: Annotated[
        Path | None,
        typer.Option("--factual", help="The scan that it was made of, if it is not beside it."),
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option("--targets", help="Volumes to reach: a table as 'segment --volumes' writes."),
    ] = None,
    no_regions: Annotated[
        bool, typer.Option("--no-regions", help="Measure no volumes: pictures alone, faster.")
    ] = False,
    bundle: Bundle = DEFAULT_BUNDLE,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Write a page to look at a counterfactual: pictures, regions, flags, methods, provenance.

    One HTML file a counterfactual, to open in any browser; it needs no server and no network. With
    a manifest, OUT/index.html lists all of them with thumbnails, to sort and filter.

    Examples:

      cfgen report --in edits/sub01_age+30.nii.gz --factual sub01.nii.gz --out sub01.html

      cfgen report --manifest edits/manifest.csv --out report/
    """
    setup(threads, verbose, quiet)
    from cfgen.bundle import read_bundle
    from cfgen.data.manifest import read_manifest
    from cfgen.device import pick_device
    from cfgen.jobs.report import report_group, report_one
    from cfgen.measure.ruler import Ruler
    from cfgen.report.page import read_targets

    one_source("report", image, manifest)
    model = read_bundle(bundle)
    ruler = Ruler.of(None if no_regions else model, pick_device(device))
    if image is not None:
        volumes = read_targets(targets) if targets else {}
        report_one(image, factual, out, ruler, volumes, overwrite)
        print_paths([str(out)], as_json)
        return
    assert manifest is not None
    if factual or targets:
        raise UsageError("report", "--factual or --targets beside --manifest", "--in")
    result = report_group(
        read_manifest(manifest, model.schema, keep_missing=True), out, ruler, overwrite
    )
    print_paths([str(result.index)], as_json)
    end_batch(len(result.failed), len(result.left), manifest)
