"""Another site whose truth is known: simulated brains, and few scans of others at that site.

    python benchmarks/drift_truth.py --out build/drift-truth --parent full/ --sites field coil

The parent (benchmarks/cycle.py) has seen people of the preset 'lifespan' at one Siemens of 3 T with
MPRAGE. At the other sites others of them are scanned at 1.5 T (field), by SPGR (sequence), or by a
coil that is brighter in front, which nothing took away (coil). For the parent, for each way to
bring it there, and for an oracle, fine-tuned on all scans of the site, a line of table.csv says

    mean_error    |mean of new brains - mean of scans|, over the brain, of people who have the
                  conditions that were asked for, beside that of two halves of the scans
    skill, kept   of edits of age by 20 years, against the simulator's own picture of that person
                  then, there: of the decoded image, and with the scan's residual added (1 is the
                  truth, 0 the scan as it is); means over people, 95 % intervals in columns of
                  their own

Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from cycle_people import levelled
from drift import Table, samples
from torch import Tensor

from cfgen.bundle import Bundle, read_bundle
from cfgen.config import ADAPT_FITS, DEFAULT_GRID, EDIT, PREPROCESS, SEED, Tune
from cfgen.data.conditions import parse_interventions
from cfgen.device import pick_device
from cfgen.edit.latent import Models, edit_latent, load_models
from cfgen.errors import CfgenError
from cfgen.jobs.adapt import Asked, adapt
from cfgen.metrics.image import psnr
from cfgen.metrics.statistics import mean_over_people
from cfgen.metrics.truth import image_truth
from cfgen.nets.condition import Condition
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import PLAIN, graph
from cfgen.sim.protocols import one_scanner
from cfgen.sim.reference import reference
from cfgen.sim.render import render
from cfgen.space.grids import model_grid
from cfgen.train.cohort import Cohort, read_cohort

HOME = one_scanner()
SITES = {
    "field": replace(HOME, field_tesla=1.5),
    "sequence": replace(HOME, sequence="SPGR"),
    "coil": HOME,
}
# From the back to the front of the grid.
COIL = 0.3
# Numbers that no parent was trained on.
FIRST = 5000
DELTAS = (-20, 20)
# SD of the simulator's noise in levelled brightness.
NOISE = 0.02
Line = dict[str, object]
KEY = ("site", "scheme", "mean", "drift", "scans", "seed")


@dataclass(frozen=True)
class Arm:
    """A way to the other site."""

    scheme: Tune
    mean: str
    drift: str


ARMS = (
    Arm("none", "shrink", "off"),
    Arm("none", "keep", "auto"),
    Arm("none", "shrink", "auto"),
    Arm("full", "keep", "off"),
    Arm("full", "keep", "auto"),
    Arm("full", "shrink", "off"),
    Arm("lora", "keep", "off"),
    Arm("lora", "keep", "auto"),
    Arm("lora", "shrink", "off"),
)


@dataclass(frozen=True)
class Site:
    """`manifest` of prepared scans, those of few people, of all for the oracle, and of val; `tests`
    are people whose edits are judged, and `truths` (D, H, W) theirs by person and years."""

    name: str
    manifest: Path
    tests: list[Subject]
    truths: dict[tuple[int, int], Tensor]


def scanned(subject: Subject, site: str) -> np.ndarray:
    """(D, H, W) float16 of a person at a site, prepared. Raises CfgenError where the volumes do not
    fit the folds."""
    there = replace(subject, scanner=SITES[site])
    image = levelled(render(graph(), reference(DEFAULT_GRID), there, SEED)).astype(np.float32)
    if site != "coil":
        return image.astype(np.float16)
    image *= 1 + COIL * np.linspace(-0.5, 0.5, image.shape[1])[None, :, None]
    scale = np.percentile(image[image > 0], PREPROCESS.intensity_percentile)
    return np.clip(image / scale, 0, PREPROCESS.intensity_cap).astype(np.float16)


def scan_or_none(subject: Subject, site: str, delta: int) -> np.ndarray | None:
    """Of a person so many years older; None where it cannot be."""
    try:
        if delta:
            asked = parse_interventions(cohort.schema(graph()), sets=[f"age={delta:+d}"])[0]
            subject = cohort.counterfactual(graph(), subject, asked, PLAIN)
        return scanned(subject, site)
    except CfgenError:
        return None


def make_site(name: str, out: Path, counts: Sequence[int], workers: int) -> Site:
    """People of train, val and test, in files that stay."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    people = cohort.sample(graph(), cohort.preset("lifespan"), SEED, FIRST, FIRST + sum(counts))
    splits = [s for s, n in zip(("train", "val", "test"), counts, strict=True) for _ in range(n)]
    wanted = [(p, 0) for p in people]
    wanted += [(p, d) for p, s in zip(people, splits, strict=True) if s == "test" for d in DELTAS]
    paths = [folder / f"{p.key}_{d:+d}.nii" for p, d in wanted]
    left = [n for n, path in enumerate(paths) if not path.exists()]
    affine = model_grid(DEFAULT_GRID).affine
    with ProcessPoolExecutor(workers) as pool:
        asked = [wanted[n] for n in left]
        made = pool.map(
            scan_or_none, [p for p, _ in asked], [name] * len(asked), [d for _, d in asked]
        )
        for n, image in zip(left, made, strict=True):
            if image is not None:
                part = paths[n].with_name(f"part-{paths[n].name}")
                nib.save(nib.Nifti1Image(image.astype(np.float32), affine), part)
                part.replace(paths[n])
    rows = [
        {
            "subject": p.key,
            "image": f"{p.key}_+0.nii",
            "age": f"{p.parents.age[0]:.2f}",
            "sex": "M" if p.parents.male[0] else "F",
            "split": s,
        }
        for p, s in zip(people, splits, strict=True)
        if (folder / f"{p.key}_+0.nii").exists()
    ]
    write_rows(folder / "manifest.csv", rows)
    there = {row["subject"] for row in rows if row["split"] == "test"}
    truths = {
        (p.number, d): torch.from_numpy(np.asarray(nib.load(path).dataobj, np.float32))
        for (p, d), path in zip(wanted, paths, strict=True)
        if d and p.key in there and path.exists()
    }
    return Site(name, folder / "manifest.csv", [p for p in people if p.key in there], truths)


