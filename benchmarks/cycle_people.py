"""Simulated people for benchmarks/cycle.py: prepared images in one memory-mapped file.

    python benchmarks/cycle_people.py --out build/cycle --n 1000 --val 40 --test 200

Numbers 0 to N - 1 train, then val, then test (preset 'lifespan', 2 mm). An image is on the model
grid as it is made, heads keeping their size; brightness is levelled as `cfgen preprocess` does it,
but the bias field comes from the true white matter (a polynomial of order 3, milliseconds instead
of N4's seconds). Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfgen.config import DEFAULT_GRID, GRIDS, PREPROCESS, SEED
from cfgen.errors import CfgenError
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import graph
from cfgen.sim.reference import reference
from cfgen.sim.render import Rendered, render

SHAPE = GRIDS[DEFAULT_GRID][0]
WHITE_MATTER = (2, 41)
FIRST_TRAIN = 400
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class People:
    """`images` (N, D, H, W) float16 in [0, 1.2], memory-mapped, and `table` a line a person."""

    images: np.ndarray
    table: list[dict[str, str]]

    def rows(self, split: str) -> np.ndarray:
        """Which people of a split there are."""
        there = [n for n, p in enumerate(self.table) if p["split"] == split and p["made"] == "1"]
        return np.array(there)

    def values(self, number: int) -> dict[str, Any]:
        """Age and sex of a person, and how ill a simulated one is, as a manifest has them."""
        person = self.table[number]
        ill = {name: float(person[name]) for name in ("ad", "aud") if name in person}
        return {"age": float(person["age"]), "sex": "M" if float(person["male"]) else "F", **ill}

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        return np.array([float(self.table[n][name]) for n in rows])


def read_people(folder: Path) -> People:
    with (folder / "people.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    images = np.load(folder / "images.npy", mmap_mode="r")
    return People(images, table)


def levelled(rendered: Rendered) -> np.ndarray:
    """(D, H, W) float16 in [0, cap]: white matter without its field, a percentile as 1."""
    image, inside = rendered.image, rendered.image > 0
    white = np.isin(rendered.labels, WHITE_MATTER) & inside
    axes = [np.linspace(-1, 1, n) for n in image.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    terms = [(i, j, k) for i in range(4) for j in range(4 - i) for k in range(4 - i - j)]

    def powers(where: np.ndarray) -> np.ndarray:
        return np.stack([x[where] ** i * y[where] ** j * z[where] ** k for i, j, k in terms], 1)

    some = white & (np.cumsum(white.ravel()).reshape(white.shape) % 10 == 0)
    beta = np.linalg.lstsq(powers(some), np.log(image[some]), rcond=None)[0]
    out = np.zeros(image.shape, np.float32)
    out[inside] = image[inside] / np.exp(powers(inside) @ beta)
    scale = np.percentile(out[inside], PREPROCESS.intensity_percentile)
    return np.clip(out / scale, 0, PREPROCESS.intensity_cap).astype(np.float16)


def line(subject: Subject, split: str) -> dict[str, str]:
    parents = subject.parents
    values = {"age": parents.age, "male": parents.male, "ad": parents.ad, "aud": parents.aud}
    values |= {"tiv": subject.volumes.tiv}
    text = {name: f"{float(v[0]):.4f}" for name, v in values.items()}
    regions = zip(graph().regions, subject.volumes.regions[0], strict=True)
    return (
        {"number": str(subject.number), "split": split, "made": "0"}
        | text
        | {name: f"{float(v):.4f}" for name, v in regions}
    )


def pictured(subject: Subject) -> np.ndarray | None:
    """The levelled image; None for one person in a hundred, whose volumes do not fit the folds of
    the one head that all are made of."""
    try:
        return levelled(render(graph(), reference(DEFAULT_GRID), subject, SEED))
    except CfgenError:
        return None


def make(
    subjects: Sequence[Subject], images: np.ndarray, table: list[dict], path: Path, workers: int
) -> None:
    """Fill the rows that are still missing; the table is written every twenty people."""
    missing = [s for s in subjects if table[s.number]["made"] == "0"]
    with ProcessPoolExecutor(workers) as pool:
        for done, (subject, image) in enumerate(
            zip(missing, pool.map(pictured, missing), strict=True)
        ):
            if image is not None:
                images[subject.number] = image
            table[subject.number]["made"] = "failed" if image is None else "1"
            if done % 20 == 0:
                write(table, path)
    write(table, path)


def write(table: list[dict], path: Path) -> None:
    with path.with_suffix(".part").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    path.with_suffix(".part").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--val", type=int, default=40)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--preset", default="lifespan")
    parser.add_argument("--seed", type=int, default=SEED, help="Of people; another are others.")
    parser.add_argument("--workers", type=int, default=1, help="Processes.")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    counts = (options.n, options.val, options.test)
    subjects = cohort.sample(graph(), cohort.preset(options.preset), options.seed, 0, sum(counts))
    splits = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    path = out / "people.csv"
    if path.exists():
        table = read_people(out).table
        images = np.load(out / "images.npy", mmap_mode="r+")
    else:
        table = [line(s, split) for s, split in zip(subjects, splits, strict=True)]
        images = np.lib.format.open_memmap(
            out / "images.npy", "w+", np.float16, (len(subjects), *SHAPE)
        )
        write(table, path)
    # A part of all first, so that training can begin before the rest is there.
    first, some = options.n + options.val, min(options.n, FIRST_TRAIN)
    val, test = subjects[options.n : first], subjects[first:]
    order = [*val, *subjects[:some], *test, *subjects[some : options.n]]
    make(order, images, table, path, options.workers)


if __name__ == "__main__":
    main()
