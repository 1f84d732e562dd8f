"""Bring a bundle's autoencoder to another scanner's scans, of which there are few."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.config import DEFAULT_GRID, FEWEST_SCANS, PATIENCE, FitConfig, TuneAutoencoder
from cfgen.device import pick_device
from cfgen.edit.latent import load_autoencoder
from cfgen.errors import ManifestError
from cfgen.jobs.train_autoencoder import HELD_OUT, autoencoder_description
from cfgen.nets.causal_autoencoder import CausalAutoencoder
from cfgen.processes import leads
from cfgen.space.grids import model_grid
from cfgen.train.adapt_autoencoder import NO_ADVERSARY, AdaptAutoencoderTask, choose_weights
from cfgen.train.autoencoder import AutoencoderTask
from cfgen.train.causal_autoencoder import CausalTask
from cfgen.train.cohort import Cohort, read_splits
from cfgen.train.fit import fit
from cfgen.train.presets import NETWORKS
from cfgen.train.record import claim, runs_folder, trained_on
from cfgen.train.together import check_batch, join
from cfgen.train.trial import Trial, try_steps

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Asked:
    """`parent` is the bundle, `preset` names the loss."""

    manifest: Path
    parent: Path
    tune: TuneAutoencoder
    preset: str = DEFAULT_GRID
    checkpointing: bool = False


def adapt_autoencoder(asked: Asked, out: Path, config: FitConfig, device: str) -> Bundle:
    """A new bundle: the parent with its autoencoder fine-tuned, without a diffusion decoder of the
    old one; everything else stays as it is. The part says the PSNR (dB, inside the brain) of scans
    that are held out, before and after.

    With tune 'decoder' latents stay what they are. With 'all' they do not: the diffusion model is
    then to be adapted too. Raises ManifestError for scans that are too few, none held out, of
    another grid or without the parent's conditions.
    """
    runs = runs_folder(out, "adapt-autoencoder")
    bundle, task, train = _prepared(asked, config, pick_device(device), runs)
    scans = [row.subject for row in train.rows]
    claim(runs, {"parent": bundle.identity, "scans": scans, "tune": asked.tune})
    before = {} if not leads() else task.report(task.net.eval(), _picture(runs, "before"))
    net = fit(task, config, runs, patience=PATIENCE)
    if not leads():
        return bundle
    after = task.report(net, _picture(runs, "after"))
    psnr_db = {"before": before["psnr_db"], "after": after["psnr_db"]}
    log.info("PSNR of held-out scans: %.2f dB, before %.2f", after["psnr_db"], before["psnr_db"])
    parts = set(bundle.parts) & {"unet", "latent_mean", "controlnet"}
    if asked.tune == "all" and parts:
        named = " and ".join(sorted(parts))
        log.warning("warning: latents moved; adapt %s next: train-ldm --init %s --tune", named, out)
    description = autoencoder_description(task.net) | {"adapted": {"tune": asked.tune}}
    trained = trained_on(train.rows, config) | {
        "from": bundle.part("autoencoder").trained,
        "psnr_db": psnr_db,
    }
    adapted = copy_bundle(_without_decoder(bundle), out)
    return write_part(adapted, "autoencoder", half(net), description, trained)


def _without_decoder(bundle: Bundle) -> Bundle:
    """A diffusion decoder belongs to one autoencoder, and knows nothing of the new scanner."""
    if "decoder" not in bundle.parts:
        return bundle
    log.info("the diffusion decoder of the old autoencoder is left out: train it again (--decoder)")
    return bundle.without(["decoder"])


def try_adapt_autoencoder(asked: Asked, config: FitConfig, device: str) -> Trial:
    """The same checks, and two steps, of which nothing is left."""
    _, task, _ = _prepared(asked, config, pick_device(device), None)
    return try_steps(f"autoencoder ({asked.tune})", task, config)


def _picture(runs: Path, name: str) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    return runs / f"{name}.png"


def _prepared(
    asked: Asked, config: FitConfig, device: torch.device, folder: Path | None
) -> tuple[Bundle, AdaptAutoencoderTask, Cohort]:
    check_batch(config.batch_size)
    bundle = read_bundle(asked.parent)
    grid = bundle.preprocess.grid
    train, val = read_splits(asked.manifest, bundle.schema, grid, folder=folder)
    fewest = FEWEST_SCANS["full"]
    if len(train.rows) < fewest:
        found = f"{len(train.rows)} scans in the train split"
        raise ManifestError(asked.manifest, found, f"at least {fewest}")
    join(device)
    net = load_autoencoder(bundle, device)
    held_out = val.spaced(1, HELD_OUT).images
    cohort = (train.images, train.weights, held_out, held_out > 0, device, config)
    networks = NETWORKS[asked.preset]
    inner: AutoencoderTask
    if isinstance(net, CausalAutoencoder):
        how = networks.causal.on(model_grid(grid).shape)
        loss = replace(how.loss, adversarial_from=NO_ADVERSARY)
        inner = CausalTask(
            *cohort, replace(how, net=net.config, loss=loss), None, asked.checkpointing
        )
    else:
        plain = replace(networks.loss, adversarial_from=NO_ADVERSARY)
        inner = AutoencoderTask(
            *cohort, net.config, plain, crop=networks.crop, checkpointing=asked.checkpointing
        )
    bundle.fill(inner.net, "autoencoder")
    choose_weights(inner.net, asked.tune)
    return bundle, AdaptAutoencoderTask(inner), train