def few_of(site: Site, scans: int, seed: int) -> Path:
    """The manifest with so many people to train on, others for another seed, and all of val."""
    rows = read_rows(site.manifest)
    train = [r for r in rows if r["split"] == "train"]
    at = [(seed * scans + n) % len(train) for n in range(min(scans, len(train)))]
    path = site.manifest.with_name(f"{scans}-{seed}.csv")
    write_rows(path, [train[n] for n in at] + [r for r in rows if r["split"] == "val"])
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def measured(bundle: Bundle, site: Site, device: torch.device) -> Line:
    """The figures of one bundle."""
    models = load_models(bundle, device)
    tests, val = (
        read_cohort(site.manifest, bundle.schema, bundle.preprocess.grid, split)
        for split in ("test", "val")
    )
    c = torch.cat([tests.conditions, val.conditions])
    real = torch.cat([tests.images, val.images]).float()
    new = samples(models, c)
    brain = (real > 0).float().mean(0) > 0.5
    apart = (real[::2].mean(0) - real[1::2].mean(0)).abs()[brain].mean() / 2
    figures: Line = {
        "mean_error": float((new.mean(0) - real.mean(0)).abs()[brain].mean()),
        "halves": float(apart),
        "brightness": float(new.mean() / real.mean()),
        "drift_trained": models.drifting.trained.text(),
        "drift_sampling": models.drifting.sampling.text(),
    }
    return figures | edited(models, bundle, site, tests)


