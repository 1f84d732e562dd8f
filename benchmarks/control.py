"""What masks of regions say to a diffusion model: a control network beside concatenation.

    python benchmarks/control.py --people build/cycle --bundle small2 --out build/control

People, latents and the bundle are those of benchmarks/cycle.py (simulated heads at 2 mm, a latent
of 32 x 10 x 12 x 11, or what its autoencoder makes); masks are read by the shipped segmenter, and
moved as the latents' views were. Each network is trained for as many steps, and so is the UNet
itself, with no masks. On held-out people: the error of the network's output at three noise levels,
with their own masks, another's, none; and of new latents under their masks, of noise alone, the
volume that ridge regression reads in them on the volume that was asked for. Each network is also
left as a bundle, OUT/KIND-STEPS, with the shipped segmenter and causal model, for `counterfactual
--by masks` and benchmarks/by.py. Interrupted, the same command goes on. With --seconds a network is
trained for a time (paced.py); masks can be read first, by --masks-only, by several processes.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from aud_people import segmenter
from cycle import data_of
from cycle_autoencoder import DEFAULT
from cycle_latents import CHUNK, VIEWS, latents_of
from cycle_people import read_people
from paced import fit_within
from torch import Tensor

from cfgen.bundle import Bundle, copy_bundle, half, read_bundle, write_part
from cfgen.config import DEFAULT_GRID, FitConfig
from cfgen.data.volume import write_atomically
from cfgen.device import pick_device
from cfgen.edit.latent import load_models
from cfgen.jobs.train_control import control_description
from cfgen.jobs.train_latent_diffusion import diffusion_of
from cfgen.measure.region_masks import REGIONS
from cfgen.nets.condition import Condition
from cfgen.nets.controlnet import told
from cfgen.train.control import ControlConfig, ControlTask, detail_of
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION, LatentDiffusionTask
from cfgen.train.latents import LatentData, LatentReader, fit_reader
from cfgen.train.masks import MaskReader

CPU = torch.device("cpu")
READ = ("ventricles", "frontal", "parietal", "temporal", "occipital", "cingulate", "insula")
READERS = 300
# People whose masks lie in a file.
IN_A_FILE = 50
KINDS = ("none", "masks", "concatenate", "masks-contrastive")


@dataclass(frozen=True)
class Reading:
    """How masks are read: in `detail` parts of a latent voxel along an edge, of latents of `shape`
    (d, h, w), by so many `workers`, of whom there may be none."""

    shape: tuple[int, ...]
    detail: int
    workers: int = 1
    device: str = "cpu"


def one_persons_masks(
    number: int, people: Path, start: int, views: int, how: Reading
) -> np.ndarray:
    """(views, K, P, d, h, w) of a person, whose split begins at `start`; zeros of one whom the
    simulator could not make."""
    torch.set_num_threads(1)
    image = torch.from_numpy(read_people(people).images[number].astype(np.float32))
    if not image.any():
        return np.zeros((views, len(REGIONS), how.detail**3, *how.shape), np.float16)
    # The views of benchmarks/cycle_latents.py: chunks of so many, each with its own seed.
    first = start + (number - start) // CHUNK * CHUNK
    net, control = segmenter(how.device), ControlConfig(regions=REGIONS, detail=how.detail)
    device = pick_device(how.device)
    reader = MaskReader(net, control, DEFAULT_GRID, how.shape, device, first)  # type: ignore[arg-type]
    return reader.read(image, number - first, views).half().numpy()


def splits_of(people: Path) -> list[str]:
    """The split of every person of the table, made or not."""
    with (people / "people.csv").open(newline="") as file:
        return [person["split"] for person in csv.DictReader(file)]


def masks_of(people: Path, out: Path, split: str, count: int, views: int, how: Reading) -> Tensor:
    """(count, views, K, P, d, h, w) of the first people of a split, in files of fifty. Without
    workers those who are there already."""
    splits = splits_of(people)
    numbers = [n for n, known in enumerate(splits) if known == split][:count]
    one = partial(one_persons_masks, people=people, start=numbers[0], views=views, how=how)
    chunks = [numbers[n : n + IN_A_FILE] for n in range(0, len(numbers), IN_A_FILE)]
    out.mkdir(parents=True, exist_ok=True)
    name = f"masks-{how.detail}-{split}"
    paths = [out / f"{name}-{c[0]}-{len(c)}-of-{len(splits)}.npy" for c in chunks]
    missing = [c for c, path in zip(chunks, paths, strict=True) if not path.exists()]
    if missing and how.workers:
        # Not forked: a process that has used a GPU cannot be.
        with get_context("spawn").Pool(how.workers) as pool:
            coming = pool.imap(one, [n for c in missing for n in c])
            for chunk, path in zip(chunks, paths, strict=True):
                if not path.exists():
                    masks = np.stack([next(coming) for _ in chunk])
                    write_atomically(path, partial(save_array, masks))
                    logging.info("%s: masks", path.stem)
    there = list(takewhile(Path.exists, paths))
    return torch.cat([torch.from_numpy(np.load(path)) for path in there])


def save_array(array: np.ndarray, path: Path) -> None:
    """As .npy, whatever the file's name ends with."""
    with path.open("wb") as file:
        np.save(file, array)


