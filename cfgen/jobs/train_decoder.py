"""Add a diffusion decoder to a bundle that has an autoencoder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cfgen.bundle import Bundle, copy_bundle, half, net_config, read_bundle, write_part
from cfgen.config import DEFAULT_GRID, FitConfig
from cfgen.device import pick_device
from cfgen.edit.latent import load_autoencoder
from cfgen.processes import leads
from cfgen.train.cohort import Cohort, read_splits
from cfgen.train.diffusion_decoder import DecoderTask
from cfgen.train.fit import fit
from cfgen.train.presets import NETWORKS
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.together import check_batch, join
from cfgen.train.trial import Trial, try_steps

# Scans that reports look at: each is denoised whole.
HELD_OUT = 4


def train_decoder(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    preset: str = DEFAULT_GRID,
    *,
    checkpointing: bool = False,
) -> Bundle:
    """A new bundle: that of `source` with a part 'decoder', which belongs to its autoencoder;
    everything else stays as it is. Of several processes the first writes."""
    runs = runs_folder(out, "decoder")
    bundle = read_bundle(source)
    task, train = _prepared(bundle, manifest, config, device, preset, runs, checkpointing)
    net = fit(task, config, runs)
    if not leads():
        return bundle
    description = decoder_description(task, bundle)
    trained = trained_on(train.rows, config)
    return write_part(copy_bundle(bundle, out), "decoder", half(net), description, trained)


def try_decoder(
    manifest: Path,
    source: Path,
    config: FitConfig,
    device: str,
    preset: str = DEFAULT_GRID,
    *,
    checkpointing: bool = False,
) -> Trial:
    """Two steps of it on the first scans, of which nothing is left."""
    bundle = read_bundle(source)
    task, _ = _prepared(bundle, manifest, config, device, preset, None, checkpointing)
    return try_steps("diffusion decoder", task, config)


def decoder_description(task: DecoderTask, bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of its decoder; `edit.decoder.load_decoder` reads it."""
    beside = {"autoencoder": bundle.part("autoencoder").sha256}
    return net_config(task.recipe.net) | {
        "schedule": asdict(task.recipe.schedule),
        "beside": beside,
    }


def _prepared(
    bundle: Bundle,
    manifest: Path,
    config: FitConfig,
    device: str,
    preset: str,
    folder: Path | None,
    checkpointing: bool,
) -> tuple[DecoderTask, Cohort]:
    """The task and what it is trained on; without a folder for them, on a few scans."""
    torch_device: torch.device = pick_device(device)
    check_batch(config.batch_size)
    join(torch_device)
    autoencoder = load_autoencoder(bundle, torch_device)
    most = config.batch_size if folder is None else None
    grid = bundle.preprocess.grid
    train, val = read_splits(manifest, bundle.schema, grid, folder=folder, most=most)
    held_out = val.spaced(4, HELD_OUT).images
    task = DecoderTask(
        train.images,
        train.weights,
        held_out,
        held_out > 0,
        autoencoder,
        torch_device,
        config,
        NETWORKS[preset].decoder,
        checkpointing,
    )
    return task, train
