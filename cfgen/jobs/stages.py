"""Training stages: each reads a manifest of prepared scans and a bundle, and writes a bundle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, new_bundle, read_bundle, write_card, write_part
from cfgen.config import GRIDS, Preprocess
from cfgen.data.conditions import Schema, default_schema, fit_schema, with_columns
from cfgen.data.manifest import read_manifest
from cfgen.data.space import work_grid
from cfgen.data.table import Row
from cfgen.data.volume import Volume, read_volume
from cfgen.errors import UsageError
from cfgen.jobs.brain import HEAD_SPACING_MM, HeadTemplate, build_head_template
from cfgen.jobs.calibrate import fit_gain
from cfgen.jobs.device import autocast, pick_device
from cfgen.jobs.fit import FitConfig, fit
from cfgen.jobs.gate import card_of, fit_measures, scan_measures
from cfgen.jobs.judge import pack, unpack
from cfgen.jobs.judge_data import raw, read_judge_data, usual
from cfgen.jobs.judge_errors import error_lines, judge_errors
from cfgen.jobs.models import half, load_autoencoder, load_weights, net_config
from cfgen.jobs.prepare import template_brain
from cfgen.jobs.preprocess import load_prepared
from cfgen.jobs.segmenter_data import read_label_maps, read_labelled_scans
from cfgen.jobs.train_autoencoder import AUTOENCODER, AutoencoderTask
from cfgen.jobs.train_judge import SEEDS, JudgeTask, judge_config, settle
from cfgen.jobs.train_latent_diffusion import (
    LATENT_DIFFUSION,
    LatentDiffusionConfig,
    LatentDiffusionTask,
    encode_views,
    fit_mean,
    unet_config,
)
from cfgen.jobs.train_predictor import fit_predictor
from cfgen.jobs.train_segmenter import (
    GOING_ON,
    SEGMENTER,
    SegmenterLoss,
    SegmenterTask,
    meet_volumes,
)
from cfgen.jobs.training_data import Cohort, read_cohort
from cfgen.nets.autoencoder import Autoencoder
from cfgen.nets.judge import Judge
from cfgen.nets.segmenter import Segmenter

log = logging.getLogger("cfgen")


# Labelled scans by whose volumes a segmenter's scores are shifted.
CALIBRATED_SCANS = 12


# Fewer subjects cannot tell how far the latent mean moves the ventricles.
CALIBRATED_LEAST = 5


def runs_folder(out: Path, stage: str) -> Path:
    """Where a stage keeps its checkpoint, log and pictures: beside the bundle it writes."""
    return out.with_name(f"{out.name}-training") / stage


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
    sex that the bundle is to know.
    """
    where = pick_device(device)
    schema = _schema(manifest, conditions)
    train, val = _splits(manifest, schema, recipe.grid)
    task = AutoencoderTask(
        train.images, train.weights, val.images[::4], val.masks[::4], where, config
    )
    if init is not None:
        load_weights(task.net, read_bundle(init), "autoencoder")
    net = fit(task, config, runs_folder(out, "autoencoder"))
    bundle = new_bundle(out, recipe, schema, data)
    bundle = write_part(
        bundle, "autoencoder", half(net), net_config(AUTOENCODER), _trained(train.rows, config)
    )
    if not all("scan" in row.extra for row in train.rows):
        log.warning("no head template, no training card: the manifest has no 'scan' column")
        return bundle
    template = _head_template(train.rows)
    bundle = write_part(bundle, "template", template.tensors(), {}, {})
    return write_card(bundle, training_card(train.rows))


def _head_template(rows: list[Row]) -> HeadTemplate:
    """The mean whole head of the scans that were prepared."""
    grid = work_grid(template_brain()[1], HEAD_SPACING_MM)

    def heads() -> Iterator[tuple[Volume, np.ndarray, np.ndarray]]:
        for row in rows:
            prepared = load_prepared(row.image)
            yield read_volume(row.extra["scan"]), prepared.native_mask, prepared.to_native

    return build_head_template(heads(), grid)


