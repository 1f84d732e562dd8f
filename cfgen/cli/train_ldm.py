"""`cfgen train-ldm`."""

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
    TrainManifest,
    Verbose,
    fit_of,
)
from cfgen.cli.show import setup
from cfgen.errors import UsageError


def train_ldm(
    manifest: TrainManifest,
    bundle: SourceBundle,
    out: OutBundle,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose diffusion model the training goes on from."),
    ] = None,
    latent_mean: Annotated[
        str,
        typer.Option("--latent-mean", help="ridge, or none for the papers' plain diffusion."),
    ] = "ridge",
    latent_scale: Annotated[
        cfg.LatentScale,
        typer.Option(
            "--latent-scale", help="What latents are divided by: a spread a channel, or one."
        ),
    ] = cfg.LATENT_SCALE,
    prediction: Annotated[
        cfg.Prediction, typer.Option("--prediction", help="What the network says: v or eps.")
    ] = cfg.PREDICTION,
    noise_shift: Annotated[
        float,
        typer.Option(
            "--noise-shift",
            help="How many times noisier every time is than on the usual schedule; more for larger "
            "latents.",
        ),
    ] = cfg.NOISE_SHIFT,
    loss_weights: Annotated[
        cfg.LossWeights,
        typer.Option("--loss-weights", help="How noise levels count: uniform or min-snr."),
    ] = cfg.LOSS_WEIGHTS,
    conditioning: Annotated[
        cfg.Conditioning,
        typer.Option(
            "--conditioning",
            help="How conditions come in: attention (cross-attention), norm (adaptive group norm "
            "in every block) or both.",
        ),
    ] = cfg.CONDITIONING,
    steps: Steps = cfg.LATENT_DIFFUSION_FIT.steps,
    learning_rate: Rate = cfg.LATENT_DIFFUSION_FIT.learning_rate,
    batch_size: Batch = cfg.LATENT_DIFFUSION_FIT.batch_size,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Add the latent mean and the diffusion model to a bundle that has an autoencoder."""
    setup(threads, verbose, quiet)
    from cfgen.data.names import check_folder

    check_folder(out)
    if latent_mean not in ("ridge", "none"):
        raise UsageError("--latent-mean", f"'{latent_mean}'", "ridge or none")
    from cfgen.jobs.train_latent_diffusion import diffusion_config, train_latent_diffusion

    fit = fit_of(cfg.LATENT_DIFFUSION_FIT, seed, steps, learning_rate, batch_size)
    diffusion = diffusion_config(
        latent_mean == "ridge", latent_scale, prediction, noise_shift, loss_weights, conditioning
    )
    print(train_latent_diffusion(manifest, bundle, out, fit, device, diffusion, init).path)
