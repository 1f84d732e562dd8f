"""Fine-tune the diffusion model of a bundle with the cycle."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, half, write_part
from cfgen.config import CYCLE, Cycle, FitConfig
from cfgen.data.conditions import Schema
from cfgen.device import pick_device
from cfgen.edit.latent import Models
from cfgen.errors import ManifestError, UsageError
from cfgen.jobs.train_latent_diffusion import diffusion_of, models_to_train_on, unet_description
from cfgen.processes import leads
from cfgen.train.cohort import Cohort, read_splits
from cfgen.train.cycle import CycleTask
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionConfig
from cfgen.train.latents import (
    LatentData,
    LatentReader,
    age_reader,
    latent_data,
    trial_data,
)
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.trial import Trial, try_steps

# Scans that reports look at, and those that a trial does.
HELD_OUT, TRIED = 100, 4


def finetune_cycle(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    cycle: Cycle = CYCLE,
    *,
    checkpointing: bool = False,
) -> Bundle:
    """A new bundle: that of `source` with its UNet trained on by the loss of CDM's Eq. 2.

    Everything else stays as it is, the latent mean with it. Of several processes the first writes.
    Raises UsageError, BundleError or ManifestError before anything is computed where the bundle has
    no diffusion model that takes conditions, or the train split has nothing to change.
    """
    torch_device, runs = pick_device(device), runs_folder(out, "cycle")
    check_cycle(cycle)
    bundle, models = models_to_train_on(source, torch_device, config.batch_size)
    train, val = read_splits(manifest, bundle.schema, bundle.preprocess.grid, folder=runs)
    check_cohort(manifest, bundle.schema, train, config.batch_size)
    val, views = val.spaced(1, HELD_OUT), LATENT_DIFFUSION.views
    data = latent_data(train, val, models.autoencoder, views, torch_device, config.seed, runs)
    how = replace(diffusion_of(bundle, LATENT_DIFFUSION), checkpointing=checkpointing)
    reader = age_reader(bundle.schema, data)
    task = _task(models, data, torch_device, config, how, cycle, reader)
    net = fit(task, config, runs)
    if not leads():
        return bundle
    before = bundle.part("unet").config
    description = unet_description(models.unet.config, how) | {"cycle": asdict(cycle)}
    description |= {name: before[name] for name in ("drift", "adapted") if name in before}
    trained = trained_on(train.rows, config) | {"from": bundle.part("unet").trained}
    return write_part(copy_bundle(bundle, out), "unet", half(net), description, trained)


def try_cycle(
    manifest: Path,
    source: Path,
    config: FitConfig,
    device: str,
    cycle: Cycle = CYCLE,
    *,
    checkpointing: bool = False,
) -> Trial:
    """The same checks, and two steps on a few scans, of which nothing is left."""
    torch_device = pick_device(device)
    check_cycle(cycle)
    bundle, models = models_to_train_on(source, torch_device, config.batch_size)
    train, _ = read_splits(manifest, bundle.schema, bundle.preprocess.grid)
    check_cohort(manifest, bundle.schema, train, config.batch_size)
    data = trial_data(train.spaced(1, TRIED), models.autoencoder, torch_device, config.seed)
    how = replace(diffusion_of(bundle, LATENT_DIFFUSION), checkpointing=checkpointing)
    return try_steps("cycle", _task(models, data, torch_device, config, how, cycle), config)


def _task(
    models: Models,
    data: LatentData,
    device: torch.device,
    config: FitConfig,
    how: LatentDiffusionConfig,
    cycle: Cycle,
    reader: LatentReader | None = None,
) -> CycleTask:
    mean = models.latent_mean.to(torch.device("cpu"))
    return CycleTask(models.unet.train(), data, mean, device, config, how, cycle, reader)


def check_cycle(cycle: Cycle) -> None:
    """Raises UsageError for numbers that mean nothing."""
    if cycle.weight < 0:
        raise UsageError("--lambda", f"{cycle.weight:g}", "0 or more")
    if not 0 <= cycle.t_low < cycle.t_high <= 1:
        raise UsageError(
            "--times",
            f"{cycle.t_low:g}:{cycle.t_high:g}",
            "two fractions of the noise levels between 0 and 1, the lower first",
        )


def check_cohort(manifest: Path, schema: Schema, train: Cohort, batch_size: int) -> None:
    """Raises ManifestError where there is nothing to take anybody to, or a batch has no room."""
    if len(train.rows) < batch_size:
        raise ManifestError(
            manifest,
            f"{len(train.rows)} scans in the train split",
            f"at least {batch_size}, the batch size",
            "lower --batch-size",
        )
    at = 0
    for variable in schema.variables:
        inputs: Tensor = train.conditions[:, at : at + variable.width]
        at += variable.width
        if bool((inputs == inputs[:1]).all()):
            value = train.rows[0].values.get(variable.name, "")
            raise ManifestError(
                f"{manifest} column {variable.name}",
                f"'{value}' in every train row",
                "more than one value: the cycle takes people to another one",
            )
