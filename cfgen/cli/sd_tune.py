"""`cfgen sd-tune`."""

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
    Overwrite,
    Quiet,
    Seed,
    Threads,
    TryOut,
    Verbose,
    fit_of,
)
from cfgen.cli.sd_options import Model, Slices
from cfgen.cli.show import print_paths, print_trial, setup
from cfgen.errors import UsageError

_OWN = "the scheme's"


def sd_tune(
    model: Model,
    manifest: Annotated[
        Path,
        typer.Option("--manifest", help="Scans with a split column; age, sex, diagnosis if known."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model to write.")],
    tune: Annotated[
        cfg.SdScheme,
        typer.Option(
            "--tune",
            help="Which weights: full (the network), cross-attn (Custom Diffusion), condition "
            "(Textual Inversion), prior (DreamBooth) or lora.",
        ),
    ] = "full",
    drift: Annotated[
        str | None,
        typer.Option(
            "--drift",
            help="Latent drift: a number from -1 to 1, or one a channel; auto: the best of a grid "
            "by L1 to the val slices, if it is better than none.",
            show_default="the parent's",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Train InstructPix2Pix to age, on visits of one person."),
    ] = False,
    prompts: Annotated[
        cfg.PromptKind | None,
        typer.Option(
            "--prompts", help="simple (one) or diverse (one of 21).", show_default="diverse"
        ),
    ] = None,
    no_patient: Annotated[
        bool, typer.Option("--no-patient", help="Prompts without age, sex and diagnosis.")
    ] = False,
    age_words: Annotated[
        cfg.AgeWords,
        typer.Option(
            "--age-words", help="number (77), word (seventy-seven), or with --pairs binned."
        ),
    ] = "number",
    prior_samples: Annotated[
        int | None,
        typer.Option(
            "--prior-samples",
            min=1,
            help="With --tune prior: so many slices of the parent's.",
            show_default=str(cfg.SD_PRIOR_SAMPLES),
        ),
    ] = None,
    slices: Slices = cfg.SD_SLICES,
    slices_per_scan: Annotated[
        int, typer.Option("--slices-per-scan", min=1, help="So many of them, at even distances.")
    ] = cfg.SD_SLICES_PER_SCAN,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps.", show_default=_OWN)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", min=0, help="Its highest value.", show_default=_OWN),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Slices a step.", show_default=_OWN),
    ] = None,
    checkpointing: Checkpointing = False,
    dry_run: TryOut = False,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Fine-tune Stable Diffusion on axial slices, with latent drift (needs the extra cfgen[sd]).

    MODEL is a folder on this machine; nothing is downloaded. OUT is one that diffusers opens too;
    checkpoint and log lie beside it in OUT-training, and the same command goes on from there.

    Examples:

      cfgen sd-tune --model sd-v1-4/ --manifest cohort.csv --tune cross-attn --drift 0.1 --out mri/

      cfgen sd-tune --model mri/ --manifest visits.csv --pairs --age-words word --out ageing/

      cfgen sd-tune --model sd-v1-4/ --manifest cohort.csv --out mri/ --dry-run
    """
    setup(threads, verbose, quiet)
    from dataclasses import asdict

    from cfgen.sd.extra import require_extra

    require_extra()
    from cfgen.diffusion.drift import parse_drift
    from cfgen.jobs.sd_tune import Options, try_sd_tune
    from cfgen.jobs.sd_tune import sd_tune as train
    from cfgen.sd.prompts import Style
    from cfgen.sd.slices import parse_range

    if pairs and (prompts or no_patient):
        given = "--prompts" if prompts else "--no-patient"
        raise UsageError(given, "with --pairs", "none: an instruction has one wording")
    if prior_samples and tune != "prior":
        raise UsageError("--prior-samples", f"with --tune {tune}", "--tune prior")
    if age_words == "binned" and not pairs:
        found = "'binned', which is of a change of age"
        raise UsageError("--age-words", found, "number or word", "binned is for --pairs")
    if pairs and drift == "auto":
        expected = "a number, or the drift of --model, found before without --pairs"
        raise UsageError("--drift auto", "with --pairs", expected)
    style = Style(prompts or "diverse", not no_patient, age_words)
    parse_range(slices)
    options = Options(
        tune=tune,
        drift=None if drift is None else "auto" if drift == "auto" else parse_drift(drift),
        style=style,
        slices=slices,
        pairs=pairs,
        slices_per_scan=slices_per_scan,
        prior_samples=prior_samples or cfg.SD_PRIOR_SAMPLES,
        checkpointing=checkpointing,
        overwrite=overwrite,
    )
    fit = fit_of(cfg.SD_FITS[tune], seed, steps, learning_rate, batch_size)
    if dry_run:
        trial = try_sd_tune(model, manifest, fit, device, options)
        print_trial(trial.text(), asdict(trial), as_json)
        return
    print_paths([str(train(model, manifest, out, fit, device, options))], as_json)
