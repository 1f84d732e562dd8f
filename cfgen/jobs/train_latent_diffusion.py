"""Add the latent mean and the diffusion model to a bundle."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfgen.bundle import (
    Bundle,
    copy_bundle,
    half,
    net_config,
    read_bundle,
    write_part,
)
from cfgen.causal.gain import fit_gain
from cfgen.causal.latent_mean import fit_plain_mean
from cfgen.config import (
    DEFAULT_GRID,
    GRIDS,
    Conditioning,
    FitConfig,
    LatentScale,
    LossWeights,
    Prediction,
)
from cfgen.data.volume import read_volume
from cfgen.device import autocast, pick_device
from cfgen.diffusion.drift import Drifting
from cfgen.diffusion.schedule import ScheduleConfig
from cfgen.edit.latent import Models, load_autoencoder, load_models, without_conditions
from cfgen.errors import BundleError
from cfgen.nets.causal_autoencoder import AnyAutoencoder
from cfgen.nets.condition import token_width
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.processes import leads
from cfgen.train.cohort import Cohort, read_splits, splined
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import (
    LATENT_DIFFUSION,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    check_scale,
    schedule_for,
)
from cfgen.train.latents import LatentData, age_reader, fit_mean, latent_data, trial_data
from cfgen.train.presets import NETWORKS
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.together import check_batch, join
from cfgen.train.trial import Trial, try_steps

log = logging.getLogger("cfgen")


# Fewer subjects cannot tell how far the latent mean moves the ventricles.
CALIBRATED_LEAST = 5
# Scans that reports look at, all in one batch.
HELD_OUT = 100


def diffusion_config(
    latent_mean: bool,
    latent_scale: LatentScale,
    prediction: Prediction,
    noise_shift: float,
    loss_weights: LossWeights,
    conditioning: Conditioning,
    *,
    preset: str = DEFAULT_GRID,
    checkpointing: bool = False,
    attention_blocks: int = 0,
) -> LatentDiffusionConfig:
    """What the command's options say; the rest as the preset has it."""
    return replace(
        NETWORKS[preset].diffusion,
        schedule=replace(schedule_for(prediction), shift=noise_shift),
        latent_mean=latent_mean,
        latent_scale=latent_scale,
        loss_weights=loss_weights,
        conditioning=conditioning,
        checkpointing=checkpointing,
        attention_blocks=attention_blocks,
    )


def train_latent_diffusion(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    diffusion: LatentDiffusionConfig = LATENT_DIFFUSION,
    init: Path | None = None,
) -> Bundle:
    """Add the latent mean and the UNet to a bundle that has an autoencoder.

    Without `diffusion.latent_mean` it is the papers' plain diffusion. `init` is a bundle whose UNet
    the training goes on from, with its network, schedule and loss weights. Latents lie in a file
    beside the bundle, which the next run with the same autoencoder and scans takes up. Of several
    processes the first writes.
    """
    check_batch(config.batch_size)
    torch_device, runs = pick_device(device), runs_folder(out, "unet")
    join(torch_device)
    bundle, parent = read_bundle(source), None if init is None else read_bundle(init)
    if parent is not None:
        diffusion = diffusion_of(parent, diffusion)
    check_scale(diffusion)
    autoencoder = load_autoencoder(bundle, torch_device)
    grid = bundle.preprocess.grid
    train, val = read_splits(manifest, bundle.schema, grid, folder=runs)
    val = val.spaced(1, HELD_OUT)
    data = latent_data(train, val, autoencoder, diffusion.views, torch_device, config.seed, runs)
    mean = fit_mean(
        data.latents,
        data.conditions,
        data.weights,
        splined(bundle.schema),
        diffusion.latent_mean,
        diffusion.latent_scale,
    )
    if diffusion.latent_mean:
        mean = replace(mean, gain=_gain(train, data.latents, autoencoder, torch_device, bundle))
    first = None if parent is None else _first_net(parent, data, torch_device)
    task = LatentDiffusionTask(
        data, mean, torch_device, config, diffusion, age_reader(bundle.schema, data), first
    )
    net = fit(task, config, runs)
    if not leads():
        return bundle
    copied = copy_bundle(bundle, out)
    copied = write_part(
        copied, "latent_mean", mean.tensors(), {"conditional": diffusion.latent_mean}, {}
    )
    description = unet_description(task.net.config, diffusion)
    return write_part(copied, "unet", half(net), description, trained_on(train.rows, config))


