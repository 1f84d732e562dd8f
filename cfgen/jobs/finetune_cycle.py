"""Fine-tune the diffusion model of a bundle with the cycle."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, half, net_config, read_bundle, write_part
from cfgen.config import CYCLE, Cycle, FitConfig
from cfgen.data.conditions import Schema
from cfgen.device import pick_device
from cfgen.edit.latent import load_models
from cfgen.errors import BundleError, ManifestError, UsageError
from cfgen.jobs.train_latent_diffusion import diffusion_of
from cfgen.train.cohort import Cohort, read_splits
from cfgen.train.cycle import CycleTask
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION
from cfgen.train.latents import age_reader, latent_data
from cfgen.train.record import runs_folder, trained_on

log = logging.getLogger("cfgen")


def finetune_cycle(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    cycle: Cycle = CYCLE,
    *,
    dry_run: bool = False,
) -> Bundle | None:
    """A new bundle: that of `source` with its UNet trained on by the loss of CDM's Eq. 2.

    Everything else stays as it is, the latent mean with it. With `dry_run` everything is checked
    and nothing made. Raises UsageError, BundleError or
    ManifestError before anything is computed where the bundle has no diffusion model that takes
    conditions, or the train split has nothing to change.
    """
    check_cycle(cycle)
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    models = load_models(bundle, torch_device)
    if models.unet.config.context_dim is None:
        raise BundleError(
            source, "its UNet takes no conditions", "one that does", "train it: cfgen train-ldm"
        )
    train, val = read_splits(manifest, bundle.schema, bundle.preprocess.grid)
    check_cohort(manifest, bundle.schema, train, config.batch_size)
    if dry_run:
        log.info("%d train and %d val scans; nothing is trained", len(train.rows), len(val.rows))
        return None
    runs = runs_folder(out, "cycle")
    views = LATENT_DIFFUSION.views
    data = latent_data(train, val, models.autoencoder, views, torch_device, config.seed, runs)
    how = diffusion_of(bundle, LATENT_DIFFUSION)
    task = CycleTask(
        models.unet.train(),
        data,
        models.latent_mean.to(torch.device("cpu")),
        torch_device,
        config,
        how,
        cycle,
        age_reader(bundle.schema, data),
    )
    net = fit(task, config, runs)
    description = (
        net_config(models.unet.config)
        | {"schedule": asdict(how.schedule), "loss_weights": how.loss_weights}
        | {"cycle": asdict(cycle)}
    )
    trained = trained_on(train.rows, config) | {"from": bundle.part("unet").trained}
    return write_part(copy_bundle(bundle, out), "unet", half(net), description, trained)


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
            value = train.rows[0].values[variable.name]
            raise ManifestError(
                f"{manifest} column {variable.name}",
                f"'{value}' in every train row",
                "more than one value: the cycle takes people to another one",
            )
