"""`cfgen train-predictor`."""

from __future__ import annotations

from typing import Annotated

import typer

from cfgen import config as cfg
from cfgen.cli.options import (
    Config,
    Device,
    OutBundle,
    Quiet,
    Seed,
    SourceBundle,
    Threads,
    TrainManifest,
    Verbose,
    fit_of,
)
from cfgen.cli.show import print_bundle, setup
from cfgen.errors import UsageError

# The judge's; the ridge predictor has nothing to set.
_JUDGE = cfg.JUDGE_FIT


def train_predictor(
    manifest: TrainManifest,
    bundle: SourceBundle,
    out: OutBundle,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Train the judge of age, sex, another column (numbers, or 2 to 10 texts), or "
            "volumes: the regions of the label maps; repeatable.",
        ),
    ] = None,
    networks: Annotated[
        int | None,
        typer.Option(
            "--networks", min=1, help="Networks of the judge.", show_default=str(cfg.JUDGE_NETWORKS)
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Training steps.", show_default=str(_JUDGE.steps)),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            min=0,
            help="Its highest value.",
            show_default=str(_JUDGE.learning_rate),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Scans a step.", show_default=str(_JUDGE.batch_size)
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Add the predictor of conditions, or with --target the judge of counterfactuals.

    The predictor (ridge, seconds) guesses age and sex of a scan for which nobody says them. The
    judge (a few CNNs that differ by seed, minutes) guesses the targets from images that were
    edited, to say whether the edit arrived. Both see the train split alone; the judge leaves
    synthetic rows out, needs val scans, and prints its own error on them.

    Examples:

      cfgen train-predictor --manifest prepared/manifest.csv --bundle ae/ --out ae-predictor/

      cfgen train-predictor --manifest prepared/manifest.csv --target age --target sex \\
        --target volumes --bundle whole/ --out judged/
    """
    setup(threads, verbose, quiet)
    from cfgen.data.names import check_folder

    check_folder(out)

    if not target:
        if networks or steps or learning_rate or batch_size:
            options = "--networks, --steps, --learning-rate or --batch-size without --target"
            raise UsageError("train-predictor", options, "--target: they are the judge's")
        from cfgen.jobs.train_predictor import train_predictor as predictor

        print_bundle(predictor(manifest, bundle, out).path)
        return
    fit = fit_of(cfg.JUDGE_FIT, seed, steps, learning_rate, batch_size)
    from cfgen.jobs.train_judge import train_judge

    count = networks or cfg.JUDGE_NETWORKS
    print_bundle(train_judge(manifest, target, bundle, out, fit, device, count).path)
