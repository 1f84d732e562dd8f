"""`cfgen segment`."""

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
    Force,
    Manifest,
    NoPicture,
    Overwrite,
    Quiet,
    Threads,
    Verbose,
    one_source,
)
from cfgen.cli.show import end_batch, print_paths, setup
from cfgen.errors import UsageError


def segment(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Label map, or a folder for a manifest or folder.")
    ],
    image: Annotated[
        Path | None, typer.Option("--in", "-i", help="One scan, or a folder of scans.")
    ] = None,
    manifest: Manifest = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Also write the brain mask.")] = None,
    posteriors: Annotated[
        Path | None, typer.Option("--posteriors", help="Also write probabilities, 4D uint8.")
    ] = None,
    volumes: Annotated[
        Path | None, typer.Option("--volumes", help="Also write a CSV of volumes, mm3.")
    ] = None,
    qc: Annotated[
        Path | None, typer.Option("--qc", help="Also write a CSV of verdict and confidence.")
    ] = None,
    seg: Annotated[
        Path | None,
        typer.Option(
            "--seg",
            help="Take the label map of mri_synthseg, FreeSurfer, FastSurfer or DLMUSE instead; "
            "a folder of them for many scans.",
        ),
    ] = None,
    seg_posteriors: Annotated[
        Path | None,
        typer.Option("--seg-posteriors", help="With --seg: what mri_synthseg --post wrote."),
    ] = None,
    seg_volumes: Annotated[
        Path | None, typer.Option("--seg-volumes", help="With --seg: its --vol table.")
    ] = None,
    seg_qc: Annotated[
        Path | None, typer.Option("--seg-qc", help="With --seg: its --qc table.")
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    no_picture: NoPicture = False,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Find the brain and its regions in any head scan, on the scan's own grid.

    Labels are FreeSurfer's codes. With a manifest or a folder of scans, OUT, --mask and
    --posteriors are folders, --volumes and --qc one table each.

    Examples:

      cfgen segment --in sub01.nii.gz --out sub01_dseg.nii.gz --volumes sub01.csv

      cfgen segment --manifest cohort.csv --out seg/ --mask masks/ --volumes volumes.csv

      cfgen segment --in sub01.nii.gz --seg sub01/mri/aparc+aseg.mgz --out sub01_dseg.nii.gz
    """
    setup(threads, verbose, quiet)
    from cfgen.batch.lists import write_lists
    from cfgen.bundle import read_bundle
    from cfgen.data.conditions import default_schema
    from cfgen.data.manifest import read_manifest
    from cfgen.data.table import write_table
    from cfgen.device import pick_device
    from cfgen.jobs import segment as segment_scans
    from cfgen.jobs.counterfactuals import folder_rows, single_row
    from cfgen.jobs.label_files import LabelFiles, name_files
    from cfgen.scan.gate import Gate

    one_source("segment", image, manifest)
    single = image is not None and not image.is_dir()
    if manifest is not None:
        rows = read_manifest(manifest, default_schema(), keep_missing=True)
    else:
        assert image is not None
        rows = [single_row(image, None)] if single else folder_rows(image)
    files = name_files(rows, LabelFiles(out, posteriors, not no_picture, mask), single)
    if seg is None and (seg_posteriors or seg_volumes or seg_qc):
        raise UsageError("segment", "--seg-posteriors, --seg-volumes or --seg-qc alone", "--seg")
    if seg is not None and posteriors is not None:
        raise UsageError("--posteriors", "beside --seg, which has its own", "one of them")
    model = read_bundle(bundle)
    if seg is not None:
        regions = segment_scans.by_other_tool(seg, seg_posteriors, seg_volumes, seg_qc)
    else:
        regions = segment_scans.by_segmenter(model, pick_device(device))
    outcome = segment_scans.segment_scans(
        regions,
        rows,
        files,
        Gate(model.card, force),
        source="" if seg else f"segmenter {model.part('segmenter').sha256}",
        keep_going=not single,
        overwrite=overwrite,
    )
    if volumes is not None:
        write_table(volumes, [line for scan in outcome.done for line in scan.volumes])
    if qc is not None:
        write_table(qc, [scan.quality for scan in outcome.done])
    if not single:
        write_lists(out, [scan.row for scan in outcome.done], outcome.failed, rows)
    print_paths([str(scan.row.labels) for scan in outcome.done], as_json)
    end_batch(len(outcome.failed), len(outcome.left), manifest or image)
