"""Fine-tune a folder of Stable Diffusion on axial slices of a cohort."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cfgen.config import (
    FEWEST_SCANS,
    PATIENCE,
    SD_PRIOR_SAMPLES,
    SD_SLICES_PER_SCAN,
    FitConfig,
    SdEdit,
    SdScheme,
)
from cfgen.data.conditions import Values, default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.names import check_folder
from cfgen.data.table import Row
from cfgen.data.volume import file_sha256, read_volume, refuse_existing
from cfgen.device import pick_device
from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.errors import ManifestError, UsageError
from cfgen.jobs.sd_drift import find_sd_drift
from cfgen.processes import leads
from cfgen.progress import working
from cfgen.sd.model import (
    Card,
    SdModel,
    open_model,
    refuse_other_folder,
    save_model,
    unet_sha256,
)
from cfgen.sd.prompts import SIMPLE, Style, prompt
from cfgen.sd.sampling import Sampling, generate
from cfgen.sd.schemes import prepare_scheme, refuse_pairs, widened
from cfgen.sd.slices import Slices, parse_range
from cfgen.streams import Purpose, torch_stream
from cfgen.train.fit import HELD_OUT, fit, seed_weights
from cfgen.train.record import claim, runs_folder
from cfgen.train.slices import Prior, SliceData, SliceTask
from cfgen.train.together import check_batch, first_alone, join
from cfgen.train.trial import Trial, try_steps

log = logging.getLogger("cfgen")

# Samples of the parent need few steps.
PRIOR_EDIT = SdEdit(steps=25)


@dataclass(frozen=True)
class Options:
    """`drift` None is the parent's own, 'auto' the best that `find_sd_drift` finds; `pairs` trains
    InstructPix2Pix on visits of one person; `slices` is read by `parse_range`."""

    tune: SdScheme
    drift: Drift | Literal["auto"] | None
    style: Style
    slices: str
    pairs: bool = False
    slices_per_scan: int = SD_SLICES_PER_SCAN
    prior_samples: int = SD_PRIOR_SAMPLES
    checkpointing: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Shown:
    """A scan that slices are taken of; of a pair also the earlier one."""

    row: Row
    values: Values
    before: Shown | None = None


@dataclass(frozen=True)
class Splits:
    train: list[Shown]
    val: list[Shown]


def read_scans(manifest: Path, options: Options) -> Splits:
    """The scans, or pairs of scans, of both splits.

    Raises ManifestError where the held-out part is empty, and UsageError where there are fewer
    than the scheme needs.
    """
    rows = read_manifest(manifest, default_schema())
    parts = {
        split: [Shown(row, _values(row)) for row in rows if row.split == split]
        for split in ("train", "val")
    }
    what = "scan"
    if options.pairs:
        parts, what = {split: _pairs(shown) for split, shown in parts.items()}, "pair of visits"
    if not parts["val"]:
        raise ManifestError(
            manifest,
            f"no {what} is held out",
            f"a column split with train and val, and a {what} of val at least",
            "hold out one scan in five",
        )
    fewest, found = FEWEST_SCANS[options.tune], len(parts["train"])
    if found < fewest:
        raise UsageError(
            f"--tune {options.tune}",
            f"{found} {what}{'' if found == 1 else 's'} to train on in {manifest.name}",
            f"{fewest} at least",
            "add scans, or take --tune condition, which needs the fewest",
        )
    return Splits(parts["train"], parts["val"])


def sd_tune(
    folder: Path, manifest: Path, out: Path, config: FitConfig, device: str, options: Options
) -> Path:
    """Fine-tune the model in `folder` and write one that diffusers, and `sd-edit`, open."""
    check_folder(out)
    refuse_existing(out, options.overwrite)
    refuse_other_folder(out)
    check_batch(config.batch_size)
    join(pick_device(device))
    splits = read_scans(manifest, options)
    model = _ready(folder, device, options)
    runs = runs_folder(out, "sd")
    claim(runs, _question(folder, manifest, options))
    task = _task(model, splits, config, options, runs)
    before = task.report(task.net, runs)[HELD_OUT]
    net = fit(task, config, runs, patience=PATIENCE)
    if not leads():
        return out
    after = task.report(net, runs)[HELD_OUT]
    log.info("held-out error %.4f, before training %.4f", after, before)
    task.scheme.trained.take(net)
    diagnoses = {str(s.values["diagnosis"]) for s in splits.train if "diagnosis" in s.values}
    card = Card(
        tune=options.tune,
        drift=list(task.drift.delta),
        noun=task.scheme.noun,
        prompts=options.style.kind,
        patient=options.style.patient,
        age_words=options.style.age,
        diagnoses=sorted(diagnoses),
        scans=len(splits.train),
        slices=len(task.data.latents),
        steps=config.steps,
        seed=config.seed,
        held_out_error=[before, after],
        parent=folder.resolve().name,
        parent_unet_sha256=unet_sha256(folder),
    )
    task.scheme.finish()
    save_model(task.scheme.model, card, out)
    return out


def try_sd_tune(
    folder: Path, manifest: Path, config: FitConfig, device: str, options: Options
) -> Trial:
    """Two steps of it on the first scans of each split, of which nothing is left."""
    check_batch(config.batch_size)
    splits = read_scans(manifest, options)
    few = Splits(splits.train[:2], splits.val[:1])
    small = replace(options, prior_samples=1, slices_per_scan=2)
    if options.drift == "auto":
        # The search is none of the steps.
        small = replace(small, drift=NO_DRIFT)
    task = _task(_ready(folder, device, options), few, config, small)
    return try_steps(f"Stable Diffusion, {options.tune}", task, config)


def _question(folder: Path, manifest: Path, options: Options) -> dict[str, object]:
    """What decides a fine-tuning, beside how long and how fast."""
    drift = options.drift.text() if isinstance(options.drift, Drift) else options.drift
    return {
        "unet": unet_sha256(folder),
        "manifest": file_sha256(manifest),
        "tune": options.tune,
        "drift": drift,
        "style": asdict(options.style),
        "slices": [options.slices, options.slices_per_scan],
        "pairs": options.pairs,
        "prior_samples": options.prior_samples,
    }


def _ready(folder: Path, device: str, options: Options) -> SdModel:
    """The model, with the inputs that the task needs. Raises UsageError for one of another task."""
    model = open_model(folder, pick_device(device))
    if isinstance(options.drift, Drift):
        options.drift.constant("for Stable Diffusion").check(model.channels)
    if options.pairs:
        refuse_pairs(options.tune, model)
        return model if model.edits else widened(model)
    if model.edits:
        found = "is an InstructPix2Pix model, which learns from pairs"
        raise UsageError(folder, found, "--pairs, or a text-to-image model")
    return model


def _task(
    model: SdModel,
    splits: Splits,
    config: FitConfig,
    options: Options,
    runs: Path | None = None,
) -> SliceTask:
    parts = [_data(model, shown, options) for shown in (splits.train, splits.val)]
    drift = _drift(model, parts[1], config.seed, options, runs)
    prior = _prior(model, config, options) if options.tune == "prior" else None
    seed_weights(config.seed)
    scheme = prepare_scheme(options.tune, model)
    if options.checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.unet.train()
    return SliceTask(scheme, parts[0], parts[1], options.style, drift, config, prior)


def _drift(
    model: SdModel, held_out: SliceData, seed: int, options: Options, runs: Path | None
) -> Drift:
    if options.drift is None:
        return model.card.trained
    if isinstance(options.drift, Drift):
        return options.drift
    assert runs is not None
    folder = runs / "drift"
    curve = first_alone(lambda: find_sd_drift(model, held_out, options.style, seed, folder))
    log.info("%s", curve.text())
    return curve.chosen


def _data(model: SdModel, shown: Sequence[Shown], options: Options) -> SliceData:
    """Slices of scans, encoded. Raises ManifestError for visits that are not on one grid."""
    low, high = parse_range(options.slices)
    latents, sources = [], []
    values: list[Values] = []
    before: list[Values] = []
    with working("scans encoded", len(shown)) as step:
        for scan in shown:
            later = Slices.of(read_volume(scan.row.image), model.size)
            earlier = later if scan.before is None else _earlier(scan, later, model.size)
            places = _spread(earlier.between(low, high), options.slices_per_scan)
            latents += [model.encode(later.picture(p)[None]).cpu() for p in places]
            values += [scan.values] * len(places)
            if scan.before is not None:
                sources += [model.encode(earlier.picture(p)[None]).cpu() for p in places]
                before += [scan.before.values] * len(places)
            step()
    if not sources:
        return SliceData(torch.cat(latents), values)
    # InstructPix2Pix is told sources that are not scaled.
    told = torch.cat(sources) / model.vae.config.scaling_factor
    return SliceData(torch.cat(latents), values, told, before)


def _earlier(scan: Shown, later: Slices, size: int) -> Slices:
    assert scan.before is not None
    earlier = Slices.of(read_volume(scan.before.row.image), size)
    if not earlier.scan.grid.matches(later.scan.grid):
        raise ManifestError(
            scan.row.source,
            f"is not on the grid of {scan.before.row.source}, the visit before",
            "visits of one person on one grid",
            "prepare them first: cfgen preprocess",
        )
    return earlier


def _spread(places: list[int], most: int) -> list[int]:
    """`most` of them at even distances."""
    chosen = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    return [places[i] for i in chosen]


def _prior(model: SdModel, config: FitConfig, options: Options) -> Prior:
    """Samples of the parent, under the prompt without the rare word."""
    words, made = prompt({}, options.style, SIMPLE, model.card.noun), []
    sampling = Sampling(model.card.trained, edit=PRIOR_EDIT)
    with working("samples of the parent", options.prior_samples) as step:
        for number in range(options.prior_samples):
            stream = torch_stream(config.seed, Purpose.SAMPLES, number)
            noise = torch.randn(1, *model.latent_shape, generator=stream)
            made.append(generate(model, [words], noise, sampling, config.seed).cpu())
            step()
    return Prior(torch.cat(made), words)


def _values(row: Row) -> Values:
    """Age, sex and diagnosis, as far as they are known."""
    known = {n.lower(): text for n, text in row.extra.items()}
    diagnosis = known.get("diagnosis", "")
    return {**row.values, **({"diagnosis": diagnosis} if diagnosis else {})}


def _pairs(shown: Sequence[Shown]) -> list[Shown]:
    """Each visit of a person after each earlier one. Visits without an age are in none."""
    visits: dict[str, list[Shown]] = defaultdict(list)
    for scan in shown:
        if "age" in scan.values:
            visits[scan.row.subject].append(scan)
    pairs = []
    for of_one in visits.values():
        of_one.sort(key=lambda s: float(s.values["age"]))
        pairs += [
            replace(later, before=earlier)
            for earlier, later in combinations(of_one, 2)
            if earlier.values["age"] != later.values["age"]
        ]
    return pairs
