"""Bring a trained bundle to another scanner's scans, of which there are few."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.causal.adaptation import MovedMean, adapt_mean, with_inputs
from cfgen.config import DRIFT_AT, FEWEST_SCANS, GENERATION, PATIENCE, DriftAt, FitConfig, Tune
from cfgen.data.conditions import Schema, with_added
from cfgen.data.manifest import read_manifest
from cfgen.device import pick_device
from cfgen.diffusion.drift import NO_DRIFTING, Drift, Drifting, Form, parse_drift
from cfgen.edit.drift_search import HOW
from cfgen.edit.generation import sample_latent
from cfgen.edit.latent import Models, load_models, without_conditions
from cfgen.errors import ManifestError, UsageError
from cfgen.jobs.drift_files import find_drift
from cfgen.jobs.train_latent_diffusion import HELD_OUT, diffusion_of, unet_description
from cfgen.nets.condition import Condition
from cfgen.nets.lora import merge_lora
from cfgen.nets.unet import with_added as with_inputs_added
from cfgen.processes import leads
from cfgen.streams import Purpose, stream, torch_stream
from cfgen.train.adapt import AdaptTask, Prior, choose_weights
from cfgen.train.cohort import Cohort, read_splits
from cfgen.train.fit import fit, seed_weights
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionConfig
from cfgen.train.latents import LatentData, latent_data, trial_data
from cfgen.train.mapped import mapped
from cfgen.train.record import claim, runs_folder, trained_on
from cfgen.train.together import check_batch, first_alone, join
from cfgen.train.trial import Trial, try_steps

log = logging.getLogger("cfgen")
# What is searched, of which form.
Auto = Literal["auto", "noise:auto"]
AUTO: dict[Auto, Form] = {"auto": "constant", "noise:auto": "noise"}
# Samples of the parent that DreamBooth's prior is made of, and how each is denoised.
PRIOR_SAMPLES = 32
PRIOR_HOW = replace(GENERATION, sampler="dpm++", steps=20)
# Scans that a trial looks at.
TRIED = 4


def asked_drift(text: str | None) -> Drift | Auto | None:
    """What --drift says. Raises UsageError."""
    if text is None:
        return None
    return next((auto for auto in AUTO if auto == text), None) or parse_drift(text)


@dataclass(frozen=True)
class Asked:
    """What is brought where, and how: `parent` is the bundle, `conditions` are columns of the
    manifest that it does not know; `drift` None is the parent's own, 'auto' and 'noise:auto' the
    best of a form that `edit.drift_search` finds; `shrink` moves the latent mean
    (causal/adaptation.py)."""

    manifest: Path
    parent: Path
    tune: Tune
    drift: Drift | Auto | None = None
    drift_at: DriftAt = DRIFT_AT
    conditions: Sequence[str] = ()
    shrink: bool = True
    checkpointing: bool = False


@dataclass(frozen=True)
class _Start:
    """The parent with its inputs for new conditions, of which there are `new`, the first
    `indicators` of them of one condition, and the scans. `known` is the parent's condition vector's
    length."""

    bundle: Bundle
    models: Models
    schema: Schema
    train: Cohort
    val: Cohort

    @property
    def known(self) -> int:
        return sum(v.width for v in self.bundle.schema.variables)

    @property
    def new(self) -> int:
        return sum(v.width for v in self.schema.variables) - self.known

    @property
    def indicators(self) -> int:
        if not self.new:
            return 0
        first = self.schema.variables[len(self.bundle.schema.variables)]
        return len(first.levels) or 1


def adapt(asked: Asked, out: Path, config: FitConfig, device: str) -> Bundle:
    """A new bundle: the parent with its latent mean moved in closed form and its UNet fine-tuned by
    the scheme, under a drift. Of several processes the first writes.

    Raises UsageError, ManifestError or BundleError before anything is computed: scans that are too
    few, none held out, of another grid than the parent's or without its conditions, a drift out of
    range, a scheme that has nothing to train.
    """
    torch_device, runs = pick_device(device), runs_folder(out, "adapt")
    start = _started(asked, config, torch_device, runs)
    claim(runs, _question(asked, start))
    seed = config.seed
    # The mean is that of the scans as they are.
    views = 1 if asked.tune == "none" else LATENT_DIFFUSION.views
    autoencoder = start.models.autoencoder
    data = latent_data(start.train, start.val, autoencoder, views, torch_device, seed, runs)
    moved = _moved_mean(asked, start, data, seed)
    mean = moved.mean if moved else with_inputs(start.models.latent_mean, start.new)
    models = replace(start.models, latent_mean=mean.to(torch_device))
    drifting = _drifting(asked, start, models, seed, runs)
    bundle = start.bundle
    how = _how(asked, bundle, drifting)
    net: torch.nn.Module = models.unet
    trained: dict[str, Any] = bundle.part("unet").trained
    if asked.tune != "none":
        prior = _prior(start, models, seed, runs) if asked.tune == "prior" else None
        task = AdaptTask(models.unet.train(), data, mean, torch_device, config, how, prior)
        net = fit(task, config, runs, patience=PATIENCE)
        merge_lora(net)
        trained = trained_on(start.train.rows, config) | {"from": trained}
    if not leads():
        return bundle
    copied = replace(copy_bundle(bundle, out), schema=start.schema)
    mean_config = bundle.part("latent_mean").config | _said(moved, start)
    copied = write_part(copied, "latent_mean", mean.tensors(), mean_config, {})
    description = unet_description(models.unet.config, how)
    if drifting != NO_DRIFTING:
        description["drift"] = drifting.to_json()
    description["adapted"] = {
        "tune": asked.tune,
        "scans": len(start.train.rows),
        "parent": bundle.identity,
        "drift_at": asked.drift_at,
    }
    return write_part(copied, "unet", half(net), description, trained)


def _question(asked: Asked, start: _Start) -> dict[str, object]:
    """What decides an adaptation, beside how long and how fast."""
    drift = asked.drift.text() if isinstance(asked.drift, Drift) else asked.drift
    return {
        "parent": start.bundle.identity,
        "scans": [row.subject for row in start.train.rows],
        "tune": asked.tune,
        "drift": drift,
        "drift_at": asked.drift_at,
        "conditions": list(asked.conditions),
        "shrink": asked.shrink,
    }


def try_adapt(asked: Asked, config: FitConfig, device: str) -> Trial:
    """The same checks, and two steps on a few scans, of which nothing is left; without a drift."""
    torch_device = pick_device(device)
    start = _started(asked, config, torch_device, None)
    few = start.train.spaced(1, TRIED)
    data = trial_data(few, start.models.autoencoder, torch_device, config.seed)
    mean = with_inputs(start.models.latent_mean, start.new)
    prior = Prior(data) if asked.tune == "prior" else None
    how = _how(asked, start.bundle, NO_DRIFTING)
    net = start.models.unet.train()
    task = AdaptTask(net, data, mean, torch_device, config, how, prior)
    return try_steps(f"adaptation ({asked.tune})", task, config)


def _started(asked: Asked, config: FitConfig, device: torch.device, folder: Path | None) -> _Start:
    check_batch(config.batch_size)
    bundle = read_bundle(asked.parent)
    _check_drift(asked, bundle)
    schema = _schema(asked, bundle)
    train, val = read_splits(asked.manifest, schema, bundle.preprocess.grid, folder=folder)
    fewest = FEWEST_SCANS[asked.tune]
    if len(train.rows) < fewest:
        raise ManifestError(
            asked.manifest,
            f"{len(train.rows)} scans in the train split",
            f"at least {fewest} for --tune {asked.tune}",
            "scan more, or take --tune condition or none, which need the fewest",
        )
    join(device)
    models = load_models(bundle, device)
    if models.unet.config.context_dim is None:
        raise without_conditions(bundle)
    cpu = torch.device("cpu")
    start = _Start(
        bundle,
        replace(models, latent_mean=models.latent_mean.to(cpu)),
        schema,
        train,
        val.spaced(1, HELD_OUT),
    )
    unet = models.unet
    if start.new:
        unet = with_inputs_added(unet, start.new).to(device)
    seed_weights(config.seed)
    if asked.tune != "none":
        choose_weights(unet, asked.tune, start.new)
    return replace(start, models=replace(start.models, unet=unet))


def _check_drift(asked: Asked, bundle: Bundle) -> None:
    """Raises UsageError for a drift out of range, or that would not act, or act twice."""
    if asked.drift is None:
        return
    if isinstance(asked.drift, Drift):
        asked.drift.check(int(bundle.part("autoencoder").config["net"]["latent_channels"]))
    if asked.drift_at != "inference" and asked.tune != "none" and _form(asked) == "noise":
        problem = f"a drift by the share of noise with --drift-at {asked.drift_at}"
        raise UsageError("--drift", problem, "--drift-at inference", "or leave 'noise:' out")
    if asked.tune == "none" and asked.drift_at == "training":
        problem = "--drift-at training with --tune none, which trains nothing"
        raise UsageError("--drift", problem, "--drift-at inference")
    known = Drifting.from_json(bundle.part("unet").config.get("drift")).trained
    if known:
        problem = f"the parent was trained with a drift of {known.text()} already"
        raise UsageError("--drift", problem, "none: it stays", "leave --drift out")


def _form(asked: Asked) -> Form:
    if asked.drift is None:
        return "constant"
    return asked.drift.form if isinstance(asked.drift, Drift) else AUTO[asked.drift]


def _schema(asked: Asked, bundle: Bundle) -> Schema:
    """The parent's, its numbers as they are, with new conditions after its own."""
    if not asked.conditions:
        return bundle.schema
    rows = [r for r in read_manifest(asked.manifest, bundle.schema) if r.split == "train"]
    return with_added(bundle.schema, asked.conditions, [r.extra for r in rows])


