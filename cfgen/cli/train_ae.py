"""`cfgen train-ae`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    Batch,
    Config,
    Device,
    Grid,
    OutBundle,
    Quiet,
    Rate,
    Seed,
    Steps,
    Threads,
    TrainManifest,
    Verbose,
    fit_of,
)
from cfgen.cli.show import print_bundle, setup


def train_ae(
    manifest: TrainManifest,
    out: OutBundle,
    grid: Grid = cfg.DEFAULT_GRID,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose autoencoder the training goes on from."),
    ] = None,
    conditions: Annotated[
        str,
        typer.Option("--conditions", help="Columns to learn beside age and sex: ad,field_tesla."),
    ] = "",
    about: Annotated[
        Path | None, typer.Option("--about", help="JSON that names data, licence, attribution.")
    ] = None,
    steps: Steps = cfg.AUTOENCODER_FIT.steps,
    learning_rate: Rate = cfg.AUTOENCODER_FIT.learning_rate,
    batch_size: Batch = cfg.AUTOENCODER_FIT.batch_size,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Train the autoencoder of a new bundle.

    The checkpoint, log and pictures lie beside the bundle in OUT-training. The same command goes on
    after an interruption.
    """
    setup(threads, verbose, quiet)
    from cfgen.data.names import check_folder

    check_folder(out)
    from cfgen.jobs.train_autoencoder import read_about, train_autoencoder

    fit = fit_of(cfg.AUTOENCODER_FIT, seed, steps, learning_rate, batch_size)
    recipe = cfg.Preprocess(grid=grid)
    names = [name for name in conditions.split(",") if name]
    bundle = train_autoencoder(manifest, out, recipe, fit, device, read_about(about), init, names)
    print_bundle(bundle.path)
