"""`cfgen train-ldm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

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

if TYPE_CHECKING:
    from cfgen.jobs.adapt import Asked

# Of --conditions: not columns by name, but all that says how a scan was acquired.
ACQUISITION = "acquisition"


def train_ldm(
    manifest: TrainManifest,
    out: OutBundle,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Bundle to which the part is added; not with --tune."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Bundle whose diffusion model the training goes on from."),
    ] = None,
    tune: Annotated[
        cfg.Tune | None,
        typer.Option(
            "--tune",
            help="Bring the bundle of --init to a few scans of another scanner: what of its "
            "diffusion model is trained. full: all; cross-attn: keys and values of attention to "
            "conditions; condition: the inputs of --conditions; prior: all, kept near samples of "
            "the parent; lora: low-rank adapters; none: only the latent mean moves.",
        ),
    ] = None,
    drift: Annotated[
        str | None,
        typer.Option(
            "--drift",
            help="With --tune: latent drift a step, 0.02 or one a channel; auto: the best of a "
            "grid by L1 to the val scans, if it is better than none. noise:0.02 and noise:auto: by "
            "the latent's share of noise, with --drift-at inference.",
            show_default="the parent's",
        ),
    ] = None,
    drift_at: Annotated[
        cfg.DriftAt,
        typer.Option("--drift-at", help="Where it acts: training, inference or both."),
    ] = cfg.DRIFT_AT,
    conditions: Annotated[
        str,
        typer.Option(
            "--conditions",
            help="acquisition: how scans were acquired, from the manifest's columns by BIDS' names "
            "(docs/acquisition.md). With --tune: columns to add that the parent does not know: "
            "site,field_tesla.",
        ),
    ] = "",
    slices: Annotated[
        bool,
        typer.Option("--slices", help="With --conditions acquisition: cDDGM's network of slices."),
    ] = False,
    preset: Preset = cfg.DEFAULT_GRID,
    latent_mean: Annotated[
        str | None,
        typer.Option(
            "--latent-mean",
            help="ridge, or none for the papers' plain diffusion. With --tune: shrink (the "
            "parent's, moved in closed form) or keep.",
            show_default="the preset's; with --tune shrink",
        ),
    ] = None,
    latent_scale: Annotated[
        cfg.LatentScale,
        typer.Option(
            "--latent-scale",
            help="What latents are divided by: a spread a channel, or one for "
            "all; voxel: one, and the network is told how much each voxel varies.",
        ),
    ] = cfg.LATENT_SCALE,
    prediction: Annotated[
        cfg.Prediction | None,
        typer.Option(
            "--prediction", help="What the network says: v, eps or z0.", show_default="the preset's"
        ),
    ] = None,
    noise_shift: Annotated[
        float | None,
        typer.Option(
            "--noise-shift",
            help="How many times noisier every time is than on the usual schedule; more for larger "
            "latents.",
            show_default=f"{cfg.NOISE_SHIFT:g}, of acquisitions {cfg.ACQUISITION_NOISE_SHIFT:g}",
        ),
    ] = None,
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
    attention_blocks: Annotated[
        int,
        typer.Option(
            "--attention-blocks",
            min=0,
            help="After the network's way down: attention of all voxels, to the conditions, to the "
            "time. PCGM has 4.",
        ),
    ] = 0,
    control: Annotated[
        cfg.Control | None,
        typer.Option(
            "--control",
            help="Train what takes masks of regions, beside the bundle's diffusion model: masks (a "
            "control network) or concatenate (further channels of its input).",
        ),
    ] = None,
    regions: Annotated[
        str,
        typer.Option(
            "--regions",
            help="With --control: csf,cortex_frontal,...",
            show_default="every structure of the brain",
        ),
    ] = "",
    contrastive: Annotated[
        float,
        typer.Option(
            "--contrastive",
            help="With --control: weight of the term that has a region's mask change the region.",
        ),
    ] = 0.0,
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
    """Add the latent mean and the diffusion model to a bundle that has an autoencoder.

    Checkpoint, latents, log and pictures lie beside the bundle in OUT-training. The same command
    goes on after an interruption. Under torchrun several processes share each batch.

    With --control the bundle keeps its diffusion model and gains a part 'controlnet', which is told
    where regions are, which the bundle's segmenter reads in the scans.

    With --tune a trained bundle comes to 5 to 50 scans of another scanner: its latent mean in
    closed form, its diffusion model by fine-tuning that ends when the val scans gain no more.

    Examples:

      cfgen train-ldm --manifest prepared/manifest.csv --bundle ae/ --out bundle/

      cfgen train-ldm --manifest prepared/manifest.csv --preset cdm-1mm --bundle ae/ --out cdm/ \\
        --checkpointing --dry-run

      cfgen train-ldm --manifest prepared/manifest.csv --bundle bundle/ --out guided/ \\
        --control masks --regions csf,cerebral_wm,cortex_frontal,cortex_parietal

      cfgen train-ldm --manifest few.csv --init bundle/ --tune lora --drift auto --out ours/

      cfgen train-ldm --manifest prepared/manifest.csv --bundle bundle/ --out scanners/ \\
        --conditions acquisition

      torchrun --nproc-per-node 4 -m cfgen.cli train-ldm --manifest prepared/manifest.csv \\
        --bundle ae/ --out bundle/ --batch-size 16
    """
    setup(threads, verbose, quiet)
    from dataclasses import asdict, replace

    from cfgen.data.names import check_folder

    usual = preset_of(preset)
    check_folder(out)
    of_a_new_model = [latent_scale, noise_shift, loss_weights, conditioning, attention_blocks]
    defaults = [cfg.LATENT_SCALE, None, cfg.LOSS_WEIGHTS, cfg.CONDITIONING, 0]
    if tune is not None:
        if init is None:
            raise UsageError("--tune", "no --init", "the bundle that is to be adapted")
        given = {
            "--bundle": bundle is not None,
            "--preset": preset != cfg.DEFAULT_GRID,
            "--control": control is not None,
            "--regions": bool(regions),
            "--contrastive": bool(contrastive),
            "an option of a new diffusion model": bool(prediction) or of_a_new_model != defaults,
        }
        if any(given.values()):
            name = next(n for n, on in given.items() if on)
            raise UsageError("--tune", f"{name} beside it", "none: they are those of --init")
        if latent_mean not in (None, "shrink", "keep"):
            raise UsageError("--latent-mean", f"'{latent_mean}' with --tune", "shrink or keep")
        asked = _adaptation(manifest, init, tune, drift, drift_at, conditions)
        asked = replace(asked, shrink=latent_mean != "keep", checkpointing=checkpointing)
        from cfgen.jobs.adapt import adapt, try_adapt

        # Without a scheme nothing is fitted but the mean: any length will do.
        few = cfg.ADAPT_FITS.get(tune, cfg.ADAPT_FITS["full"])
        fit = fit_of(few, seed, steps, learning_rate, batch_size)
        if dry_run:
            trial = try_adapt(asked, fit, device)
            print_trial(trial.text(), asdict(trial), as_json)
            return
        print_bundle(adapt(asked, out, fit, device).path)
        return
    of_acquisition = conditions == ACQUISITION
    if slices and not of_acquisition:
        raise UsageError("--slices", "without --conditions acquisition", "both")
    if drift is not None or (conditions and not of_acquisition) or drift_at != cfg.DRIFT_AT:
        name = "--drift" if drift is not None else "--conditions" if conditions else "--drift-at"
        raise UsageError(name, "without --tune", f"--tune {' or '.join(get_args(cfg.Tune))}")
    if bundle is None:
        raise UsageError("--bundle", "missing", "the bundle to which the part is added")
    fit = fit_of(usual.latent_diffusion, seed, steps, learning_rate, batch_size)
    if control is not None:
        own = [init, latent_mean, prediction]
        if own != [None, None, None] or of_a_new_model != defaults:
            raise UsageError(
                "--control",
                "an option of the diffusion model beside it",
                "none: the bundle's stays as it is",
            )
        from cfgen.jobs.train_control import ControlConfig, train_control, try_control
        from cfgen.measure.region_masks import parse_regions

        how = ControlConfig(control, parse_regions(regions), contrastive=contrastive)
        if dry_run:
            trial = try_control(manifest, bundle, fit, device, how, checkpointing=checkpointing)
            print_trial(trial.text(), asdict(trial), as_json)
            return
        made = train_control(manifest, bundle, out, fit, device, how, checkpointing=checkpointing)
        print_bundle(made.path)
        return
    if regions or contrastive:
        name = "--regions" if regions else "--contrastive"
        raise UsageError(name, "without --control", "--control masks or concatenate")
    if of_acquisition:
        if init is not None or (slices and latent_mean == "ridge"):
            name = "--init" if init is not None else "--latent-mean ridge with --slices"
            raise UsageError("--conditions acquisition", f"{name} beside it", "none")
        # The paper's is plain.
        latent_mean = latent_mean or "none"
        noise_shift = cfg.ACQUISITION_NOISE_SHIFT if noise_shift is None else noise_shift
    latent_mean = latent_mean or usual.latent_mean
    if latent_mean not in ("ridge", "none"):
        raise UsageError("--latent-mean", f"'{latent_mean}'", "ridge or none")
    from cfgen.jobs.train_latent_diffusion import (
        diffusion_config,
        train_latent_diffusion,
        try_latent_diffusion,
    )

    diffusion = diffusion_config(
        latent_mean == "ridge",
        latent_scale,
        prediction or usual.prediction,
        cfg.NOISE_SHIFT if noise_shift is None else noise_shift,
        loss_weights,
        conditioning,
        preset=preset,
        checkpointing=checkpointing,
        attention_blocks=attention_blocks,
    )
    if of_acquisition:
        from cfgen.jobs.train_acquisition import of_slices, train_acquisition, try_acquisition

        if slices:
            diffusion = of_slices(checkpointing)
        if dry_run:
            trial = try_acquisition(manifest, bundle, fit, device, diffusion)
            print_trial(trial.text(), asdict(trial), as_json)
            return
        print_bundle(train_acquisition(manifest, bundle, out, fit, device, diffusion).path)
        return
    if dry_run:
        trial = try_latent_diffusion(manifest, bundle, fit, device, diffusion, init)
        print_trial(trial.text(), asdict(trial), as_json)
        return
    print_bundle(train_latent_diffusion(manifest, bundle, out, fit, device, diffusion, init).path)


def _adaptation(
    manifest: Path,
    parent: Path,
    tune: cfg.Tune,
    drift: str | None,
    drift_at: cfg.DriftAt,
    conditions: str,
) -> Asked:
    from cfgen.jobs.adapt import Asked, asked_drift

    names = [name for name in conditions.split(",") if name]
    return Asked(manifest, parent, tune, asked_drift(drift), drift_at, names)
