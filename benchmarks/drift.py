"""A bundle brought to few scans of another site: schemes, with drift and without, and closed form.

    python benchmarks/drift.py --out build/drift --parent mid/ --manifest prepared/manifest.csv

A line of table.csv for each scheme, drift, number of scans and seed, which is there after an
interruption; curve.csv and pictures of every search lie in its run's folder. Scans are those that
`cfgen preprocess` wrote; the val split is never trained on, but ends the training and is what a
drift is searched by. Samples have the val scans' own conditions. KID and Frechet distance are of
the shipped judge's features, beside that of halves of the real scans; age is read by that judge.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from cycle_judge import figures
from torch import Tensor

from cfgen.bundle import Bundle, read_bundle
from cfgen.cli.options import DEFAULT_BUNDLE
from cfgen.config import ADAPT_FITS, DRIFT_AT, EDIT, DriftAt, Tune
from cfgen.device import pick_device
from cfgen.diffusion.drift import Drift
from cfgen.edit.drift_search import HOW, l1
from cfgen.edit.generation import sample_latent
from cfgen.edit.latent import Models, edit_latent, load_models
from cfgen.jobs.adapt import Asked, adapt, asked_drift
from cfgen.measure.judge import Judges, load_judge
from cfgen.metrics.distribution import frechet, frechet_floor, kernel_distance
from cfgen.metrics.image import psnr
from cfgen.nets.condition import Condition
from cfgen.streams import Purpose, stream, torch_stream
from cfgen.train.cohort import Cohort, read_cohort
from cfgen.train.record import runs_folder

SITE = "target"
# Their new weights, or the prior beside them, need a name for the new site.
WITH_SITE = ("condition", "prior")
KEY = ("scheme", "mean", "drift", "scans", "seed")
# Samples that are denoised at a time.
TOGETHER = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parent", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--scans", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--schemes",
        nargs="+",
        default=["none", "full", "cross-attn", "condition", "prior", "lora"],
    )
    parser.add_argument(
        "--drifts",
        nargs="+",
        default=["off", "auto"],
        help="off, auto, noise:auto or numbers; with @training or @inference there alone",
    )
    parser.add_argument("--means", nargs="+", default=["shrink", "keep"])
    parser.add_argument("--steps", type=int, help="of training; the scheme's own by default")
    parser.add_argument(
        "--returned", type=int, default=6, help="scans whose round trip is measured"
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    table = Table(out / "table.csv")
    judges = load_judge(read_bundle(DEFAULT_BUNDLE), pick_device(options.device))
    parent = read_bundle(options.parent)
    cohort = read_cohort(options.manifest, parent.schema, parent.preprocess.grid, "val")
    if not table.has(line := key("parent", "keep", "off", 0, 0)):
        table.add(
            line | measured(parent, cohort, judges, options.returned) | floors(cohort, judges)
        )
    for scans in options.scans:
        for seed in options.seeds:
            few = few_scans(options.manifest, scans, seed, out)
            for drift in options.drifts:
                for mean in options.means:
                    for scheme in options.schemes:
                        line = key(scheme, mean, drift, scans, seed)
                        # The parent as it is.
                        idle = (scheme, mean, drift) == ("none", "keep", "off")
                        if table.has(line) or idle:
                            continue
                        if scheme != "none" and (same := without(table, line)):
                            table.add(same | line)
                            continue
                        cpu, clock = time.process_time(), time.monotonic()
                        made = brought(options, few, line, out)
                        spent = {
                            "cpu_minutes": (time.process_time() - cpu) / 60,
                            "minutes": (time.monotonic() - clock) / 60,
                        }
                        table.add(line | spent | measured(made, cohort, judges, options.returned))


def key(scheme: str, mean: str, drift: str, scans: int, seed: int) -> dict[str, object]:
    return dict(zip(KEY, (scheme, mean, drift, scans, seed), strict=True))


def without(table: Table, line: dict[str, object]) -> dict[str, object] | None:
    """The line without a drift, where the search of this line's drift took none: it is trained to
    the same weights."""
    searched = table.find(line | {"scheme": "none"})
    if line["drift"] != "auto" or line["scheme"] in WITH_SITE or searched is None:
        return None
    if searched["drift_sampling"] != Drift().text():
        return None
    return table.find(line | {"drift": "off"})


class Table:
    """Lines of numbers in a CSV file, known by the columns `known_by`."""

    def __init__(self, path: Path, known_by: Sequence[str] = KEY) -> None:
        self.path, self.known_by = path, known_by
        self.lines: list[dict[str, object]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.lines = list(csv.DictReader(file))

    def find(self, line: dict[str, object]) -> dict[str, object] | None:
        same = (x for x in self.lines if all(str(x[k]) == str(line[k]) for k in self.known_by))
        return next(same, None)

    def has(self, line: dict[str, object]) -> bool:
        return self.find(line) is not None

    def add(self, line: dict[str, object]) -> None:
        text = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()}
        self.lines.append(text)
        print("  ".join(f"{k} {v}" for k, v in text.items()), flush=True)
        columns = list(dict.fromkeys(k for x in self.lines for k in x))
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.lines)
        # Whole, whenever it is looked at.
        part.replace(self.path)


def few_scans(manifest: Path, scans: int, seed: int, out: Path) -> Path:
    """A manifest of so many of the train split, drawn by the seed, and of all of val."""
    path = out / f"{scans}-{seed}.csv"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = [r for r in rows if r["split"] == "train"]
    order = stream(seed, Purpose.RESAMPLING, step=3).permutation(len(train))[:scans]
    chosen = [train[i] for i in sorted(order)] + [r for r in rows if r["split"] == "val"]
    for row in chosen:
        for name in ("image", "labels"):
            if row.get(name):
                row[name] = str((manifest.parent / row[name]).absolute())
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "site"])
        writer.writeheader()
        writer.writerows(row | {"site": SITE} for row in chosen)
    return path


def brought(options: argparse.Namespace, few: Path, line: dict[str, object], out: Path) -> Bundle:
    """The adapted bundle of one line of the table."""
    scheme: Tune = line["scheme"]  # type: ignore[assignment]
    asked_for, _, where = str(line["drift"]).partition("@")
    drift = asked_drift(None if asked_for == "off" else asked_for)
    seed = int(str(line["seed"]))
    fit = replace(ADAPT_FITS.get(scheme, ADAPT_FITS["full"]), seed=seed)
    if options.steps:
        fit = replace(fit, steps=options.steps)
    asked = Asked(
        few,
        options.parent,
        scheme,
        drift,
        cast(DriftAt, where or DRIFT_AT),
        conditions=("site",) if scheme in WITH_SITE else (),
        shrink=line["mean"] == "shrink",
    )
    name = "-".join(str(line[k]) for k in KEY).replace(":", "-")
    # Scans are encoded, and a drift is searched, once for all schemes.
    runs = runs_folder(out / name, "adapt")
    alike = out / f"shared-{line['scans']}-{line['seed']}"
    shared = {
        runs / "latents.npy": alike / "latents.npy",
        runs / "latents.json": alike / "latents.json",
    }
    shared = {} if scheme == "none" else shared
    if scheme not in WITH_SITE and drift == "auto":
        shared[runs / "drift"] = alike / f"drift-{line['mean']}"
    for own, first in shared.items():
        copied(first, own)
    adapt(asked, out / name, fit, options.device)
    for own, first in shared.items():
        copied(own, first)
    return read_bundle(out / name)


def copied(source: Path, target: Path) -> None:
    """A file or folder, where it is there and not yet at its target."""
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def floors(cohort: Cohort, judges: Judges) -> dict[str, object]:
    """What real scans have of other real scans, and the judge's own error on them."""
    real = cohort.images.float()
    scans = l1(real, real)
    features = judges.embed(real)
    apart = scans[~np.eye(len(scans), dtype=bool)]
    ages = np.array([float(r.values["age"]) for r in cohort.rows])
    read = figures(ages, judges.judge(real)["age"])
    floor, half = frechet_floor(features, 0)
    found = {"real_l1": float(apart.mean()), "frechet_floor": floor, "frechet_floor_n": half}
    return found | {f"real_age_{k}": v for k, v in read.items()}


