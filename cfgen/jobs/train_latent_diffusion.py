"""Add the latent mean and the diffusion model to a bundle."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

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
from cfgen.config import GRIDS, Conditioning, FitConfig, LatentScale, LossWeights, Prediction
from cfgen.data.volume import read_volume
from cfgen.device import autocast, pick_device
from cfgen.edit.latent import load_autoencoder
from cfgen.nets.autoencoder import Autoencoder
from cfgen.train.cohort import Cohort, read_splits, splined
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import (
    LATENT_DIFFUSION,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    schedule_for,
    unet_config,
)
from cfgen.train.latents import age_reader, fit_mean, latent_data
from cfgen.train.record import runs_folder, trained_on

log = logging.getLogger("cfgen")


# Fewer subjects cannot tell how far the latent mean moves the ventricles.
CALIBRATED_LEAST = 5


def diffusion_config(
    latent_mean: bool,
    latent_scale: LatentScale,
    prediction: Prediction,
    loss_weights: LossWeights,
    conditioning: Conditioning,
) -> LatentDiffusionConfig:
    """What the command's options say; the rest as usual."""
    return replace(
        LATENT_DIFFUSION,
        schedule=schedule_for(prediction),
        latent_mean=latent_mean,
        latent_scale=latent_scale,
        loss_weights=loss_weights,
        conditioning=conditioning,
    )


def train_latent_diffusion(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    diffusion: LatentDiffusionConfig = LATENT_DIFFUSION,
) -> Bundle:
    """Add the latent mean and the UNet to a bundle that has an autoencoder.

    Without `diffusion.latent_mean` it is the papers' plain diffusion. Latents lie in a file beside
    the bundle, which the next run with the same autoencoder and scans takes up.
    """
    torch_device = pick_device(device)
    bundle = read_bundle(source)
    autoencoder = load_autoencoder(bundle, torch_device)
    train, val = read_splits(manifest, bundle.schema, bundle.preprocess.grid)
    runs = runs_folder(out, "unet")
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
    task = LatentDiffusionTask(
        data, mean, torch_device, config, diffusion, age_reader(bundle.schema, data)
    )
    net = fit(task, config, runs)
    copied = copy_bundle(bundle, out)
    copied = write_part(
        copied, "latent_mean", mean.tensors(), {"conditional": diffusion.latent_mean}, {}
    )
    network = net_config(unet_config(data.conditions.shape[1], data.shape, diffusion))
    description = network | {
        "schedule": asdict(diffusion.schedule),
        "loss_weights": diffusion.loss_weights,
    }
    return write_part(copied, "unet", half(net), description, trained_on(train.rows, config))


def _gain(
    train: Cohort, latents: Tensor, autoencoder: Autoencoder, device: torch.device, bundle: Bundle
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
