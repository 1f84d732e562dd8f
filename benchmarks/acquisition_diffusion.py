"""Diffusion models that know how scans were acquired: latents and slices, on simulated people.

    python benchmarks/acquisition_diffusion.py people --out build/iap --people 300
    python benchmarks/acquisition_diffusion.py train --out build/iap --cohort randomised \\
        --model latent --seconds 600
    python benchmarks/acquisition_diffusion.py train --out build/iap --cohort randomised \\
        --model slices --seconds 600
    python benchmarks/acquisition_diffusion.py edit --out build/iap --cohort randomised \\
        --model latent

`people` simulates two cohorts of the preset 'iap', scanners at random (`randomised`) and scanners
that age decides (`confounded`), and test people with their true scans under other acquisitions.
Images are on the model grid, levelled by the true white matter (benchmarks/cycle_people.py).
`train` makes a bundle OUT/MODEL-COHORT, in as many steps as fit in the time: of latents about one
mean, of latents about a mean that follows the acquisition (`ridge`), or of slices. `edit` brings
the test people to the other acquisitions by Algorithm 1 and by DDIM inversion, each with and
without the lock, and compares with the truth: errors are in units of the prepared scan, over the
brain.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from cycle_people import levelled
from paced import fit_within
from torch import Tensor

import cfgen
from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import DEFAULT_GRID, LATENT_DIFFUSION_FIT, PREPROCESS, FitConfig, Rediffusion
from cfgen.data.acquisition import SCALES, Protocol, acquisition_conditions
from cfgen.data.conditions import Schema, parse_interventions
from cfgen.data.volume import Volume
from cfgen.device import pick_device
from cfgen.edit.acquired import contrast_of, encoded
from cfgen.edit.latent import load_autoencoder, load_models
from cfgen.edit.lock import IntensityMap, intensity_map
from cfgen.edit.rediffuse import rediffused
from cfgen.errors import CfgenError
from cfgen.jobs.train_acquisition import known_by_acquisition
from cfgen.jobs.train_latent_diffusion import unet_description
from cfgen.measure.levels import Levels, tissue_levels
from cfgen.measure.segmenter import Segmentation, load_segmenter, segment
from cfgen.metrics.image import ssim
from cfgen.nets.condition import Condition
from cfgen.nets.segmenter import Segmenter
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import graph
from cfgen.sim.physics import protocol_of
from cfgen.sim.reference import reference
from cfgen.sim.render import render
from cfgen.space.grids import model_grid
from cfgen.streams import Purpose, torch_stream
from cfgen.train.acquisition import (
    SLICES,
    acquisition_diffusion,
    slice_data,
)
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionConfig
from cfgen.train.latent_diffusion import LatentDiffusionTask as Task
from cfgen.train.latents import LatentData, encode_views, fit_mean

SEED = 17
CPU = torch.device("cpu")
CONFOUNDING = {"randomised": 0.0, "confounded": 1.0}
# The other acquisitions of test people; who has one already is left out of it.
FIELDS = ("field_tesla=1.5", "field_tesla=3")
TARGETS = {"randomised": (*FIELDS, "sequence=SPGR", "sequence=MPRAGE"), "confounded": FIELDS}
# Numbers of people whom no training has seen.
FIRST_TEST = 100_000
VAL, HELD_OUT = 12, 64
BATCH = {"latent": 16, "ridge": 16, "slices": 32}
# What the latent mean does by itself, the paper's own setting, then its others, then deeper ones.
GRID = sorted(product((25, 50, 75), (3.0, 5.0, 7.0)), key=lambda tw: tw != (50, 3.0))
SETTINGS = (
    Rediffusion(1, 1.0),
    *(Rediffusion(t, w) for t, w in GRID),
    *(Rediffusion(t, w) for t, w in product((200, 400), (1.0, 3.0))),
    *(Rediffusion(t, w, "ddim") for t, w in product((75, 400, 700), (1.0, 3.0))),
)
log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Person:
    """`image` (D, H, W) float16 and the protocol, with what preparation leaves of it (SCALES)."""

    image: np.ndarray
    protocol: dict


def made(subject: Subject) -> Person | None:
    """None for one whom the simulator cannot make."""
    torch.set_num_threads(1)
    try:
        rendered = render(graph(), reference(DEFAULT_GRID), subject, SEED)
    except CfgenError:
        return None
    image, brain = levelled(rendered), rendered.image > 0
    scale = float(np.percentile(rendered.image[brain], PREPROCESS.intensity_percentile))
    scales = {"brightness": scale, "contrast": contrast_of(torch.from_numpy(image))}
    return Person(image, {**protocol_of(subject.acquisition), **scales})


def test_subjects(name: str, n: int) -> list[tuple[Subject, list[tuple[str, Subject]]]]:
    """People and, by target, themselves under it."""
    model, found = graph(), []
    schema, chosen = cohort.schema(model), cohort.preset("iap")
    people = cohort.sample(
        model, chosen, SEED, FIRST_TEST, FIRST_TEST + n, confounding=CONFOUNDING[name]
    )
    for subject in people:
        others = []
        for target in TARGETS[name]:
            other = cohort.counterfactual(
                model, subject, parse_interventions(schema, sets=[target])[0]
            )
            if other.acquisition != subject.acquisition:
                others.append((target, other))
        found.append((subject, others))
    return found


def make_people(out: Path, n: int, tested: int, workers: int) -> None:
    """COHORT.npy, COHORT.json; COHORT-test.npy and COHORT-test.json, where a person's truths follow
    the person."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for name, confounding in CONFOUNDING.items():
            if (out / f"{name}-test.json").exists():
                continue
            subjects = cohort.sample(
                graph(), cohort.preset("iap"), SEED, 0, n, confounding=confounding
            )
            people = [p for p in pool.map(made, subjects, chunksize=4) if p is not None]
            save(out / name, people, [{} for _ in people])
            scans, about = [], []
            for number, (subject, others) in enumerate(test_subjects(name, tested)):
                scans.append(subject)
                about.append({"person": number, "target": ""})
                for target, other in others:
                    scans.append(other)
                    about.append({"person": number, "target": target})
            results = list(pool.map(made, scans))
            there = [k for k, p in enumerate(results) if p is not None]
            save(out / f"{name}-test", [results[k] for k in there], [about[k] for k in there])
            log.info("%s: %d people, %.0f s", name, len(people), time.monotonic() - start)


