"""What masks of regions say to a diffusion model: a control network beside concatenation.

    python benchmarks/control.py --people build/cycle --bundle small2 --out build/control

People, latents and the bundle are those of benchmarks/cycle.py (simulated heads at 2 mm, a latent
of 32 x 10 x 12 x 11); label maps are rendered again, and moved as the latents' views were. Each
network is trained for as many steps, and so is the UNet itself, with no masks. On held-out people:
the error of the network's output at three noise levels, with their own masks, another's, none; and
of new latents under their masks, of noise alone, the volume that ridge regression reads in them on
the volume that was asked for. Each network is also left as a bundle, OUT/KIND-STEPS, with the
shipped segmenter and causal model, for `counterfactual --by masks` and benchmarks/by.py.
Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cycle import data_of
from cycle_latents import CHUNK, VIEWS, latents_of
from cycle_people import SHAPE, read_people
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import DEFAULT_GRID, SEED, FitConfig
from cfgen.data.volume import Volume
from cfgen.edit.latent import load_models
from cfgen.jobs.train_control import control_description
from cfgen.jobs.train_latent_diffusion import diffusion_of
from cfgen.measure.region_masks import REGIONS, region_masks
from cfgen.nets.condition import Condition
from cfgen.nets.controlnet import pool_masks, told
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from cfgen.sim.reference import reference
from cfgen.sim.render import render
from cfgen.space.grids import model_grid
from cfgen.train.control import ControlConfig, ControlTask
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionTask
from cfgen.train.latents import LatentData, LatentReader, fit_reader, seen
from cfgen.train.mapped import mapped

CPU = torch.device("cpu")
LATENT = tuple(n // 8 for n in SHAPE)
READ = ("ventricles", "frontal", "parietal", "temporal", "occipital", "cingulate", "insula")
READERS = 300
KINDS = ("none", "masks", "concatenate", "masks-contrastive")


def masks_of(people: Path, out: Path, split: str, numbers: Sequence[int], views: int) -> Tensor:
    """(N, views, K, d, h, w) of people by number, in a file."""
    total = len(read_people(people).table)
    subjects = cohort.sample(graph(), cohort.preset("lifespan"), SEED, 0, total)
    head, grid = reference(DEFAULT_GRID), model_grid(DEFAULT_GRID)
    start = int(read_people(people).rows(split)[0])

    def make(place: int) -> np.ndarray:
        number = int(numbers[place])
        labels = render(graph(), head, subjects[number], SEED, noise=False).labels
        masks = region_masks(Volume(labels.astype(np.float32), grid.affine), REGIONS, grid)
        # The views of benchmarks/cycle_latents.py: chunks of so many, each with its own seed.
        first = start + (number - start) // CHUNK * CHUNK
        walk = seen(torch.zeros(SHAPE), views, first, number - first, torch.from_numpy(masks) * 1.0)
        return torch.stack([pool_masks(m, LATENT) for _, m in walk if m is not None]).numpy()

    shape = (len(numbers), views, len(REGIONS), *LATENT)
    made_from = f"{split} {views} {numbers[0]} {len(numbers)}"
    return mapped(out / f"masks-{split}.npy", made_from, shape, make, "label maps")


def figures(
    task: LatentDiffusionTask, net: torch.nn.Module, asked: Condition, people: dict
) -> dict:
    """Of each region: correlation and slope of the log volume read in new latents on that asked
    for, over those of the reading of true latents."""
    made = task._sample(net, asked)
    found = {}
    for name, (reader, values, true) in people.items():
        read = reader.read(made)
        for what, z in (("", read), ("_true", reader.read(true))):
            pair = torch.stack([values, z])
            cov = torch.cov(pair)
            found[f"{name}{what}_slope"] = float(cov[0, 1] / cov[0, 0])
            found[f"{name}{what}_r"] = float(torch.corrcoef(pair)[0, 1])
    return found


@dataclass(frozen=True)
class VolumeReader:
    """Ridge regression of a region's standardised log volume on latents."""

    name: str
    reader: LatentReader
    centre: float
    spread: float

    def logs(self, people: Path, numbers: Sequence[int]) -> np.ndarray:
        """True log volumes of people by number."""
        return np.log(read_people(people).column(self.name, np.array(numbers)))

    def read(self, latent: Tensor) -> float:
        """The log volume (mL) that one latent (1, C, d, h, w) shows."""
        return float(self.reader.read(latent)[0]) * self.spread + self.centre