def edited(models: Models, bundle: Bundle, site: Site, tests: Cohort) -> Line:
    """What edits of the test people have of the truth, over people."""
    z0 = torch.cat([models.encode(image[None, None].float()) for image in tests.images])
    own = Condition(tests.conditions).to(models.device)
    older = [
        torch.from_numpy(
            np.stack(
                [
                    bundle.schema.encode(r.values | {"age": float(r.values["age"]) + d})
                    for r in tests.rows
                ]
            )
        )
        for d in DELTAS
    ]
    asked = [Condition(x).to(models.device) for x in older]
    made = edit_latent(models, z0, own, asked, EDIT)
    plain, kept, dbs, people = [], [], [], []
    for n, person in enumerate(site.tests):
        scan = tests.images[n].float()
        back, *others = decoded(
            models, [x[n] for x in (made.reconstruction, *made.counterfactuals)]
        )
        dbs.append(psnr(back.numpy(), scan.numpy(), (scan > 0).numpy()))
        for delta, image in zip(DELTAS, others, strict=True):
            truth = site.truths.get((person.number, delta))
            if truth is None:
                continue
            arrays = (x.numpy() for x in (image, scan + image - back))
            skills = [
                image_truth(scan.numpy(), x, truth.numpy(), (scan > 0).numpy(), NOISE).skill
                for x in arrays
            ]
            people.append(person.key)
            plain.append(skills[0])
            kept.append(skills[1])
    figures: Line = {
        "psnr_db": float(np.mean(dbs)),
        "round_trip": made.round_trip,
        "edits": len(people),
    }
    for name, values in (("skill", plain), ("kept", kept)):
        found = mean_over_people(np.array(values), people)
        figures |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return figures


def decoded(models: Models, latents: Sequence[Tensor]) -> Iterator[Tensor]:
    for z in latents:
        yield models.decode(z[None])[0, 0].cpu()


def lines(
    site: Site, options: argparse.Namespace
) -> Iterator[tuple[dict[str, object], Arm | None]]:
    """Lines of the table and how each is made: the parent, the oracle and all arms."""

    def line(*values: object) -> Line:
        return dict(zip(KEY, (site.name, *values), strict=True))

    yield line("parent", "keep", "off", 0, 0), None
    for seed in options.seeds:
        for arm in ARMS:
            yield line(arm.scheme, arm.mean, arm.drift, options.scans, seed), arm
    oracle = Arm("full", "shrink", "off")
    yield line("oracle", oracle.mean, oracle.drift, options.people[0], 0), oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parent", type=Path, required=True)
    parser.add_argument("--sites", nargs="+", choices=SITES, default=list(SITES))
    parser.add_argument(
        "--people", type=int, nargs=3, default=[60, 16, 12], help="of train, val and test"
    )
    parser.add_argument("--scans", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of training; the scheme's own by default")
    parser.add_argument("--oracle-steps", type=int, default=1200)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    out: Path = options.out
    for name in options.sites:
        site = make_site(name, out, options.people, options.workers)
        table = Table(out / name / "table.csv", KEY)
        for line, arm in lines(site, options):
            if table.has(line):
                continue
            bundle = read_bundle(options.parent)
            if arm is not None:
                bundle = brought(options, site, line, arm)
            table.add(line | measured(bundle, site, pick_device(options.device)))


def brought(options: argparse.Namespace, site: Site, line: Line, arm: Arm) -> Bundle:
    """The bundle of one line."""
    scans, seed = int(str(line["scans"])), int(str(line["seed"]))
    fit = replace(ADAPT_FITS.get(arm.scheme, ADAPT_FITS["full"]), seed=seed)
    steps = options.oracle_steps if line["scheme"] == "oracle" else options.steps
    fit = replace(fit, steps=steps or fit.steps)
    asked = Asked(
        few_of(site, scans, seed),
        options.parent,
        arm.scheme,
        "auto" if arm.drift == "auto" else None,
        shrink=arm.mean == "shrink",
    )
    target = site.manifest.parent / "-".join(str(line[k]) for k in KEY)
    adapt(asked, target, fit, options.device)
    return read_bundle(target)


if __name__ == "__main__":
    main()
