"""Options that the commands of Stable Diffusion share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg

Model = Annotated[
    Path, typer.Option("--model", help="Folder of Stable Diffusion, tuned by sd-tune or not.")
]
Drift = Annotated[
    str | None,
    typer.Option(
        "--drift",
        help="Of every reverse step: a number from -1 to 1, or one a channel.",
        show_default="what the model was trained with",
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of the sampler.")]
Guidance = Annotated[
    float, typer.Option("--guidance", help="Classifier-free guidance weight, above 1.")
]
Sampler = Annotated[
    cfg.SdSampler,
    typer.Option("--sampler", help="ddim or ddpm; Pix2Pix-Zero knows ddim alone."),
]
Slices = Annotated[
    str, typer.Option("--slices", help="Which axial slices: percent of the way up, from:to.")
]