def readers_of(people: Path, data: LatentData, numbers: Sequence[int]) -> dict[str, VolumeReader]:
    """Of every region in `READ`, from the latents of people by number."""
    readers, table = {}, read_people(people)
    for name in READ:
        known = torch.from_numpy(np.log(table.column(name, np.array(numbers)))).float()
        centre, spread = float(known.mean()), float(known.std())
        reader = fit_reader(data.latents[:, 0], ((known - centre) / spread)[:, None], 0)
        readers[name] = VolumeReader(name, reader, centre, spread)
    return readers


def write_bundle(source: Bundle, task: ControlTask, net: torch.nn.Module, out: Path) -> None:
    """The bundle that was trained on with its network, and what `counterfactual` needs beside."""
    shipped, bundle = read_bundle(DEFAULT_BUNDLE), copy_bundle(source, out)
    description = control_description(task, source)
    bundle = write_part(bundle, "controlnet", half(net), description, {})
    for part in ("segmenter", "scm", "template"):
        bundle = write_part(bundle, part, shipped.tensors(part), shipped.part(part).config, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--bundle", default="small2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=80)
    parser.add_argument("--val", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    bundle = read_bundle(options.people / options.bundle)
    # Readers know more people than the networks learn from.
    data, _ = data_of(options.people, bundle.schema, READERS)
    everybody = latents_of(options.people, "train")[1][:READERS]
    numbers = everybody[: options.n]
    others = latents_of(options.people, "val")[1][: options.val]
    masks = masks_of(options.people, options.out, "train", numbers, VIEWS)
    val_masks = masks_of(options.people, options.out, "val", others, 1)[:, 0]
    held_out = LatentData(
        data.latents[: options.n],
        data.conditions[: options.n],
        data.weights[: options.n],
        data.held_out[: options.val],
        data.held_out_conditions[: options.val],
    )
    readers = {}
    for name, reader in readers_of(options.people, data, everybody).items():
        values = torch.from_numpy(reader.logs(options.people, others)).float()
        standard = (values - reader.centre) / reader.spread
        readers[name] = (reader.reader, standard, held_out.held_out.float())
    lines = []
    for kind in options.kinds:
        models, how = load_models(bundle, CPU), diffusion_of(bundle, LATENT_DIFFUSION)
        config = FitConfig(
            options.steps, options.rate, batch_size=4, ema_decay=0.99, report_every=100
        )
        c = held_out.held_out_conditions
        if kind == "none":
            task: LatentDiffusionTask = LatentDiffusionTask(
                held_out, models.latent_mean, CPU, config, how, None, models.unet.train()
            )
            asked = Condition(c)
        else:
            by, _, contrast = kind.partition("-")
            control = ControlConfig(by, REGIONS, contrastive=0.1 if contrast else 0.0)  # type: ignore[arg-type]
            with_masks = replace(held_out, masks=masks, held_out_masks=val_masks)
            task = ControlTask(
                models.unet, with_masks, models.latent_mean, CPU, config, how, control
            )
            asked = Condition(c, told(val_masks.float(), torch.ones_like(val_masks[:, :1]).float()))
        name = f"{kind}-{options.steps}"
        net = fit(task, config, options.out / "runs" / name)
        if isinstance(task, ControlTask):
            write_bundle(bundle, task, net, options.out / name)
        report = task.report(net, options.out / f"{kind}.png")
        lines.append({"kind": kind} | report | figures(task, net, asked, readers))
        logging.info("%s", lines[-1])
        with (options.out / f"table-{options.steps}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for one in lines for k in one)))
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
