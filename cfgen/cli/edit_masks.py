"""`cfgen edit-masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    DEFAULT_BUNDLE,
    AsJson,
    Bundle,
    Config,
    DryRun,
    From,
    Manifest,
    NoPicture,
    Overwrite,
    Quiet,
    Rates,
    Threads,
    Verbose,
    one_source,
)
from cfgen.cli.show import end_batch, print_paths, setup
from cfgen.errors import UsageError


def edit_masks(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Label map, or a folder for a manifest.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option("--in", "-i", help="Label map in FreeSurfer's or DLMUSE's codes."),
    ] = None,
    manifest: Manifest = None,
    posteriors: Annotated[
        Path | None,
        typer.Option(
            "--posteriors",
            help="What 'segment --posteriors' or mri_synthseg --post wrote with the labels; a "
            "manifest has a column of them.",
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="The scan, to be shown behind the masks.")
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(
            "--targets",
            help="CSV: structure, side, volume_mm3 (and subject, session), as 'segment --volumes'.",
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Instead: hippocampus=-10%, 'left hippocampus=3200' or =+150 (mm3); repeatable.",
        ),
    ] = None,
    age: Annotated[
        str | None, typer.Option("--age", help="Instead: as the causal model has it at +20, or 75.")
    ] = None,
    sex: Annotated[str | None, typer.Option("--sex", help="M or F, with or without --age.")] = None,
    factual: From = "",
    rates: Rates = cfg.RATES,
    bundle: Bundle = DEFAULT_BUNDLE,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            help="What a structure exchanges voxels with: STRUCTURE=NEIGHBOUR[,...]; repeatable.",
        ),
    ] = None,
    out_posteriors: Annotated[
        Path | None,
        typer.Option("--out-posteriors", help="Also write the edited probabilities, 4D uint8."),
    ] = None,
    best_effort: Annotated[
        bool,
        typer.Option("--best-effort", help="Take what can be had of a target that can't be met."),
    ] = False,
    no_picture: NoPicture = False,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Edit a label map until regions have other volumes, on its own grid.

    Voxels change at the border of a region with its neighbour (cortex and hippocampus: fluid;
    ventricles: white matter), the most probable first, and never so that a region falls apart or
    gets a hole. With a manifest, OUT and --out-posteriors are folders.

    Examples:

      cfgen edit-masks --in seg.nii.gz --posteriors p.nii.gz --set hippocampus=-10% --out e.nii.gz

      cfgen edit-masks --in seg.nii.gz --age +20 --from age=62,sex=F --out older.nii.gz

      cfgen edit-masks --manifest seg/manifest.csv --targets volumes.csv --out edited/
    """
    setup(threads, verbose, quiet)
    from cfgen.batch.lists import write_lists
    from cfgen.causal.partners import parse_partners
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest
    from cfgen.data.table import Row
    from cfgen.data.volume import strip_suffix
    from cfgen.data.volume_targets import parse_changes, read_volume_table
    from cfgen.jobs.edit_masks import Wish, causal_wish, check_scans, edit_scans
    from cfgen.jobs.label_files import LabelFiles, name_files

    one_source("edit-masks", labels, manifest)
    asked = {"--targets": targets, "--set": change, "--age or --sex": age or sex}
    given = [name for name, value in asked.items() if value]
    if len(given) != 1:
        problem = f"{' and '.join(given)} together" if given else "nothing to change"
        raise UsageError("edit-masks", problem, f"one of {', '.join(asked)}")
    single = labels is not None
    if manifest is not None:
        if posteriors is not None or image is not None:
            raise UsageError("--manifest", "beside --posteriors or --image", "columns of them")
        rows = read_manifest(manifest, default_schema(), keep_missing=True)
    else:
        assert labels is not None
        name = strip_suffix(labels)
        rows = [Row(name, image or labels, labels=labels, posteriors=posteriors)]
    if out_posteriors is not None and any(row.posteriors is None for row in rows):
        raise UsageError("--out-posteriors", "no posteriors to edit", "--posteriors, or the column")
    wish = Wish(
        read_volume_table(targets) if targets is not None else None,
        parse_changes(change or []),
        causal_wish(bundle, age, sex, factual, rates) if age or sex else None,
        parse_partners(pair or []),
        best_effort,
    )
    files = name_files(rows, LabelFiles(out, out_posteriors, not no_picture), single)
    if dry_run:
        checked = check_scans(rows, files, wish, keep_going=not single, overwrite=overwrite)
        print_paths([str(f.labels) for f in checked.done], as_json)
        end_batch(len(checked.failed), len(checked.left), manifest)
        return
    outcome = edit_scans(rows, files, wish, keep_going=not single, overwrite=overwrite)
    if not single:
        write_lists(out, [row for row, _ in outcome.done], outcome.failed, rows)
    print_paths([str(row.labels) for row, _ in outcome.done], as_json)
    end_batch(len(outcome.failed), len(outcome.left), manifest)