def save(path: Path, people: Sequence[Person], about: Sequence[dict]) -> None:
    np.save(path.with_name(path.name + ".npy"), np.stack([p.image for p in people]))
    table = [{**a, "protocol": p.protocol} for p, a in zip(people, about, strict=True)]
    path.with_name(path.name + ".json").write_text(json.dumps(table))


def read(path: Path) -> tuple[Tensor, list[dict]]:
    images = torch.from_numpy(np.load(path.with_name(path.name + ".npy")))
    return images, json.loads(path.with_name(path.name + ".json").read_text())


def data_of(
    run: Run, source: Bundle
) -> tuple[LatentData, LatentMean, LatentDiffusionConfig, Schema]:
    images, table = read(run.out / run.cohort)
    protocols = [line["protocol"] for line in table]
    schema = acquisition_conditions(protocols[VAL:])
    c = encoded(schema, protocols)
    weights = torch.ones(len(c) - VAL)
    if run.model == "slices":
        how = acquisition_diffusion(SLICES, schema)
        both = (images[VAL:], images[:VAL])
        data, mean = slice_data(both, (c[VAL:], c[:VAL]), weights, HELD_OUT)
        return data, mean, how, schema
    usual = replace(
        LATENT_DIFFUSION, latent_mean=run.model == "ridge", latent_scale="all", positions=True
    )
    how = acquisition_diffusion(usual, schema)
    if run.channels:
        how = replace(how, channels=run.channels)
    net = load_autoencoder(source, run.device)
    latents = encode_views(net, images[VAL:], how.views, run.device, SEED)
    held_out = encode_views(net, images[:VAL], 1, run.device, SEED)[:, 0]
    data = LatentData(latents, c[VAL:], weights, held_out, c[:VAL])
    flags = torch.zeros(c.shape[1], dtype=torch.bool)
    mean = fit_mean(
        data.latents, data.conditions, weights, flags, how.latent_mean, how.latent_scale
    )
    return data, mean, how, schema


@dataclass(frozen=True)
class Run:
    """Whose people, of what a model, where, and how many seconds it may take; 0: no limit.
    `channels` are those of a latent's network, by level; none: the usual."""

    out: Path
    cohort: str
    model: str
    device: torch.device
    seconds: float
    tested: int
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
        net = fit_within(task, config, runs, seconds - (time.monotonic() - began))
    else:
        net = fit(task, replace(config, report_every=config.steps), runs, shared=False)
    kept = known_by_acquisition(source, schema, latents=model != "slices")
    bundle = copy_bundle(kept, out / f"{model}-{name}")
    bundle = write_part(bundle, "latent_mean", mean.tensors(), {"conditional": how.latent_mean}, {})
    trained = {"scans": len(data.conditions), **asdict(config)}
    write_part(bundle, "unet", half(net), unet_description(task.net.config, how), trained)
    log.info("%s %s: %.0f s", model, name, time.monotonic() - began)


