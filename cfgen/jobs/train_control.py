"""Add a network that takes masks of regions to a bundle that has a diffusion model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cfgen.bundle import Bundle, copy_bundle, half, net_config, write_part
from cfgen.config import FitConfig
from cfgen.device import pick_device
from cfgen.edit.control import BESIDE
from cfgen.edit.latent import Models
from cfgen.errors import UsageError
from cfgen.jobs.train_latent_diffusion import HELD_OUT, diffusion_of, models_to_train_on
from cfgen.measure.segmenter import load_segmenter
from cfgen.nets.segmenter import Segmenter
from cfgen.processes import leads
from cfgen.train.cohort import read_splits
from cfgen.train.control import CONTROL, ControlConfig, ControlTask, detail_of
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionConfig
from cfgen.train.latents import LatentData, latent_data, trial_data
from cfgen.train.masks import MaskReader, with_masks
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.trial import Trial, try_steps

# Scans that a trial does.
TRIED = 2


def train_control(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    control: ControlConfig = CONTROL,
    *,
    checkpointing: bool = False,
) -> Bundle:
    """A new bundle: that of `source` with a part 'controlnet'; everything else stays as it is.

    The bundle's segmenter reads the masks in the scans. Latents and masks lie in files beside the
    bundle. Of several processes the first writes. Raises UsageError, BundleError, ManifestError or
    ImageError before anything is trained.
    """
    torch_device, runs = pick_device(device), runs_folder(out, f"controlnet-{control.kind}")
    check_control(control)
    bundle, models = models_to_train_on(source, torch_device, config.batch_size)
    segmenter, grid = load_segmenter(bundle, torch_device), bundle.preprocess.grid
    train, val = read_splits(manifest, bundle.schema, grid, folder=runs)
    val = val.spaced(1, HELD_OUT)
    views = LATENT_DIFFUSION.views
    data = latent_data(train, val, models.autoencoder, views, torch_device, config.seed, runs)
    reader = _reader(segmenter, data, control, grid, torch_device, config.seed)
    data = with_masks(data, reader, train, val, runs)
    how = replace(diffusion_of(bundle, LATENT_DIFFUSION), checkpointing=checkpointing)
    task = _task(models, data, torch_device, config, how, reader.control)
    net = fit(task, config, runs)
    if not leads():
        return bundle
    description = control_description(task, bundle)
    trained = trained_on(train.rows, config)
    return write_part(copy_bundle(bundle, out), "controlnet", half(net), description, trained)


def try_control(
    manifest: Path,
    source: Path,
    config: FitConfig,
    device: str,
    control: ControlConfig = CONTROL,
    *,
    checkpointing: bool = False,
) -> Trial:
    """The same checks, and two steps on a few scans, of which nothing is left."""
    torch_device = pick_device(device)
    check_control(control)
    bundle, models = models_to_train_on(source, torch_device, config.batch_size)
    segmenter, grid = load_segmenter(bundle, torch_device), bundle.preprocess.grid
    train, _ = read_splits(manifest, bundle.schema, grid)
    few = train.spaced(1, TRIED)
    data = trial_data(few, models.autoencoder, torch_device, config.seed)
    reader = _reader(segmenter, data, control, grid, torch_device, config.seed)
    data = with_masks(data, reader, few, few, None)
    how = replace(diffusion_of(bundle, LATENT_DIFFUSION), checkpointing=checkpointing)
    task = _task(models, data, torch_device, config, how, reader.control)
    return try_steps(f"control by {control.kind}", task, config)


def _reader(
    net: Segmenter,
    data: LatentData,
    control: ControlConfig,
    grid: str,
    device: torch.device,
    seed: int,
) -> MaskReader:
    """What reads the masks of latents, in the detail that they are told in."""
    shape = tuple(data.shape[1:])
    return MaskReader(
        net, replace(control, detail=detail_of(grid, shape)), grid, shape, device, seed
    )


def control_description(task: ControlTask, bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of the part; `edit.control.load_control` reads it."""
    beside = {part: bundle.part(part).sha256 for part in BESIDE}
    return net_config(task.net.config) | asdict(task.control) | {"beside": beside}


def check_control(control: ControlConfig) -> None:
    """Raises UsageError for a number that means nothing."""
    if control.contrastive < 0:
        raise UsageError("--contrastive", f"{control.contrastive:g}", "0 or more")


def _task(
    models: Models,
    data: LatentData,
    device: torch.device,
    config: FitConfig,
    how: LatentDiffusionConfig,
    control: ControlConfig,
) -> ControlTask:
    mean = models.latent_mean.to(torch.device("cpu"))
    return ControlTask(models.unet, data, mean, device, config, how, control)