def measured(bundle: Bundle, cohort: Cohort, judges: Judges, few: int) -> dict[str, object]:
    """The figures of one bundle, the round trip of a few of the scans."""
    models = load_models(bundle, judges.device)
    told = [r.values | site_of(bundle) for r in cohort.rows]
    c = torch.from_numpy(np.stack([bundle.schema.encode(v) for v in told]))
    real = cohort.images.float()
    made = samples(models, c)
    ages = np.array([float(r.values["age"]) for r in cohort.rows])
    read = figures(ages, judges.judge(made)["age"])
    kid, kid_sd = kernel_distance(judges.embed(real), judges.embed(made), 0)
    drifting = models.drifting
    return {
        "l1": float(l1(made, real).mean()),
        "kid": kid,
        "kid_sd": kid_sd,
        "frechet": frechet(judges.embed(real), judges.embed(made)),
        **{f"age_{k}": v for k, v in read.items()},
        **returned(models, real[:few], c),
        "drift_trained": drifting.trained.text(),
        "drift_sampling": drifting.sampling.text(),
        "brightness": float(made.mean() / real.mean()),
    }


def site_of(bundle: Bundle) -> dict[str, str]:
    return {"site": SITE} if "site" in bundle.schema.names else {}


@torch.inference_mode()
def samples(models: Models, c: Tensor) -> Tensor:
    """An image (D, H, W) for every condition, of a noise of its own."""
    shape, images = tuple(models.latent_mean.coefficients.shape[1:]), []
    generators = [torch_stream(1, Purpose.NOBODY, number, step=5) for number in range(len(c))]
    noises = torch.stack([torch.randn(shape, generator=g) for g in generators])
    for some in torch.arange(len(c)).split(TOGETHER):
        asked = Condition(c[some]).to(models.device)
        z0 = sample_latent(models, asked, noises[some].to(models.device), HOW)
        images += [models.decode(z[None])[0, 0].cpu() for z in z0]
    return torch.stack(images)


def returned(models: Models, real: Tensor, c: Tensor) -> dict[str, object]:
    """PSNR of the autoencoder (dB), what inversion and denoising lose of latents, and composition:
    the mean absolute difference of voxels in the head between a scan and the same once through
    autoencoder, inversion and denoising under its own conditions."""
    z0 = torch.cat([models.encode(image[None, None]) for image in real])
    asked = Condition(c[: len(real)]).to(models.device)
    back = edit_latent(models, z0, asked, [], EDIT)
    dbs, apart = [], []
    for image, z, z_back in zip(real, z0, back.reconstruction, strict=True):
        rebuilt, same = (models.decode(x[None])[0, 0].cpu() for x in (z, z_back))
        head = image > 0
        dbs.append(psnr(rebuilt.numpy(), image.numpy(), head.numpy()))
        apart.append(float((same - image).abs()[head].mean()))
    return {
        "round_trip": back.round_trip,
        "psnr_db": float(np.mean(dbs)),
        "composition": float(np.mean(apart)),
    }


if __name__ == "__main__":
    main()