def edit(run: Run) -> None:
    """OUT/MODEL-COHORT.csv, a line a setting, person and target, in as many settings as fit; the
    middle slices of the images in OUT/MODEL-COHORT.npz."""
    out, name, model, seconds = run.out, run.cohort, run.model, run.seconds
    start = time.monotonic()
    bundle = read_bundle(out / f"{model}-{name}")
    models, net = load_models(bundle, run.device), load_segmenter(bundle, CPU)
    images, table = read(out / f"{name}-test")
    seen: dict[int, Seen] = {}
    lines, shown = [], {}
    for setting in SETTINGS:
        if seconds and time.monotonic() - start > seconds:
            log.info("no time left for %s", setting)
            break
        label = f"{setting.sampler}-{setting.start_t}-{setting.guidance:g}"
        for image, own, others in cases(images, table):
            if own["person"] >= run.tested:
                continue
            for target, truth, protocol in others:
                factual, other = vectors(bundle.schema, own, protocol)
                generator = torch_stream(SEED, Purpose.SAMPLES, f"{own['person']}{target}")
                pair = Condition(factual), Condition(other)
                guess = rediffused(models, image[None, None], pair, setting, [generator])[0, 0]
                line = {"model": model, "cohort": name, "setting": label}
                line |= {"person": own["person"], "target": target}
                lines.append(line | figures(guess, image, truth))
                if own["person"] not in seen:
                    seen[own["person"]] = look(net, image)
                there = seen[own["person"]]
                locked = there.locked(guess - image)
                told = {"explained": locked[1].explained}
                lines[-1] |= told
                line["setting"] = f"{label}-locked"
                lines.append(line | figures(locked[0], image, truth) | told)
                shown[f"{label}/{own['person']}/{target}"] = middle(guess)
        write_lines(out / f"{model}-{name}.csv", lines)
        np.savez_compressed(out / f"{model}-{name}.npz", **shown)


@dataclass(frozen=True)
class Seen:
    """A scan (D, H, W) on the model grid with its regions and the brightness of its tissues."""

    volume: Volume
    regions: Segmentation
    levels: Levels
    bias: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        return self.volume.data > 0

    def locked(self, change: Tensor) -> tuple[Tensor, IntensityMap]:
        """The scan with what a map of brightness explains of a change."""
        flat = self.volume.data / self.bias
        found = intensity_map(flat, change.numpy() / self.bias, self.brain, self.levels)
        return torch.from_numpy(found(flat) * self.bias), found


def look(net: Segmenter, image: Tensor) -> Seen:
    volume = Volume(image.float().numpy(), model_grid(DEFAULT_GRID).affine)
    regions = segment(net, volume, CPU)
    levels = tissue_levels(volume, regions.posteriors)
    return Seen(volume, regions, levels, levels.bias_on(volume.grid))


def cases(images: Tensor, table: Sequence[dict]):
    """Image, line, and the others: target, true image and protocol."""
    for k, own in enumerate(table):
        if own["target"]:
            continue
        others = [
            (line["target"], images[n].float(), line["protocol"])
            for n, line in enumerate(table)
            if line["person"] == own["person"] and line["target"]
        ]
        yield images[k].float(), own, others


def vectors(schema: Schema, own: dict, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Conditions (1, V) of both protocols. What preparation leaves of a scan beside its protocol is
    left unsaid: nobody knows it of the other."""
    scales = {v.name for v in SCALES}
    both = [{n: v for n, v in p.items() if n not in scales} for p in (own["protocol"], protocol)]
    factual, other = encoded(schema, both).split(1)
    return factual, other


def figures(guess: Tensor, image: Tensor, truth: Tensor) -> dict[str, float]:
    brain = ((truth > 0) & (image > 0)).numpy()
    error, nothing = (guess - truth).numpy()[brain], (image - truth).numpy()[brain]
    return {
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "of_nothing": float(np.abs(error).mean() / np.abs(nothing).mean()),
        "ssim": ssim(guess.numpy(), truth.numpy(), brain),
        "ssim_to_scan": ssim(guess.numpy(), image.numpy(), brain),
        "moved": float((guess - image).abs().numpy()[brain].mean()),
    }


def middle(image: Tensor) -> np.ndarray:
    return image[:, :, image.shape[-1] // 2].half().numpy()


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in line.items()}
            for line in lines
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("people", "train", "edit"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", choices=tuple(CONFOUNDING), default="randomised")
    parser.add_argument("--model", choices=tuple(BATCH), default="latent")
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--tested", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1)
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
    out, name, model = options.out, options.cohort, options.model
    if options.stage == "people":
        make_people(out, options.people, options.tested, options.workers)
        return
    device, channels = pick_device(options.device), tuple(options.channels)
    run = Run(out, name, model, device, options.seconds, options.tested, channels)
    source = read_bundle(options.bundle or Path(cfgen.__file__).parent / "bundles" / "default")
    if options.stage == "edit":
        edit(run)
        return
    config = replace(
        LATENT_DIFFUSION_FIT,
        steps=options.steps,
        batch_size=options.batch or BATCH[model],
        learning_rate=options.rate,
        ema_decay=0.995,
        checkpoint_every=500,
    )
    train(run, source, config)


if __name__ == "__main__":
    main()
