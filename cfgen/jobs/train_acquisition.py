"""Add a diffusion model that knows how scans were acquired to a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.causal.latent_mean import LatentMean, fit_plain_mean
from cfgen.config import FitConfig
from cfgen.data.acquisition import BRIGHTNESS, CONTRAST, acquisition_conditions
from cfgen.data.acquisition_columns import acquisition_of
from cfgen.data.conditions import Schema, default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.record import read_record
from cfgen.data.schema import Value
from cfgen.data.table import Row
from cfgen.device import pick_device
from cfgen.edit.acquired import contrast_of, encoded
from cfgen.edit.latent import load_autoencoder
from cfgen.errors import ManifestError
from cfgen.jobs.train_latent_diffusion import HELD_OUT, unet_description
from cfgen.processes import leads
from cfgen.scan.prepared import Files, Preparation
from cfgen.train.acquisition import (
    SLICES,
    acquisition_diffusion,
    slice_data,
)
from cfgen.train.cohort import Cohort, read_images
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LatentDiffusionConfig, LatentDiffusionTask, check_scale
from cfgen.train.latents import LatentData, fit_mean, latent_data, trial_data
from cfgen.train.record import runs_folder, trained_on
from cfgen.train.together import check_batch, join
from cfgen.train.trial import Trial, try_steps

log = logging.getLogger("cfgen")
# Parts that know nothing of conditions.
KEPT = ("autoencoder", "decoder", "template", "segmenter", "tissues")


@dataclass(frozen=True)
class Told:
    """Prepared scans of a split, and how each was acquired."""

    rows: list[Row]
    images: Tensor
    protocols: list[dict[str, Value]]

    def cohort(self, schema: Schema) -> Cohort:
        weights = self.images.new_ones(len(self.rows)).float()
        return Cohort(self.images, encoded(schema, self.protocols), weights, self.rows)


def of_slices(checkpointing: bool) -> LatentDiffusionConfig:
    """The paper's own network."""
    return replace(SLICES, checkpointing=checkpointing)


def train_acquisition(
    manifest: Path,
    source: Path,
    out: Path,
    config: FitConfig,
    device: str,
    diffusion: LatentDiffusionConfig,
) -> Bundle:
    """The bundle with the acquisition of the train scans as its conditions, and a diffusion model
    of them, of its latents or (`diffusion.flat`) of slices; other parts that know conditions are
    left out.

    Raises ManifestError where the train scans have one protocol, or none.
    """
    check_batch(config.batch_size)
    check_scale(diffusion)
    torch_device, runs = pick_device(device), runs_folder(out, "unet")
    join(torch_device)
    bundle = read_bundle(source)
    train, val = (_told(manifest, split, bundle.preprocess.grid) for split in ("train", "val"))
    schema = acquisition_conditions(train.protocols)
    log.info("conditions: %s", ", ".join(schema.names))
    how = acquisition_diffusion(diffusion, schema)
    cohorts = train.cohort(schema), val.cohort(schema).spaced(1, HELD_OUT)
    data, mean = _data(bundle, cohorts, how, config.seed, torch_device, runs)
    task = LatentDiffusionTask(data, mean, torch_device, config, how)
    net = fit(task, config, runs)
    if not leads():
        return bundle
    copied = copy_bundle(known_by_acquisition(bundle, schema, latents=not how.flat), out)
    conditional = {"conditional": how.latent_mean}
    copied = write_part(copied, "latent_mean", mean.tensors(), conditional, {})
    description = unet_description(task.net.config, how)
    return write_part(copied, "unet", half(net), description, trained_on(train.rows, config))


def try_acquisition(
    manifest: Path, source: Path, config: FitConfig, device: str, diffusion: LatentDiffusionConfig
) -> Trial:
    """Two steps of it on the first two scans, of which nothing is left."""
    check_batch(config.batch_size)
    check_scale(diffusion)
    torch_device, bundle = pick_device(device), read_bundle(source)
    few = _told(manifest, "train", bundle.preprocess.grid, most=2)
    schema = acquisition_conditions([acquisition_of(r) for r in _rows(manifest, "train")])
    how = acquisition_diffusion(diffusion, schema)
    cohort = few.cohort(schema)
    if how.flat:
        data, mean = slice_data(
            (few.images, few.images), (cohort.conditions, cohort.conditions), cohort.weights, 4
        )
    else:
        autoencoder = load_autoencoder(bundle, torch_device)
        data = trial_data(cohort, autoencoder, torch_device, config.seed)
        mean = fit_plain_mean(data.held_out, cohort.conditions.shape[1])
    return try_steps(
        "diffusion", LatentDiffusionTask(data, mean, torch_device, config, how), config
    )


def known_by_acquisition(bundle: Bundle, schema: Schema, *, latents: bool) -> Bundle:
    """The bundle with other conditions, without the parts that know conditions; without `latents`
    also without what codes them."""
    names = KEPT if latents else tuple(n for n in KEPT if n not in ("autoencoder", "decoder"))
    parts = {name: part for name, part in bundle.parts.items() if name in names}
    return replace(bundle, schema=schema, parts=parts)


def _data(
    bundle: Bundle,
    cohorts: tuple[Cohort, Cohort],
    how: LatentDiffusionConfig,
    seed: int,
    device: torch.device,
    runs: Path,
) -> tuple[LatentData, LatentMean]:
    train, val = cohorts
    if how.flat:
        images, conditions = (train.images, val.images), (train.conditions, val.conditions)
        return slice_data(images, conditions, train.weights, HELD_OUT)
    autoencoder = load_autoencoder(bundle, device)
    data = latent_data(train, val, autoencoder, how.views, device, seed, runs)
    # No parameter bends: few values of each are seen.
    straight = train.conditions.new_zeros(train.conditions.shape[1]).bool()
    mean = fit_mean(
        data.latents, data.conditions, data.weights, straight, how.latent_mean, how.latent_scale
    )
    return data, mean


def _rows(manifest: Path, split: str) -> list[Row]:
    rows = [r for r in read_manifest(manifest, default_schema()) if r.split == split]
    if not rows:
        raise ManifestError(
            manifest, f"no row has split '{split}'", "prepared scans with a split column"
        )
    return rows


def _told(manifest: Path, split: str, grid: str, most: int | None = None) -> Told:
    rows = _rows(manifest, split)[:most]
    images = read_images(manifest, rows, grid)
    protocols = [
        {**acquisition_of(row), **_scales(row, image)}
        for row, image in zip(rows, images, strict=True)
    ]
    return Told(rows, images, protocols)


def _scales(row: Row, image: Tensor) -> Mapping[str, Value]:
    """SCALES of a prepared scan; of its brightness only a record of `preprocess` tells."""
    contrast = {CONTRAST: contrast_of(image)}
    name = row.image.name
    ending = Files.named(Path(), "").image.name
    if not name.endswith(ending):
        return contrast
    sidecar = Files.named(row.image.parent, name.removesuffix(ending)).sidecar
    if not sidecar.exists():
        return contrast
    record = read_record(Preparation, sidecar, "the record that 'cfgen preprocess' writes")
    return {BRIGHTNESS: record.intensity_scale, **contrast}