def try_latent_diffusion(
    manifest: Path,
    source: Path,
    config: FitConfig,
    device: str,
    diffusion: LatentDiffusionConfig = LATENT_DIFFUSION,
    init: Path | None = None,
) -> Trial:
    """Two steps of it on the first two scans, of which nothing is left."""
    check_batch(config.batch_size)
    check_scale(diffusion)
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    autoencoder = load_autoencoder(bundle, torch_device)
    train, _ = read_splits(manifest, bundle.schema, bundle.preprocess.grid, most=2)
    data = trial_data(train, autoencoder, torch_device, config.seed)
    # What encoding took is not to count.
    del autoencoder
    mean = fit_plain_mean(data.held_out, train.conditions.shape[1])
    first = None if init is None else _first_net(read_bundle(init), data, torch_device)
    task = LatentDiffusionTask(data, mean, torch_device, config, diffusion, net=first)
    return try_steps("latent diffusion", task, config)


def unet_description(net: UNetConfig, diffusion: LatentDiffusionConfig) -> dict[str, Any]:
    """What a bundle says of its diffusion model; `diffusion_of` reads it."""
    said = net_config(net) | {
        "schedule": asdict(diffusion.schedule),
        "loss_weights": diffusion.loss_weights,
        "drop_conditions": diffusion.drop_conditions,
    }
    if diffusion.drift:
        # Sampled as it was trained.
        said["drift"] = Drifting(diffusion.drift, diffusion.drift).to_json()
    return said


def diffusion_of(bundle: Bundle, usual: LatentDiffusionConfig) -> LatentDiffusionConfig:
    """`usual` with the schedule and the loss weights of a bundle's diffusion model, and told the
    spread of voxels where that is."""
    known = bundle.part("unet").config
    told = "spread" in bundle.tensors("latent_mean")
    return replace(
        usual,
        latent_scale="voxel" if told else usual.latent_scale,
        schedule=ScheduleConfig(**known["schedule"]),
        loss_weights=known.get("loss_weights", LATENT_DIFFUSION.loss_weights),
        drop_conditions=known.get("drop_conditions", LATENT_DIFFUSION.drop_conditions),
        drift=Drifting.from_json(known.get("drift")).trained,
    )


def models_to_train_on(
    source: Path, device: torch.device, batch_size: int
) -> tuple[Bundle, Models]:
    """A bundle and its networks, to train on in one process or several. Raises UsageError for a
    batch that they can't share, and BundleError for a diffusion model that takes no conditions."""
    check_batch(batch_size)
    join(device)
    bundle = read_bundle(source)
    models = load_models(bundle, device)
    if models.unet.config.context_dim is None:
        raise without_conditions(bundle)
    return bundle, models


def _first_net(init: Bundle, data: LatentData, device: torch.device) -> UNet:
    """The UNet of a bundle, to be trained on. Raises BundleError when it is for other latents or
    other conditions."""
    net = init.network("unet", UNet, UNetConfig, device)
    width = token_width(data.conditions.shape[1])
    takes: dict[str, tuple[object, object]] = {
        "channels of the latent": (net.config.in_channels, data.shape[0]),
        "width of a condition": (net.config.context_dim, width),
    }
    if net.config.positions is not None:
        takes["voxels of the latent"] = (net.config.positions, data.shape[1:])
    for what, (found, expected) in takes.items():
        if found != expected:
            raise BundleError(
                init.path,
                f"its UNet has {found} as {what}",
                f"{expected}, those of the bundle that is trained",
                "train from scratch, without --init",
            )
    return net.train()


def _gain(
    train: Cohort,
    latents: Tensor,
    autoencoder: AnyAutoencoder,
    device: torch.device,
    bundle: Bundle,
) -> Tensor:
    """Half of the subjects fit a mean; the labelled ones of the other half say how far it goes."""
    tried = [n for n in range(1, len(train.rows), 2) if train.rows[n].labels]
    if len(tried) < CALIBRATED_LEAST:
        log.warning(
            "%d of the scans that would tell have label maps: the gain of the latent mean stays 1",
            len(tried),
        )
        return torch.ones(1)
    labels = np.stack([read_volume(train.rows[n].labels).data for n in tried])  # type: ignore[arg-type]
    mean = fit_mean(
        latents[::2], train.conditions[::2], train.weights[::2], splined(bundle.schema), True
    )

    @torch.inference_mode()
    def encode(x: Tensor) -> Tensor:
        with autocast(device):
            z0: Tensor = autoencoder.encode(x.to(device)).float().cpu()
        return z0

    @torch.inference_mode()
    def decode(z0: Tensor) -> Tensor:
        with autocast(device):
            image: Tensor = autoencoder.decode(z0.to(device)).float().cpu()
        return image

    spacing_mm = GRIDS[bundle.preprocess.grid][1]
    images, conditions = train.images[tried], train.conditions[tried]
    return fit_gain(mean, images, labels, conditions, spacing_mm, encode, decode)
