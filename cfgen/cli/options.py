"""Options that several commands share, once; and what their combinations mean."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from cfgen import config
from cfgen.cli.config_file import read_config
from cfgen.errors import UsageError

DEFAULT_BUNDLE = Path(__file__).parents[1] / "bundles" / "default"

Bundle = Annotated[
    Path, typer.Option("--bundle", help="Model bundle.", show_default="the shipped one")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=read_config,
        is_eager=True,
        help='TOML file of options: age = ["+30"]. Those on the command line win.',
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 takes all.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random number.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but warnings.")]
In = Annotated[Path | None, typer.Option("--in", "-i", help="One scan (.nii, .nii.gz, .mgz).")]
Manifest = Annotated[
    Path | None,
    typer.Option("--manifest", help="CSV or TSV with a row a scan, or a BIDS folder."),
]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="Brain mask or label map on the scan's grid.")
]
Strip = Annotated[
    str,
    typer.Option(
        "--skull-strip",
        help=f"How the brain is found: {', '.join(get_args(config.SkullStrip))} or mask:FILE.",
    ),
]
Grid = Annotated[str, typer.Option("--grid", help=f"Model grid: {' or '.join(config.GRIDS)}.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on with scans that the gate refuses; recorded.")
]
From = Annotated[str, typer.Option("--from", help="What is known of the scan: age=62,sex=F.")]
Rates = Annotated[
    config.Rates,
    typer.Option(
        "--rates", help="cohort: as people of different age differ; within: as one changes."
    ),
]
Decoder = Annotated[
    config.DecoderKind,
    typer.Option(
        "--decoder", help="What decodes latents: the autoencoder's own, or a diffusion model."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, compute nothing.")]
Drift = Annotated[
    str | None,
    typer.Option(
        "--drift",
        help="Latent drift a step: 0.02, or one a channel; noise:0.02: by the share of noise; 0: "
        "none.",
        show_default="the bundle's own",
    ),
]
Shard = Annotated[
    str, typer.Option("--shard", help="I/N: the I-th of N parts, from 1; auto: of a Slurm array.")
]
NoPicture = Annotated[bool, typer.Option("--no-picture", help="Write no PNG.")]

# Training.
TrainManifest = Annotated[
    Path,
    typer.Option("--manifest", help="Prepared scans ('cfgen preprocess') with a split column."),
]
OutBundle = Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle to write.")]
SourceBundle = Annotated[Path, typer.Option("--bundle", help="Bundle to which the part is added.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Training steps.")]
Rate = Annotated[float, typer.Option("--learning-rate", min=0, help="Its highest value.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Examples a step.")]
# The same, where a preset says what is usual.
Preset = Annotated[
    str, typer.Option("--preset", help=f"Networks and training: {' or '.join(config.PRESETS)}.")
]
_OWN = "the preset's"
PresetSteps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Training steps.", show_default=_OWN)
]
PresetRate = Annotated[
    float | None,
    typer.Option("--learning-rate", min=0, help="Its highest value.", show_default=_OWN),
]
PresetBatch = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Examples a step.", show_default=_OWN)
]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Keep less in memory; a fifth to a third more time.")
]
TryOut = Annotated[
    bool,
    typer.Option("--dry-run", help="Check, run two steps, say what they take, and write nothing."),
]


def preset_of(name: str) -> config.Preset:
    if name not in config.PRESETS:
        raise UsageError("--preset", f"'{name}'", " or ".join(config.PRESETS))
    return config.PRESETS[name]


def fit_of(
    usual: config.FitConfig,
    seed: int,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
) -> config.FitConfig:
    """A stage's settings with those that were given."""
    given = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size}
    known = {name: value for name, value in given.items() if value is not None}
    return replace(usual, seed=seed, **known)  # type: ignore[arg-type]


def drift_of(text: str | None) -> str | None:
    """Itself, which says a drift or leaves it to the bundle. Raises UsageError."""
    if text is not None:
        from cfgen.diffusion.drift import parse_drift

        parse_drift(text)
    return text


def skull_strip(text: str, mask: Path | None) -> tuple[config.SkullStrip, Path | None]:
    """'mask:FILE' is the same as --mask FILE."""
    if text.startswith("mask:"):
        if mask is not None:
            raise UsageError("--skull-strip", f"'{text}' and --mask {mask}", "one of them")
        return config.SKULL_STRIP, Path(text.removeprefix("mask:"))
    for method in get_args(config.SkullStrip):
        if text == method:
            return method, mask
    expected = ", ".join(get_args(config.SkullStrip)) + " or mask:FILE"
    raise UsageError("--skull-strip", f"'{text}'", expected)


def shard_of(text: str, n: int) -> tuple[int, int]:
    """'2/4' of n -> the numbers from which and before which the second quarter lies."""
    if text == "auto":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        task, first, parts = (os.environ.get(name, "") for name in names)
        if not (task.isdigit() and first.isdigit() and parts.isdigit()):
            raise UsageError("--shard", "'auto' outside of a Slurm array", "I/N, for example 2/4")
        text = f"{int(task) - int(first) + 1}/{parts}"
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UsageError("--shard", f"'{text}'", "I/N, for example 2/4, or auto")
    return n * (int(part) - 1) // int(parts), n * int(part) // int(parts)


def one_source(command: str, image: Path | None, manifest: Path | None) -> None:
    if (image is None) == (manifest is None):
        problem = "neither --in nor --manifest" if image is None else "both --in and --manifest"
        raise UsageError(command, problem, "one of them")
