"""Simulated people with their true scans under other acquisitions, for acquisition_diffusion.py.

    python benchmarks/acquisition_people.py --out build/iap --people 210 --tested 40

Two cohorts of the preset 'iap', scanners at random (`randomised`) and scanners that age decides
(`confounded`): OUT/COHORT.npy and COHORT.json. Images are on the model grid, levelled by the true
white matter (benchmarks/cycle_people.py). Test people, whom no training has seen, are in
COHORT-test: each under the whole protocol of another of them (`another's`, as cDDGM's tables have
it), and the first few under another field strength and sequence.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from cycle_people import levelled
from torch import Tensor

from cfgen.config import DEFAULT_GRID, PREPROCESS
from cfgen.data.acquisition import SCALES, Protocol
from cfgen.data.conditions import parse_interventions
from cfgen.edit.acquired import contrast_of
from cfgen.errors import CfgenError
from cfgen.sim import cohort
from cfgen.sim.cohort import Subject
from cfgen.sim.graph import graph
from cfgen.sim.physics import protocol_of
from cfgen.sim.reference import reference
from cfgen.sim.render import render

SEED = 17
CONFOUNDING = {"randomised": 0.0, "confounded": 1.0}
# The other acquisitions of the first test people; who has one already is left out of it.
FIELDS = ("field_tesla=1.5", "field_tesla=3")
TARGETS = {"randomised": (*FIELDS, "sequence=SPGR", "sequence=MPRAGE"), "confounded": FIELDS}
FEW = 6
# The protocol of the next test person.
ANOTHER = "another's"
# Of the training people so many end the training.
VAL = 12
# Numbers of people whom no training has seen.
FIRST_TEST = 100_000
log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class Person:
    """`image` (D, H, W) float16 and the protocol, with what preparation leaves of it (SCALES)."""

    image: np.ndarray
    protocol: dict


@dataclass(frozen=True)
class People:
    """`images` (N, D, H, W) float16, memory-mapped, and a line each: `protocol`, and of test people
    `person` and `target`, which is empty for the person's own scan."""

    images: np.ndarray
    table: list[dict]

    def image(self, place: int) -> Tensor:
        """(D, H, W) float32."""
        return torch.from_numpy(self.images[place].astype(np.float32))

    def protocol(self, place: int) -> Protocol:
        return self.table[place]["protocol"]

    def owner(self, case: Case) -> int | None:
        """The place of the scan of the one whose whole protocol a target is, who may not be
        there."""
        protocol = unscaled(self.protocol(case.truth))
        own = (n for n, line in enumerate(self.table) if not line["target"])
        return next((n for n in own if unscaled(self.protocol(n)) == protocol), None)


@dataclass(frozen=True)
class Case:
    """A person under a target: the places of the scan and of the true other scan."""

    person: int
    target: str
    scan: int
    truth: int


def cases(people: People) -> list[Case]:
    own = {line["person"]: n for n, line in enumerate(people.table) if not line["target"]}
    return [
        Case(line["person"], line["target"], own[line["person"]], n)
        for n, line in enumerate(people.table)
        if line["target"] and line["person"] in own
    ]


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


def unscaled(protocol: Protocol) -> dict:
    """Without what preparation leaves of a scan beside its protocol: nobody knows it of another
    acquisition."""
    return {n: v for n, v in protocol.items() if n not in {s.name for s in SCALES}}


def test_subjects(name: str, n: int) -> list[tuple[Subject, list[tuple[str, Subject]]]]:
    """People and, by target, themselves under it."""
    model, found = graph(), []
    schema, chosen = cohort.schema(model), cohort.preset("iap")
    people = cohort.sample(
        model, chosen, SEED, FIRST_TEST, FIRST_TEST + n, confounding=CONFOUNDING[name]
    )
    for number, subject in enumerate(people):
        others = [(ANOTHER, replace(subject, scanner=people[(number + 1) % n].scanner))]
        for target in TARGETS[name] if number < FEW else ():
            asked = parse_interventions(schema, sets=[target])[0]
            others.append((target, cohort.counterfactual(model, subject, asked)))
        others = [(t, o) for t, o in others if o.acquisition != subject.acquisition]
        found.append((subject, others))
    return found


def make_people(out: Path, name: str, n: int, tested: int, workers: int) -> None:
    """What is not there yet of a cohort."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        if not (out / f"{name}.json").exists():
            subjects = cohort.sample(
                graph(), cohort.preset("iap"), SEED, 0, n, confounding=CONFOUNDING[name]
            )
            people = [p for p in pool.map(made, subjects, chunksize=4) if p is not None]
            save(out / name, people, [{} for _ in people])
        if not (out / f"{name}-test.json").exists():
            scans, about = [], []
            for number, (subject, others) in enumerate(test_subjects(name, tested)):
                for target, scan in [("", subject), *others]:
                    scans.append(scan)
                    about.append({"person": number, "target": target})
            results = list(pool.map(made, scans))
            there = [k for k, p in enumerate(results) if p is not None]
            save(out / f"{name}-test", [results[k] for k in there], [about[k] for k in there])
    log.info("%s: %.0f s", name, time.monotonic() - start)


def save(path: Path, people: Sequence[Person | None], about: Sequence[dict]) -> None:
    kept = [p for p in people if p is not None]
    np.save(path.with_name(path.name + ".npy"), np.stack([p.image for p in kept]))
    table = [{**a, "protocol": p.protocol} for p, a in zip(kept, about, strict=True)]
    path.with_name(path.name + ".json").write_text(json.dumps(table))


def read(path: Path) -> People:
    images = np.load(path.with_name(path.name + ".npy"), mmap_mode="r")
    return People(images, json.loads(path.with_name(path.name + ".json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohorts", nargs="+", choices=CONFOUNDING, default=list(CONFOUNDING))
    parser.add_argument("--people", type=int, default=210)
    parser.add_argument("--tested", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in options.cohorts:
        make_people(options.out, name, options.people, options.tested, options.workers)


if __name__ == "__main__":
    main()