def _how(asked: Asked, bundle: Bundle, drifting: Drifting) -> LatentDiffusionConfig:
    how = diffusion_of(bundle, LATENT_DIFFUSION)
    return replace(how, checkpointing=asked.checkpointing, drift=drifting.trained)


def _moved_mean(asked: Asked, start: _Start, data: LatentData, seed: int) -> MovedMean | None:
    """The parent's latent mean for these scans; None where it is to stay."""
    if not asked.shrink:
        return None
    parent = start.models.latent_mean
    scans = data.latents[:, 0].float()
    moved = adapt_mean(parent, scans, data.conditions, start.new, start.indicators, seed)
    slopes = ", ".join(_inputs(start.schema, moved.slopes))
    log.info(
        "latent mean: %s; %s",
        f"channels moved by {float(moved.shift.square().mean().sqrt()):.2f} spreads (root mean "
        f"square), {100 * float(moved.kept.mean()):.0f} % of what voxels show beyond it kept"
        if moved.shift.any()
        else "no shift that chance would not show, it stays where it is",
        f"slopes moved of {slopes}" if slopes else "no slope moved",
    )
    return moved


def _inputs(schema: Schema, places: Sequence[int]) -> list[str]:
    """The conditions whose inputs these are."""
    names = [v.name for v in schema.variables for _ in range(v.width)]
    return list(dict.fromkeys(names[p] for p in places))


