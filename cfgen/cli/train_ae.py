"""`cfgen train-ae`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    AsJson,
    Checkpointing,
    Config,
    Device,
    OutBundle,
    Preset,
    PresetBatch,
    PresetRate,
    PresetSteps,
    Quiet,
    Seed,
    Threads,
    TrainManifest,
    TryOut,
    Verbose,
    fit_of,
    preset_of,
)
from cfgen.cli.show import print_bundle, print_trial, setup
from cfgen.errors import UsageError


def train_ae(
    manifest: TrainManifest,
    out: OutBundle,
    preset: Preset = cfg.DEFAULT_GRID,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            help=f"Model grid: {' or '.join(cfg.GRIDS)}.",
            show_default="the preset's",
        ),
    ] = None,
    arch: Annotated[
        cfg.Arch,
        typer.Option(
            "--arch", help="plain, or causal along the slices (PCGM), its planes permuted."
        ),
    ] = "plain",
    lpips: Annotated[
        Path | None,
        typer.Option(
            "--lpips",
            help="With --arch causal: folder with vgg16.pth (torchvision) and lpips_vgg.pth (the "
            "lpips package's vgg.pth), for the perceptual term of the loss.",
        ),
    ] = None,
    decoder: Annotated[
        cfg.DecoderKind,
        typer.Option(
            "--decoder",
            help="diffusion: train a diffusion decoder for the autoencoder of --init, instead.",
        ),
    ] = "kl",
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose autoencoder the training goes on from."),
    ] = None,
    tune: Annotated[
        cfg.TuneAutoencoder | None,
        typer.Option(
            "--tune",
            help="Bring the bundle of --init to a few scans of another scanner: decoder (latents "
            "stay what they are) or all of its autoencoder.",
        ),
    ] = None,
    conditions: Annotated[
        str,
        typer.Option("--conditions", help="Columns to learn beside age and sex: ad,field_tesla."),
    ] = "",
    about: Annotated[
        Path | None, typer.Option("--about", help="JSON that names data, licence, attribution.")
    ] = None,
    steps: PresetSteps = None,
    learning_rate: PresetRate = None,
    batch_size: PresetBatch = None,
    checkpointing: Checkpointing = False,
    dry_run: TryOut = False,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Train the autoencoder of a new bundle.

    The checkpoint, log and pictures lie beside the bundle in OUT-training. The same command goes on
    after an interruption. Under torchrun several processes share each batch.

    Examples:

      cfgen train-ae --manifest prepared/manifest.csv --out ae/

      cfgen train-ae --manifest prepared/manifest.csv --preset cdm-1mm --out ae/ --dry-run

      cfgen train-ae --manifest prepared/manifest.csv --arch causal --out causal/

      cfgen train-ae --manifest prepared/manifest.csv --decoder diffusion --init bundle/ \\
        --out sharp/

      cfgen train-ae --manifest few.csv --init bundle/ --tune decoder --out ours/
    """
    setup(threads, verbose, quiet)
    from dataclasses import asdict

    from cfgen.data.names import check_folder

    usual = preset_of(preset)
    check_folder(out)
    if lpips is not None and arch != "causal":
        raise UsageError("--lpips", f"with --arch {arch}", "--arch causal")
    if tune is not None:
        if init is None:
            raise UsageError("--tune", "no --init", "the bundle that is to be adapted")
        if arch != "plain" or grid or conditions or about or lpips or decoder != "kl":
            problem = "--arch, --grid, --conditions, --about, --lpips or --decoder beside it"
            raise UsageError("--tune", problem, "none: they are those of --init")
        from cfgen.jobs import adapt_autoencoder as job

        few = job.Asked(manifest, init, tune, preset, checkpointing)
        how = fit_of(cfg.ADAPT_AUTOENCODER_FIT, seed, steps, learning_rate, batch_size)
        if dry_run:
            trial = job.try_adapt_autoencoder(few, how, device)
            print_trial(trial.text(), asdict(trial), as_json)
            return
        print_bundle(job.adapt_autoencoder(few, out, how, device).path)
        return
    if decoder == "diffusion":
        if init is None:
            raise UsageError("--decoder diffusion", "no --init", "a bundle with an autoencoder")
        if arch != "plain" or grid or conditions or about:
            problem = "--arch, --grid, --conditions or --about beside it"
            raise UsageError("--decoder diffusion", problem, "none: they are those of --init")
        from cfgen.jobs.train_decoder import train_decoder, try_decoder

        how = fit_of(usual.decoder, seed, steps, learning_rate, batch_size)
        if dry_run:
            trial = try_decoder(manifest, init, how, device, preset, checkpointing=checkpointing)
            print_trial(trial.text(), asdict(trial), as_json)
            return
        bundle = train_decoder(
            manifest, init, out, how, device, preset, checkpointing=checkpointing
        )
        print_bundle(bundle.path)
        return
    from cfgen.jobs.train_autoencoder import Asked, read_about, train_autoencoder, try_autoencoder

    fit = usual.causal_autoencoder if arch == "causal" else usual.autoencoder
    asked = Asked(
        manifest,
        cfg.Preprocess(grid=grid or usual.grid),
        fit_of(fit, seed, steps, learning_rate, batch_size),
        preset,
        init,
        [name for name in conditions.split(",") if name],
        checkpointing,
        arch,
        lpips,
    )
    if dry_run:
        trial = try_autoencoder(asked, device)
        print_trial(trial.text(), asdict(trial), as_json)
        return
    print_bundle(train_autoencoder(asked, out, device, read_about(about)).path)
