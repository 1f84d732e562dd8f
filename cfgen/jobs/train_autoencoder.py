"""Train the autoencoder of a new bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cfgen.bundle import (
    Bundle,
    half,
    net_config,
    new_bundle,
    read_bundle,
    write_card,
    write_part,
)
from cfgen.config import DEFAULT_GRID, Arch, FitConfig, Preprocess
from cfgen.data.conditions import Schema
from cfgen.device import pick_device
from cfgen.errors import UsageError
from cfgen.nets.causal_autoencoder import AnyAutoencoder, CausalAutoencoder
from cfgen.processes import leads
from cfgen.space.grids import model_grid
from cfgen.train.autoencoder import AutoencoderTask
from cfgen.train.card import head_template, training_card
from cfgen.train.causal_autoencoder import CausalTask, read_lpips
from cfgen.train.cohort import Cohort, read_splits, training_schema
from cfgen.train.fit import fit
from cfgen.train.presets import NETWORKS, Networks
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.together import check_batch, join
from cfgen.train.trial import Trial, try_steps

log = logging.getLogger("cfgen")
# Scans that reports look at.
HELD_OUT = 8


@dataclass(frozen=True)
class Asked:
    """What the autoencoder is trained on, how large and how long: `preset` names its network and
    loss, `init` is a bundle whose autoencoder the training starts from, `conditions` are columns of
    the manifest beside age and sex that the bundle is to know. `lpips` is a folder of weights, for
    the causal autoencoder alone."""

    manifest: Path
    recipe: Preprocess
    config: FitConfig
    preset: str = DEFAULT_GRID
    init: Path | None = None
    conditions: Sequence[str] = ()
    checkpointing: bool = False
    arch: Arch = "plain"
    lpips: Path | None = None


def train_autoencoder(asked: Asked, out: Path, device: str, data: dict[str, Any]) -> Bundle:
    """Train the autoencoder of a new bundle on the train split; the val split is for figures.

    `data` describes the training data: name, licence, attribution. Of several processes the first
    writes the bundle.
    """
    config, runs = asked.config, runs_folder(out, "autoencoder")
    task, train, schema = _prepared(asked, pick_device(device), runs)
    net = fit(task, config, runs)
    bundle = new_bundle(out, asked.recipe, schema, data)
    if not leads():
        return bundle
    bundle = write_part(
        bundle,
        "autoencoder",
        half(net),
        autoencoder_description(task.net),
        trained_on(train.rows, config),
    )
    if not all("scan" in row.extra for row in train.rows):
        log.warning("no head template, no training card: the manifest has no 'scan' column")
        return bundle
    template = head_template(train.rows)
    bundle = write_part(bundle, "template", template.tensors(), {}, {})
    return write_card(bundle, training_card(train.rows))


def try_autoencoder(asked: Asked, device: str) -> Trial:
    """Two steps of it on the first scans, of which nothing is left."""
    task, _, _ = _prepared(asked, pick_device(device), None)
    return try_steps("autoencoder", task, asked.config)


def autoencoder_description(net: AnyAutoencoder) -> dict[str, Any]:
    """What a bundle says of its autoencoder; `edit.latent.load_autoencoder` reads it."""
    arch = {"arch": "causal"} if isinstance(net, CausalAutoencoder) else {}
    return net_config(net.config) | arch


def _prepared(
    asked: Asked, device: torch.device, folder: Path | None
) -> tuple[AutoencoderTask, Cohort, Schema]:
    """The task and what it is trained on; without a folder for them, on a few scans."""
    config, networks = asked.config, NETWORKS[asked.preset]
    check_batch(config.batch_size)
    join(device)
    schema = training_schema(asked.manifest, asked.conditions)
    most = config.batch_size if folder is None else None
    train, val = read_splits(asked.manifest, schema, asked.recipe.grid, folder=folder, most=most)
    held_out = val.spaced(4, HELD_OUT).images
    task = _task(asked, networks, train, held_out, device)
    if asked.init is not None:
        read_bundle(asked.init).fill(task.net, "autoencoder")
    return task, train, schema


def _task(
    asked: Asked, networks: Networks, train: Cohort, held_out: Tensor, device: torch.device
) -> AutoencoderTask:
    cohort = (train.images, train.weights, held_out, held_out > 0, device, asked.config)
    if asked.arch == "causal":
        lpips = None if asked.lpips is None else read_lpips(asked.lpips)
        if lpips is None:
            log.warning("no LPIPS in the loss: --lpips names a folder with its weights")
        how = networks.causal.on(model_grid(asked.recipe.grid).shape)
        return CausalTask(*cohort, how, lpips, asked.checkpointing)
    return AutoencoderTask(
        *cohort,
        networks.autoencoder,
        networks.loss,
        crop=networks.crop,
        checkpointing=asked.checkpointing,
    )


def read_about(path: Path | None) -> dict[str, Any]:
    """What the training data are: a JSON object with name, licence and attribution."""
    if path is None:
        return {}
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(path, f"cannot be read ({error})", "a JSON object") from error
    if not isinstance(about, dict):
        raise UsageError(path, "is no JSON object", '{"name": ..., "licence": ...}')
    return about
