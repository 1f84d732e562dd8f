"""`cfgen finetune-cycle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    AsJson,
    Batch,
    Checkpointing,
    Config,
    Device,
    OutBundle,
    Quiet,
    Rate,
    Seed,
    Steps,
    Threads,
    TrainManifest,
    TryOut,
    Verbose,
    fit_of,
)
from cfgen.cli.show import print_bundle, print_trial, setup
from cfgen.errors import UsageError


def finetune_cycle(
    manifest: TrainManifest,
    bundle: Annotated[
        Path, typer.Option("--bundle", help="Bundle whose diffusion model is trained on.")
    ],
    out: OutBundle,
    weight: Annotated[
        float, typer.Option("--lambda", help="How much the cycle counts beside the noise.")
    ] = cfg.CYCLE.weight,
    first_term: Annotated[
        cfg.FirstTerm,
        typer.Option(
            "--first-term",
            help="Under which condition a scan's own noise is asked for: factual, or target as "
            "CDM's Eq. 2 is printed, which teaches a network to ignore its conditions.",
        ),
    ] = cfg.CYCLE.first_term,
    times: Annotated[
        str,
        typer.Option("--times", help="Noise levels of the cycle, as fractions: 0:1."),
    ] = f"{cfg.CYCLE.t_low:g}:{cfg.CYCLE.t_high:g}",
    steps: Steps = cfg.CYCLE_FIT.steps,
    learning_rate: Rate = cfg.CYCLE_FIT.learning_rate,
    batch_size: Batch = cfg.CYCLE_FIT.batch_size,
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
    """Fine-tune the diffusion model of a bundle with the cycle (CDM, Eq. 1-2).

    Every scan is taken to another condition of the training scans and back. The new bundle differs
    from its source in the UNet alone; log, checkpoint and pictures lie beside it in OUT-training.
    The same command goes on after an interruption. Under torchrun several processes share each
    batch.

    cfgen finetune-cycle --manifest prepared/manifest.csv --bundle bundle/ --out cycle/
    """
    setup(threads, verbose, quiet)
    from dataclasses import asdict

    from cfgen.data.names import check_folder

    check_folder(out)
    from cfgen.jobs.finetune_cycle import finetune_cycle, try_cycle

    low, high = _times(times)
    cycle = cfg.Cycle(weight, first_term, low, high)
    fit = fit_of(cfg.CYCLE_FIT, seed, steps, learning_rate, batch_size)
    if dry_run:
        trial = try_cycle(manifest, bundle, fit, device, cycle, checkpointing=checkpointing)
        print_trial(trial.text(), asdict(trial), as_json)
        return
    made = finetune_cycle(manifest, bundle, out, fit, device, cycle, checkpointing=checkpointing)
    print_bundle(made.path)


def _times(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        expected = "two fractions of the noise levels, 0:1"
        raise UsageError("--times", f"'{text}'", expected) from error