def training_card(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """What the gate measures in the training scans (`jobs/gate.py`), lowest and highest."""

    def measures() -> Iterator[dict[str, float]]:
        for row in rows:
            prepared = load_prepared(row.image)
            scan = read_volume(row.extra["scan"])
            yield scan_measures(scan, prepared.native_mask) | fit_measures(prepared)

    return card_of(measures())


def train_latent_diffusion(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    diffusion: LatentDiffusionConfig = LATENT_DIFFUSION,
) -> Bundle:
    """Add the latent mean and the UNet to a bundle that has an autoencoder."""
    where = pick_device(device)
    bundle = read_bundle(source)
    autoencoder = load_autoencoder(bundle, where)
    train, val = _splits(manifest, bundle.schema, bundle.preprocess.grid)
    latents = encode_views(autoencoder, train.images, diffusion.views, where, config.seed)
    held_out = encode_views(autoencoder, val.images, 1, where, config.seed)[:, 0]
    mean = fit_mean(
        latents, train.conditions, train.weights, splined(bundle.schema), diffusion.latent_mean
    )
    if diffusion.latent_mean:
        mean = replace(mean, gain=_gain(train, latents, autoencoder, where, bundle))
    task = LatentDiffusionTask(
        latents,
        train.conditions,
        train.weights,
        (held_out, val.conditions),
        mean,
        where,
        config,
        diffusion,
    )
    net = fit(task, config, runs_folder(out, "unet"))
    copied = copy_bundle(bundle, out)
    copied = write_part(
        copied, "latent_mean", mean.tensors(), {"conditional": diffusion.latent_mean}, {}
    )
    network = net_config(unet_config(train.conditions.shape[1], latents.shape[2]))
    description = {"net": network, "schedule": asdict(diffusion.schedule)}
    return write_part(copied, "unet", half(net), description, _trained(train.rows, config))


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


def train_predictor(manifest: Path, source: Path, out: Path) -> Bundle:
    """Add the predictor of conditions to a bundle; it sees real scans alone."""
    bundle = read_bundle(source)
    train, val = _splits(manifest, bundle.schema, bundle.preprocess.grid)
    net, config = fit_predictor(train.images, train.conditions)
    with torch.inference_mode():
        found = torch.cat([net(x[None, None].float()) for x in val.images])
    guesses = [bundle.schema.decode(out.numpy()) for out in found]
    for v in bundle.schema.variables:
        if v.kind == "continuous":
            pairs = zip(guesses, val.rows, strict=True)
            errors = [abs(float(g[v.name]) - float(row.values[v.name])) for g, row in pairs]
            log.info("predictor: %s MAE %.2f %s on val", v.name, np.mean(errors), v.unit)
    copied = copy_bundle(bundle, out)
    return write_part(
        copied, "predictor", half(net), net_config(config), {"scans": len(train.rows)}
    )


def train_judge(
    manifest: Path,
    names: Sequence[str],
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    networks: int = SEEDS,
) -> Bundle:
    """Add the judge of counterfactuals to a bundle: `networks` CNNs, on real train scans alone.

    `names` are the targets (`judge_data.read_judge_data`). What the networks err by on the val
    split is said and goes into the part; nothing is chosen by it.
    """
    where = pick_device(device)
    bundle = read_bundle(source)
    targets, train, val = read_judge_data(manifest, names, bundle.preprocess.grid)
    log.info("judge: %d scans to learn from, %d to be measured on", len(train.rows), len(val.rows))
    # Other targets, or targets of other scans, are another run.
    digest = hashlib.sha256(json.dumps(targets.to_json()).encode()).hexdigest()[:8]
    nets = []
    for n in range(networks):
        own = replace(config, seed=config.seed + n)
        log.info("judge: network %d of %d", n + 1, networks)
        task = JudgeTask(targets, train, val, where, own)
        net = fit(task, own, runs_folder(out, "judge") / f"{digest}-seed{own.seed}")
        assert isinstance(net, Judge)
        settle(net, train.images, where)
        nets.append(net)
    tensors, network = pack(nets), judge_config(targets, train.images.shape[1:])
    # The weights are measured as they are shipped: rounded to half precision.
    guesses = unpack(tensors, network, networks, targets, where).judge_each(val.images)
    errors = judge_errors(guesses, raw(targets, val.targets), targets, usual(targets, train))
    for line in error_lines(errors, targets):
        log.info("judge on %d real scans of val: %s", len(val.rows), line)
    description = {
        "net": net_config(network),
        "seeds": networks,
        "targets": targets.to_json(),
        "val": errors,
    }
    trained = _trained(train.rows, config)
    return write_part(copy_bundle(bundle, out), "judge", tensors, description, trained)


def train_segmenter(
    manifest: Path,
    label_maps: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    init: Path | None = None,
) -> Bundle:
    """Add the segmenter to a bundle: from whole-head label maps, and whole heads with labels.

    Rows of `manifest` without labels, or of another split than train, are not trained on; every
    fourth of the val split is for figures. `init` is a bundle whose segmenter the training goes on
    from.
    """
    where = pick_device(device)
    bundle = read_bundle(source)
    rows = read_manifest(manifest, default_schema())
    train = [r for r in rows if r.split == "train" and r.labels]
    val = [r for r in rows if r.split == "val" and r.labels][::4]
    maps = read_label_maps(label_maps)
    log.info("segmenter: %d label maps, %d labelled scans", len(maps), len(train))
    scans = read_labelled_scans(train)
    loss = SegmenterLoss() if init is None else GOING_ON
    task = SegmenterTask(maps, scans, read_labelled_scans(val), where, config, loss=loss)
    if init is not None:
        load_weights(task.net, read_bundle(init), "segmenter")
    net = fit(task, config, runs_folder(out, "segmenter"))
    assert isinstance(net, Segmenter)
    meet_volumes(net, scans[:: max(1, len(scans) // CALIBRATED_SCANS)], where)
    trained = {"label_maps": len(maps)} | _trained(train, config)
    return write_part(
        copy_bundle(bundle, out), "segmenter", half(net), net_config(SEGMENTER), trained
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


def _splits(manifest: Path, schema: Schema, grid: str) -> tuple[Cohort, Cohort]:
    return read_cohort(manifest, schema, grid, "train"), read_cohort(manifest, schema, grid, "val")


def _schema(manifest: Path, conditions: Sequence[str]) -> Schema:
    """Age, sex and further columns, with what the train split has of them."""
    known = default_schema()
    if conditions:
        rows = read_manifest(manifest, known)
        known = with_columns(known, conditions, [r.extra for r in rows])
    return fit_schema([r for r in read_manifest(manifest, known) if r.split == "train"], known)


def splined(schema: Schema) -> Tensor:
    """Which inputs of the condition vector are numbers, whose effect may bend."""
    return torch.tensor([v.kind == "continuous" for v in schema.variables for _ in range(v.width)])


def _trained(rows: list[Row], config: FitConfig) -> dict[str, Any]:
    """What a part saw: how many, which (as a hash), and for how long."""
    subjects = "\n".join(sorted(r.subject for r in rows))
    return {
        "scans": len(rows),
        "subjects_sha256": hashlib.sha256(subjects.encode()).hexdigest(),
        **asdict(replace(config, checkpoint_every=0, report_every=0)),
    }
