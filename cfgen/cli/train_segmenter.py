"""`cfgen train-segmenter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    Batch,
    Config,
    Device,
    OutBundle,
    Quiet,
    Rate,
    Seed,
    SourceBundle,
    Steps,
    Threads,
    Verbose,
    fit_of,
)
from cfgen.cli.show import print_bundle, setup


def train_segmenter(
    manifest: Annotated[
        Path,
        typer.Option("--manifest", help="Whole heads with label maps of the brain, and splits."),
    ],
    label_maps: Annotated[
        Path,
        typer.Option("--label-maps", help="Folder of whole-head label maps, FreeSurfer codes."),
    ],
    bundle: SourceBundle,
    out: OutBundle,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose segmenter the training goes on from."),
    ] = None,
    steps: Steps = cfg.SEGMENTER_FIT.steps,
    learning_rate: Rate = cfg.SEGMENTER_FIT.learning_rate,
    batch_size: Batch = cfg.SEGMENTER_FIT.batch_size,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Add brain extraction and regions to a bundle, learned from painted and real heads."""
    setup(threads, verbose, quiet)
    from cfgen.data.names import check_folder

    check_folder(out)
    from cfgen.jobs.train_segmenter import train_segmenter

    fit = fit_of(cfg.SEGMENTER_FIT, seed, steps, learning_rate, batch_size)
    print_bundle(train_segmenter(manifest, label_maps, bundle, out, fit, device, init).path)
