"""`cfgen train-predictor`."""

from __future__ import annotations

from pathlib import Path
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

# The ridge predictor has nothing to set.
_JUDGE, _TISSUES = cfg.JUDGE_FIT, cfg.TISSUES_FIT
SEGMENTATION = "segmentation"


def train_predictor(
    manifest: TrainManifest,
    bundle: SourceBundle,
    out: OutBundle,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Train the judge of age, sex, another column (numbers, or 2 to 10 texts), or "
            "volumes: the regions of the label maps; repeatable. segmentation, alone: grey matter, "
            "white matter and CSF of the label maps.",
        ),
    ] = None,
    networks: Annotated[
        int | None,
        typer.Option(
            "--networks", min=1, help="Networks of the judge.", show_default=str(cfg.JUDGE_NETWORKS)
        ),
    ] = None,
    augmentation: Annotated[
        cfg.TissueAugmentation | None,
        typer.Option(
            "--augmentation",
            help="Of segmentation: none, or plain (gamma, bias field, noise).",
            show_default="none",
        ),
    ] = None,
    augmented: Annotated[
        list[Path] | None,
        typer.Option(
            "--augmented",
            help="Of segmentation: manifest of counterfactual scans of the train people, drawn "
            "beside their own; repeatable.",
        ),
    ] = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(
            "--test",
            help="Of segmentation: manifest of scans with labels to report Dice on; repeatable.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Of segmentation: bundle whose network the training goes on from, as with "
            "counterfactuals of scans that it knows.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Training steps.",
            show_default=f"{_JUDGE.steps}, of segmentation {_TISSUES.steps}",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            min=0,
            help="Its highest value.",
            show_default=f"{_JUDGE.learning_rate}, of segmentation {_TISSUES.learning_rate}",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Scans a step.",
            show_default=f"{_JUDGE.batch_size}, of segmentation {_TISSUES.batch_size}",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    seed: Seed = cfg.SEED,
    verbose: Verbose = False,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Add the predictor of conditions, or with --target a judge or a segmentation network.

    The predictor (ridge, seconds) guesses age and sex of a scan for which nobody says them. The
    judge (a few CNNs that differ by seed, minutes) guesses the targets from images that were
    edited, to say whether the edit arrived: numbers by squared error, texts by cross-entropy
    weighted by how rare they are; a value that is missing is left out of the loss. The network of
    --target segmentation learns the tissues of one study's label maps, to be tried on another's.
    All see the train split alone; the judge leaves synthetic rows out; judge and segmentation need
    val scans, and print their own error on them.

    Examples:

      cfgen train-predictor --manifest prepared/manifest.csv --bundle ae/ --out ae-predictor/

      cfgen train-predictor --manifest prepared/manifest.csv --target age --target sex \\
        --target volumes --bundle whole/ --out judged/

      cfgen train-predictor --manifest prepared/manifest.csv --target Manufacturer \\
        --target MagneticFieldStrength --target EchoTime --bundle whole/ --out judged/

      cfgen train-predictor --manifest siemens.csv --target segmentation --test ge.csv \\
        --augmented edited/manifest.csv --bundle whole/ --out segmenting/

      cfgen train-predictor --manifest siemens.csv --target segmentation --init segmenting/ \
        --augmented edited/manifest.csv --steps 400 --bundle whole/ --out widened/
    """
    setup(threads, verbose, quiet)
    from cfgen.data.names import check_folder

    check_folder(out)
    targets, fit = target or [], (seed, steps, learning_rate, batch_size)
    if SEGMENTATION in targets:
        if len(set(targets)) > 1 or networks:
            found = "--networks" if networks else f"together with {' and '.join(targets)}"
            raise UsageError("--target segmentation", found, "segmentation alone: one network")
        from cfgen.jobs.train_tissues import Manifests, train_tissues

        manifests = Manifests(manifest, augmented or [], test or [])
        tissues = fit_of(_TISSUES, *fit)
        how = augmentation or "none"
        network = train_tissues(manifests, bundle, out, tissues, device, how, init)
        print_bundle(network.path)
        return
    if augmentation or augmented or test or init:
        raise UsageError(
            "train-predictor",
            "--augmentation, --augmented, --test or --init without --target segmentation",
            "--target segmentation: they are of its network",
        )
    if not targets:
        if networks or steps or learning_rate or batch_size:
            options = "--networks, --steps, --learning-rate or --batch-size without --target"
            raise UsageError("train-predictor", options, "--target: they are the judge's")
        from cfgen.jobs.train_predictor import train_predictor as predictor

        print_bundle(predictor(manifest, bundle, out).path)
        return
    from cfgen.jobs.train_judge import train_judge

    count = networks or cfg.JUDGE_NETWORKS
    judge = fit_of(_JUDGE, *fit)
    print_bundle(train_judge(manifest, targets, bundle, out, judge, device, count).path)
