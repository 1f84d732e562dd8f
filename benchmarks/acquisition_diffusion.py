"""Diffusion models that know how scans were acquired: latents and slices, on simulated people.

    python benchmarks/acquisition_diffusion.py train --out build/iap --cohort randomised \\
        --model latent --seconds 600
    python benchmarks/acquisition_diffusion.py edit --out build/iap --cohort randomised \\
        --model latent

The people are those of benchmarks/acquisition_people.py. `train` makes a bundle OUT/MODEL-COHORT,
in as many steps as fit in the time: of latents under the paper's schedule (`latent`) or one whose
noise hides what all voxels agree on (`shifted`), of such latents about a mean that follows the
acquisition (`ridge`), or of slices. `edit` brings the test people to the other acquisitions by
Algorithm 1 or by DDIM inversion, a file a setting, which benchmarks/acquisition_measure.py
measures; what is there is not made again.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from acquisition_people import CONFOUNDING, SEED, VAL, Case, People, cases, read, unscaled
from paced import fit_within
from torch import Tensor

import cfgen
from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import (
    ACQUISITION_NOISE_SHIFT,
    LATENT_DIFFUSION_FIT,
    FitConfig,
    Rediffusion,
)
from cfgen.data.acquisition import Protocol, acquisition_conditions
from cfgen.data.conditions import Schema
from cfgen.device import pick_device
from cfgen.edit.acquired import encoded
from cfgen.edit.latent import Models, load_autoencoder, load_models
from cfgen.edit.rediffuse import rediffused
from cfgen.jobs.train_acquisition import known_by_acquisition
from cfgen.jobs.train_latent_diffusion import unet_description
from cfgen.nets.condition import Condition
from cfgen.streams import Purpose, torch_stream
from cfgen.train.acquisition import (
    SLICES,
    acquisition_diffusion,
    slice_data,
)
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, SCHEDULE, LatentDiffusionConfig
from cfgen.train.latent_diffusion import LatentDiffusionTask as Task
from cfgen.train.latents import LatentData, cached_views, encode_views, fit_mean

HELD_OUT = 64
BATCH = {"latent": 16, "shifted": 16, "ridge": 16, "slices": 32}
# The signal-to-noise ratio of these is divided at every time (docs/cycle.md).
SHIFT = {"shifted": ACQUISITION_NOISE_SHIFT, "ridge": ACQUISITION_NOISE_SHIFT}
# Scans that are edited at a time.
TOGETHER = {"latent": 8, "shifted": 8, "ridge": 8, "slices": 1}
# The paper's own setting, then its others; and DDIM as deep as its noise goes.
PAPER = tuple(
    Rediffusion(t, w, "ddpm")
    for t, w in sorted(product((25, 50, 75), (3.0, 5.0, 7.0)), key=lambda tw: tw != (50, 3.0))
)
DEEP = tuple(Rediffusion(t, w, "ddim") for t, w in product((1000, 700, 400), (1.0, 2.0)))
SETTINGS = {
    "latent": (*PAPER, *DEEP[:1]),
    "shifted": DEEP,
    # The first is what the latent mean does by itself.
    "ridge": (Rediffusion(1, 1.0, "ddpm"), *DEEP),
    "slices": (PAPER[0], DEEP[0], *PAPER[1:]),
}
log = logging.getLogger("cfgen")


def data_of(
    run: Run, source: Bundle
) -> tuple[LatentData, LatentMean, LatentDiffusionConfig, Schema]:
    people = read(run.out / run.cohort)
    images = torch.from_numpy(np.array(people.images[: VAL + run.people]))
    protocols = [line["protocol"] for line in people.table[: VAL + run.people]]
    schema = acquisition_conditions(protocols[VAL:])
    c = encoded(schema, protocols)
    weights = torch.ones(len(c) - VAL)
    if run.model == "slices":
        how = acquisition_diffusion(SLICES, schema)
        both = (images[VAL:], images[:VAL])
        data, mean = slice_data(both, (c[VAL:], c[:VAL]), weights, HELD_OUT)
        return data, mean, how, schema
    usual = replace(
        LATENT_DIFFUSION,
        schedule=replace(SCHEDULE, shift=SHIFT.get(run.model, 1.0)),
        latent_mean=run.model == "ridge",
        latent_scale="voxel",
        positions=True,
    )
    how = acquisition_diffusion(usual, schema)
    if run.channels:
        how = replace(how, channels=run.channels)
    # One view: what is learned here is contrast, which a mirror leaves as it is.
    how = replace(how, views=1)
    net = load_autoencoder(source, run.device)
    path = run.out / "runs" / f"latents-{run.cohort}.npy"
    latents = cached_views(net, images[VAL:], how.views, run.device, SEED, path)
    held_out = encode_views(net, images[:VAL], 1, run.device, SEED)[:, 0]
    data = LatentData(latents, c[VAL:], weights, held_out, c[:VAL])
    flags = torch.zeros(c.shape[1], dtype=torch.bool)
    mean = fit_mean(
        data.latents, data.conditions, weights, flags, how.latent_mean, how.latent_scale
    )
    return data, mean, how, schema


@dataclass(frozen=True)
class Run:
    """Whose people, of what a model, where, and how many seconds training may take; 0: no limit.
    So many `people` teach, and `tested` are edited. `channels` are those of a latent's network, by
    level; none: the usual."""

    out: Path
    cohort: str
    model: str
    device: torch.device
    seconds: float
    tested: int
    people: int
    channels: tuple[int, ...]


def train(run: Run, source: Bundle, config: FitConfig) -> None:
    """OUT/MODEL-COHORT."""
    began = time.monotonic()
    out, name, model, device, seconds = run.out, run.cohort, run.model, run.device, run.seconds
    data, mean, how, schema = data_of(run, source)
    log.info("%s %s: data after %.0f s", model, name, time.monotonic() - began)
    runs = out / "runs" / f"{model}-{name}"
    task = Task(data, mean, device, config, how)
    if seconds:
        net = fit_within(task, config, runs, seconds)
    else:
        net = fit(task, replace(config, report_every=config.steps), runs, shared=False)
    kept = known_by_acquisition(source, schema, latents=model != "slices")
    bundle = copy_bundle(kept, out / f"{model}-{name}")
    bundle = write_part(bundle, "latent_mean", mean.tensors(), {"conditional": how.latent_mean}, {})
    trained = {"scans": len(data.conditions), **asdict(config)}
    write_part(bundle, "unet", half(net), unet_description(task.net.config, how), trained)
    log.info("%s %s: %.0f s", model, name, time.monotonic() - began)


# Each image's own acquisition, and the other.
Ways = tuple[Sequence[Protocol], Sequence[Protocol]]


def protocols_of(people: People, asked: Sequence[Case]) -> Ways:
    """Of the scans and of their targets."""
    own = [unscaled(people.protocol(case.scan)) for case in asked]
    return own, [unscaled(people.protocol(case.truth)) for case in asked]


def brought(
    models: Models,
    schema: Schema,
    images: Tensor,
    ways: Ways,
    setting: Rediffusion,
    names: Sequence[str],
    together: int,
) -> Tensor:
    """Images (N, D, H, W) under the other acquisitions, so many at a time; noise is drawn by
    name."""
    own, other = (encoded(schema, protocols) for protocols in ways)
    made = []
    for some in torch.arange(len(images)).split(together):
        pair = Condition(own[some]), Condition(other[some])
        generators = [torch_stream(SEED, Purpose.SAMPLES, names[n]) for n in some.tolist()]
        made.append(rediffused(models, images[some, None], pair, setting, generators)[:, 0])
    return torch.cat(made)


def edit(run: Run) -> None:
    """OUT/edits/MODEL-COHORT/SETTING.npy (cases, D, H, W) float16, of as many settings as fit."""
    out, name, model, seconds = run.out, run.cohort, run.model, run.seconds
    start = time.monotonic()
    bundle = read_bundle(out / f"{model}-{name}")
    models = load_models(bundle, run.device)
    people = read(out / f"{name}-test")
    asked = [case for case in cases(people) if case.person < run.tested]
    images = torch.stack([people.image(case.scan) for case in asked])
    ways = protocols_of(people, asked)
    names = [f"{case.person}{case.target}" for case in asked]
    folder = out / "edits" / f"{model}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    for setting in SETTINGS[model]:
        label = f"{setting.sampler}-{setting.start_t}-{setting.guidance:g}"
        if (folder / f"{label}.npy").exists():
            continue
        if seconds and time.monotonic() - start > seconds:
            log.info("no time left for %s", label)
            return
        made = brought(models, bundle.schema, images, ways, setting, names, TOGETHER[model]).half()
        np.save(folder / f"{label}.part.npy", made.numpy())
        (folder / f"{label}.part.npy").replace(folder / f"{label}.npy")
        log.info("%s: %s after %.0f s", model, label, time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("train", "edit"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", choices=tuple(CONFOUNDING), default="randomised")
    parser.add_argument("--model", choices=tuple(BATCH), default="latent")
    parser.add_argument("--people", type=int, default=1000, help="to learn from, at most")
    parser.add_argument("--tested", type=int, default=1000, help="the first of the test people")
    parser.add_argument("--bundle", type=Path, help="whose autoencoder")
    parser.add_argument("--channels", type=int, nargs="+", default=[], help="of latents, by level")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=0, help="instead of --steps; of edit too")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    run = Run(
        options.out,
        options.cohort,
        options.model,
        pick_device(options.device),
        options.seconds,
        options.tested,
        options.people,
        tuple(options.channels),
    )
    source = read_bundle(options.bundle or Path(cfgen.__file__).parent / "bundles" / "default")
    if options.stage == "edit":
        edit(run)
        return
    config = replace(
        LATENT_DIFFUSION_FIT,
        steps=options.steps,
        batch_size=options.batch or BATCH[run.model],
        learning_rate=options.rate,
        ema_decay=0.995,
        checkpoint_every=500,
    )
    train(run, source, config)


if __name__ == "__main__":
    main()
