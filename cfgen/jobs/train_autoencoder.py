"""Train the autoencoder of a new bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfgen.bundle import (
    Bundle,
    half,
    net_config,
    new_bundle,
    read_bundle,
    write_card,
    write_part,
)
from cfgen.config import FitConfig, Preprocess
from cfgen.device import pick_device
from cfgen.errors import UsageError
from cfgen.processes import leads
from cfgen.train.autoencoder import AUTOENCODER, AutoencoderTask
from cfgen.train.card import head_template, training_card
from cfgen.train.cohort import read_splits, training_schema
from cfgen.train.fit import fit
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.together import check_batch

log = logging.getLogger("cfgen")


def train_autoencoder(
    manifest: Path,
    out: Path,
    recipe: Preprocess,
    config: FitConfig,
    device: str,
    data: dict[str, Any],
    init: Path | None = None,
    conditions: Sequence[str] = (),
) -> Bundle:
    """Train the autoencoder of a new bundle on the train split; the val split is for figures.

    `data` describes the training data: name, licence, attribution. `init` is a bundle whose
    autoencoder the training starts from. `conditions` are columns of the manifest beside age and
    sex that the bundle is to know. Of several processes the first writes the bundle.
    """
    check_batch(config.batch_size)
    torch_device = pick_device(device)
    schema = training_schema(manifest, conditions)
    train, val = read_splits(manifest, schema, recipe.grid)
    task = AutoencoderTask(
        train.images, train.weights, val.images[::4], val.masks[::4], torch_device, config
    )
    if init is not None:
        read_bundle(init).fill(task.net, "autoencoder")
    net = fit(task, config, runs_folder(out, "autoencoder"))
    bundle = new_bundle(out, recipe, schema, data)
    if not leads():
        return bundle
    bundle = write_part(
        bundle, "autoencoder", half(net), net_config(AUTOENCODER), trained_on(train.rows, config)
    )
    if not all("scan" in row.extra for row in train.rows):
        log.warning("no head template, no training card: the manifest has no 'scan' column")
        return bundle
    template = head_template(train.rows)
    bundle = write_part(bundle, "template", template.tensors(), {}, {})
    return write_card(bundle, training_card(train.rows))


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