def figures(
    task: LatentDiffusionTask, net: torch.nn.Module, asked: Condition, people: dict
) -> dict:
    """Of each region: correlation and slope of the log volume read in new latents on that asked
    for, over those of the reading of true latents."""
    with torch.no_grad():
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
    shipped, bundle = read_bundle(DEFAULT), copy_bundle(source, out)
    description = control_description(task, source)
    bundle = write_part(bundle, "controlnet", half(net), description, {})
    for part in ("segmenter", "scm", "template"):
        bundle = write_part(bundle, part, shipped.tensors(part), shipped.part(part).config, {})


def learner(
    kind: str,
    bundle: Bundle,
    data: LatentData,
    device: torch.device,
    config: FitConfig,
    detail: int,
) -> LatentDiffusionTask:
    """The task of a kind; `data` has masks, which 'none' is not told."""
    models, how = load_models(bundle, device), diffusion_of(bundle, LATENT_DIFFUSION)
    mean = models.latent_mean.to(CPU)
    if kind == "none":
        plain = replace(data, masks=None, held_out_masks=None)
        return LatentDiffusionTask(plain, mean, device, config, how, None, models.unet.train())
    by, _, contrast = kind.partition("-")
    control = ControlConfig(by, REGIONS, detail, contrastive=0.1 if contrast else 0.0)  # type: ignore[arg-type]
    return ControlTask(models.unet, data, mean, device, config, how, control)


def reading(options: argparse.Namespace) -> Reading:
    shape = tuple(latents_of(options.people, "val")[0].shape[-3:])
    detail = options.detail or detail_of(DEFAULT_GRID, shape)
    return Reading(shape, detail, options.workers, options.device)


def data_with_masks(
    options: argparse.Namespace, bundle: Bundle, how: Reading
) -> tuple[LatentData, dict[str, tuple[LatentReader, Tensor, Tensor]]]:
    """The first `options.n` people, and readers of volumes of READERS people."""
    people: Path = options.people
    masks = masks_of(people, options.out, "train", options.n, VIEWS, how)
    val_masks = masks_of(people, options.out, "val", options.val, 1, how)
    data, _ = data_of(people, bundle.schema, max(READERS, options.n))
    everybody = latents_of(people, "train")[1][: len(data.latents)]
    # Masks are of the first of the table, a few of whom could not be made.
    numbers = np.array([n for n in everybody if n < len(masks)])
    first = splits_of(people).index("val")
    others = np.array([n for n in latents_of(people, "val")[1] if n < first + len(val_masks)])
    others = others[: len(data.held_out)]
    logging.info("%d people with masks, %d held out", len(numbers), len(others))
    held_out = LatentData(
        data.latents[: len(numbers)],
        data.conditions[: len(numbers)],
        data.weights[: len(numbers)],
        data.held_out[: len(others)],
        data.held_out_conditions[: len(others)],
        masks[numbers],
        val_masks[others - first, 0].float(),
    )
    some = replace(data, latents=data.latents[:READERS])
    readers = {}
    for name, reader in readers_of(people, some, everybody[:READERS]).items():
        values = torch.from_numpy(reader.logs(people, others.tolist())).float()
        standard = (values - reader.centre) / reader.spread
        readers[name] = (reader.reader, standard, held_out.held_out.float())
    return held_out, readers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--bundle", default="small2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=80)
    parser.add_argument("--val", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, help="train for a time, not for --steps")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that read masks, 0: none")
    parser.add_argument(
        "--detail",
        type=int,
        help="parts of a latent voxel along an edge; by default of about 4 mm",
    )
    parser.add_argument("--masks-only", action="store_true", help="read masks, no more")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    how = reading(options)
    if options.masks_only:
        masks_of(options.people, options.out, "val", options.val, 1, how)
        masks_of(options.people, options.out, "train", options.n, VIEWS, how)
        return
    bundle, device = read_bundle(options.people / options.bundle), pick_device(options.device)
    # Every step has the same shapes.
    torch.backends.cudnn.benchmark = True
    data, readers = data_with_masks(options, bundle, how)
    config = FitConfig(
        options.steps,
        options.rate,
        batch_size=options.batch,
        ema_decay=options.ema,
        report_every=100,
    )
    for kind in options.kinds:
        name = kind if options.seconds else f"{kind}-{options.steps}"
        task = learner(kind, bundle, data, device, config, how.detail)
        runs = options.out / "runs" / name
        started = time.monotonic()
        if options.seconds:
            net = fit_within(task, config, runs, options.seconds)
        else:
            net = fit(task, config, runs)
        logging.info("%s: %.0f s", name, time.monotonic() - started)
        c = data.held_out_conditions
        asked = Condition(c)
        if isinstance(task, ControlTask):
            write_bundle(bundle, task, net, options.out / name)
            assert data.held_out_masks is not None
            asked = Condition(c, told(data.held_out_masks))
        report = task.report(net, options.out / f"{name}.png")
        line = {"kind": name} | report | figures(task, net, asked, readers)
        logging.info("%s", line)
        with (options.out / f"figures-{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            writer.writeheader()
            writer.writerow(line)


if __name__ == "__main__":
    main()
