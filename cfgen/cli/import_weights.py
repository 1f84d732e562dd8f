"""`cfgen import-weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen.cli.options import Config, OutBundle, Overwrite, Quiet, Verbose
from cfgen.cli.show import setup
from cfgen.config import DEFAULT_GRID, GRIDS
from cfgen.errors import UsageError
from cfgen.nets.untold import UNTOLD


def import_weights(
    out: OutBundle,
    autoencoder: Annotated[
        Path | None,
        typer.Option("--autoencoder", help="AutoencoderKL: .safetensors, .pt, .pth or .ckpt."),
    ] = None,
    unet: Annotated[
        Path | None, typer.Option("--unet", help="DiffusionModelUNet, of the same file types.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Bundle whose grid, conditions and other parts are kept."),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            help=f"Model grid: {' or '.join(GRIDS)}.",
            show_default=f"{DEFAULT_GRID}, or that of --bundle",
        ),
    ] = None,
    network_config: Annotated[
        Path | None,
        typer.Option(
            "--network-config",
            help="JSON or TOML with MONAI's arguments: a bundle's, or under autoencoder, unet and "
            "scheduler. Options win.",
        ),
    ] = None,
    norm_groups: Annotated[
        int | None,
        typer.Option(
            "--norm-groups",
            min=1,
            help="Groups of every norm.",
            show_default=str(UNTOLD.norm_groups),
        ),
    ] = None,
    norm_eps: Annotated[
        float | None,
        typer.Option(
            "--norm-eps", min=0, help="Epsilon of every norm.", show_default=str(UNTOLD.norm_eps)
        ),
    ] = None,
    head_channels: Annotated[
        str | None,
        typer.Option(
            "--head-channels",
            help="Channels of an attention head of the UNet: 32, or one a level: 0,512,768.",
            show_default=str(UNTOLD.head_channels[0]),
        ),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option("--prediction", help="eps, v or z0.", show_default=UNTOLD.prediction),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="linear, scaled_linear or cosine.",
            show_default=UNTOLD.schedule,
        ),
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            "--timesteps", min=1, help="Noise levels.", show_default=str(UNTOLD.timesteps)
        ),
    ] = None,
    beta_start: Annotated[
        float | None,
        typer.Option(
            "--beta-start",
            min=0,
            max=1,
            help="First beta of the two linear schedules.",
            show_default=str(UNTOLD.beta_start),
        ),
    ] = None,
    beta_end: Annotated[
        float | None,
        typer.Option(
            "--beta-end",
            min=0,
            max=1,
            help="Last beta of the two linear schedules.",
            show_default=str(UNTOLD.beta_end),
        ),
    ] = None,
    scale_factor: Annotated[
        float | None,
        typer.Option(
            "--scale-factor",
            help="What latents were multiplied by for the UNet.",
            show_default=str(UNTOLD.scale_factor),
        ),
    ] = None,
    about: Annotated[
        Path | None, typer.Option("--about", help="JSON that names data, licence, attribution.")
    ] = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Make a bundle of networks that were trained with MONAI.

    Channels, levels, attention, latent and context are read off the tensors; the options below are
    what the tensors do not tell, and must be those of the training.

    cfgen import-weights --autoencoder ae.pt --unet unet.pt --out imported/
    """
    setup(0, verbose, quiet)
    given = {
        "norm_groups": norm_groups,
        "norm_eps": norm_eps,
        "head_channels": None if head_channels is None else _numbers(head_channels),
        "prediction": prediction,
        "schedule": schedule,
        "timesteps": timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "scale_factor": scale_factor,
    }
    from cfgen.jobs.import_weights import import_weights
    from cfgen.jobs.train_autoencoder import read_about

    known = {name: value for name, value in given.items() if value is not None}
    model = import_weights(
        out, autoencoder, unet, known, bundle, grid, network_config, read_about(about), overwrite
    )
    print(model.path)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError("--head-channels", f"'{text}'", "32, or 0,512,768") from error