def _said(moved: MovedMean | None, start: _Start) -> dict[str, Any]:
    if moved is None:
        return {}
    return {
        "adapted": {
            "scans": len(start.train.rows),
            "shift": [round(x, 4) for x in moved.shift.tolist()],
            "slopes": _inputs(start.schema, moved.slopes),
        }
    }


def _drifting(asked: Asked, start: _Start, models: Models, seed: int, runs: Path) -> Drifting:
    """The drifts of the new bundle: of training, of sampling, or of both."""
    if asked.drift is None:
        return models.drifting
    if not isinstance(asked.drift, Drift):
        held_out = (start.val.conditions, start.val.images, [r.subject for r in start.val.rows])
        curve = first_alone(
            lambda: find_drift(
                models, *held_out, start.bundle.identity, seed, runs / "drift", _form(asked)
            )
        )
        log.info("%s", curve.text())
        delta, steps = curve.chosen, HOW.steps
    else:
        delta, steps = asked.drift, GENERATION.steps
    if not delta:
        return NO_DRIFTING
    trained = delta if asked.drift_at in ("both", "training") and asked.tune != "none" else Drift()
    sampling = delta if asked.drift_at in ("both", "inference") else Drift()
    return Drifting(trained, sampling, steps)


def _prior(start: _Start, models: Models, seed: int, runs: Path) -> Prior:
    """Latents of the parent's own, under its own conditions, in a file beside the bundle."""
    c = torch.zeros(PRIOR_SAMPLES, start.known + start.new)
    c[:, : start.known] = _of_support(start.bundle.schema, seed)
    shape = tuple(models.latent_mean.coefficients.shape[1:])

    def make(number: int) -> np.ndarray:
        noise = torch.randn(shape, generator=torch_stream(seed, Purpose.NOBODY, number, step=3))
        asked = Condition(c[number : number + 1]).to(models.device)
        z0 = sample_latent(models, asked, noise[None].to(models.device), PRIOR_HOW)
        return z0[0].half().cpu().numpy()

    made_from = f"{start.bundle.identity} {seed} {tuple(c.shape)}"
    whole = (PRIOR_SAMPLES, *shape)
    path = runs / "prior.npy"
    latents = first_alone(lambda: mapped(path, made_from, whole, make, "samples of the parent"))
    data = LatentData(latents[:, None], c, torch.ones(PRIOR_SAMPLES), latents[:1], c[:1])
    return Prior(data)


def _of_support(schema: Schema, seed: int) -> Tensor:
    """Conditions (PRIOR_SAMPLES, V): every number of its training range, every level alike."""
    rng = stream(seed, Purpose.NOBODY, step=4)
    rows = []
    for _ in range(PRIOR_SAMPLES):
        values: dict[str, float | str] = {}
        for v in schema.variables:
            if v.added:
                continue
            if v.kind == "categorical":
                values[v.name] = str(rng.choice(v.seen or v.levels))
            else:
                low, high = v.support or (v.center - v.scale, v.center + v.scale)
                values[v.name] = float(rng.uniform(low, high))
        rows.append(schema.encode(values))
    return torch.from_numpy(np.stack(rows))
